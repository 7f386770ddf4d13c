"""A finished output of ``headrace embed``, read in chunks: ``.npy`` or ``.parquet``."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import NDArray

from headrace.decompress import one_line
from headrace.errors import MachineError, UsageError
from headrace.feeder import NO_NUMBER
from headrace.sinks import partial_folder

_CHUNK_VALUES = 4 << 20  # of vectors that are in memory at once
_COLUMN, _IDS = "embedding", "id"
_TYPES = (np.dtype("<f4"), np.dtype("<f2"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An output.

    Attributes:
        path: the file.
        rows: how many rows it has.
        dimension: length of a vector.
        dtype: type of its values.
        ids: whether it has ids.
        offset: byte at which they begin, in a ``.npy`` file.
    """

    path: Path
    rows: int
    dimension: int
    dtype: np.dtype[Any]
    ids: bool = False
    offset: int = 0

    def chunks(self) -> Iterator[tuple[NDArray[np.floating], Any | None]]:
        """Yields all rows in order, ``dtype``[some, dimension], and their ids, if there are any.

        A row that is null is NaN.

        Raises:
            MachineError: the file cannot be read.
        """
        rows = max(1, _CHUNK_VALUES // max(1, self.dimension))
        try:
            yield from (self._npy if self.path.suffix == ".npy" else self._parquet)(rows)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.path, error) from error

    def _npy(self, rows: int) -> Iterator[tuple[NDArray[np.floating], Any | None]]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, self.rows, rows):
                count = min(rows, self.rows - start)
                values = np.fromfile(file, self.dtype, count * self.dimension)
                if len(values) != count * self.dimension:
                    raise _broken(self.path)
                yield values.reshape(count, self.dimension), None

    def _parquet(self, rows: int) -> Iterator[tuple[NDArray[np.floating], Any | None]]:
        columns = [_COLUMN, *([_IDS] if self.ids else [])]
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=rows, columns=columns):
                column = batch.column(_COLUMN)
                valid = column.is_valid().to_numpy(zero_copy_only=False)
                vectors = np.full((len(column), self.dimension), np.nan, self.dtype)
                values = column.flatten().to_numpy(zero_copy_only=False)  # without the null rows'
                vectors[valid] = values.reshape(-1, self.dimension)
                yield vectors, batch.column(_IDS) if self.ids else None


def open_written(path: Path) -> Written:
    """Opens a finished output.

    Args:
        path: its file.

    Raises:
        UsageError: it is not there, not finished, or no output of headrace.
        MachineError: it cannot be read.
    """
    if path.suffix not in {".npy", ".parquet"}:
        raise UsageError(f"{path} is no output: those end in .npy or .parquet")
    partial = partial_folder(path)
    if partial.exists():
        raise UsageError(
            f"{path} is not finished: its job lies in {partial}; give the same headrace embed "
            f"command again, which goes on with it"
        )
    if not path.is_file():
        raise UsageError(f"there is no file {path}; name a finished output of headrace embed")
    try:
        return _open_npy(path) if path.suffix == ".npy" else _open_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _open_npy(path: Path) -> Written:
    with path.open("rb") as file:
        try:
            if npy.read_magic(file) != (1, 0):
                raise _strange(path, "its format is not 1.0")
            shape, fortran, dtype = npy.read_array_header_1_0(file)
        except ValueError as error:
            raise _strange(path, "its header is none of NumPy's") from error
        offset = file.tell()
    if len(shape) != 2 or fortran or dtype not in _TYPES:
        order = ", in Fortran's order" if fortran else ""
        raise _strange(path, f"it holds {dtype}{list(shape)}{order}")
    if path.stat().st_size != offset + shape[0] * shape[1] * dtype.itemsize:
        raise _broken(path)
    return Written(path=path, rows=shape[0], dimension=shape[1], dtype=dtype, offset=offset)


def _open_parquet(path: Path) -> Written:
    with pq.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    kind = schema.field(_COLUMN).type if _COLUMN in schema.names else None
    if kind is None or not pa.types.is_fixed_size_list(kind):
        raise _strange(path, f"it has no column {_COLUMN!r} of lists of one length")
    if kind.value_type not in {pa.float32(), pa.float16()}:
        raise _strange(path, f"its column {_COLUMN!r} holds {kind.value_type}")
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    ids = _IDS in schema.names
    return Written(path=path, rows=rows, dimension=kind.list_size, dtype=dtype, ids=ids)


