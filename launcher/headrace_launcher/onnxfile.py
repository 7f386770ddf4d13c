"""ONNX files: their weights in files of their own, none outside of the model's folder.

Whatever else reads an ONNX file (ONNX's own loader, OpenVINO, TensorRT) follows the paths in it.
Here they are checked first, in every place that may hold one, and what is handed on has none left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, external_data_helper, helper

from headrace.errors import UsageError
from headrace_launcher.modelfiles import really_inside

MOST_BYTES = (1 << 31) - 1
"""Of the file itself: protobuf ends there."""
_TIMES = 4
"""How often, on average, the bytes of external data may be used: tensors may share them."""
_AGAIN = "download or export the model again"


def external_files(path: Path) -> tuple[Path, ...]:
    """Returns the files that hold the weights of an ONNX file, in a stable order.

    Raises:
        UsageError: the file is not readable, or names data outside of its folder.
    """
    locations = {_external(tensor)["location"] for tensor in _external_tensors(_load(path))}
    return tuple(_data_file(path, name) for name in sorted(locations))


def load_onnx(path: Path) -> onnx.ModelProto:
    """Loads an ONNX file with all its weights; nothing in what is returned names a file.

    Raises:
        UsageError: it cannot be read, or names data outside of its folder.
    """
    proto = _load(path)
    tensors = list(_external_tensors(proto))
    files = {_external(tensor)["location"] for tensor in tensors}
    left = _TIMES * sum(_data_file(path, name).stat().st_size for name in files)
    # Not onnx's own loader: it refuses links, and a hub's cache is made of them.
    for tensor in tensors:
        left -= _load_external(tensor, path, left)
    return proto


def _load(path: Path) -> onnx.ModelProto:
    if path.is_file() and (size := path.stat().st_size) > MOST_BYTES:
        raise UsageError(
            f"{path} has {size} bytes, an ONNX file {MOST_BYTES} at most; export the model with "
            "its weights in a file of their own"
        )
    try:
        # By its bytes: the name's ending would have it read as text or JSON.
        return onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, OSError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path} is not a readable ONNX file; {_AGAIN}") from error


def _external_tensors(proto: Message) -> Iterator[onnx.TensorProto]:
    """Yields the tensors that name a file: of graphs and their subgraphs, functions, attributes.

    By the messages' own descriptors, so that no place is forgotten that a later ONNX adds.
    Protobuf admits a hundred levels.
    """
    if isinstance(proto, onnx.TensorProto):
        if external_data_helper.uses_external_data(proto):
            yield proto
        return
    for field, value in proto.ListFields():
        if field.message_type is not None:
            for one in [value] if isinstance(value, Message) else value:
                if isinstance(one, Message):
                    yield from _external_tensors(one)


def _external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {"location": "", **{entry.key: entry.value for entry in tensor.external_data}}


def _data_file(path: Path, location: str) -> Path:
    """Returns the file that a tensor's location names."""
    # It lies in the model's folder onnx.
    model = path.parent.parent if path.parent.name == "onnx" else path.parent
    file = really_inside(path.parent, location, model=model, named_in=path)
    try:
        there = file.is_file()
    except (OSError, ValueError):  # no file can be called so
        there = False
    if not there:
        raise UsageError(
            f"{path.parent} has no file {location[:200]!r}, which {path.name} keeps its weights "
            "in; download it again"
        )
    return file


def _load_external(tensor: onnx.TensorProto, path: Path, left: int) -> int:
    """Puts a tensor's bytes into the tensor; ``left`` is how many may be. Returns how many."""
    entry = _external(tensor)
    file = _data_file(path, entry["location"])
    wanted = _bytes_of(tensor, path)
    try:
        offset = int(entry.get("offset", 0))
        length = int(entry.get("length", wanted))
    except ValueError:
        offset = length = -1
    if min(offset, length) < 0 or length != wanted or length > left:
        raise UsageError(
            f"{path}: the tensor {tensor.name[:100]!r} wants {wanted} bytes, and where they lie is "
            f"said otherwise (offset {str(entry.get('offset', 0))[:20]!r}, length "
            f"{str(entry.get('length', ''))[:20]!r}); {_AGAIN}"
        )
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(length)
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{file}, which {path.name} keeps its weights in, cannot be read; download it again"
        ) from error
    if len(data) < length:
        raise UsageError(f"{file} is cut short; download it again")
    tensor.raw_data = data
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
    return length


def _bytes_of(tensor: onnx.TensorProto, path: Path) -> int:
    """Returns how many bytes a tensor's shape and type come to."""
    half_bytes = {"INT4": 1, "UINT4": 1, "FLOAT4E2M1": 1}
    try:
        name = TensorProto.DataType.Name(tensor.data_type)
        size = 2 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path}: the tensor {tensor.name[:100]!r} is of an unknown type; {_AGAIN}"
        ) from error
    if any(length < 0 for length in tensor.dims):
        raise UsageError(f"{path}: the tensor {tensor.name[:100]!r} has no shape; {_AGAIN}")
    return -(-math.prod(map(int, tensor.dims)) * half_bytes.get(name, size) // 2)
