"""What passes from the reader to the parser: a block, and the one rule of what a record is.

``sources`` counts records to cut blocks and ``records`` turns them into rows. Both ask
:func:`find_lines`, so that row i of the output is record i of the input by construction.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.config import Format, IdType
from headrace.kernels.compiled import count_byte, eight_bytes
from headrace.kernels.lines import place_lines

_NEWLINE = 0x0A
_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some MiB of one input: the unit of dispatch, of retry and of commit.

    Attributes:
        index: number of the block in the run, from 0.
        file: the input as shown to the user.
        format: what ``data`` holds.
        data: whole lines as ``bytes``; for Parquet a ``pyarrow.RecordBatch`` whose columns are
            named as they were asked for (``meta.text``), the text column of type string or
            large_string. A batch may be a slice of a larger one.
        first_row: record number over the whole run of the first record, from 0.
        first_line: line in the decompressed file at which ``data`` begins, from 1; for Parquet
            the row in the file, from 0.
        rows: records in the block, at least 1.
        bytes_done: bytes as stored, over all inputs, that were read to get to the end of the
            block; exact for plain files, for the progress line elsewhere.
        input: number of the input in the run, from 0.
        checksum: CRC-32 of ``data``, by which a resumed run knows the block again: of the lines,
            or of the texts and their lengths.
    """

    index: int
    file: str
    format: Format
    data: bytes | Any
    first_row: int
    first_line: int
    rows: int
    bytes_done: int
    input: int = 0
    checksum: int = 0

    def place_of(self, bad: BadRow) -> str:
        """Returns where one of the block's bad rows stands: file and line, or row."""
        if bad.line is None:
            return f"{self.file}, row {self.first_line + bad.row}"
        return f"{self.file}, line {bad.line}"


@dataclass(frozen=True, slots=True)
class Piece:
    """A block before it is numbered; ``offset`` counts bytes as stored in its own file."""

    data: Any
    first_line: int
    rows: int
    offset: int


@dataclass(frozen=True, slots=True)
class IdColumn:
    """Where a run's ids come from.

    Attributes:
        field: field or column of the ids, or None where rows are numbered.
        type: their Arrow type in the output, or None where rows are numbered.
    """

    field: str | None = None
    type: Any | None = None

    @property
    def json_type(self) -> IdType:
        """How ids are read from JSONL."""
        whole = self.type is not None and pa.types.is_integer(self.type)
        return "int64" if whole else "string"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that has no text to embed.

    Attributes:
        row: number of the record in its block, from 0.
        line: its line in the decompressed file, from 1; None for Parquet.
        reason: what is wrong with it, in a few words.
    """

    row: int
    line: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    r"""Where the lines of some bytes lie, and which of them are records.

    Attributes:
        stops: int64[lines], byte after each line's ``\n``; the length of the data for a last
            line without one.
        starts: int64[rows], first byte of each record.
        ends: int64[rows], byte after each record's last, the line end not included.
        numbers: int64[rows], index into ``stops`` of each record's line.
    """

    stops: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]


def find_lines(data: bytes, kind: Literal["jsonl", "text"]) -> Lines:
    r"""Finds the lines and the records of some bytes that begin at a line's start.

    A line ends at ``\n``, and one ``\r`` before it belongs to the line end. Every line of plain
    text is a record. In JSONL a line of nothing but spaces, tabs and ``\r`` is none, and the
    others are trimmed of these at both ends.

    Args:
        data: whole lines; the last may lack its ``\n``.
        kind: whose rules hold.

    Returns:
        The places of all lines and records.
    """
    array = np.frombuffer(data, np.uint8)
    most = count_byte(array, _NEWLINE) + 1
    stops, starts, ends, numbers = (np.empty(most, np.int64) for _ in range(4))
    lines, rows = place_lines(
        array, eight_bytes(data), kind == "text", stops, starts, ends, numbers
    )
    return Lines(
        stops=stops[:lines], starts=starts[:rows], ends=ends[:rows], numbers=numbers[:rows]
    )


def name_rows(block: Block, rows: Sequence[int]) -> str:
    """Names rows of a block for a person: the file, and their lines (for Parquet: rows) in it.

    Args:
        block: the block, with its data.
        rows: their numbers in the block.
    """
    if block.format == "parquet":
        unit, numbers = "row", [block.first_line + row for row in rows]
    else:
        lines = find_lines(block.data, block.format).numbers
        unit, numbers = "line", [block.first_line + int(lines[row]) for row in rows]
    shown = ", ".join(map(str, sorted(numbers)[:_MOST_SHOWN]))
    more = len(rows) - _MOST_SHOWN
    units = unit if len(rows) == 1 else f"{unit}s"
    return f"{block.file}, {units} {shown}" + (f" and {more} more" if more > 0 else "")


def checksum(data: bytes | pa.RecordBatch) -> int:
    """Returns the CRC-32 of a block's data: of its bytes, or of its texts and their lengths.

    Args:
        data: whole lines, or a batch whose first column is string or large_string.
    """
    if isinstance(data, bytes):
        return zlib.crc32(data)
    texts = data.column(0)
    _, offsets, content = texts.buffers()
    kind = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    if not len(texts):
        return 0
    ends = np.frombuffer(offsets, kind, len(texts) + 1, texts.offset * np.dtype(kind).itemsize)
    lengths = zlib.crc32(np.diff(ends).astype(np.int64).data)
    if content is None:
        return lengths
    return zlib.crc32(memoryview(content)[int(ends[0]) : int(ends[-1])], lengths)


def is_utf8(data: bytes) -> bool:
    """Returns whether the bytes are valid UTF-8, without making a string of them."""
    if data.isascii():
        return True
    offsets = struct.pack("<2q", 0, len(data))
    text = pa.LargeStringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(data))
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def is_text(kind: Any) -> bool:
    """Returns whether an Arrow type is a string, a dictionary of strings, or nothing but nulls."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def as_strings(column: Any) -> Any:
    """Returns a column for which :func:`is_text` holds as string or large_string."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    return column
