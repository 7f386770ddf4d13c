"""What is asked of all rows of an output: which have no vector and why, and whose id is whose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_ROWS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRows:
    """Rows without a vector, against the errors file.

    Attributes:
        errors_file: its name.
        invalid: rows of the output without a vector: null, or a number that is not finite.
        listed: how many rows the errors file describes.
        unlisted: int64[n], rows without a vector that it should describe, and does not.
        unfounded: int64[n], rows that it describes, and that have a vector or are not there.
        textless: records without a text that it does not describe.
        textless_places: where the first of these stand.
        by_model: rows that it describes because the model gave no vector for them.
        readable: int64[n], rows that it describes for another reason, and that have a text.
        misplaced: int64[n], rows that it describes with another line than theirs.
        skipped: whether bad rows were to be left out of the output.
        allowed: whether there may be any.
    """

    errors_file: str
    invalid: int
    listed: int
    unlisted: NDArray[np.int64]
    unfounded: NDArray[np.int64]
    textless: int
    textless_places: tuple[str, ...]
    by_model: int
    readable: NDArray[np.int64]
    misplaced: NDArray[np.int64]
    skipped: bool
    allowed: bool

    def faults(self) -> Iterator[str]:
        """Yields what does not fit, in words."""
        name = self.errors_file
        if count := len(self.unlisted):
            how = f"not in {name}"
            if self.skipped:
                how = "there, though bad rows were left out"
            which = shown_rows(self.unlisted)
            yield f"{rows_of(count)} without a vector {are(count)} {how}: {which}"
        if count := len(self.unfounded):
            what = "not in the input" if self.skipped else "not without a vector in the output"
            yield f"{rows_of(count)} in {name} {are(count)} {what}: {shown_rows(self.unfounded)}"
        if count := len(self.readable):
            what = "described as bad, and can be read"
            yield f"{rows_of(count)} {are(count)} {what}: {shown_rows(self.readable)}"
        if count := len(self.misplaced):
            what = f"in {name} with another line than in the input"
            yield f"{rows_of(count)} {are(count)} {what}: {shown_rows(self.misplaced)}"
        if not self.allowed and (count := max(self.invalid, self.listed)):
            yield f"{rows_of(count)} {are(count)} bad, though a run with on-error fail has none"
        if count := self.textless:
            more = ", ..." if count > len(self.textless_places) else ""
            where = "; ".join(self.textless_places) + more
            what = f"{rows_of(count)} of the input without a text {are(count)}"
            yield f"{what} not in {name}: {where}"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of vectors, against what they should be.

    Attributes:
        what: what they should be: ``1`` or ``the reference's``.
        compared: how many were compared: all with 1, those of the sample with the reference's.
        odd: int64[n], the rows with another length, ascending.
    """

    what: str
    compared: int
    odd: NDArray[np.int64]

    def faults(self) -> Iterator[str]:
        """Yields what does not fit, in words."""
        if count := len(self.odd):
            what = f"a vector whose length is not {self.what}"
            yield f"{rows_of(count)} with {what}: {shown_rows(self.odd)}"


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids of an output, against those of its records.

    Attributes:
        what: what they should be, or why they were not compared; "" where there are none.
        compared: how many were.
        wrong: rows with another id than their record, ascending.
    """

    what: str
    compared: int
    wrong: tuple[int, ...]

    def faults(self) -> Iterator[str]:
        """Yields what does not fit, in words."""
        if self.what.startswith("missing"):
            yield f"ids are {self.what}"
        if count := len(self.wrong):
            of = f"{rows_of(count)} of {self.compared:,}"
            verb = "has" if count == 1 else "have"
            yield f"{of} {verb} another id than their record: {shown_rows(self.wrong)}"


def rows_of(count: int) -> str:
    """Returns so many rows in words."""
    return "1 row" if count == 1 else f"{count:,} rows"


def are(count: int) -> str:
    """Returns the verb for so many."""
    return "is" if count == 1 else "are"


def shown_rows(rows: NDArray[np.int64] | Sequence[int]) -> str:
    """Returns the numbers of some rows, of many the first."""
    more = f" and {len(rows) - _MOST_ROWS:,} more" if len(rows) > _MOST_ROWS else ""
    return ", ".join(str(int(row)) for row in rows[:_MOST_ROWS]) + more
