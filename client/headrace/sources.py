"""Inputs -> line-aligned (or, for Parquet, row-aligned) blocks, in order, with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.blocks import Block, as_strings, checksum, find_lines, is_text
from headrace.config import MIB
from headrace.decompress import compression, decompress, one_line, printable
from headrace.errors import DamagedInputError, UsageError
from headrace.inputs import BOM, Input, find_inputs, total_bytes

__all__ = ["Block", "Input", "column_type", "find_inputs", "read_blocks", "total_bytes"]

_ROW_BYTES = 256  # about so many a row: what is read at once
_LINE_MAX = (1 << 29) - 1  # read doubling; an Arrow string column holds 2 GiB
# What pyarrow raises for a damaged Parquet file; names that are not UTF-8 show when asked for.
_UNREADABLE = (OSError, pa.ArrowException, UnicodeError)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A block before it is numbered; ``offset`` counts bytes as stored in its own file."""

    data: Any
    first_line: int
    rows: int
    offset: int


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
    _check_columns(inputs, wanted)
    return _number(inputs, wanted, _Limits(block_bytes, block_rows, first_rows or block_rows))


def column_type(item: Input, column: str) -> Any | None:
    """Returns the Arrow type of a Parquet input's column, or None where there is none.

    Raises:
        DamagedInputError: the file's schema cannot be read.
    """
    found = _find_column(_schema(item), column)
    return found[1] if found else None


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


def _pieces(item: Input, columns: tuple[str, ...], limits: _Limits) -> Iterator[_Piece]:
    """Reads one input to its end, and sees that it is still the one that was found."""
    try:
        if item.format == "parquet":
            yield from _read_parquet(item, columns, limits.bytes, limits.most_rows)
        else:
            yield from _read_lines(item, item.format, limits)
    except DamagedInputError:
        item.check_unchanged()  # not damaged, but another one by now?
        raise
    item.check_unchanged()


