"""The ONNX graph of a BERT-like encoder, straight from its safetensors files.

Covers the families whose encoder layer is Devlin et al.'s (2018, https://arxiv.org/abs/1810.04805):
post-layer-norm self-attention and feed-forward, with learnt absolute positions. They differ in
tensor names, in where positions start, and in whether there are token types. The reference for all
of it is Hugging Face transformers, ``models/{bert,distilbert,roberta}/modeling_*.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from headrace.contract import ATTENTION_MASK, INPUT_IDS
from headrace.errors import UsageError
from headrace_launcher.encoder.graph import GraphBuilder
from headrace_launcher.encoder.weights import Weights
from headrace_launcher.modelfiles import is_count
from headrace_launcher.models import Model

# exp() of it is 0 in fp32 for every score that occurs, and it is finite in fp32 and bf16, so that a
# row without a single token gets evenly spread attention instead of NaN (fp32's minimum is -inf in
# bf16).
MASKED = -1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names that one family gives to the tensors and settings of a layer."""

    layer: str
    query: str
    key: str
    value: str
    attention: str
    attention_norm: str
    up: str
    down: str
    norm: str
    hidden_size: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    activation: str = "hidden_act"


BERT = Names(
    layer="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm="output.LayerNorm",
)
DISTILBERT = Names(
    layer="transformer.layer",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    norm="output_layer_norm",
    hidden_size="dim",
    layers="n_layers",
    heads="n_heads",
    activation="activation",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What ``config.json`` says about an encoder.

    Attributes:
        names: the family's names.
        vocab_size: number of tokens, or None where nothing is said.
        positions: rows of the table of positions, or None where nothing is said.
        hidden: width of a token's vector.
        layers: number of layers.
        heads: number of attention heads.
        epsilon: what LayerNorm adds to the variance.
        activation: name of the feed-forward activation, as in transformers.
        pad_offset: the id that positions are counted from (RoBERTa), or None (from 0).
        token_types: whether the family has token types.
    """

    names: Names
    vocab_size: int | None
    positions: int | None
    hidden: int
    layers: int
    heads: int
    epsilon: float
    activation: str
    pad_offset: int | None
    token_types: bool

    @property
    def square(self) -> tuple[int, int]:
        """Shape of a matrix from tokens to tokens."""
        return self.hidden, self.hidden

    @classmethod
    def of(cls, config: Mapping[str, Any], *, pad_id: int) -> Shape:
        """Reads and checks the settings.

        Raises:
            UsageError: a setting is missing, impossible, or not one that this graph can follow.
        """
        family = config["model_type"]
        names = DISTILBERT if family == "distilbert" else BERT
        sizes: dict[str, int] = {}
        for key in (names.hidden_size, names.layers, names.heads):
            value = config.get(key)
            if not is_count(value):
                raise UsageError(
                    f"config.json: {key!r} must be a positive number, not {str(value)[:100]!r}"
                )
            sizes[key] = value
        hidden, heads = sizes[names.hidden_size], sizes[names.heads]
        if hidden % heads:
            raise UsageError(
                f"config.json: {names.hidden_size!r} ({hidden}) is not a multiple of "
                f"{names.heads!r} ({heads})"
            )
        kind = config.get("position_embedding_type", "absolute")
        if kind != "absolute":
            raise UsageError(
                f"config.json: position_embedding_type {str(kind)[:100]!r} is not supported, only "
                "'absolute'; choose a model with absolute positions"
            )
        if config.get("is_decoder"):
            raise UsageError("config.json: is_decoder is true; only encoders are supported")
        # DistilBERT has no such setting: transformers writes 1e-12 into its code.
        epsilon = config.get("layer_norm_eps", 1e-12)
        if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
            raise UsageError(
                f"config.json: layer_norm_eps must be between 0 and 1, not {str(epsilon)[:100]!r}"
            )
        vocab_size, positions = config.get("vocab_size"), config.get("max_position_embeddings")
        return cls(
            names=names,
            hidden=hidden,
            layers=sizes[names.layers],
            heads=heads,
            positions=positions if isinstance(positions, int) else None,
            vocab_size=vocab_size if isinstance(vocab_size, int) else None,
            epsilon=float(epsilon),
            activation=str(config.get(names.activation, "gelu"))[:100],
            pad_offset=pad_id if family not in ("bert", "distilbert") else None,
            token_types=family != "distilbert",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The tensors that run from layer to layer.

    Attributes:
        states: FP32 [batch, sequence, hidden].
        bias: what is added to attention scores, FP32 [batch, 1, 1, sequence].
    """

    states: str
    bias: str


def add_encoder(graph: GraphBuilder, model: Model) -> tuple[str, int]:
    """Adds the encoder to a graph.

    Args:
        graph: gets the nodes; reads its inputs ``input_ids`` and ``attention_mask``.
        model: a model of one of ``models.SAFETENSORS_FAMILIES``, with safetensors weights.

    Returns:
        The name of the last hidden state, FP32 [batch, sequence, hidden], and ``hidden``.

    Raises:
        UsageError: the model's settings are not supported, or a tensor is missing or misshapen.
    """
    shape = Shape.of(model.config, pad_id=model.pad_id)
    with Weights(model.weights, anchor="embeddings.word_embeddings.weight") as weights:
        states = _embeddings(graph, weights, shape)
        flow = Flow(states=states, bias=_attention_bias(graph))
        for index in range(shape.layers):
            flow = _layer(graph, weights, shape, flow, f"{shape.names.layer}.{index}")
    return flow.states, shape.hidden


def _embeddings(graph: GraphBuilder, weights: Weights, shape: Shape) -> str:
    """Adds word + token type 0 + position, normalised: [batch, sequence, hidden]."""
    # Ids below vocab_size are let through to the engine, so that the table must have them all.
    words = weights.get("embeddings.word_embeddings.weight", (shape.vocab_size, shape.hidden))
    if shape.token_types:
        # Every token's type is 0 here; transformers adds the types before the positions, so that
        # adding them beforehand rounds the same way.
        types = weights.get("embeddings.token_type_embeddings.weight", (None, shape.hidden))
        if not len(types):
            raise UsageError("the model's table of token types is empty; export the model again")
        words = words + types[0]
    table = weights.get("embeddings.position_embeddings.weight", (shape.positions, shape.hidden))
    positions = graph.constant(table, output="embeddings/positions")
    table_of_words = graph.constant(words, output="embeddings/words")
    x = graph.add("Gather", table_of_words, INPUT_IDS, axis=0)
    if shape.pad_offset is None:
        length = graph.add("Slice", graph.add("Shape", INPUT_IDS), *map(graph.ints, ([1], [2])))
        rows = graph.add("Slice", positions, graph.ints([0]), length, graph.ints([0]))
    else:
        # create_position_ids_from_input_ids of modeling_roberta.py: only what is not padding is
        # counted, even where the padding token stands in the middle of a text.
        pad = graph.constant(np.array([shape.pad_offset], np.int32), output="pad")
        token = graph.add(
            "Cast", graph.add("Not", graph.add("Equal", INPUT_IDS, pad)), to=TensorProto.INT32
        )
        count = graph.add("CumSum", token, graph.constant(np.array(1, np.int32)))
        ids = graph.add("Add", graph.add("Mul", count, token), pad, output="position_ids")
        rows = graph.add("Gather", positions, ids, axis=0)
    x = graph.add("Add", x, rows)
    return _layer_norm(graph, weights, shape, x, "embeddings.LayerNorm")


def _attention_bias(graph: GraphBuilder) -> str:
    """Adds what is added to the scores: 0 at tokens, MASKED at padding, [batch, 1, 1, sequence]."""
    mask = graph.add("Cast", ATTENTION_MASK, to=TensorProto.FLOAT)
    padding = graph.add("Sub", graph.scalar(1.0), mask)
    bias = graph.add("Mul", padding, graph.scalar(MASKED))
    return graph.add("Unsqueeze", bias, graph.ints([1, 2]), output="attention_bias")


def _layer(graph: GraphBuilder, weights: Weights, shape: Shape, flow: Flow, name: str) -> Flow:
    """Adds one encoder layer: [batch, sequence, hidden] to the same."""
    names = shape.names
    attended = _attention(graph, weights, shape, flow, name)
    attended = _linear(graph, weights, attended, f"{name}.{names.attention}", shape.square)
    x = graph.add("Add", attended, flow.states)
    x = _layer_norm(graph, weights, shape, x, f"{name}.{names.attention_norm}")
    wide = _linear(graph, weights, x, f"{name}.{names.up}", (None, shape.hidden))
    wide = add_activation(graph, shape.activation, wide)
    narrow = _linear(graph, weights, wide, f"{name}.{names.down}", (shape.hidden, None))
    x = graph.add("Add", narrow, x)
    x = _layer_norm(graph, weights, shape, x, f"{name}.{names.norm}")
    return Flow(states=x, bias=flow.bias)


def _attention(graph: GraphBuilder, weights: Weights, shape: Shape, flow: Flow, name: str) -> str:
    """Adds softmax(q k^T / sqrt(size) + bias) v (Vaswani et al. 2017, 3.2.1), heads side by side.

    Query, key and value are three products: one product of three times the width was measured with
    OpenVINO (64 rows of 60 tokens) and is not faster.
    """
    names, size = shape.names, shape.hidden // shape.heads
    split = graph.ints([0, 0, shape.heads, size])
    # 1 / sqrt(size) goes into the query's weights: one operation less over the largest tensor.
    # Keys as columns: [batch, heads, size, sequence]; the others [batch, heads, sequence, size].
    parts = (
        (names.query, size**-0.5, [0, 2, 1, 3]),
        (names.key, 1.0, [0, 2, 3, 1]),
        (names.value, 1.0, [0, 2, 1, 3]),
    )
    heads = []
    for part, scale, axes in parts:
        x = _linear(graph, weights, flow.states, f"{name}.{part}", shape.square, scale=scale)
        x = graph.add("Reshape", x, split)
        heads.append(graph.add("Transpose", x, perm=axes))
    query, key, value = heads
    scores = graph.add("Add", graph.add("MatMul", query, key), flow.bias)
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
    mixed = graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
    return graph.add("Reshape", mixed, graph.ints([0, 0, shape.hidden]))


def _linear(
    graph: GraphBuilder,
    weights: Weights,
    x: str,
    name: str,
    shape: tuple[int | None, int | None],
    *,
    scale: float = 1.0,
) -> str:
    """Adds (x W^T + b) * scale; ``shape`` is W's as torch stores it: [to, from]."""
    matrix = weights.get(f"{name}.weight", shape)
    vector = weights.get(f"{name}.bias", (matrix.shape[0],))
    if scale != 1.0:
        matrix, vector = matrix * np.float32(scale), vector * np.float32(scale)
    product = graph.add("MatMul", x, graph.constant(matrix.T, output=f"{name}.weight"))
    return graph.add("Add", product, graph.constant(vector, output=f"{name}.bias"))


def _layer_norm(graph: GraphBuilder, weights: Weights, shape: Shape, x: str, name: str) -> str:
    """Adds LayerNorm over the last axis."""
    tensors = [
        graph.constant(weights.get(f"{name}.{part}", (shape.hidden,)), output=f"{name}.{part}")
        for part in ("weight", "bias")
    ]
    return graph.add("LayerNormalization", x, *tensors, axis=-1, epsilon=shape.epsilon)


def add_activation(graph: GraphBuilder, name: str, x: str) -> str:
    """Adds a feed-forward activation.

    GELU is Hendrycks and Gimpel's (2016, https://arxiv.org/abs/1606.08415): ``gelu`` the exact one,
    ``gelu_new`` and ``gelu_pytorch_tanh`` the approximation by tanh.

    Raises:
        UsageError: the activation is not one of these, nor ``relu``.
    """
    if name == "relu":
        return graph.add("Relu", x)
    if name == "gelu":
        ratio = graph.add("Div", x, graph.scalar(math.sqrt(2)))
        factor = graph.add("Add", graph.add("Erf", ratio), graph.scalar(1.0))
    elif name in ("gelu_new", "gelu_pytorch_tanh"):
        cube = graph.add("Mul", graph.add("Mul", x, x), x)
        inner = graph.add("Add", x, graph.add("Mul", cube, graph.scalar(0.044715)))
        inner = graph.add("Mul", inner, graph.scalar(math.sqrt(2 / math.pi)))
        factor = graph.add("Add", graph.add("Tanh", inner), graph.scalar(1.0))
    else:
        raise UsageError(
            f"config.json: activation {name!r} is not supported, only gelu, gelu_new, "
            "gelu_pytorch_tanh and relu; choose another model"
        )
    return graph.add("Mul", graph.add("Mul", x, factor), graph.scalar(0.5))
