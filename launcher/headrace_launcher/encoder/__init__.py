"""From a model to the ONNX graph of its whole way from token ids to vectors."""

from __future__ import annotations

import onnx
from onnx import helper

from headrace.errors import UsageError
from headrace_launcher.encoder.bert import add_encoder
from headrace_launcher.encoder.graph import IR_VERSION, OPSET, GraphBuilder, inputs, write_graph
from headrace_launcher.encoder.imported import add_imported, load_encoder, opset
from headrace_launcher.encoder.pooling import add_dense, add_ending, add_pooling
from headrace_launcher.encoder.precision import HALVES, halve
from headrace_launcher.models import Model

__all__ = ["GRAPH_VERSION", "build_graph", "write_graph"]

# Part of the cache key of whatever is built from a graph: raise it whenever the graph of a model
# changes.
GRAPH_VERSION = 2


def build_graph(
    model: Model,
    *,
    normalize: bool = True,
    truncate_dim: int | None = None,
    precision: str = "fp32",
    half_output: bool = False,
) -> onnx.ModelProto:
    """Writes the graph of a model: encoder, pooling, dense layers, truncation, normalisation.

    Inputs: ``input_ids`` and ``attention_mask``, INT32 [batch, sequence], both axes of any length
    up to ``model.max_positions``; rows are padded on the right with ``model.pad_id``. Output:
    ``embedding``, FP32 or FP16 [batch, dimension].

    Args:
        model: the model.
        normalize: whether vectors have unit L2 norm, whatever the model itself does last.
        truncate_dim: length that vectors are cut to, or None.
        precision: ``fp32``, or ``fp16`` or ``bf16`` for a strongly typed graph whose encoder
            computes in that, with islands of FP32; what follows the encoder is FP32.
        half_output: whether vectors are answered in FP16.

    Raises:
        UsageError: the model or its files cannot be followed, or ``truncate_dim`` is larger than
            its vectors.
    """
    if model.from_safetensors:
        graph = GraphBuilder()
        frame = helper.make_model(
            helper.make_graph([], "headrace", [], []),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        hidden, width = add_encoder(graph, model)
    else:
        frame = load_encoder(model)
        graph = GraphBuilder(opset=opset(frame))
        hidden, width = add_imported(graph, frame, model)
    if precision in HALVES:
        hidden = _halved(graph, hidden, precision, model)
    vectors = add_pooling(graph, hidden, model.pooling)
    for layer in model.dense:
        vectors = add_dense(graph, vectors, layer, width)
        width = layer.out_features
    output = add_ending(
        graph, vectors, width, truncate_dim=truncate_dim, normalize=normalize, half=half_output
    )
    return graph.finish(frame, inputs(), [output])


def _halved(graph: GraphBuilder, hidden: str, precision: str, model: Model) -> str:
    try:
        return halve(graph, hidden, precision)
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        if model.from_safetensors:  # then the graph is ours, and so is the fault
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"{model.onnx} cannot be computed in {precision} ({reason}); export the model again, "
            "or use --precision fp32"
        ) from error
