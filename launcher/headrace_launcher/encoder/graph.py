"""Writes ONNX nodes one after another; what the encoder modules share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.contract import ATTENTION_MASK, INPUT_IDS

OPSET = 17  # the first with LayerNormalization as one node
IR_VERSION = 8  # what opset 17 came with; every runtime in use reads it
EXTERNAL_DATA_FROM = 1_500_000_000  # bytes; protobuf ends at 2 GiB


class GraphBuilder:
    """Collects nodes and constants, and names the tensors between them.

    Attributes:
        opset: version of the ONNX operators that the nodes are written for.
        nodes: the nodes so far, in an order that can be computed.
        initializers: the constants so far.
        sparse_initializers: sparse constants, which only imported graphs have.
    """

    def __init__(self, *, opset: int = OPSET) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.sparse_initializers: list[onnx.SparseTensorProto] = []
        self._names: set[str] = {INPUT_IDS, ATTENTION_MASK}

    def name(self, wish: str) -> str:
        """Returns ``wish``, or with a number behind it where that name is taken."""
        unique, count = wish, 1
        while unique in self._names:
            count += 1
            unique = f"{wish}_{count}"
        self._names.add(unique)
        return unique

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node with one output.

        Args:
            operator: the ONNX operator.
            inputs: names of the tensors that it reads.
            output: name of its output; made from the operator where empty.
            attributes: the operator's attributes.

        Returns:
            The name of the output.
        """
        name = self.name(output or operator.lower())
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values: npt.ArrayLike, *, output: str = "constant") -> str:
        """Adds a constant of the array's own dtype and returns its name."""
        name = self.name(output)
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def scalar(self, value: float) -> str:
        """Adds an FP32 scalar."""
        name = self.name("scalar")
        self.initializers.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def ints(self, values: Sequence[int]) -> str:
        """Adds an INT64 vector: a shape, axes, or bounds."""
        return self.constant(np.array(values, np.int64), output="ints")

    def reduce_sum(self, tensor: str, axis: int) -> str:
        """Sums over ``axis`` and keeps it with length 1."""
        if self.opset < 13:  # the axes were an attribute until then
            return self.add("ReduceSum", tensor, axes=[axis], keepdims=1)
        return self.add("ReduceSum", tensor, self.ints([axis]), keepdims=1)

    def finish(
        self,
        frame: onnx.ModelProto,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """Returns a model of these nodes; operator versions and functions are ``frame``'s."""
        model = onnx.ModelProto(
            ir_version=frame.ir_version,
            opset_import=frame.opset_import,
            functions=frame.functions,
            producer_name="headrace",
        )
        model.graph.name = "headrace"
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(self.initializers)
        model.graph.sparse_initializer.extend(self.sparse_initializers)
        model.graph.input.extend(inputs)
        model.graph.output.extend(outputs)
        return model


def inputs() -> list[onnx.ValueInfoProto]:
    """Returns the two inputs of every graph: INT32 [batch, sequence] each."""
    return [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "sequence"])
        for name in (INPUT_IDS, ATTENTION_MASK)
    ]


def write_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Writes a graph to ``path``; its weights beside it where one file would be too large.

    Args:
        graph: the graph; after a write with external data its weights are no longer in it.
        path: the file to write; external data goes to the same name with ``.data`` behind it.
    """
    options: dict[str, Any] = {}
    if graph.ByteSize() > EXTERNAL_DATA_FROM:
        data = path.with_name(path.name + ".data")
        data.unlink(missing_ok=True)  # onnx appends to a file that is there
        options = {"save_as_external_data": True, "location": data.name}
    onnx.save_model(graph, path, **options)