def _read_lines(item: Input, kind: Literal["jsonl", "text"], limits: _Limits) -> Iterator[_Piece]:
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
                    yield _Piece(window[start:stop], line, rows, offset)
                start, line = stop, line + lines
            rest = window[start:]
            if len(rest) > max(_LINE_MAX, 2 * limits.bytes):
                raise UsageError(
                    f"{item.name}, line {line}: longer than {_LINE_MAX >> 20} MiB; "
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


def _open_parquet(item: Input) -> Any:
    try:
        # A buffered stream a column: with pre_buffer a row group's whole columns are in memory.
        return pq.ParquetFile(
            item.path,
            filesystem=item.filesystem,
            pre_buffer=False,
            buffer_size=MIB,
            page_checksum_verification=True,
        )
    except _UNREADABLE as error:
        raise _parquet_damage(item, item.size or 0, error) from error


@contextmanager
def _directory_of(item: Input) -> Iterator[Any]:
    """Opens a Parquet file; what its directory says and cannot be is damage at its end."""
    with _open_parquet(item) as file:
        try:
            yield file
        except _UNREADABLE as error:
            raise _parquet_damage(item, item.size or 0, error) from error


def _schema(item: Input) -> Any:
    with _directory_of(item) as file:
        schema = file.schema_arrow
        schema.names  # noqa: B018 -- are decoded here, and not where an error is written
    return schema


def _parquet_damage(item: Input, offset: int, error: Exception) -> DamagedInputError:
    message = (
        f"{item.name}: the Parquet file is damaged, at or after byte {offset} "
        f"({one_line(error)}); the rows before are kept, get a sound copy for the rest"
    )
    return DamagedInputError(message, file=item.name, offset=offset)


def _find_column(schema: Any, column: str) -> tuple[tuple[str, ...], Any] | None:
    """Returns the path of a column and its type; a name that has the dots itself wins."""
    if schema.get_field_index(column) >= 0:
        return (column,), schema.field(column).type
    first, *rest = column.split(".")
    if schema.get_field_index(first) < 0:
        return None
    kind = schema.field(first).type
    for name in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return (first, *rest), kind


def _check_columns(inputs: Sequence[Input], columns: tuple[str, ...]) -> None:
    """Checks all Parquet inputs before the first is read; a damaged one gets its turn later."""
    for item in inputs:
        if item.format != "parquet":
            continue
        try:
            schema = _schema(item)
        except DamagedInputError:
            continue
        for number, column in enumerate(columns):
            found = _find_column(schema, column)
            if not found:
                there = printable(", ".join(schema.names))
                raise UsageError(f"{item.name}: no column '{column}'; there are: {there}")
            if number == 0 and not is_text(found[1]):
                raise UsageError(
                    f"{item.name}: column '{column}' is {found[1]}, not a string; name another"
                )


def _read_parquet(
    item: Input, columns: tuple[str, ...], block_bytes: int, block_rows: int
) -> Iterator[_Piece]:
    with _directory_of(item) as file:
        meta = file.metadata
        paths = [path for c in columns if (path := _find_column(file.schema_arrow, c))]
        text = ".".join(paths[0][0])
        leaf = [file.schema.column(i).path for i in range(len(file.schema))].index(text)
        options = {"columns": [".".join(path) for path, _ in paths], "use_threads": False}
        counted = meta.num_rows == sum(
            meta.row_group(i).num_rows for i in range(meta.num_row_groups)
        )
        row, offset = 0, len(b"PAR1")
        held: list[Any] = []  # batches of row groups that are smaller than a block
        held_rows = held_bytes = 0

        def pieces() -> Iterator[_Piece]:
            nonlocal row, held_rows, held_bytes
            batch = held[0] if len(held) == 1 else pa.concat_batches(held)
            held.clear()
            held_rows = held_bytes = 0
            for piece in _split(batch, block_bytes):
                first, row = row, row + piece.num_rows
                done = (item.size or 0) * row // max(meta.num_rows, row)
                yield _Piece(piece, first, piece.num_rows, done)

        for number in range(meta.num_row_groups):
            group, got = meta.row_group(number), 0
            try:
                most = min(block_rows, _rows_of(file, number, leaf, block_bytes, options))
                for whole in file.iter_batches(most, row_groups=[number], **options):
                    batch = _select(whole, columns, [path for path, _ in paths])
                    got += batch.num_rows
                    rows, size = held_rows + batch.num_rows, held_bytes + batch.nbytes
                    if held and (rows > block_rows or size > block_bytes):
                        yield from pieces()
                    held.append(batch)
                    held_rows, held_bytes = held_rows + batch.num_rows, held_bytes + batch.nbytes
                    if held_rows == block_rows or held_bytes + batch.nbytes > block_bytes:
                        yield from pieces()
                # Now that it has been read it can be asked for: see _rows_of.
                chunk = group.column(leaf) if group.num_rows else None
                known = chunk.num_values if chunk else got if counted else -1
                if got != group.num_rows or got != known:
                    raise pa.ArrowInvalid(
                        f"its directory contradicts the {got} rows of group {number}"
                    )
            except _UNREADABLE as error:
                if held:
                    yield from pieces()
                raise _parquet_damage(item, offset, error) from error
            if chunk:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                offset = min(start + chunk.total_compressed_size, item.size or 0)
        if held:
            yield from pieces()
        if not counted:
            raise pa.ArrowInvalid(f"{row} rows in all row groups, {meta.num_rows} in the directory")


def _rows_of(file: Any, number: int, leaf: int, size: int, options: dict[str, Any]) -> int:
    """Returns about how many rows of a row group hold ``size`` bytes of text.

    Raises:
        OSError, pyarrow.ArrowException: what the directory says of the text cannot be.
    """
    group = file.metadata.row_group(number)
    if 0 <= group.total_byte_size <= size:
        return max(int(group.num_rows), 1)
    # Asked for a column's entry that cannot be, Arrow ends the process; reading raises an error.
    next(file.iter_batches(1, row_groups=[number], **options), None)
    # A little less, or half of the batches would leave a sliver behind.
    total = max(int(group.column(leaf).total_uncompressed_size), 1)
    return max(size * int(group.num_rows) * 15 // (total * 16), 1)


def _select(batch: Any, columns: tuple[str, ...], paths: list[tuple[str, ...]]) -> Any:
    arrays = []
    for path in paths:
        array = batch.column(path[0])
        for name in path[1:]:
            array = pc.struct_field(array, name)
        arrays.append(array)
    return pa.RecordBatch.from_arrays([as_strings(arrays[0]), *arrays[1:]], list(columns))


def _split(batch: Any, block_bytes: int) -> Iterator[Any]:
    ends = np.cumsum(pc.fill_null(pc.binary_length(batch.column(0)), 0), dtype=np.int64)
    start = 0
    while start < batch.num_rows:
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + block_bytes, "right")), start + 1)
        yield batch.slice(start, stop - start)
        start = stop
