"""Graphs in half precision: what is computed in what, and how near to FP32 it comes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from headrace.errors import UsageError
from headrace_launcher.encoder import build_graph
from headrace_launcher.encoder.graph import GraphBuilder
from headrace_launcher.encoder.precision import halve, to_bf16

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")
HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def inferred(graph):
    """The type of every tensor; strict, so that a node of mixed types is an error."""
    found = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True)
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    for value in (*found.graph.input, *found.graph.value_info, *found.graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def cosines(one, other):
    one, other = one.astype(np.float64), other.astype(np.float64)
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_half_and_the_islands_are_not(family, precision, family_folder, model_of):
    graph = build_graph(model_of(family_folder(family)), precision=precision, half_output=True)
    onnx.checker.check_model(graph)
    types = inferred(graph)
    seen = Counter()
    for node in graph.graph.node:
        kinds = {types[name] for name in node.input if name} & {TensorProto.FLOAT, *HALF.values()}
        assert len(kinds) <= 1, node.op_type  # as a strongly typed engine wants it
        if node.op_type in {"MatMul", "Erf", "Transpose"}:
            assert kinds == {HALF[precision]}, node.name
        if node.op_type in {"LayerNormalization", "Softmax", "ReduceSum", "Sqrt"}:
            assert kinds == {TensorProto.FLOAT}, node.name
        seen[node.op_type] += 1
    assert seen["MatMul"] >= 8
    assert seen["LayerNormalization"] >= 3
    assert types["embedding"] == TensorProto.FLOAT16
    # Each weight is there once: in half, or where an island reads it in FP32.
    large = [t for t in graph.graph.initializer if len(t.dims) == 2]
    assert large
    assert all(tensor.data_type == HALF[precision] for tensor in large)
    read = {name for node in graph.graph.node for name in node.input}
    assert all(tensor.name in read for tensor in graph.graph.initializer)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_in_half_precision_are_near_the_golden_ones(
    family, family_folder, golden, model_of
):
    want = golden(family)
    feeds = {
        "input_ids": want["ids"].astype(np.int32),
        "attention_mask": want["mask"].astype(np.int32),
    }
    model = model_of(family_folder(family))
    full = ReferenceEvaluator(build_graph(model)).run(None, feeds)[0]
    half = ReferenceEvaluator(build_graph(model, precision="fp16")).run(None, feeds)[0]
    assert half.dtype == np.float32
    assert cosines(full, half).min() > 0.9999
    assert not np.array_equal(full, half)
    rounded = ReferenceEvaluator(build_graph(model, precision="fp16", half_output=True))
    assert rounded.run(None, feeds)[0].dtype == np.float16


def test_a_row_of_padding_alone_gives_no_nan(family_folder, model_of):
    graph = build_graph(model_of(family_folder("bert")), precision="fp16")
    feeds = {"input_ids": np.zeros((2, 4), np.int32), "attention_mask": np.zeros((2, 4), np.int32)}
    assert np.isfinite(ReferenceEvaluator(graph).run(None, feeds)[0]).all()


def builder(nodes, **constants):
    graph = GraphBuilder()
    graph.nodes = nodes
    graph.initializers = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    ]
    return graph


def evaluate(graph, hidden, ids):
    frame = helper.make_model(
        helper.make_graph([], "f", [], []), opset_imports=[helper.make_opsetid("", graph.opset)]
    )
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["b", "s"])]
    output = helper.make_tensor_value_info(hidden, TensorProto.FLOAT, None)
    return ReferenceEvaluator(graph.finish(frame, inputs, [output])).run(None, {"input_ids": ids})[
        0
    ]


def test_what_could_overflow_is_computed_in_fp32():
    """A layer norm in pieces over large numbers, as older exports have it."""
    table = np.random.default_rng(1).normal(0, 800, (9, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2))),
        helper.make_node("Pow", ["centred", "two"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["variance"], axes=[-1]),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["normal"]),
        helper.make_node("MatMul", ["normal", "matrix"], ["out"]),
    ]
    graph = builder(nodes, table=table, matrix=np.eye(16, dtype=np.float32))
    hidden = halve(graph, "out", "fp16")
    ids = np.arange(9, dtype=np.int32)[None]
    have = evaluate(graph, hidden, ids)[0]
    want = (table - table.mean(1, keepdims=True)) / table.std(1, keepdims=True)
    np.testing.assert_allclose(have, want, atol=5e-3)


def test_a_large_constant_is_not_made_infinite():
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Mul", ["x", "large"], ["y"]),
        helper.make_node("Div", ["y", "large"], ["out"]),
    ]
    graph = builder(nodes, table=np.ones((2, 3), np.float32), large=np.float32(1e6))
    hidden = halve(graph, "out", "fp16")
    np.testing.assert_array_equal(evaluate(graph, hidden, np.zeros((1, 2), np.int32)), 1)


def test_a_weight_that_is_too_large_is_told():
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "matrix"], ["out"]),
    ]
    matrix = np.full((3, 3), 1e5, np.float32)
    for precision, fits in (("fp16", False), ("bf16", True)):
        graph = builder(list(nodes), table=np.ones((2, 3), np.float32), matrix=matrix)
        if fits:
            halve(graph, "out", precision)
        else:
            with pytest.raises(UsageError, match="'matrix' holds numbers that are too large"):
                halve(graph, "out", precision)


def test_branches_are_refused():
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("If", ["flag"], ["out"], then_branch=inner, else_branch=inner),
    ]
    graph = builder(nodes, table=np.ones((2, 3), np.float32), flag=np.array(True))
    with pytest.raises(UsageError, match="branches or loops"):
        halve(graph, "out", "fp16")


def test_bf16_is_rounded_to_the_nearest():
    torch_like = np.array([1.0, 1.00390625, 1.01171875, 3.0e38, -2.5, 0.0], np.float32)
    bits = to_bf16(torch_like)
    back = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(back, torch_like, rtol=2**-8)
    assert back[1] == 1.0  # a tie goes to the even one
    assert back[2] == np.float32(1.015625)
