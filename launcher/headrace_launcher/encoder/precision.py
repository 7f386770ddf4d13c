"""An FP32 encoder -> one that computes in half precision, with islands of FP32.

A strongly typed engine (NVIDIA TensorRT, "Strongly Typed Networks") computes each operation in the
types that the graph gives it, so the graph must say them. Products of matrices and what only moves
or joins their results are computed in half; in FP32 are normalisations and softmax, everything that
can leave the range of FP16 (powers, sums), what is made from the mask, and every operator that is
not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.errors import UsageError
from headrace_launcher.encoder.graph import GraphBuilder

HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
LARGEST = {"fp16": 65504.0, "bf16": 3.3895e38}  # finite numbers

# Always in half: what costs the time.
_PRODUCTS = {"MatMul", "Gemm"}
# In half if what flows into them is, and nothing of it is FP32.
_FOLLOWING = {
    *("Add", "Sub", "Mul", "Div", "Where", "Relu", "Erf", "Tanh", "Gelu", "Sigmoid", "Neg"),
    *("Reshape", "Transpose", "Gather", "Slice", "Concat", "Split", "Squeeze", "Unsqueeze"),
    *("Expand", "Identity", "Flatten"),
}
# In FP32, and their results in half again.
_ISLANDS = {"LayerNormalization", "Softmax"}
_NESTED = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}


def halve(graph: GraphBuilder, hidden: str, precision: str) -> str:
    """Rewrites an encoder's nodes and constants so that it computes in half precision.

    Args:
        graph: an encoder in FP32, and nothing else; changed in place.
        hidden: name of its last hidden state, FP32 [batch, sequence, width].
        precision: ``fp16`` or ``bf16``.

    Returns:
        The name of the last hidden state, again FP32 [batch, sequence, width].

    Raises:
        UsageError: a weight is too large for fp16, or the graph branches or loops.
    """
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        if (constant := _float_constant(node)) is None:
            graph.nodes.append(node)
        else:
            graph.initializers.append(constant)
    halved = _Halved(graph, precision)
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        halved.add(node)
    name = halved.of(hidden, TensorProto.FLOAT)
    halved.drop_unused()
    return name


@dataclass(slots=True)
class _Halved:
    """A graph that is being rewritten.

    Attributes:
        graph: gets the nodes.
        precision: ``fp16`` or ``bf16``.
        types: ONNX type of every tensor so far, as it is now.
        constants: the constants in FP32 by name.
        cast: name of a tensor in another type than its own.
    """

    graph: GraphBuilder
    precision: str
    types: dict[str, int] = field(init=False)
    constants: dict[str, onnx.TensorProto] = field(init=False)
    cast: dict[tuple[str, int], str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.types = _types(self.graph)
        self.constants = {
            tensor.name: tensor
            for tensor in self.graph.initializers
            if tensor.data_type == TensorProto.FLOAT
        }

    @property
    def half(self) -> int:
        """The ONNX type of half precision."""
        return HALVES[self.precision]

    def add(self, node: onnx.NodeProto) -> None:
        """Adds a node in the precision that is its own."""
        if any(attribute.type in _NESTED for attribute in node.attribute):
            raise UsageError(
                f"the model's ONNX file branches or loops ({node.op_type}), which cannot be "
                f"computed in {self.precision}; export it again without, or use --precision fp32"
            )
        floats = {TensorProto.FLOAT, self.half}
        kind = self._kind(node)
        fresh = onnx.NodeProto()
        fresh.CopyFrom(node)
        if self._is_cast_to_float(node):
            kind = TensorProto.FLOAT
        else:
            for place, name in enumerate(node.input):
                if self.types.get(name) in floats:
                    fresh.input[place] = self.of(name, kind)
        self.graph.nodes.append(fresh)
        for place, name in enumerate(node.output):
            if self.types.get(name) not in floats:
                continue
            self.types[name] = kind
            if node.op_type in _ISLANDS:
                # Whatever reads it gets it in half: half the memory to write and to read.
                inner = self.graph.name(f"{name}/{node.op_type.lower()}")
                fresh.output[place] = inner
                self.graph.nodes.append(
                    helper.make_node("Cast", [inner], [name], name=f"{name}/half", to=self.half)
                )
                self.types[name] = self.half

    def of(self, name: str, kind: int) -> str:
        """Returns the name of a tensor in a type; it is converted where it has another one."""
        if self.types[name] == kind:
            return name
        if (name, kind) not in self.cast:
            other = self.graph.name(f"{name}/{TensorProto.DataType.Name(kind).lower()}")
            self.cast[name, kind] = other
            self.types[other] = kind
            if name in self.constants:
                values = numpy_helper.to_array(self.constants[name])
                self.graph.initializers.append(self._constant(values, other))
            else:
                self.graph.nodes.append(
                    helper.make_node("Cast", [name], [other], name=other, to=kind)
                )
        return self.cast[name, kind]

    def drop_unused(self) -> None:
        """Removes the constants that only were read in FP32."""
        used = {name for node in self.graph.nodes for name in node.input}
        self.graph.initializers = [
            tensor for tensor in self.graph.initializers if tensor.name in used
        ]

    def _kind(self, node: onnx.NodeProto) -> int:
        if node.op_type in _PRODUCTS:
            return self.half
        if node.op_type not in _FOLLOWING:
            return TensorProto.FLOAT
        floats = [name for name in node.input if self.types.get(name) in HALVES.values()]
        full = [name for name in node.input if self.types.get(name) == TensorProto.FLOAT]
        fixed = [name for name in full if name in self.constants]
        if len(full) > len(fixed) or not all(map(self._fits, fixed)):
            return TensorProto.FLOAT
        # Rows of a table that is a constant are the beginning of the flow.
        table = node.op_type in {"Gather", "Slice"} and bool(fixed)
        return self.half if floats or table else TensorProto.FLOAT

    def _is_cast_to_float(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Cast" and self.types.get(node.output[0]) == TensorProto.FLOAT

    def _fits(self, name: str) -> bool:
        values = numpy_helper.to_array(self.constants[name])
        return bool(values.size == 0 or np.abs(values).max() <= LARGEST[self.precision])

    def _constant(self, values: npt.NDArray[np.float32], name: str) -> onnx.TensorProto:
        if values.size and not np.abs(values).max() <= LARGEST[self.precision]:
            raise UsageError(
                f"the weight {name.rsplit('/', 1)[0]!r} holds numbers that are too large for "
                f"{self.precision}; use --precision bf16 or fp32"
            )
        if self.precision == "fp16":
            return numpy_helper.from_array(values.astype(np.float16), name)
        raw = to_bf16(values).tobytes()
        return helper.make_tensor(name, TensorProto.BFLOAT16, values.shape, raw, raw=True)


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Returns the bits of ``values`` in bfloat16, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _float_constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Returns what a Constant node holds as a constant of the graph; None of other nodes."""
    if node.op_type != "Constant" or node.attribute[0].name != "value":
        return None
    if node.attribute[0].t.data_type != TensorProto.FLOAT:
        return None
    constant = onnx.TensorProto()
    constant.CopyFrom(node.attribute[0].t)
    constant.name = node.output[0]
    return constant


def _types(graph: GraphBuilder) -> dict[str, int]:
    """Returns the ONNX type of each tensor of a graph, as ONNX infers it.

    The constants' values are left out: a graph with all of them may be too large for protobuf.
    """
    known = {tensor.name: tensor.data_type for tensor in graph.initializers}
    values = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in graph.initializers
    ]
    read = {name for node in graph.nodes for name in node.input}
    made = {name for node in graph.nodes for name in node.output}
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "sequence"])
        for name in sorted(read - made - set(known) - {""})
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "types", [*ids, *values], []),
        opset_imports=[helper.make_opsetid("", graph.opset)],
    )
    inferred = onnx.shape_inference.infer_shapes(model)
    for value in (*inferred.graph.input, *inferred.graph.value_info):
        known[value.name] = value.type.tensor_type.elem_type
    return known
