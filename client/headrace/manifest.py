"""What of a job is durable: ``manifest.jsonl``, a line for the job and one for each block.

Where ids are written, a line between them says what these are: only the first block tells that.

A block's line is appended, and synced, only after its rows and its bad rows are. So what a manifest
tells is there, whatever happened; what was written beyond it is cut off before a job goes on. A
last line that is not whole was being written when the machine went, and counts as none; so do lines
from one with zeros on, since a later page of a file may reach the disk before an earlier one.
Each line ends with a CRC-32 of what it says: one that was changed is not taken for another number.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from headrace.errors import MachineError
from headrace.files import open_kept, output_errors, sync_folder

SCHEMA = 2
_KEY = "headrace_manifest"
_IDS = "ids"
_CHECKSUM = "crc"
_LIMIT = 1 << 63  # of what can be counted in a file


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRecord:
    """One finished block.

    Attributes:
        block: its number in the job, from 0; blocks are finished in order.
        input: number of the input that it comes from.
        first_row: number of its first record in the job.
        rows: how many records it has.
        checksum: CRC-32 of its content, see :attr:`headrace.blocks.Block.checksum`.
        bytes_done: bytes of input, as stored, up to its end.
        written: rows of the output up to its end.
        data_bytes: bytes of the staged data up to its end.
        error_bytes: bytes of the errors file up to its end.
        bad_rows: its rows that could not be embedded.
        truncated_rows: its rows that were cut.
        tokens: tokens of its rows.
        padded_tokens: the same, padding included.
        batches: batches that it was sent in.
    """

    block: int
    input: int
    first_row: int
    rows: int
    checksum: int
    bytes_done: int
    written: int
    data_bytes: int
    error_bytes: int
    bad_rows: int
    truncated_rows: int
    tokens: int
    padded_tokens: int
    batches: int

    def to_json(self) -> str:
        """Returns the record as a line of the manifest, without its end."""
        return line_of(asdict(self))


_FIELDS = {each.name for each in fields(BlockRecord)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a manifest says.

    Attributes:
        job: the job's fingerprint, see :mod:`headrace.fingerprint`.
        replaces: whether the job may replace an output that is there.
        ids: what the output's ids are, as :meth:`Manifest.note_ids` was told, or None.
        records: the finished blocks, in order.
        complete: whether the data is complete, and at most the renaming is left.
        size: bytes of the manifest that count; what follows is half a line.
    """

    job: dict[str, Any]
    replaces: bool
    ids: str | None
    records: tuple[BlockRecord, ...]
    complete: bool
    size: int


def line_of(content: dict[str, Any]) -> str:
    """Returns a line of a manifest, without its end: JSON, with the CRC-32 of the rest as its last.

    Args:
        content: what it says, one thing at least.
    """
    text = json.dumps(content, separators=(",", ":"))
    return f'{text[:-1]},"{_CHECKSUM}":{zlib.crc32(text.encode())}}}'


class Manifest:
    """A manifest that is being written.

    Args:
        path: the file.
        size: bytes of it to keep.

    Raises:
        OutputError: it cannot be opened.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._file = open_kept(path, size)

    @classmethod
    def create(
        cls,
        path: Path,
        job: dict[str, Any],
        records: Sequence[BlockRecord] = (),
        *,
        replaces: bool,
        ids: str | None = None,
    ) -> Manifest:
        """Writes a new manifest, durable and whole or not at all.

        Args:
            path: the file; replaced if it is there.
            job: the job's fingerprint.
            records: blocks that are finished already.
            replaces: whether the job may replace an output that is there.
            ids: what its ids are, if that is known.

        Raises:
            OutputError: it cannot be written.
        """
        data = line_of({_KEY: SCHEMA, "replaces": replaces, "job": job}) + "\n"
        data += "" if ids is None else line_of({_IDS: ids}) + "\n"
        data += "".join(f"{each.to_json()}\n" for each in records)
        fresh = path.with_name(f"{path.name}.new")
        with output_errors(path, size=len(data)):
            with fresh.open("wb") as file:
                file.write(data.encode())
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            sync_folder(path.parent)
        return cls(path, len(data))

    def note_ids(self, ids: str) -> None:
        """Says, before the first block, what the ids are; durable with that block.

        Raises:
            OutputError: the disk is full, or another error of the file system.
        """
        self._write(line_of({_IDS: ids}) + "\n")

    def append(self, records: Sequence[BlockRecord]) -> None:
        """Adds finished blocks; they count once :meth:`sync` returns.

        Raises:
            OutputError: the disk is full, or another error of the file system.
        """
        self._write("".join(f"{record.to_json()}\n" for record in records))

    def complete(self) -> None:
        """Says, durably, that the data is complete.

        Raises:
            OutputError: the disk is full, or another error of the file system.
        """
        self._write(line_of({"complete": True}) + "\n")
        self.sync()

    def sync(self) -> None:
        """Makes what was added durable.

        Raises:
            OutputError: the file system refused.
        """
        with output_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; idempotent."""
        with suppress(OSError):  # on a full disk what waits cannot be written now either
            self._file.close()

    def _write(self, text: str) -> None:
        with output_errors(self.path, size=len(text)):
            self._file.write(text.encode())
            self._file.flush()


def read_manifest(path: Path) -> Saved | None:
    """Returns what a manifest says, or None where there is none, or not even its first line.

    Raises:
        MachineError: it is damaged, or of another version of headrace.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}; make it readable") from error
    lines = data.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    if not lines:
        return None
    records: list[BlockRecord] = []
    ids: str | None = None
    complete = False
    size = len(lines[0])
    head = _parse(lines[0]) or {}
    if head.get(_KEY) != SCHEMA or not _is_job(head.get("job")):
        raise MachineError(
            f"{path} is not a manifest that this version of headrace reads; pass --overwrite to "
            f"start anew"
        )
    for number, line in enumerate(lines[1:], 2):
        found = _parse(line)
        if found is None and (number == len(lines) or b"\0" in line):
            break  # the disk had room for the line, and not yet its content; nor is more durable
        if number == 2 and found is not None and found.keys() == {_IDS}:
            ids = str(found[_IDS])
            size += len(line)
            continue
        record = _record(found, len(records))
        if complete or (record is None and found != {"complete": True}):
            raise MachineError(f"{path}, line {number}: is damaged; pass --overwrite to start anew")
        if record is None:
            complete = True
        else:
            records.append(record)
        size += len(line)
    return Saved(
        job=head["job"],
        replaces=head.get("replaces") is True,
        ids=ids,
        records=tuple(records),
        complete=complete,
        size=size,
    )


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns what a line says; None where it is none, or not as it was written."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    text, _, _ = line.rpartition(f',"{_CHECKSUM}":'.encode())
    if not isinstance(found, dict) or found.pop(_CHECKSUM, None) != zlib.crc32(text + b"}"):
        return None
    return found


def _is_job(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("inputs"), list):
        return False
    return all(
        isinstance(each, dict) and isinstance(each.get("path"), str) for each in found["inputs"]
    )


def _record(found: dict[str, Any] | None, block: int) -> BlockRecord | None:
    if found is None or found.keys() != _FIELDS or found["block"] != block:
        return None
    if not all(type(value) is int and 0 <= value < _LIMIT for value in found.values()):
        return None
    return BlockRecord(**found)
