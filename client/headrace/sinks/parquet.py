"""Vectors and ids as Parquet: a column ``id`` and a column ``embedding``, rows in input order.

Embeddings are written plain and uncompressed: their bits are nearly random. Over 32,768 unit
vectors of 384 Gaussian values (pyarrow 26, one core), plain pages took 1.00 of the raw bytes and
2.7 microseconds a row to write, zstd 0.93 and 4.2, and zstd after byte-stream-split 0.84 and 4.5
in float32; of the last, DuckDB 2.0 cannot read the float16 form. Plain pages are read fastest and
by everything. pyarrow, pandas and DuckDB read both types; DuckDB shows float16 as ``FLOAT[]``, and
the fixed length of the lists as a list like any other (``embedding::FLOAT[384]`` gives it back).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.config import Dtype
from headrace.sinks.base import check_rows, fill_rows
from headrace.sinks.staging import Staging

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

    Rows are copied into one buffer of a row group, so that row groups do not depend on how the
    rows arrive, and memory does not grow with their number: a buffer of up to 64 MiB, and two
    (float32) to four times (float16) as much while it is encoded. Ids wait as they are.
    """

    def __init__(
        self,
        output: Path,
        *,
        dimension: int,
        dtype: Dtype,
        id_type: pa.DataType | None,
        overwrite: bool,
    ) -> None:
        """Opens ``OUTPUT.partial/data.parquet``.

        Args:
            output: the file to write in the end.
            dimension: length of a vector.
            dtype: type of the written values; float16 rounds, and is infinite beyond 65,504.
            id_type: type of the ids; None numbers the rows in int64.
            overwrite: whether an existing output may be replaced.

        Raises:
            OutputError: the folder or the file cannot be made.
        """
        self._dimension = dimension
        self._id_type = pa.int64() if id_type is None else id_type
        values = np.dtype(dtype)
        # Values are never null, only whole rows are: readers skip one level of nulls.
        element = pa.field("element", pa.from_numpy_dtype(values), nullable=False)
        self._schema = pa.schema(
            [
                pa.field("id", self._id_type),
                pa.field("embedding", pa.list_(element, dimension)),
            ]
        )
        rows = group_rows(dimension)
        self._vectors: NDArray[np.floating] = np.empty((rows, dimension), values)
        self._valid: NDArray[np.bool_] = np.empty(rows, np.bool_)
        self._ids: list[pa.Array] = []
        self._filled = 0
        self._staging = Staging(output, overwrite=overwrite)
        with self._staging.writing():
            self._writer = pq.ParquetWriter(
                self._staging.file,
                self._schema,
                compression={"id": "zstd", _VALUES_COLUMN: "none"},
                use_dictionary=False,
                # The smallest and largest value of all vectors say nothing to a reader.
                write_statistics=["id"],
            )

    def write(
        self,
        vectors: NDArray[np.floating],
        valid: NDArray[np.bool_],
        ids: pa.Array | None,
        first_row: int,
    ) -> None:
        """Appends rows; see :meth:`headrace.sinks.base.Sink.write`."""
        self._staging.check_open()
        check_rows(vectors, valid, self._dimension, self._vectors.dtype)
        rows = len(vectors)
        if ids is None:
            ids = pa.array(np.arange(first_row, first_row + rows, dtype=np.int64))
        if ids.type != self._id_type or len(ids) != rows:
            raise ValueError(f"ids must be {self._id_type}[{rows}], not {ids.type}[{len(ids)}]")
        done = 0
        while done < rows:
            count = min(rows - done, len(self._valid) - self._filled)
            here, there = slice(done, done + count), slice(self._filled, self._filled + count)
            fill_rows(self._vectors[there], vectors[here], valid[here])
            self._valid[there] = valid[here]
            self._ids.append(ids[here])
            done += count
            self._filled += count
            if self._filled == len(self._valid):
                self._write_group()

    def commit(self) -> None:
        """Writes the last row group and the footer and renames; see :meth:`Staging.commit`."""
        self._staging.check_open()
        if self._filled:
            self._write_group()
        with self._staging.writing():
            self._writer.close()
        self._staging.commit()

    def abort(self) -> None:
        """Removes what was written; does nothing on a closed sink."""
        with suppress(OSError, ValueError, pa.ArrowException):
            # A writer that is not closed here would write its footer when it is collected.
            self._writer.close()
        self._staging.abort()

    def _write_group(self) -> None:
        vectors = self._vectors[: self._filled]
        with self._staging.writing(vectors.nbytes):
            ids = pa.chunked_array(self._ids, type=self._id_type)
            embeddings = pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)),  # a view: NumPy's memory under Arrow's type
                type=self._schema.field("embedding").type,
                mask=pa.array(~self._valid[: self._filled]),
            )
            # One chunk a column (two where string ids pass 2 GiB): pages then do not depend on
            # how the rows arrived.
            table = pa.table([ids, embeddings], schema=self._schema).combine_chunks()
            self._writer.write_table(table, row_group_size=self._filled)
        self._ids.clear()
        self._filled = 0
