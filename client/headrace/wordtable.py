"""A hash table of short words that is looked up for a whole column at once, in NumPy."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.idlists import grown, take

MAX_WORD_BYTES = 64
UNKNOWN, UNFIT = -1, -2

_LANE = 8
_MASKS = np.array([(1 << 8 * size) - 1 for size in range(_LANE + 1)], np.uint64)


@dataclass(frozen=True, slots=True)
class _Keys:
    """Words as numbers of eight bytes, zeros after their last.

    Attributes:
        lanes: uint64[lanes], of all words one after the other.
        edges: int64[words + 1]; word ``i`` is ``lanes[edges[i]:edges[i + 1]]``.
        lengths: int64[words]; bytes.
        hashes: uint64[words].
    """

    lanes: NDArray[np.uint64]
    edges: NDArray[np.int64]
    lengths: NDArray[np.int64]
    hashes: NDArray[np.uint64]


class WordTable:
    """Numbers words from 0 in the order in which they are added.

    A hash finds the place and the bytes decide, so that no word is ever taken for another. Of two
    words with one hash of 64 bits only one can be found; the other is :data:`UNFIT`. The hash is
    another one in every table, so that no text can be made to be slow.
    """

    def __init__(self) -> None:
        factors = [secrets.randbits(64) | 1 for _ in range(MAX_WORD_BYTES // _LANE + 1)]
        self._factors = np.array(factors, np.uint64)
        self._places = np.full(1024, -1, np.int32)
        self._hashes = np.zeros(512, np.uint64)
        self._lengths = np.zeros(512, np.int64)
        self._edges = np.zeros(513, np.int64)
        self._lanes = np.zeros(1024, np.uint64)
        self._words = 0

    def __len__(self) -> int:
        return self._words

    def find(self, words: pa.BinaryArray) -> NDArray[np.int64]:
        """Returns int64[words]: the number of each word, or :data:`UNKNOWN` or :data:`UNFIT`.

        Words of more than :data:`MAX_WORD_BYTES` bytes are unfit.
        """
        data, edges = raw_bytes(words)
        found = np.where(np.diff(edges) > MAX_WORD_BYTES, UNFIT, UNKNOWN)
        short = np.flatnonzero(found == UNKNOWN)
        keys = self._keys(data, edges[short], edges[short + 1])
        numbers = np.full(len(short), UNKNOWN, np.int64)
        places = self._place(keys.hashes)
        open_ = np.arange(len(short))
        while len(open_):
            candidates = self._places[places[open_]]
            taken = candidates >= 0
            open_, candidates = open_[taken], candidates[taken]
            same = self._hashes[candidates] == keys.hashes[open_]
            numbers[open_[same]] = candidates[same]
            open_ = open_[~same]
            places[open_] = (places[open_] + 1) & (len(self._places) - 1)
        hits = np.flatnonzero(numbers >= 0)
        numbers[hits[~self._equal(keys, hits, numbers[hits])]] = UNFIT
        found[short] = numbers
        return found

    def add(self, words: pa.BinaryArray) -> None:
        """Adds distinct words that :meth:`find` has given as :data:`UNKNOWN`."""
        data, edges = raw_bytes(words)
        self._append(self._keys(data, edges[:-1], edges[1:]))

    def words(self, numbers: NDArray[np.int64]) -> pa.BinaryArray:
        """Returns the words of these numbers."""
        begins = self._edges[: self._words] * _LANE
        edges = np.stack([begins, begins + self._lengths[: self._words]], axis=1).ravel()
        # Every other stretch is a word; those between are the zeros after it.
        edges = np.append(edges, self._edges[self._words] * _LANE)
        data, ends = take(self._lanes.view(np.uint8), edges, 2 * numbers)
        buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(data)]
        return pa.Array.from_buffers(pa.binary(), len(numbers), buffers)

    def keep(self, numbers: NDArray[np.int64]) -> None:
        """Drops all words but these, which are numbered anew in this order."""
        lanes, ends = take(self._lanes, self._edges[: self._words + 1], numbers)
        kept = _Keys(lanes, ends, self._lengths[numbers], self._hashes[numbers])
        self._words = 0
        self._places[:] = -1
        self._append(kept)

    def _append(self, keys: _Keys) -> None:
        first, last = self._words, self._words + len(keys.hashes)
        lane = int(self._edges[first])
        self._lanes = grown(self._lanes, lane + len(keys.lanes))
        self._edges = grown(self._edges, last + 1)
        self._lengths = grown(self._lengths, last)
        self._hashes = grown(self._hashes, last)
        self._lanes[lane : lane + len(keys.lanes)] = keys.lanes
        self._edges[first : last + 1] = keys.edges + lane
        self._lengths[first:last] = keys.lengths
        self._hashes[first:last] = keys.hashes
        self._words = last
        if 2 * last > len(self._places):
            size = 1 << (4 * last - 1).bit_length()
            self._places = np.full(size, -1, np.int32)
            first = 0
        numbers = np.arange(first, last, dtype=np.int32)
        places = self._place(self._hashes[first:last])
        while len(numbers):
            free = self._places[places] < 0
            # Of several words that write to one place the last stays there.
            self._places[places[free]] = numbers[free]
            left = self._places[places] != numbers
            numbers, places = numbers[left], (places[left] + 1) & (len(self._places) - 1)

    def _place(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        bits = len(self._places).bit_length() - 1
        return (hashes >> np.uint64(64 - bits)).astype(np.int64)

    def _equal(
        self, keys: _Keys, queries: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        equal: NDArray[np.bool_] = keys.lengths[queries] == self._lengths[numbers]
        counts = np.where(equal, keys.edges[queries + 1] - keys.edges[queries], 0)
        within = _ranges(counts)
        mine = keys.lanes[np.repeat(keys.edges[queries], counts) + within]
        stored = self._lanes[np.repeat(self._edges[numbers], counts) + within]
        if (mine != stored).any():
            equal[np.repeat(np.arange(len(queries)), counts)[mine != stored]] = False
        return equal

    def _keys(
        self, data: NDArray[np.uint8], begins: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> _Keys:
        padded = np.zeros(len(data) + _LANE, np.uint8)
        padded[: len(data)] = data
        at_byte = np.ndarray(len(data) + 1, np.uint64, padded, 0, (1,))
        lengths = ends - begins
        counts = (lengths + _LANE - 1) // _LANE
        edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        within = _ranges(counts)
        sizes = np.minimum(np.repeat(lengths, counts) - within * _LANE, _LANE)
        lanes = at_byte[np.repeat(begins, counts) + within * _LANE] & _MASKS[sizes]
        mixed = (lanes ^ (lanes >> np.uint64(29))) * self._factors[within]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed ^ (mixed >> np.uint64(32)))])
        hashes = sums[edges[1:]] - sums[edges[:-1]] + lengths.astype(np.uint64)
        return _Keys(
            lanes, edges, lengths, (hashes ^ (hashes >> np.uint64(31))) * self._factors[-1]
        )


def raw_bytes(words: pa.BinaryArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns the bytes of a binary or string column, and int64[words + 1]: where each begins."""
    if not len(words):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = words.buffers()
    edges = np.frombuffer(offsets, np.int32, len(words) + 1, 4 * words.offset).astype(np.int64)
    begin, end = int(edges[0]), int(edges[-1])
    if begin == end:
        return np.zeros(0, np.uint8), edges - begin
    return np.frombuffer(data, np.uint8, end - begin, begin), edges - begin


def _ranges(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns 0, 1, ... for each count, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
