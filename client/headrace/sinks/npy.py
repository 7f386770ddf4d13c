"""Vectors as one NumPy array in a file: ``.npy``, format 1.0, rows in input order.

The format is NEP 1 (https://numpy.org/neps/nep-0001-npy-format.html): a header of fixed length
that names type and shape, then the plain values. How many rows there are is known only at the
end, so the header is written again then. ``np.load(path, mmap_mode="r")`` opens the file without
reading it.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.config import Dtype
from headrace.errors import HeadraceError
from headrace.files import not_as_written, open_kept, output_errors
from headrace.sinks.base import check_rows, fill_rows

HEADER_BYTES = 128
PAGE_BYTES = 4096  # what O_DIRECT wants of places, sizes and memory, and more on most disks
_PIECE_BYTES = 4 << 20
_LARGE = 1 << 20  # bytes from which on a write is worth special care
_WRITE = 2  # SYNC_FILE_RANGE_WRITE, fcntl.h
_TYPES: dict[Dtype, np.dtype[np.floating]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
}


def header(rows: int, dimension: int, dtype: Dtype) -> bytes:
    """Returns the first :data:`HEADER_BYTES` of a file with an array of that shape."""
    shape = (rows, dimension)
    fields = f"{{'descr': '{_TYPES[dtype].str}', 'fortran_order': False, 'shape': {shape}, }}"
    prefix = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
    return prefix + fields.encode("ascii").ljust(HEADER_BYTES - 11) + b"\n"


def check_npy(path: Path, rows: int, dimension: int, dtype: Dtype) -> None:
    """Checks that a complete file of this module has the array that it should have.

    Raises:
        OutputError: it has another one, or cannot be read.
    """
    with output_errors(path), path.open("rb") as file:
        begins, size = file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
    should = HEADER_BYTES + rows * dimension * _TYPES[dtype].itemsize
    if begins != header(rows, dimension, dtype) or size != should:
        raise not_as_written(path)


@dataclass(frozen=True, slots=True)
class NpyRows:
    """Where the rows of an array lie that is being written, for whoever writes them in place.

    Attributes:
        path: the file.
        dimension: length of a vector.
        dtype: type of the written values.
    """

    path: Path
    dimension: int
    dtype: Dtype

    def place(self, first_row: int) -> int:
        """Returns the byte of the file at which a row begins."""
        return HEADER_BYTES + first_row * self.dimension * _TYPES[self.dtype].itemsize

    def write(self, vectors: NDArray[np.floating], first_row: int) -> None:
        """Writes rows at their place.

        Args:
            vectors: ``dtype``[n, dimension], contiguous; from :class:`PageAlignedRows` they go to
                the disk past the system's cache, where the file system can do that.
            first_row: number of the first of them in the array.

        Raises:
            OutputError: the disk is full, or another error of the file system.
        """
        data, at = vectors.data.cast("B"), self.place(first_row)
        first, last = -at % PAGE_BYTES, len(data) - (at + len(data)) % PAGE_BYTES
        with output_errors(self.path, size=len(data)):
            if last - first >= _LARGE and (vectors.ctypes.data - at) % PAGE_BYTES == 0:
                done = first + self._write_pages(data[first:last], at + first)
                self._write(data[:first], at)
                data, at = data[done:], at + done
            self._write(data, at)

    def _write_pages(self, data: memoryview, at: int) -> int:
        """Writes whole pages past the system's cache; returns how many bytes that could be."""
        done = 0
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno == errno.EINVAL:  # not on this file system
                return done
            raise
        try:
            while done < len(data) and done % PAGE_BYTES == 0:
                done += os.pwrite(file, data[done:], at + done)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(file)
        return done

    def _write(self, data: memoryview, at: int) -> None:
        if not data:
            return
        file = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            begin, size = at, len(data)
            while data:
                done = os.pwrite(file, data, at)
                data, at = data[done:], at + done
            if size >= _LARGE:
                _begin_to_store(file, begin, size)
        finally:
            os.close(file)


class PageAlignedRows:
    """Memory for some rows that are to be written in place, of whole pages as they lie in the file.

    Args:
        rows: where they are to be written.
    """

    def __init__(self, rows: NpyRows) -> None:
        self._rows = rows
        self._memory = np.empty(0, np.uint8)

    def array(self, first_row: int, rows: int) -> NDArray[np.floating]:
        """Returns an array [rows, dimension]; the one that was given before is void then."""
        kind, dimension = _TYPES[self._rows.dtype], self._rows.dimension
        size = rows * dimension * kind.itemsize
        if len(self._memory) < size + 2 * PAGE_BYTES:
            self._memory = np.empty(size + 2 * PAGE_BYTES, np.uint8)
        start = (self._rows.place(first_row) - self._memory.ctypes.data) % PAGE_BYTES
        return self._memory[start : start + size].view(kind).reshape(rows, dimension)


