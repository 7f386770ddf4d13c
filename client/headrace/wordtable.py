"""A hash table of short words that numbers many of them at once."""

from __future__ import annotations

import secrets

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.idlists import grown, take
from headrace.kernels.compiled import LANE
from headrace.kernels.words import (
    MAX_WORD_BYTES,
    UNFIT,
    Words,
    copy_stretches,
    number_words,
    settle_words,
)

__all__ = ["MAX_WORD_BYTES", "UNFIT", "WordTable", "raw_bytes", "readable"]

MOST_WORDS = 1 << 30
_FIRST_SLOTS = 1 << 16


class WordTable:
    """Numbers words from 0 in the order in which they are met.

    A hash finds the place and the bytes decide, so that no word is ever taken for another. The
    hash is another one in every table, so that no text can be made to be slow.
    """

    def __init__(self) -> None:
        slots = np.zeros((_FIRST_SLOTS, 4), np.uint64)
        self._arrays = Words(
            factors=np.array([secrets.randbits(64) | 1 for _ in range(2)], np.uint64),
            slots=slots,
            edges=np.zeros(len(slots) // 2 + 1, np.int64),
            lengths=np.zeros(len(slots) // 2, np.uint8),
            lanes=np.zeros(len(slots), np.uint64),
        )
        self._words = 0
        settle_words(slots[:0], np.arange(0), self._arrays)  # is compiled now, not in mid-run

    @property
    def arrays(self) -> Words:
        """What :mod:`headrace.kernels` works on; valid until words are added."""
        return self._arrays

    def __len__(self) -> int:
        return self._words

    def number(
        self,
        data: NDArray[np.uint8],
        edges: NDArray[np.integer],
        now: int = 0,
        most: int = MOST_WORDS,
    ) -> NDArray[np.int32]:
        """Returns int32[words]: the number of each word; unknown words are added.

        Words of more than :data:`MAX_WORD_BYTES` bytes are :data:`UNFIT`, and unknown ones where
        the table has ``most`` already.

        Args:
            data: uint8[bytes], less than 2 GiB.
            edges: integers[words + 1]; word ``i`` is the bytes ``edges[i]`` to ``edges[i + 1]``.
            now: what :meth:`met` gives for them from now on, unless it gives more already.
            most: words that the table may have.
        """
        at_byte, places = readable(data), edges.astype(np.int32, copy=False)
        numbers = np.empty(len(edges) - 1, np.int32)
        done = 0
        while True:
            done, self._words = number_words(
                at_byte, places, numbers, done, self._words, np.uint64(now), most, self._arrays
            )
            if done == len(numbers):
                return numbers
            self._grow()

    def met(self) -> NDArray[np.int64]:
        """Returns int64[words]: the highest ``now`` of a call of :meth:`number` that met each."""
        slots = self._arrays.slots[self._arrays.slots[:, 2] > 0]
        met = np.empty(self._words, np.int64)
        met[(slots[:, 2] >> np.uint64(8)).astype(np.int64) - 1] = slots[:, 3]
        return met

    def words(self, numbers: NDArray[np.int64]) -> pa.BinaryArray:
        """Returns the words of these numbers."""
        begins = self._arrays.edges[numbers] * LANE
        ends = np.append(0, np.cumsum(self._arrays.lengths[numbers], dtype=np.int64))
        data = np.empty(ends[-1], np.uint8)
        copy_stretches(self._arrays.lanes.view(np.uint8), begins, ends, data)
        buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(data)]
        return pa.Array.from_buffers(pa.binary(), len(numbers), buffers)

    def keep(self, numbers: NDArray[np.int64]) -> None:
        """Drops all words but these, which are numbered anew in this order."""
        _, slots, edges, lengths, lanes = self._arrays
        renumbered = np.full(self._words, -1)
        renumbered[numbers] = np.arange(len(numbers))
        kept, ends = take(lanes, edges[: self._words + 1], numbers)
        lanes[: len(kept)] = kept
        edges[: len(ends)] = ends
        lengths[: len(numbers)] = lengths[numbers]
        self._words = len(numbers)
        self._settle(renumbered, len(slots))

    def _grow(self) -> None:
        factors, slots, edges, lengths, lanes = self._arrays
        size = len(slots) * (2 if 2 * (self._words + 1) > len(slots) else 1)
        self._arrays = Words(
            factors=factors,
            slots=slots,
            edges=grown(edges, size // 2 + 1),
            lengths=grown(lengths, size // 2),
            lanes=grown(lanes, int(edges[self._words]) + MAX_WORD_BYTES // LANE),
        )
        if size > len(slots):
            self._settle(np.arange(self._words), size)

    def _settle(self, renumbered: NDArray[np.int64], size: int) -> None:
        old_slots = self._arrays.slots
        self._arrays = self._arrays._replace(slots=np.zeros((size, 4), np.uint64))
        settle_words(old_slots, renumbered, self._arrays)


def readable(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Returns a copy of bytes, to be read eight at a time: what begins at each of them.

    There are zeros after the last one, so that a word can be read in whole lanes.
    """
    padded = np.empty(len(data) + 3 * LANE, np.uint8)
    padded[: len(data)] = data
    padded[len(data) :] = 0
    return np.ndarray(len(padded) - LANE, np.uint64, padded, 0, (1,))


def raw_bytes(words: pa.BinaryArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns the bytes of a binary or string column, and int64[words + 1]: where each begins.

    The bytes are read-only, whoever owns them: kernels are compiled anew for what can be written.
    """
    data, edges = np.zeros(0, np.uint8), np.zeros(len(words) + 1, np.int64)
    if len(words):
        _, offsets, buffer = words.buffers()
        edges = np.frombuffer(offsets, np.int32, len(words) + 1, 4 * words.offset).astype(np.int64)
        begin, end = int(edges[0]), int(edges[-1])
        edges -= begin
        if begin < end:
            data = np.frombuffer(buffer, np.uint8, end - begin, begin)
    data.flags.writeable = False
    return data, edges
