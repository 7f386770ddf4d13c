"""A Parquet file -> row-aligned pieces of its wanted columns, in order, with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.blocks import Piece, as_strings, is_text
from headrace.config import MIB
from headrace.decompress import one_line, printable
from headrace.errors import DamagedInputError, UsageError
from headrace.inputs import Input

# What pyarrow raises for a damaged Parquet file; names that are not UTF-8 show when asked for.
_UNREADABLE = (OSError, pa.ArrowException, UnicodeError)


def column_type(item: Input, column: str) -> Any | None:
    """Returns the Arrow type of a Parquet input's column, or None where there is none.

    Raises:
        DamagedInputError: the file's schema cannot be read.
    """
    found = _find_column(_schema(item), column)
    return found[1] if found else None


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


def check_columns(inputs: Sequence[Input], columns: tuple[str, ...]) -> None:
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


def read_parquet(
    item: Input, columns: tuple[str, ...], block_bytes: int, block_rows: int
) -> Iterator[Piece]:
    """Reads wanted columns in pieces of at most so many bytes of text and so many rows.

    Raises:
        DamagedInputError: while reading, after the pieces of all complete rows before it.
    """
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

        def pieces() -> Iterator[Piece]:
            nonlocal row, held_rows, held_bytes
            batch = held[0] if len(held) == 1 else pa.concat_batches(held)
            held.clear()
            held_rows = held_bytes = 0
            for piece in _split(batch, block_bytes):
                first, row = row, row + piece.num_rows
                done = (item.size or 0) * row // max(meta.num_rows, row)
                yield Piece(piece, first, piece.num_rows, done)

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
