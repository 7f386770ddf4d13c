"""Vectors and ids as Parquet: a column ``id`` and a column ``embedding``, rows in input order.

Embeddings are written plain and uncompressed: their bits are nearly random. Over 32,768 unit
vectors of 384 Gaussian values (pyarrow 26, one core), plain pages took 1.00 of the raw bytes and
2.7 microseconds a row to write, zstd 0.93 and 4.2, and zstd after byte-stream-split 0.84 and 4.5
in float32; of the last, DuckDB 2.0 cannot read the float16 form. Plain pages are read fastest and
by everything. pyarrow, pandas and DuckDB read both types; DuckDB shows float16 as ``FLOAT[]``, and
the fixed length of the lists as a list like any other (``embedding::FLOAT[384]`` gives it back).

A Parquet file is one only when its last bytes are written, and nobody can go on writing one that
broke off. So the rows of each block are first put, and made durable, in a file of their own
(``rows.arrows``: Arrow record batches, one after the other); a thread writes the Parquet file from
it, from its beginning if the job goes on after an interruption. Until a job is complete it takes
twice the room.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.config import Dtype
from headrace.errors import OutputError
from headrace.files import not_as_written, open_kept, output_errors
from headrace.sinks.base import check_rows

_GROUP_ROWS = 65536
_GROUP_VALUES = 16 << 20
_VALUES_COLUMN = "embedding.list.element"


def group_rows(dimension: int) -> int:
    """Returns the rows of one row group: a power of two, at most 65,536 rows and 2**24 values.

    Bounded by values, not bytes: while Arrow encodes a group it holds up to 12 bytes more for
    each value, whatever the value's own size.

    Args:
        dimension: length of a vector.
    """
    most = max(1, min(_GROUP_ROWS, _GROUP_VALUES // dimension))
    return 1 << (most.bit_length() - 1)


class ParquetSink:
    """Writes ``id`` and ``embedding``: a list of ``dimension`` values, null for an invalid row.

    Attributes:
        size: bytes of the rows that were staged.
    """

    def __init__(
        self,
        path: Path,
        rows: Path,
        *,
        dimension: int,
        dtype: Dtype,
        id_type: pa.DataType | None,
        blocks: Sequence[int] = (),
    ) -> None:
        """Opens the files.

        Args:
            path: the Parquet file; made anew.
            rows: where rows are staged.
            dimension: length of a vector.
            dtype: type of the written values; float16 rounds, and is infinite beyond 65,504.
            id_type: type of the ids; None numbers the rows in int64.
            blocks: where each block that an earlier run has staged ends, in bytes of ``rows``.

        Raises:
            OutputError: a file cannot be made, or has fewer bytes.
        """
        self._dimension = dimension
        self._type = np.dtype(dtype)
        self.schema = schema_of(dimension, dtype, id_type)
        self.size = blocks[-1] if blocks else 0
        self._rows = rows
        if self.size:
            self._file = open_kept(rows, self.size)
        else:
            with output_errors(rows):
                self._file = rows.open("wb")
        self._writer = _Writer(path, rows, self.schema, group_rows(dimension))
        for start, stop in pairwise([0, *blocks]):
            self._writer.put(start, stop)

    def write(
        self,
        vectors: NDArray[np.floating],
        valid: NDArray[np.bool_],
        ids: pa.Array | None,
        first_row: int,
    ) -> None:
        """Appends rows; see :meth:`headrace.sinks.base.Sink.write`."""
        check_rows(vectors, valid, self._dimension, self._type)
        if ids is None:
            ids = pa.array(np.arange(first_row, first_row + len(vectors), dtype=np.int64))
        kind = self.schema.field("id").type
        if ids.type != kind or len(ids) != len(vectors):
            raise ValueError(f"ids must be {kind}[{len(vectors)}], not {ids.type}[{len(ids)}]")
        data = _batch(self.schema, vectors, valid, ids, self._type).serialize()
        with output_errors(self._rows, size=len(data)):
            self._file.write(data)
            self._file.flush()
        self._writer.put(self.size, self.size + len(data))
        self.size += len(data)

    def sync(self) -> None:
        """See :meth:`headrace.sinks.base.Sink.sync`."""
        with output_errors(self._rows):
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Writes the last rows and the footer; see :meth:`headrace.sinks.base.Sink.finish`."""
        self._writer.finish()

    def close(self) -> None:
        """Closes the files; idempotent."""
        self._writer.abandon()
        with suppress(OSError):  # on a full disk what waits cannot be written now either
            self._file.close()


def schema_of(dimension: int, dtype: Dtype, id_type: pa.DataType | None) -> pa.Schema:
    """Returns the columns of an output."""
    # Values are never null, only whole rows are: readers skip one level of nulls.
    element = pa.field("element", pa.from_numpy_dtype(np.dtype(dtype)), nullable=False)
    return pa.schema(
        [
            pa.field("id", pa.int64() if id_type is None else id_type),
            pa.field("embedding", pa.list_(element, dimension)),
        ]
    )


