"""How alike two sets of vectors are: cosines row by row, and the neighbours that they give."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

EDGES = (0.9, 0.99, 0.999, 0.9999, 0.99999)
"""Between which a histogram of cosines counts; below the first and from the last on, too."""
_CHUNK = 1024  # rows whose similarities to all others are in memory at once


def cosines(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns float64[rows]: the cosine of the two vectors of each row.

    It is NaN where one of them has a number that is not finite, or is zero.

    Args:
        ours: float[rows, dimension].
        theirs: float[rows, dimension].

    Raises:
        ValueError: the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"vectors of the shapes {list(ours.shape)} and {list(theirs.shape)}")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.asarray(found, np.float64)


def least_cosine(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> float:
    """Returns the smallest cosine of two vectors in the same row of float[rows, dimension].

    It is NaN where a row has a NaN and where the shapes differ.
    """
    if ours.shape != theirs.shape:
        return float("nan")
    return float(cosines(ours, theirs).min())


@dataclass(frozen=True, slots=True)
class Cosines:
    """What the cosines of many rows come to.

    Attributes:
        least: the smallest, NaN if one is.
        mean: their mean, NaN if one is.
        counts: how many lie below the first of :data:`EDGES`, between two, and from the last on.
        unknown: how many are NaN.
    """

    least: float
    mean: float
    counts: tuple[int, ...]
    unknown: int


def summary(found: NDArray[np.float64]) -> Cosines:
    """Returns what the cosines float64[rows] come to.

    Raises:
        ValueError: there are none.
    """
    if not len(found):
        raise ValueError("there is no smallest of no cosines")
    known = found[~np.isnan(found)]
    counts = np.bincount(np.digitize(known, EDGES), minlength=len(EDGES) + 1)
    return Cosines(
        least=float(found.min()),
        mean=float(found.mean()),
        counts=tuple(int(count) for count in counts),
        unknown=len(found) - len(known),
    )


def histogram(found: Cosines) -> list[tuple[str, int]]:
    """Returns a name for each range of cosines, and how many lie in it."""
    names = [f"below {EDGES[0]}"]
    names += [f"{low} to {high}" for low, high in pairwise(EDGES)]
    names.append(f"{EDGES[-1]} and more")
    rows = list(zip(names, found.counts, strict=True))
    return [*rows, ("not a number", found.unknown)] if found.unknown else rows


def agreement(
    ours: NDArray[np.floating], theirs: NDArray[np.floating], neighbours: int
) -> NDArray[np.float64]:
    """Returns float64[rows]: the share of each row's nearest ones that both sets have in common.

    Nearest by cosine, among the other rows. A row as near as the last of their nearest counts as
    one of them, so that texts that are there twice change nothing.

    Args:
        ours: float[rows, dimension], finite.
        theirs: float[rows, dimension], finite; taken for right.
        neighbours: how many of the nearest; fewer where there are not so many other rows.

    Raises:
        ValueError: the numbers of rows differ, or there are fewer than two.
    """
    rows = len(ours)
    if rows != len(theirs) or rows < 2:
        raise ValueError(f"neighbours among {rows} and {len(theirs)} rows")
    count = min(neighbours, rows - 1)
    a, b = _units(ours), _units(theirs)
    shares = np.empty(rows, np.float64)
    for start in range(0, rows, _CHUNK):
        stop = min(start + _CHUNK, rows)
        places = np.arange(start, stop)
        near_a, near_b = a[start:stop] @ a.T, b[start:stop] @ b.T
        for near in (near_a, near_b):
            near[places - start, places] = -np.inf
        chosen = np.argpartition(near_a, -count, axis=1)[:, -count:]
        last = np.partition(near_b, -count, axis=1)[:, -count][:, None]
        found = np.take_along_axis(near_b, chosen, axis=1) >= last - 1e-6
        shares[start:stop] = found.mean(axis=1)
    return shares


def _units(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-30), np.float32)
