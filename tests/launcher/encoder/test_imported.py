"""Graphs built around an ONNX file that a model ships."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.errors import UsageError
from headrace_launcher.encoder import build_graph
from headrace_launcher.encoder.imported import load_encoder
from headrace_launcher.onnxfile import external_files

WIDTH = 5
RNG = np.random.default_rng(2)
TABLE = RNG.normal(0, 1, (20, WIDTH)).astype(np.float32)
TYPES = RNG.normal(0, 1, (2, WIDTH)).astype(np.float32)
POSITIONS = RNG.normal(0, 1, (16, WIDTH)).astype(np.float32)
IDS = RNG.integers(0, 20, (3, 7)).astype(np.int32)
MASK = (np.arange(7) < np.array([[7], [2], [5]])).astype(np.int32)


def encoder(
    *,
    extra=("token_type_ids", "position_ids"),
    kind=TensorProto.INT64,
    states="last_hidden_state",
    width=WIDTH,
    opset=14,
    output_type=TensorProto.FLOAT,
    axes=("b", "s"),
):
    """An exported encoder: words + types + positions, masked; and an output that nobody wants."""
    names = ["input_ids", "attention_mask", *extra]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x0"])]
    last = "x0"
    for name, table in (("token_type_ids", "types"), ("position_ids", "positions")):
        if name in extra:
            nodes.append(helper.make_node("Gather", [table, name], [f"{name}_v"]))
            nodes.append(helper.make_node("Add", [last, f"{name}_v"], [f"{name}_sum"]))
            last = f"{name}_sum"
    nodes += [
        helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["m", "column"], ["mask3"]),
        helper.make_node("Mul", [last, "mask3"], ["masked"]),
        helper.make_node("Cast", ["masked"], [states], to=output_type),
        helper.make_node("Identity", ["m"], ["unwanted"]),
    ]
    initializers = [
        numpy_helper.from_array(TABLE, "table"),
        numpy_helper.from_array(TYPES, "types"),
        numpy_helper.from_array(POSITIONS, "positions"),
        numpy_helper.from_array(np.array([0, 0, 1]), "column"),
    ]
    graph = helper.make_graph(
        nodes,
        "exported",
        [helper.make_tensor_value_info(name, kind, list(axes)) for name in names],
        [
            helper.make_tensor_value_info("unwanted", TensorProto.FLOAT, ["b", "s"]),
            helper.make_tensor_value_info(states, output_type, ["b", "s", width]),
        ],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def want(extra=("token_type_ids", "position_ids")):
    hidden = TABLE[IDS]
    if "token_type_ids" in extra:
        hidden = hidden + TYPES[0]
    if "position_ids" in extra:
        hidden = hidden + POSITIONS[:7]
    weights = MASK[..., None].astype(np.float32)
    return (hidden * weights).sum(1) / weights.sum(1)


@pytest.fixture
def shipped(tmp_path, model_of):
    """Writes a model folder around an ONNX model: shipped(proto) -> Model."""

    def shipped(proto, *, config=None, external=None, **changes):
        (tmp_path / "onnx").mkdir(exist_ok=True)
        settings = {"model_type": "novel", **({"hidden_size": WIDTH} if config is None else config)}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        options = {"save_as_external_data": True, "location": external, "size_threshold": 0}
        onnx.save_model(proto, tmp_path / "onnx" / "model.onnx", **(options if external else {}))
        return model_of(tmp_path, **changes)

    return shipped


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize("extra", [(), ("token_type_ids",), ("token_type_ids", "position_ids")])
def test_inputs_are_fed(shipped, run, kind, extra):
    graph = build_graph(shipped(encoder(kind=kind, extra=extra)), normalize=False)
    assert [value.name for value in graph.graph.output] == ["embedding"]
    assert np.abs(run(graph, IDS, MASK) - want(extra)).max() <= 1e-5


@pytest.mark.parametrize("opset", [12, 13, 17, 20])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_every_opset(shipped, run, opset, pooling):
    have = run(build_graph(shipped(encoder(opset=opset), pooling=pooling)), IDS, MASK)
    assert np.abs(np.linalg.norm(have, axis=1) - 1).max() <= 1e-5


def test_an_output_of_another_name_and_type_is_found(shipped, run):
    proto = encoder(states="hidden", output_type=TensorProto.FLOAT16, width="w")
    have = run(build_graph(shipped(proto), normalize=False), IDS, MASK)
    assert have.dtype == np.float32
    assert np.abs(have - want()).max() <= 5e-3


def test_a_width_that_nobody_says_is_refused(shipped):
    with pytest.raises(UsageError, match="how wide"):
        build_graph(shipped(encoder(width="w"), config={}))


def test_external_data_is_read(shipped, run, tmp_path):
    model = shipped(encoder(), external="model.onnx_data")
    data = tmp_path / "onnx" / "model.onnx_data"
    assert external_files(model.onnx) == (data,)
    assert np.abs(run(build_graph(model, normalize=False), IDS, MASK) - want()).max() <= 1e-5
    # As in a hub's cache: the files are links to elsewhere.
    data.rename(tmp_path / "blob")
    data.symlink_to(tmp_path / "blob")
    assert np.abs(run(build_graph(model, normalize=False), IDS, MASK) - want()).max() <= 1e-5
    before = model.weights_hash()
    (tmp_path / "blob").write_bytes(bytes(len((tmp_path / "blob").read_bytes())))
    assert model.weights_hash() != before


def test_external_data_cut_short_or_missing_is_named(shipped, tmp_path):
    model = shipped(encoder(), external="model.onnx_data")
    data = tmp_path / "onnx" / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-20])
    with pytest.raises(UsageError, match="cut short"):
        build_graph(model)
    data.unlink()
    with pytest.raises(UsageError, match=r"model\.onnx_data"):
        build_graph(model)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret"])
def test_external_data_outside_of_the_folder_is_refused(shipped, location):
    proto = encoder()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    model = shipped(encoder())
    model.onnx.write_bytes(proto.SerializeToString())
    with pytest.raises(UsageError, match="outside"):
        load_encoder(model)
    with pytest.raises(UsageError, match="outside"):
        model.weights_hash()


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (encoder(opset=11), "opset 11"),
        (encoder(extra=("pixel_values",)), "'pixel_values' that is not known"),
        (encoder(kind=TensorProto.FLOAT), "no integer"),
        (encoder(axes=(1, "s")), "dynamic axes"),
    ],
)
def test_what_cannot_be_followed_is_named(shipped, proto, message):
    with pytest.raises(UsageError, match=message):
        build_graph(shipped(proto))


def test_a_file_without_hidden_states_is_refused(shipped):
    proto = encoder()
    del proto.graph.output[1]
    with pytest.raises(UsageError, match="no last hidden state"):
        build_graph(shipped(proto))


def test_a_broken_file_is_named(shipped):
    model = shipped(encoder())
    model.onnx.write_bytes(b"\xff" * 40)
    with pytest.raises(UsageError, match="not a readable ONNX file"):
        build_graph(model)


def test_an_unknown_family_with_neither_says_what_helps(tmp_path, model_of):
    (tmp_path / "config.json").write_text('{"model_type": "novel"}')
    with pytest.raises(UsageError, match="optimum-cli export onnx") as caught:
        build_graph(model_of(tmp_path))
    assert "'novel'" in str(caught.value)


def test_a_model_with_its_own_code_takes_its_onnx_file(shipped, run):
    config = {"model_type": "bert", "auto_map": {"AutoModel": "own.Model"}, "hidden_size": WIDTH}
    model = shipped(encoder(), config=config)
    assert np.abs(run(build_graph(model, normalize=False), IDS, MASK) - want()).max() <= 1e-5
