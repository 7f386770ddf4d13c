"""Ragged token ids: what the tokenizer makes and the batcher packs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of many rows, one after the other.

    Attributes:
        ids: int32[total].
        offsets: int64[rows + 1]; row ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.
        truncated: bool[rows]; whether the row lost tokens to ``max_length``.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64[rows]; tokens of each row, special tokens included."""
        return np.diff(self.offsets)


@dataclass(slots=True)
class WordCounts:
    """What the word cache has done so far.

    Attributes:
        words: words looked up.
        new_words: words that it did not know, each counted once a block.
        plain_rows: rows that `tokenizers` tokenized as a whole.
        checked_rows: rows that were tokenized both ways and compared.
    """

    words: int = 0
    new_words: int = 0
    plain_rows: int = 0
    checked_rows: int = 0

    def add(self, other: WordCounts) -> None:
        """Adds what another tokenizer has counted."""
        self.words += other.words
        self.new_words += other.new_words
        self.plain_rows += other.plain_rows
        self.checked_rows += other.checked_rows


def differing_rows(one: Tokens, other: Tokens) -> NDArray[np.int64]:
    """Returns the rows whose ids or truncation differ, ascending; both have as many rows."""
    differ = (one.truncated != other.truncated) | (one.lengths != other.lengths)
    if not differ.any() and np.array_equal(one.ids, other.ids):
        return np.flatnonzero(differ)
    for row in np.flatnonzero(~differ).tolist():
        mine = one.ids[one.offsets[row] : one.offsets[row + 1]]
        theirs = other.ids[other.offsets[row] : other.offsets[row + 1]]
        differ[row] = not np.array_equal(mine, theirs)
    return np.flatnonzero(differ)
