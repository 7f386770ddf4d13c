"""Few measurements, honestly summed up: medians with their extremes, ratios pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """What several measurements of one thing came to.

    Attributes:
        median: the middle one; of an even number, the mean of the two in the middle.
        least: the smallest.
        most: the largest.
    """

    median: float
    least: float
    most: float

    def show(self, digits: int = 0) -> str:
        """Returns ``median [least..most]`` with so many digits after the point."""
        return f"{self.median:,.{digits}f} [{self.least:,.{digits}f}..{self.most:,.{digits}f}]"


def spread(values: Sequence[float]) -> Spread:
    """Returns the median and the extremes of ``values``.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("there is no median of no measurements")
    return Spread(median(values), min(values), max(values))


def pairwise(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Returns ``ours[i] / theirs[i]`` for each repetition ``i``.

    Measurements of one repetition were taken close together, so what disturbs the machine for
    longer than that cancels out, which it does not in a ratio of two medians.

    Raises:
        ValueError: the numbers of repetitions differ.
    """
    return [our / their for our, their in zip(ours, theirs, strict=True)]
