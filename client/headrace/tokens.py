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
