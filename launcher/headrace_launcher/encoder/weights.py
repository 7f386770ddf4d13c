"""Reads the weights of a model from its safetensors files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from headrace.errors import UsageError

FLOATS = ("F64", "F32", "F16", "BF16")
# LayerNorm's tensors as they were called when BERT was published for TensorFlow.
OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

Array = npt.NDArray[np.float32]


class Weights:
    """The tensors of one or several safetensors files, by the names that transformers gives them.

    Checkpoints put a prefix in front of every name (``bert.``, ``model.``, ``0.auto_model.``),
    depending on the class that they were saved from; it is found by a tensor that every model has.

    Args:
        files: the safetensors files.
        anchor: name of a tensor that must be there once; what stands in front of it is the prefix.

    Raises:
        UsageError: a file cannot be read, or the anchor is not there, or more than once.
    """

    def __init__(self, files: Sequence[Path], *, anchor: str) -> None:
        self._where = ", ".join(str(file) for file in files)
        self._stack = ExitStack()
        self._files: dict[str, tuple[Any, Path]] = {}
        try:
            for file in files:
                handle = self._stack.enter_context(_open(file))
                self._files.update((name, (handle, file)) for name in handle.keys())  # noqa: SIM118
            self._prefix = self._find_prefix(self._files, anchor)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _find_prefix(self, names: Iterable[str], anchor: str) -> str:
        found = [
            name.removesuffix(anchor)
            for name in names
            if name == anchor or name.endswith("." + anchor)
        ]
        if len(found) == 1:
            return found[0]
        if not found:
            raise UsageError(
                f"no tensor '*{anchor}' in {self._where}; the weights do not fit config.json's "
                "model_type: export the model again with save_pretrained"
            )
        raise UsageError(
            f"several encoders ({', '.join(sorted(found)[:5])}) in {self._where}; save the one "
            "that is wanted on its own with save_pretrained"
        )

    def get(self, name: str, shape: tuple[int | None, ...]) -> Array:
        """Returns a tensor in FP32.

        Args:
            name: the name in transformers, without the prefix.
            shape: the shape that it must have; None stands for any length.

        Raises:
            UsageError: the tensor is missing, misshapen, or not of floating point.
        """
        key = self._find(name)
        if key is None:
            raise UsageError(
                f"tensor '{self._prefix}{name}' is missing in {self._where}; the file does not "
                "fit config.json: download or export the model again"
            )
        handle, file = self._files[key]
        view = handle.get_slice(key)
        found = tuple(view.get_shape())
        if len(found) != len(shape) or any(
            want is not None and want != have for want, have in zip(shape, found, strict=True)
        ):
            wanted = ", ".join("*" if length is None else str(length) for length in shape)
            raise UsageError(
                f"tensor {key!r} in {file} has shape {list(found)}, config.json says [{wanted}]; "
                "download or export the model again"
            )
        dtype = view.get_dtype()
        if dtype not in FLOATS:
            raise UsageError(
                f"tensor {key!r} in {file} is {dtype}; only {', '.join(FLOATS)} are supported: "
                "choose a model that is not quantised"
            )
        if dtype == "BF16":
            return _read_bf16(file, key).reshape(found)
        return np.asarray(handle.get_tensor(key), dtype=np.float32)

    def _find(self, name: str) -> str | None:
        keys = [self._prefix + name]
        keys += [
            self._prefix + name.removesuffix(new) + old
            for new, old in OLD_NAMES.items()
            if name.endswith(new)
        ]
        return next((key for key in keys if key in self._files), None)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"{file} is not a readable safetensors file ({reason}); download or export the model "
            "again"
        ) from error


def _read_bf16(file: Path, key: str) -> Array:
    """Returns a BF16 tensor as flat FP32: NumPy has no such type, but it is FP32's upper half."""
    # https://huggingface.co/docs/safetensors: u64 length of the JSON header, the header, the data.
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        begin, end = json.loads(stream.read(length))[key]["data_offsets"]
        stream.seek(8 + length + begin)
        halves = np.frombuffer(stream.read(end - begin), dtype="<u2")
    return (halves.astype(np.uint32) << 16).view(np.float32)