def _begin_to_store(file: int, at: int, size: int) -> None:
    """Has the disk take what was written while the next rows are computed (sync_file_range(2)).

    Without it all that does not go past the cache waits for the end. Where it cannot be done
    nothing else is lost.
    """
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).sync_file_range(file, ctypes.c_int64(at), ctypes.c_int64(size), _WRITE)


class NpySink:
    """Writes an array float32 or float16[rows, dimension]; an invalid row is NaN throughout.

    Ids are not written: row i of the array is row i of the job.

    Attributes:
        size: bytes of the file up to the last row.
    """

    def __init__(self, path: Path, *, dimension: int, dtype: Dtype, size: int = 0) -> None:
        """Opens the file.

        Args:
            path: the file.
            dimension: length of a vector.
            dtype: type of the written values; float16 rounds, and is infinite beyond 65,504.
            size: bytes of an earlier run's file to go on after; 0 makes a new one.

        Raises:
            OutputError: the file cannot be made, or has fewer bytes.
        """
        self._path = path
        self._dimension = dimension
        self._dtype = dtype
        self._type = _TYPES[dtype]
        # Small pieces keep memory flat and the conversion inside the processor's cache.
        self._piece_rows = max(1, _PIECE_BYTES // (dimension * self._type.itemsize))
        self._piece: NDArray[np.floating] | None = None
        self.size = size or HEADER_BYTES
        if size:
            self._file = open_kept(path, size)
            return
        with output_errors(path):
            self._file = path.open("wb")
            self._file.write(self._header())
            self._file.flush()

    @property
    def rows(self) -> int:
        """Rows that were written."""
        return (self.size - HEADER_BYTES) // (self._dimension * self._type.itemsize)

    def write(
        self,
        vectors: NDArray[np.floating],
        valid: NDArray[np.bool_],
        ids: pa.Array | None,  # noqa: ARG002
        first_row: int,  # noqa: ARG002
    ) -> None:
        """Appends rows; see :meth:`headrace.sinks.base.Sink.write`."""
        check_rows(vectors, valid, self._dimension, self._type)
        as_is = vectors.dtype == self._type and vectors.flags.c_contiguous
        size = vectors.size * self._type.itemsize
        with output_errors(self._path, size=size):
            for start in range(0, len(vectors), self._piece_rows):
                piece = vectors[start : start + self._piece_rows]
                piece_valid = valid[start : start + self._piece_rows]
                if as_is and piece_valid.all():
                    self._file.write(piece.data)
                else:
                    self._file.write(self._convert(piece, piece_valid).data)
            self._file.flush()
        self.size += size

    @property
    def in_place(self) -> NpyRows:
        """Where others can write rows, which :meth:`add` then counts in."""
        return NpyRows(self._path.absolute(), self._dimension, self._dtype)

    def add(self, rows: int) -> None:
        """Counts rows that somebody else has written after those that are there."""
        self.size += rows * self._dimension * self._type.itemsize

    def sync(self) -> None:
        """See :meth:`headrace.sinks.base.Sink.sync`."""
        with output_errors(self._path):
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Writes the true number of rows; see :meth:`headrace.sinks.base.Sink.finish`."""
        with output_errors(self._path):
            self._file.seek(0, io.SEEK_SET)
            self._file.write(self._header())
            self._file.flush()
            size = os.fstat(self._file.fileno()).st_size
            os.fsync(self._file.fileno())
        if size != self.size:
            raise HeadraceError(
                f"internal error: {self.rows} rows do not make {size} bytes; please report it"
            )

    def close(self) -> None:
        """Closes the file; idempotent."""
        with suppress(OSError):  # on a full disk what waits cannot be written now either
            self._file.close()

    def _convert(
        self, vectors: NDArray[np.floating], valid: NDArray[np.bool_]
    ) -> NDArray[np.floating]:
        if self._piece is None:
            self._piece = np.empty((self._piece_rows, self._dimension), self._type)
        piece = self._piece[: len(vectors)]
        fill_rows(piece, vectors, valid)
        return piece

    def _header(self) -> bytes:
        return header(self.rows, self._dimension, self._dtype)