def stage_again(
    source: Path, rows: Path, blocks: Sequence[int], *, whole: int, dimension: int, dtype: Dtype
) -> list[int]:
    """Stages the first rows of a complete Parquet file of this module, so that more can follow.

    Args:
        source: the file.
        rows: where to stage them; made anew.
        blocks: the row at which each block ends.
        whole: how many rows the file has.
        dimension: length of a vector.
        dtype: type of its values.

    Returns:
        Where each block ends, in bytes of ``rows``.

    Raises:
        OutputError: a file cannot be read or written.
    """
    ends: list[int] = []
    with output_errors(rows), rows.open("wb") as staged, _read_again(source) as file:
        kind = schema_of(dimension, dtype, None).field("embedding").type
        columns = file.schema_arrow
        if file.metadata.num_rows != whole or columns.names != ["id", "embedding"]:
            raise not_as_written(source)
        if columns.field("embedding").type != kind:
            raise not_as_written(source)
        batches = file.iter_batches(batch_size=_GROUP_ROWS)
        waiting = file.schema_arrow.empty_table()
        done = 0
        for end in blocks:
            while waiting.num_rows < end - done:
                batch = next(batches, None)
                if batch is None:
                    raise not_as_written(source)
                waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
            taken = waiting.slice(0, end - done).combine_chunks().to_batches()
            block = taken[0] if taken else pa.RecordBatch.from_pylist([], waiting.schema)
            staged.write(block.serialize())
            ends.append(staged.tell())
            waiting, done = waiting.slice(end - done), end
        staged.flush()
        os.fsync(staged.fileno())
    return ends


@contextmanager
def _read_again(source: Path) -> Iterator[pq.ParquetFile]:
    """Opens a complete file, and says so where it is none, or turns out to be none."""
    try:
        with pq.ParquetFile(source) as file:
            yield file
    except pa.ArrowException as error:
        raise not_as_written(source) from error


def _batch(
    schema: pa.Schema,
    vectors: NDArray[np.floating],
    valid: NDArray[np.bool_],
    ids: pa.Array,
    kind: np.dtype[np.floating],
) -> pa.RecordBatch:
    values = np.ascontiguousarray(vectors, kind)
    if not valid.all():
        # What stands in an invalid row is anybody's guess, and the file is to be the same.
        values = np.where(valid[:, np.newaxis], values, np.nan).astype(kind, copy=False)
    embeddings = pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)),  # a view: NumPy's memory under Arrow's type
        type=schema.field("embedding").type,
        mask=pa.array(~valid),
    )
    return pa.RecordBatch.from_arrays([ids, embeddings], schema=schema)


class _Writer:
    """Writes the Parquet file from staged rows, in a thread of its own.

    Row groups do not depend on how the rows arrive, and memory does not grow with their number: it
    holds the blocks of one row group, up to 64 MiB or a block more, and two (float32) to four times
    (float16) as much while the group is encoded.
    """

    def __init__(self, path: Path, rows: Path, schema: pa.Schema, group: int) -> None:
        self._path = path
        self._rows = rows
        self._schema = schema
        self._group = group
        self._waiting: list[pa.RecordBatch] = []
        self._have = 0
        self._failure: BaseException | None = None
        self._abandoned = False
        self._queue: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="headrace-parquet", daemon=True)
        self._thread.start()

    def put(self, start: int, stop: int) -> None:
        """Hands over a block that is staged between two bytes."""
        self._check()
        self._queue.put((start, stop))

    def finish(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self._check()

    def abandon(self) -> None:
        self._abandoned = True
        self._queue.put(None)
        self._thread.join()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            with output_errors(self._path):
                self._write()
        except BaseException as error:  # noqa: BLE001 -- raised again in the other thread
            self._failure = error

    def _write(self) -> None:
        with (
            self._rows.open("rb") as staged,
            self._path.open("wb") as file,
            pq.ParquetWriter(
                file,
                self._schema,
                compression={"id": "zstd", _VALUES_COLUMN: "none"},
                use_dictionary=False,
                # The smallest and largest value of all vectors say nothing to a reader.
                write_statistics=["id"],
            ) as writer,
        ):
            while (place := self._queue.get()) is not None and not self._abandoned:
                start, stop = place
                data = os.pread(staged.fileno(), stop - start, start)
                self._waiting.append(self._parse(data, start))
                self._have += self._waiting[-1].num_rows
                while self._have >= self._group:
                    self._write_group(writer, self._group)
            if self._have and not self._abandoned:
                self._write_group(writer, self._have)
            writer.close()
            file.flush()
            os.fsync(file.fileno())

    def _parse(self, data: bytes, start: int) -> pa.RecordBatch:
        try:
            batch = pa.ipc.read_record_batch(pa.py_buffer(data), self._schema)
            batch.validate()
        except (pa.ArrowException, OSError, EOFError) as error:
            raise OutputError(
                f"{self._rows} is damaged, at or after byte {start:,}: something else has changed "
                f"it, or the disk has; pass --overwrite to start anew"
            ) from error
        return batch

    def _write_group(self, writer: pq.ParquetWriter, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting)
        # One chunk a column (two where string ids pass 2 GiB): pages then do not depend on
        # how the rows arrived.
        writer.write_table(table.slice(0, rows).combine_chunks(), row_group_size=rows)
        self._waiting = table.slice(rows).to_batches()
        self._have -= rows
