"""Lists of token ids by number, in NumPy arrays that grow."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.kernels.words import SPARE

T = TypeVar("T", bound=np.generic)


class IdLists:
    """Many short lists of token ids, numbered from 0, one behind the other in one array."""

    def __init__(self) -> None:
        self._ids = np.zeros(1024, np.int32)
        self._edges = np.zeros(256, np.int64)
        self._lists = 0

    def __len__(self) -> int:
        return self._lists

    @property
    def ids(self) -> NDArray[np.int32]:
        """int32[at least all and :data:`SPARE` more]; all lists, one after the other."""
        return self._ids

    @property
    def edges(self) -> NDArray[np.int64]:
        """int64[at least lists + 1]; list ``i`` is ``ids[edges[i]:edges[i + 1]]``."""
        return self._edges

    def append(self, ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> None:
        """Adds ``len(lengths)`` lists; ``ids`` holds all of theirs, one after the other."""
        first, begin = self._lists, int(self._edges[self._lists])
        self._ids = grown(self._ids, begin + len(ids) + SPARE)
        self._ids[begin : begin + len(ids)] = ids
        self._lists += len(lengths)
        self._edges = grown(self._edges, self._lists + 1)
        self._edges[first + 1 : self._lists + 1] = begin + np.cumsum(lengths)

    def cut(self, lists: int) -> None:
        """Drops all but the first ``lists`` lists."""
        self._lists = min(lists, self._lists)

    def gather(self, numbers: NDArray[np.integer]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Puts the lists ``numbers`` one after the other.

        Returns:
            Their ids, read-only, and int64[len(numbers) + 1]: where each begins and the last ends.
        """
        return take(self._ids, self._edges[: self._lists + 1], numbers)


def take(
    values: NDArray[T], edges: NDArray[np.int64], numbers: NDArray[np.integer]
) -> tuple[NDArray[T], NDArray[np.int64]]:
    """Puts some stretches of an array one after the other.

    Args:
        values: the array.
        edges: int64[stretches + 1]; ascending; stretch ``i`` is ``values[edges[i]:edges[i + 1]]``.
        numbers: the stretches to take.

    Returns:
        What they hold, read-only, and int64[len(numbers) + 1]: where each begins and the last ends.
    """
    # To Arrow they are strings of bytes, which it copies three times as fast as NumPy can.
    size = values.itemsize
    lists = pa.Array.from_buffers(
        pa.large_binary(), len(edges) - 1, [None, pa.py_buffer(edges * size), pa.py_buffer(values)]
    )
    _, offsets, data = lists.take(pa.array(numbers)).buffers()
    ends = np.frombuffer(offsets, np.int64, len(numbers) + 1) // size
    if not ends[-1]:
        return values[:0], ends
    return np.frombuffer(data, values.dtype, int(ends[-1])), ends


def grown(array: NDArray[T], size: int) -> NDArray[T]:
    """Returns ``array``, or a copy with more room where it has fewer than ``size`` elements."""
    if size <= len(array):
        return array
    larger = np.zeros(max(size, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger
