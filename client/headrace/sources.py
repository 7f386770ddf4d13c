"""Inputs -> line-aligned (or, for Parquet, row-aligned) blocks, in order, with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from headrace.blocks import Block, Piece, checksum, find_lines
from headrace.decompress import compression, decompress
from headrace.errors import DamagedInputError, UsageError
from headrace.inputs import BOM, Input, find_inputs, total_bytes
from headrace.parquetrows import check_columns, column_type, read_parquet

__all__ = ["Block", "Input", "column_type", "find_inputs", "read_blocks", "total_bytes"]

_ROW_BYTES = 256  # about so many a row: what is read at once
_LINE_MAX = (1 << 29) - 1  # read doubling; an Arrow string column holds 2 GiB


class _Limits:
    """How large the next block of lines may be; each may have twice the rows of the one before."""

    def __init__(self, block_bytes: int, block_rows: int, first_rows: int) -> None:
        self.bytes = block_bytes
        self.rows = min(first_rows, block_rows)
        self.most_rows = block_rows

    def grow(self) -> None:
        self.rows = min(2 * self.rows, self.most_rows)


def read_blocks(
    inputs: Sequence[Input],
    *,
    columns: Sequence[str],
    block_bytes: int,
    block_rows: int,
    first_rows: int | None = None,
) -> Iterator[Block]:
    """Reads the inputs as blocks; where a block ends depends on content and limits alone.

    Args:
        inputs: what :func:`find_inputs` returned.
        columns: for Parquet, the columns to read: the text first, then the id, if one is wanted.
            A name with dots is a top-level column of that name or a path into structs.
        block_bytes: uncompressed bytes in one block, at most; a longer row is a block of its own.
        block_rows: records in one block, at most.
        first_rows: records in the first block of lines, at most; the next ones may have twice as
            many each, up to ``block_rows``. So the work begins early. None: ``block_rows``.

    Returns:
        The blocks. An input without records has none.

    Raises:
        UsageError: at once, where a Parquet file lacks a column or has it in another type; or
            while reading, where a line is too long (512 MiB).
        DamagedInputError: while reading, after the blocks of all complete records before it.
        InputError: while reading, where an input cannot be read any more or has changed meanwhile.
    """
    wanted = tuple(dict.fromkeys(columns))
    check_columns(inputs, wanted)
    return _number(inputs, wanted, _Limits(block_bytes, block_rows, first_rows or block_rows))


def _number(inputs: Sequence[Input], columns: tuple[str, ...], limits: _Limits) -> Iterator[Block]:
    index = row = done = 0
    for number, item in enumerate(inputs):
        offset = 0
        for piece in _pieces(item, columns, limits):
            offset = max(offset, piece.offset)  # gzip takes back what lies behind a member
            yield Block(
                index=index,
                file=item.name,
                format=item.format,
                data=piece.data,
                first_row=row,
                first_line=piece.first_line,
                rows=piece.rows,
                bytes_done=done + offset,
                input=number,
                checksum=checksum(piece.data),
            )
            index, row = index + 1, row + piece.rows
        done += offset if item.size is None else item.size


def _pieces(item: Input, columns: tuple[str, ...], limits: _Limits) -> Iterator[Piece]:
    """Reads one input to its end, and sees that it is still the one that was found."""
    try:
        if item.format == "parquet":
            yield from read_parquet(item, columns, limits.bytes, limits.most_rows)
        else:
            yield from _read_lines(item, item.format, limits)
    except DamagedInputError:
        item.check_unchanged()  # not damaged, but another one by now?
        raise
    item.check_unchanged()


def _read_lines(item: Input, kind: Literal["jsonl", "text"], limits: _Limits) -> Iterator[Piece]:
    stored = item.open()
    damage: DamagedInputError | None = None
    rest, line, ended = b"", 1, False
    try:
        plain = compression(stored.peek(4)) is None
        chunks = _without_bom(decompress(stored))
        while not ended:
            # Reading as much again as is left keeps the work on one long line linear.
            parts, size = [rest], len(rest)
            want = size + max(min(limits.bytes, _ROW_BYTES * limits.rows), size) + 1
            try:
                while size < want and not ended:
                    chunk = next(chunks, b"")
                    parts.append(chunk)
                    size, ended = size + len(chunk), not chunk
            except DamagedInputError as error:
                damage, ended = error, True
            window = b"".join(parts)
            if damage:
                window = window[: window.rfind(b"\n") + 1]
            start = 0
            for stop, lines, rows in _cut(window, kind, limits, ended=ended):
                if rows:
                    offset = stored.offset - (len(window) - stop if plain else 0)
                    yield Piece(window[start:stop], line, rows, offset)
                start, line = stop, line + lines
            rest = window[start:]
            if len(rest) > max(_LINE_MAX, 2 * limits.bytes):
                raise UsageError(
                    f"{item.name}, line {line}: longer than {(_LINE_MAX + 1) >> 20} MiB; "
                    "is this a file of lines?"
                )
    finally:
        stored.close()
    if damage:
        raise damage


def _without_bom(chunks: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= len(BOM) or not BOM.startswith(head):
            break
    if head := head.removeprefix(BOM):
        yield head
    yield from chunks


def _cut(
    window: bytes,
    kind: Literal["jsonl", "text"],
    limits: _Limits,
    *,
    ended: bool,
) -> Iterator[tuple[int, int, int]]:
    """Cuts the start of a file's rest into blocks; what more content could change is left.

    Yields:
        (byte after the block, lines in it, records in it), blocks without records included.
    """
    found = find_lines(window, kind)
    whole = len(found.stops) - (not ended and not window.endswith(b"\n") and bool(window))
    stops, numbers = found.stops[:whole], found.numbers
    start = line = row = 0
    while line < whole:
        end = max(int(np.searchsorted(stops, start + limits.bytes, "right")), line + 1)
        rows = int(np.searchsorted(numbers, end)) - row
        if rows >= limits.rows:
            rows = limits.rows
            end = int(numbers[row + rows - 1]) + 1
        elif not ended and len(window) - start <= limits.bytes:
            return
        if rows:
            limits.grow()
        stop = int(stops[end - 1])
        yield stop, end - line, rows
        start, line, row = stop, end, row + rows
