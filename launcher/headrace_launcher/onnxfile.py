"""ONNX files: their weights in files of their own, none outside of the model's folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper

from headrace.errors import UsageError
from headrace_launcher.modelfiles import really_inside


def external_files(path: Path) -> tuple[Path, ...]:
    """Returns the files that hold the weights of an ONNX file, in a stable order.

    Raises:
        UsageError: the file is not readable, or names data outside of its folder.
    """
    locations = {_external(tensor)["location"] for tensor in _external_tensors(_load(path))}
    return tuple(inside(path.parent, name, named_in=path) for name in sorted(locations))


def load_onnx(path: Path) -> onnx.ModelProto:
    """Loads an ONNX file with all its weights.

    Raises:
        UsageError: it cannot be read, or names data outside of its folder.
    """
    proto = _load(path)
    # Not onnx's own loader: it refuses links, and a hub's cache is made of them.
    for tensor in _external_tensors(proto):
        _load_external(tensor, path)
    return proto


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load_model(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise UsageError(
            f"{path} is not a readable ONNX file; download or export the model again"
        ) from error


def _external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    tensors = _graph_tensors(proto.graph)
    nodes = (node for function in proto.functions for node in function.node)
    for tensor in itertools.chain(tensors, _node_tensors(nodes)):
        if external_data_helper.uses_external_data(tensor):
            yield tensor


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)


def _external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {"location": "", **{entry.key: entry.value for entry in tensor.external_data}}


def _load_external(tensor: onnx.TensorProto, path: Path) -> None:
    """Puts a tensor's bytes into the tensor."""
    entry = _external(tensor)
    file = inside(path.parent, entry["location"], named_in=path)
    try:
        with file.open("rb") as stream:
            stream.seek(int(entry.get("offset", 0)))
            data = stream.read(int(entry.get("length", -1)))
    except OSError as error:
        raise UsageError(
            f"{file}, which {path.name} keeps its weights in, cannot be read; download it again"
        ) from error
    if len(data) < int(entry.get("length", 0)):
        raise UsageError(f"{file} is cut short; download it again")
    tensor.raw_data = data
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
