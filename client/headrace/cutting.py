"""Rows -> words: every row is cut before each of its spaces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compiled import count_byte
from headrace.kernels.words import cut_rows

_SPACE = 0x20


@dataclass(frozen=True, slots=True)
class Pieces:
    """Rows cut into words, each with the space before it.

    Attributes:
        edges: int32[words + 1]; word ``i`` is the bytes ``edges[i]`` to ``edges[i + 1]``.
        bounds: int64[rows + 1]; row ``i`` has the words ``bounds[i]`` to ``bounds[i + 1]``.
        whole: rows that were not cut, as their words are too long.
    """

    edges: NDArray[np.int32]
    bounds: NDArray[np.int64]
    whole: int


def cut(data: NDArray[np.uint8], rows: NDArray[np.int64], joins: bool, mean_bytes: int) -> Pieces:
    """Cuts every row before each of its spaces.

    Args:
        data: uint8[bytes]; the text of all rows.
        rows: int64[rows + 1]; row ``i`` is the bytes ``rows[i]`` to ``rows[i + 1]``.
        joins: whether a space that follows other white space stays with it.
        mean_bytes: rows whose words have more bytes than this on average stay whole.
    """
    most = count_byte(data, _SPACE) + len(rows)
    edges = np.empty(most + 1, np.int32)
    bounds = np.empty(len(rows), np.int64)
    words, whole = cut_rows(data, rows, joins, mean_bytes, edges, bounds)
    return Pieces(edges[: words + 1], bounds, whole)
