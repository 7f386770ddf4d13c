"""From the encoder's last hidden state to one vector a row: what ends every graph."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from headrace.contract import ATTENTION_MASK, EMBEDDING
from headrace.errors import UsageError
from headrace_launcher.encoder.graph import GraphBuilder
from headrace_launcher.encoder.weights import Weights
from headrace_launcher.modules import Dense

LEAST_NORM = 1e-12  # torch.nn.functional.normalize's eps


def add_pooling(graph: GraphBuilder, hidden: str, pooling: str) -> str:
    """Adds the pooling of sentence-transformers (``Pooling.forward`` in its ``pooling.py``).

    ``mean``: sum(x * mask) / max(sum(mask), 1e-9); a row without a token gives zeros.
    ``cls``: the first token. ``last``: the last token that is not padding. Rows are padded on the
    right.

    Args:
        graph: gets the nodes; reads its input ``attention_mask``.
        hidden: name of the last hidden state, FP32 [batch, sequence, width].
        pooling: ``mean``, ``cls`` or ``last``.

    Returns:
        The name of the pooled vectors, FP32 [batch, width].

    Raises:
        UsageError: ``pooling`` is none of these.
    """
    if pooling == "cls":
        zero = graph.constant(0, output="zero")
        return graph.add("Gather", hidden, zero, axis=1, output="pooled")
    if pooling == "mean":
        # [batch, sequence, 1]; 0 keeps an axis.
        mask = graph.add("Cast", ATTENTION_MASK, to=TensorProto.FLOAT)
        mask = graph.add("Reshape", mask, graph.ints([0, 0, 1]))
        total = graph.reduce_sum(graph.add("Mul", hidden, mask), 1)
        count = graph.add("Max", graph.reduce_sum(mask, 1), graph.scalar(1e-9))
        mean = graph.add("Div", total, count)
        return _squeeze(graph, mean, "pooled")
    if pooling == "last":
        count = graph.reduce_sum(graph.add("Cast", ATTENTION_MASK, to=TensorProto.INT64), 1)
        last = graph.add("Sub", count, graph.ints([1]))
        index = graph.add("Max", last, graph.ints([0]))
        return graph.add("GatherND", hidden, index, batch_dims=1, output="pooled")
    raise UsageError(f"pooling {pooling!r} is not supported, only mean, cls and last")


def add_dense(graph: GraphBuilder, vectors: str, layer: Dense, width: int) -> str:
    """Adds a dense layer: activation(W x + b), as sentence-transformers' ``Dense``.

    Args:
        graph: gets the nodes.
        vectors: name of the vectors, FP32 [batch, width].
        layer: the layer.
        width: length of the vectors that come in.

    Returns:
        The name of the result, FP32 [batch, ``layer.out_features``].

    Raises:
        UsageError: the layer does not fit the vectors, or its tensors are missing or misshapen.
    """
    if layer.in_features != width:
        raise UsageError(
            f"{layer.folder} takes vectors of {layer.in_features} numbers, but gets {width}; "
            "download or export the model again"
        )
    with Weights([layer.weights], anchor="linear.weight") as weights:
        matrix = weights.get("linear.weight", (layer.out_features, width))
        vectors = graph.add("MatMul", vectors, graph.constant(matrix.T, output="dense.weight"))
        if layer.bias:
            bias = weights.get("linear.bias", (layer.out_features,))
            vectors = graph.add("Add", vectors, graph.constant(bias, output="dense.bias"))
    return graph.add("Tanh", vectors) if layer.activation == "tanh" else vectors


def add_ending(
    graph: GraphBuilder,
    vectors: str,
    width: int,
    *,
    truncate_dim: int | None,
    normalize: bool,
    half: bool = False,
) -> onnx.ValueInfoProto:
    """Adds truncation and L2 normalisation, in this order, and names the output ``embedding``.

    The first numbers of a vector are an embedding of their own where the model was trained for it
    (Kusupati et al. 2022, https://arxiv.org/abs/2205.13147). Normalisation is
    ``torch.nn.functional.normalize``: x / max(||x||, 1e-12).

    Args:
        graph: gets the nodes.
        vectors: name of the vectors, FP32 [batch, width].
        width: their length.
        truncate_dim: length to cut to, or None.
        normalize: whether to normalise.
        half: whether to round to FP16 at last.

    Returns:
        The graph's output: ``embedding``, FP32 or FP16 [batch, dimension].

    Raises:
        UsageError: ``truncate_dim`` is not between 1 and ``width``.
    """
    if truncate_dim is not None and not 1 <= truncate_dim <= width:
        raise UsageError(
            f"the model's vectors have {width} numbers and cannot be cut to {truncate_dim}; "
            f"choose --truncate-dim between 1 and {width}"
        )
    if truncate_dim is not None and truncate_dim < width:
        bounds = map(graph.ints, ([0], [truncate_dim], [1]))
        vectors, width = graph.add("Slice", vectors, *bounds), truncate_dim
    if normalize:
        squares = graph.reduce_sum(graph.add("Mul", vectors, vectors), 1)
        norm = graph.add("Max", graph.add("Sqrt", squares), graph.scalar(LEAST_NORM))
        vectors = graph.add("Div", vectors, norm)
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    graph.add("Cast", vectors, output=EMBEDDING, to=kind)
    return onnx.helper.make_tensor_value_info(EMBEDDING, kind, ["batch", width])


def _squeeze(graph: GraphBuilder, tensor: str, output: str) -> str:
    """Drops axis 1 of length 1, in a spelling that is the same in every opset."""
    return graph.add("Gather", tensor, graph.constant(0, output="zero"), axis=1, output=output)
