"""The ONNX graph of an encoder of any family, from the ``onnx/model.onnx`` that the model ships."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from headrace.contract import ATTENTION_MASK, INPUT_IDS, MOST_NUMBERS
from headrace.errors import UsageError
from headrace_launcher.encoder.graph import GraphBuilder
from headrace_launcher.modelfiles import is_count
from headrace_launcher.models import OFFSET_FAMILIES, Model
from headrace_launcher.onnxfile import load_onnx

PREFIX = "encoder/"  # in front of every name of the imported graph, so that none meets ours
STATES = ("last_hidden_state", "token_embeddings")  # as optimum and sentence-transformers say
WIDTHS = ("hidden_size", "d_model", "dim", "n_embd")  # in config.json, by family
INTEGERS = (TensorProto.INT32, TensorProto.INT64)
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
LEAST_OPSET = 12  # the first whose operators do all that is appended


def add_imported(graph: GraphBuilder, encoder: onnx.ModelProto, model: Model) -> tuple[str, int]:
    """Adds an encoder that was exported by others.

    Its ids and mask are fed from INT32; token types, where it asks for them, are zeros, and
    positions count from 0. Everything it computes beside the last hidden state is left out.

    Args:
        graph: an empty one, of the encoder's own opset; gets its nodes and constants.
        encoder: the encoder, as :func:`load_encoder` gives it.
        model: the model that it belongs to.

    Returns:
        The name of the last hidden state, FP32 [batch, sequence, width], and ``width``.

    Raises:
        UsageError: the encoder asks for something unknown or has no last hidden state.
    """
    inner = encoder.graph
    constants = {tensor.name for tensor in inner.initializer}
    for value in inner.input:
        if value.name not in constants:
            _feed(graph, value, model)
    graph.initializers.extend(inner.initializer)
    graph.sparse_initializers.extend(inner.sparse_initializer)
    graph.nodes.extend(inner.node)
    state = _last_hidden_state(inner)
    tensor = state.type.tensor_type
    width = tensor.shape.dim[2].dim_value if len(tensor.shape.dim) == 3 else 0
    # Exporters often leave the width open; then config.json knows it.
    width = width or next((model.config[key] for key in WIDTHS if key in model.config), 0)
    if not is_count(width, most=MOST_NUMBERS):
        raise UsageError(
            f"neither {model.onnx} nor config.json says how wide the hidden state is; "
            "add hidden_size to config.json"
        )
    name = state.name
    if tensor.elem_type != TensorProto.FLOAT:
        name = graph.add("Cast", name, to=TensorProto.FLOAT)
    return name, width


def load_encoder(model: Model) -> onnx.ModelProto:
    """Loads the ONNX file of a model with all its weights; every name gets :data:`PREFIX`.

    Raises:
        UsageError: there is none, it cannot be read, it names data outside of its folder, or it is
            of an opset that is too old.
    """
    if model.onnx is None:
        raise UsageError(
            f"{model.model_id} is of the family {model.family!r}, which headrace has no graph for, "
            f"and {model.folder} has no onnx/model.onnx; make one with: optimum-cli export onnx "
            f"--task feature-extraction --model {model.model_id} onnx, and put it there"
        )
    proto = load_onnx(model.onnx)
    if opset(proto) < LEAST_OPSET:
        raise UsageError(
            f"{model.onnx} is of opset {opset(proto)}, at least {LEAST_OPSET} is needed; "
            "export the model again"
        )
    try:
        return compose.add_prefix(proto, PREFIX)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(
            f"{model.onnx} is malformed ({type(error).__name__}); export the model again"
        ) from error


def opset(proto: onnx.ModelProto) -> int:
    """Returns the version of the standard operators that a model is written for."""
    return next((int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def _feed(graph: GraphBuilder, value: onnx.ValueInfoProto, model: Model) -> None:
    """Computes one input of the encoder, under its prefixed name."""
    wish, kind = value.name.removeprefix(PREFIX), value.type.tensor_type.elem_type
    if kind not in INTEGERS:
        raise UsageError(f"the model's ONNX file wants {wish!r}, which is no integer; export again")
    if any(axis.dim_value for axis in value.type.tensor_type.shape.dim):
        raise UsageError(
            f"the model's ONNX file takes {wish!r} in one size only; export it with dynamic axes: "
            "optimum-cli export onnx --task feature-extraction"
        )
    if wish in (INPUT_IDS, ATTENTION_MASK):
        graph.add("Cast", wish, to=kind, output=value.name)
    elif wish == "token_type_ids":
        zero = numpy_helper.from_array(np.zeros(1, helper.tensor_dtype_to_np_dtype(kind)))
        shape = graph.add("Shape", INPUT_IDS)
        graph.add("ConstantOfShape", shape, value=zero, output=value.name)
    elif wish == "position_ids":
        if model.family in OFFSET_FAMILIES:
            raise UsageError(
                f"the model's ONNX file wants position_ids, which {model.family} counts in its own "
                "way; export it without them: optimum-cli export onnx --task feature-extraction"
            )
        # 0, 1, 2... in every row: ones, summed up, less one.
        one = numpy_helper.from_array(np.ones(1, np.int32))
        ones = graph.add("ConstantOfShape", graph.add("Shape", INPUT_IDS), value=one)
        count = graph.add("CumSum", ones, graph.constant(np.array(1, np.int32)), exclusive=1)
        graph.add("Cast", count, to=kind, output=value.name)
    else:
        raise UsageError(
            f"the model's ONNX file wants an input {wish!r} that is not known; export it with: "
            "optimum-cli export onnx --task feature-extraction"
        )


def _last_hidden_state(inner: onnx.GraphProto) -> onnx.ValueInfoProto:
    """Returns the output of that name, or else the first of three axes of floating point."""
    outputs: list[onnx.ValueInfoProto] = [
        value for value in inner.output if value.type.tensor_type.elem_type in FLOATS
    ]
    for value in outputs:
        if value.name.removeprefix(PREFIX) in STATES:
            return value
    for value in outputs:
        if len(value.type.tensor_type.shape.dim) == 3:
            return value
    raise UsageError(
        "the model's ONNX file gives no last hidden state [batch, sequence, width]; export it "
        "with: optimum-cli export onnx --task feature-extraction"
    )
