"""The files of a model, which may be anybody's: JSON within bounds, and no path that leads out."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from headrace.contract import MOST_TOKENIZER_BYTES
from headrace.errors import UsageError

MOST_BYTES = 64 << 20
"""Of a JSON file: an index of a million tensors fits."""
DEEPEST = 100
"""Objects and arrays within each other, in a JSON file."""


def read_object(file: Path, *, most: int = MOST_BYTES) -> dict[str, Any]:
    """Returns the JSON object in a file; an empty one where there is no such file.

    Args:
        file: the file.
        most: bytes that it may have.

    Raises:
        UsageError: the file is not readable, not JSON, too large or too deep, or not an object.
    """
    content = read_json(file, most=most)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds no JSON object; download or export the model again")
    return content


def read_tokenizer(file: Path) -> dict[str, Any]:
    """Returns what a ``tokenizer.json`` holds.

    Raises:
        UsageError: see :func:`read_object`.
    """
    return read_object(file, most=MOST_TOKENIZER_BYTES)


def read_json(file: Path, *, most: int = MOST_BYTES) -> Any:
    """Returns what a JSON file holds, None where there is no such file.

    Args:
        file: the file.
        most: bytes that it may have.

    Raises:
        UsageError: the file is not readable, not JSON, too large or too deep.
    """
    try:
        if not file.exists():
            return None
        if not file.is_file():  # a FIFO would be waited for, a device has no end
            raise UsageError(f"{file} is no regular file; put the model's own there")
        if (size := file.stat().st_size) > most:
            raise UsageError(
                f"{file} has {size} bytes, {most} at most are read; is it the model's?"
            )
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{file} is not readable as JSON ({reason}); download or export the model again"
        ) from error
    if _is_deeper(content, DEEPEST):
        raise UsageError(
            f"{file} has objects within each other, more than {DEEPEST} deep; download or export "
            "the model again"
        )
    return content


def _is_deeper(content: Any, most: int) -> bool:
    level = [content]
    for _ in range(most):
        level = [
            each
            for one in level
            if isinstance(one, list | dict)
            for each in (one.values() if isinstance(one, dict) else one)
            if isinstance(each, list | dict)
        ]
        if not level:
            return False
    return True


def as_object(value: Any) -> dict[str, Any]:
    """Returns a JSON object as it is, and an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def is_count(value: Any, *, least: int = 1, most: int = (1 << 31) - 1) -> TypeGuard[int]:
    """Returns whether a value from JSON is a whole number within bounds (and not true or false)."""
    return type(value) is int and least <= value <= most


def inside(folder: Path, relative: str, *, named_in: Path) -> Path:
    """Returns ``folder / relative``.

    Raises:
        UsageError: the path would lead out of the folder.
    """
    # By its parts, not resolved: a hub's cache is a folder of links to files elsewhere.
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or "\\" in relative or "\0" in relative:
        raise UsageError(
            f"{named_in} names {relative[:200]!r}, which lies outside of {folder}; "
            "a model's files must lie in its folder"
        )
    return folder / path


def really_inside(folder: Path, relative: str, *, model: Path, named_in: Path) -> Path:
    """Does what :func:`inside` does, and follows links: they must not leave the model's folder.

    The cache of the Hugging Face hub is the exception: there a snapshot's files are links to the
    same repository's ``blobs`` (huggingface_hub, "Understand caching").

    Args:
        folder: what the path starts from.
        relative: the path.
        model: the model's folder.
        named_in: the file that names the path.

    Raises:
        UsageError: the path would lead out of the folder, or a link that it meets out of the
            model's.
    """
    path = inside(folder, relative, named_in=named_in)
    try:
        real, root = path.resolve(), model.resolve()
        allowed = [root, *(up.parent / "blobs" for up in root.parents if up.name == "snapshots")]
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle
        raise UsageError(
            f"{named_in} names {relative[:200]!r}, which cannot be followed; download the model "
            "again"
        ) from error
    if not any(real.is_relative_to(each) for each in allowed):
        raise UsageError(
            f"{named_in} names {relative[:200]!r}, a link to {real}, outside of {model}; a "
            "model's files must lie in its folder: copy it there if it is meant"
        )
    return path