@dataclass(frozen=True, slots=True)
class Scan:
    """What a look at every row has found.

    Attributes:
        invalid: int64[n], the rows that are null, or have a NaN or an infinite number; ascending.
        vectors: float32[wanted, dimension], the rows that were asked for.
        ids: their ids, as Python has them; nothing where the output has none.
        odd: int64[n], the rows whose length is not 1; ascending.
    """

    invalid: NDArray[np.int64]
    vectors: NDArray[np.float32]
    ids: list[Any]
    odd: NDArray[np.int64]


def scan(written: Written, wanted: NDArray[np.int64], tolerance: float) -> Scan:
    """Looks at every row of an output, in memory that does not grow with it.

    Args:
        written: the output.
        wanted: int64[n], rows to take out, ascending.
        tolerance: by how much the length of a vector may differ from 1.

    Raises:
        MachineError: the file cannot be read.
    """
    vectors = np.empty((len(wanted), written.dimension), np.float32)
    invalid, odd = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    ids: list[Any] = []
    first = 0
    for chunk, names in written.chunks():
        start, stop = np.searchsorted(wanted, [first, first + len(chunk)])
        some = wanted[start:stop] - first
        vectors[start:stop] = chunk[some]
        if names is not None:
            ids += names.take(pa.array(some)).to_pylist()
        finite = np.isfinite(chunk).all(axis=1)
        invalid.append(np.flatnonzero(~finite) + first)
        lengths = np.linalg.norm(chunk.astype(np.float32), axis=1)
        odd.append(np.flatnonzero(finite & ~(np.abs(lengths - 1) <= tolerance)) + first)
        first += len(chunk)
    if first != written.rows:
        raise _broken(written.path)
    return Scan(np.concatenate(invalid), vectors, ids, np.concatenate(odd))


@dataclass(frozen=True, slots=True)
class Listed:
    """What an errors file describes.

    Attributes:
        rows: int64[n], rows of the run, ascending, each once.
        lines: int64[n], the line of the input that it names for each, 0 where it names none.
        by_model: int64[m], those among them for which the model gave no vector.
    """

    rows: NDArray[np.int64]
    lines: NDArray[np.int64]
    by_model: NDArray[np.int64]


def read_bad_rows(path: Path) -> Listed:
    """Returns the rows of the run that an errors file describes.

    Args:
        path: the file; where there is none there are no bad rows.

    Raises:
        MachineError: it cannot be read, or is no errors file.
    """
    rows, lines, by_model = array("q"), array("q"), array("q")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                row, place, reason = _row(line)
                if row is None or place is None:
                    raise MachineError(
                        f"{path}, line {number}: is not a bad row as headrace writes them; put the "
                        f"file back as it was written"
                    )
                rows.append(row)
                lines.append(place)
                if reason == NO_NUMBER:
                    by_model.append(row)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}; make it readable") from error
    each, first = np.unique(np.array(rows, np.int64), return_index=True)
    return Listed(each, np.array(lines, np.int64)[first], np.unique(np.array(by_model, np.int64)))


def _row(line: bytes) -> tuple[int | None, int | None, Any]:
    """Returns row, line and reason of a line; a number is None where it can be none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None, None, None
    if not isinstance(found, dict):
        return None, None, None
    place = 0 if found.get("line") is None else found["line"]
    row, place = (
        value if type(value) is int and 0 <= value < 1 << 63 else None
        for value in (found.get("row"), place)
    )
    return row, place, found.get("reason")


def _strange(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} was not written by headrace embed: {why}; name an output of it")


def _broken(path: Path) -> MachineError:
    return MachineError(
        f"{path} has another size than its header says: something else has changed it; embed again "
        f"with --overwrite"
    )


def _unreadable(path: Path, error: Exception) -> MachineError:
    return MachineError(f"{path} cannot be read: {one_line(error)}; check the file and its disk")
