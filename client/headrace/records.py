"""A block -> an Arrow column of text, the ids, and the rows that are bad, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.blocks import BadRow, Block, as_strings, find_lines, is_utf8
from headrace.config import IdType
from headrace.errors import HeadraceError
from headrace.jsonlines import JsonReader, first_id_type

__all__ = ["BadRow", "Records", "detect_id_type", "parse"]


@dataclass(frozen=True, slots=True)
class Records:
    """The records of one block.

    Attributes:
        texts: string[rows], without nulls; "" at the bad rows. May be a slice of a longer column.
        ids: any type [rows], null where a record has none; None where no ids were asked for.
        bad: the bad rows, ascending.
    """

    texts: Any
    ids: Any | None
    bad: tuple[BadRow, ...]


def parse(block: Block, *, text_field: str, id_field: str | None, id_type: IdType) -> Records:
    """Reads the text and the id of every record of a block.

    Args:
        block: what the reader made.
        text_field: field (dots descend into objects) or, for Parquet, column that holds the text.
        id_field: field or column of the ids, or None. Plain text has none.
        id_type: type of JSONL ids, ``int64`` or ``string``; a Parquet column keeps its own.

    Returns:
        As many rows as the block has records; one whose id is not of the type is a bad row.
    """
    if block.format == "jsonl":
        if id_field is not None and id_type == "auto":
            raise ValueError("id_type must be decided for JSONL; ask detect_id_type first")
        string_ids = id_type == "string"
        reader = JsonReader(block, text_field, id_field, string_ids=string_ids)
        records = Records(*reader.read())
    elif block.format == "text":
        records = _parse_text(block)
    else:
        records = _parse_parquet(block, text_field, id_field)
    if len(records.texts) != block.rows:
        raise HeadraceError(
            f"{block.file}: internal error: {len(records.texts)} rows of {block.rows} records "
            f"from line {block.first_line} on; please report it"
        )
    return records


def detect_id_type(block: Block, id_field: str) -> Literal["int64", "string"] | None:
    """Decides the type of a run's JSONL ids by a block.

    Args:
        block: the first block; of another format than JSONL it has no such ids.
        id_field: field of the ids; dots descend into objects.

    Returns:
        None where the first readable record has no such field; ``int64`` where all ids of the
        block are integers of 64 bits, ``string`` elsewhere.
    """
    return first_id_type(block, id_field) if block.format == "jsonl" else None


def _parse_text(block: Block) -> Records:
    data: bytes = block.data
    lines = find_lines(data, "text")
    lengths = lines.ends - lines.starts
    # A string column has no gaps, so the line ends go; at most one '\r' of each, as counted.
    flat = data
    if len(lines.ends) and len(data) - int(lengths.sum()) > data.count(b"\n"):
        flat = flat.replace(b"\r\n", b"\n")
    flat = flat.replace(b"\n", b"")
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    texts = pa.StringArray.from_buffers(
        len(lengths), pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(flat)
    )
    bad: list[BadRow] = []
    if not is_utf8(data):
        for row in range(len(lengths)):
            fault = _utf8_fault(data[lines.starts[row] : lines.ends[row]])
            if fault:
                bad.append(BadRow(row, block.first_line + row, fault))
        texts = _blank(texts, bad)
    return Records(texts, None, tuple(bad))


def _parse_parquet(block: Block, text_field: str, id_field: str | None) -> Records:
    batch: Any = block.data
    texts = as_strings(batch.column(text_field))
    bad: list[BadRow] = []
    nulls = texts.null_count
    valid = pc.is_valid(texts).to_numpy(zero_copy_only=False) if nulls else None
    if valid is not None:
        reason = f"column '{text_field}' is null"
        bad += [BadRow(row, None, reason) for row in np.flatnonzero(~valid).tolist()]
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        # Cast without a check: to_pylist would stop at the first row.
        values = texts.view(pa.large_binary() if _is_large(texts) else pa.binary())
        for row, value in enumerate(values.to_pylist()):
            if value is not None and (fault := _utf8_fault(value)):
                bad.append(BadRow(row, None, fault))
        bad.sort(key=lambda one: one.row)
    texts = _blank(texts, bad)
    if _is_large(texts):
        texts = texts.cast(pa.string())
    ids = None if id_field is None else batch.column(id_field)
    return Records(texts, ids, tuple(bad))


def _is_large(texts: Any) -> bool:
    return bool(pa.types.is_large_string(texts.type))


def _utf8_fault(data: bytes) -> str | None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start + 1}"
    return None


def _blank(texts: Any, bad: list[BadRow]) -> Any:
    """Returns the column with "" at the bad rows."""
    if not bad:
        return texts
    mask = np.zeros(len(texts), np.bool_)
    mask[[one.row for one in bad]] = True
    return pc.if_else(pa.array(mask), pa.scalar("", texts.type), texts)
