"""Pooling, dense layers, truncation and normalisation against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from headrace.errors import UsageError
from headrace_launcher.encoder.graph import IR_VERSION, GraphBuilder, inputs
from headrace_launcher.encoder.pooling import add_dense, add_ending, add_pooling
from headrace_launcher.modules import Dense

WIDTH = 6
MASK = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.int32)
IDS = np.arange(16, dtype=np.int32).reshape(4, 4)
TABLE = np.random.default_rng(5).normal(0, 1, (16, WIDTH)).astype(np.float32)
HIDDEN = TABLE[IDS]  # [rows, tokens, WIDTH]


def chain(pooling, dense=(), *, truncate_dim=None, normalize=False, opset=17):
    """A graph whose hidden state is TABLE at each token's id."""
    graph = GraphBuilder(opset=opset)
    # Plus the mask times nothing: OpenVINO drops an input that nothing reads.
    nothing = graph.add("Mul", graph.add("Cast", "attention_mask", to=1), graph.scalar(0.0))
    column = graph.add("Reshape", nothing, graph.ints([0, 0, 1]))
    hidden = graph.add("Gather", graph.constant(TABLE), "input_ids", axis=0)
    hidden = graph.add("Add", hidden, column)
    vectors, width = add_pooling(graph, hidden, pooling), WIDTH
    for layer in dense:
        vectors, width = add_dense(graph, vectors, layer, width), layer.out_features
    output = add_ending(graph, vectors, width, truncate_dim=truncate_dim, normalize=normalize)
    frame = helper.make_model(
        helper.make_graph([], "frame", [], []),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION,
    )
    return graph.finish(frame, inputs(), [output])


def dense_layer(folder, *, out=3, width=WIDTH, activation="identity", bias=True):
    folder.mkdir()
    rng = np.random.default_rng(out)
    tensors = {"linear.weight": rng.normal(0, 1, (out, width)).astype(np.float32)}
    if bias:
        tensors["linear.bias"] = rng.normal(0, 1, out).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    layer = Dense(
        folder=folder, activation=activation, in_features=width, out_features=out, bias=bias
    )
    return layer, tensors


def mean():
    return (HIDDEN * MASK[..., None]).sum(1) / np.maximum(MASK.sum(1, keepdims=True), 1e-9)


@pytest.mark.parametrize("opset", [12, 13, 17, 21])
def test_mean(run, opset):
    have = run(chain("mean", opset=opset), IDS, MASK)
    assert have.shape == (4, WIDTH)
    assert np.abs(have - mean()).max() <= 1e-6
    assert np.array_equal(have[3], np.zeros(WIDTH))


def test_cls(run):
    assert np.array_equal(run(chain("cls"), IDS, MASK), HIDDEN[:, 0])


@pytest.mark.parametrize("opset", [12, 13, 17, 21])
def test_last(run, opset):
    have = run(chain("last", opset=opset), IDS, MASK)
    assert np.array_equal(have[:3], [HIDDEN[0, 3], HIDDEN[1, 0], HIDDEN[2, 1]])
    assert np.isfinite(have).all()


def test_an_unknown_pooling_is_named():
    with pytest.raises(UsageError, match="'max'"):
        chain("max")


def test_truncation_comes_before_normalisation(run):
    have = run(chain("mean", truncate_dim=4, normalize=True), IDS, MASK)
    want = mean()[:, :4]
    want = want / np.maximum(np.linalg.norm(want, axis=1, keepdims=True), 1e-12)
    assert have.shape == (4, 4)
    assert np.abs(have - want).max() <= 1e-6
    assert np.array_equal(have[3], np.zeros(4))  # no division by zero


def test_truncation_to_all_is_none(run):
    assert np.array_equal(
        run(chain("mean", truncate_dim=WIDTH), IDS, MASK), run(chain("mean"), IDS, MASK)
    )


@pytest.mark.parametrize("dimension", [WIDTH + 1, 0])
def test_truncation_out_of_range_is_refused(dimension):
    with pytest.raises(UsageError, match=f"between 1 and {WIDTH}"):
        chain("mean", truncate_dim=dimension)


def test_the_output_says_its_dimension():
    output = chain("mean", truncate_dim=2).graph.output[0]
    assert output.name == "embedding"
    assert output.type.tensor_type.elem_type == TensorProto.FLOAT
    assert [axis.dim_value for axis in output.type.tensor_type.shape.dim] == [0, 2]


def test_dense_layers_follow_each_other(run, tmp_path):
    first, a = dense_layer(tmp_path / "2_Dense", out=5, activation="tanh")
    second, b = dense_layer(tmp_path / "3_Dense", out=2, width=5, bias=False)
    have = run(chain("mean", [first, second]), IDS, MASK)
    want = np.tanh(mean() @ a["linear.weight"].T + a["linear.bias"]) @ b["linear.weight"].T
    assert np.abs(have - want).max() <= 1e-5


def test_a_dense_layer_that_does_not_fit_is_named(tmp_path):
    layer, _ = dense_layer(tmp_path / "2_Dense", width=WIDTH + 1)
    with pytest.raises(UsageError, match="2_Dense takes vectors of 7 numbers, but gets 6"):
        chain("mean", [layer])


def test_a_dense_layer_without_its_bias_is_named(tmp_path):
    layer, tensors = dense_layer(tmp_path / "2_Dense")
    save_file({"linear.weight": tensors["linear.weight"]}, layer.weights)
    with pytest.raises(UsageError, match=r"linear\.bias"):
        chain("mean", [layer])


@pytest.mark.torch
@pytest.mark.parametrize(
    ("pooling", "mode"), [("mean", "mean"), ("cls", "cls"), ("last", "lasttoken")]
)
def test_pooling_equals_that_of_sentence_transformers(run, pooling, mode):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("sentence_transformers.models")
    module = models.Pooling(WIDTH, pooling_mode=mode)
    rows = slice(0, 3)  # of a row without a token only the mean is defined
    features = {
        "token_embeddings": torch.from_numpy(HIDDEN[rows]),
        "attention_mask": torch.from_numpy(MASK[rows]).long(),
    }
    want = module(features)["sentence_embedding"]
    want = torch.nn.functional.normalize(want).numpy()
    have = run(chain(pooling, normalize=True), IDS[rows], MASK[rows])
    assert np.abs(have - want).max() <= 1e-6
