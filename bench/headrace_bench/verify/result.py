"""What a check of an output has found: what is wrong, a table for a person, and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import LONGEST
from headrace_bench.vectors import Cosines, histogram
from headrace_bench.verify.madeof import MadeOf

_MOST_ROWS = 5
_LONGEST_TEXT = 60


@dataclass(frozen=True, slots=True)
class Judged:
    """One row that was compared.

    Attributes:
        row: its number in the output.
        place: where its text stands.
        cosine: between its vector and the reference's; NaN where there is none.
        text: the text, shortened, in one line.
        holds: the sampled row whose vector it holds instead, or None.
    """

    row: int
    place: str
    cosine: float
    text: str
    holds: int | None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """How far both sets of vectors give the same nearest rows of the sample.

    Attributes:
        count: how many of the nearest.
        mean: mean share that they have in common.
        least: the same of the row with the smallest.
    """

    count: int
    mean: float
    least: float


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
        skipped: whether bad rows were to be left out of the output.
    """

    errors_file: str
    invalid: int
    listed: int
    unlisted: NDArray[np.int64]
    unfounded: NDArray[np.int64]
    textless: int
    textless_places: tuple[str, ...]
    skipped: bool

    def faults(self) -> Iterator[str]:
        """Yields what does not fit, in words."""
        name = self.errors_file
        if count := len(self.unlisted):
            how = f"not in {name}"
            if self.skipped:
                how = "there, though bad rows were left out"
            yield f"{_rows(count)} without a vector {_are(count)} {how}: {_shown(self.unlisted)}"
        if count := len(self.unfounded):
            what = "not in the input" if self.skipped else "not without a vector in the output"
            yield f"{_rows(count)} in {name} {_are(count)} {what}: {_shown(self.unfounded)}"
        if count := self.textless:
            more = ", ..." if count > len(self.textless_places) else ""
            where = "; ".join(self.textless_places) + more
            yield f"{_rows(count)} of the input without a text {_are(count)} not in {name}: {where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Everything that was found.

    Attributes:
        output: the file.
        rows: how many it has.
        dimension: length of a vector in it.
        dtype: type of its values.
        made: how it was made.
        reference: what computed the reference.
        model: what it loaded.
        prompt: text that it put in front of every row.
        max_length: tokens that it cut a row to.
        inputs: what was read.
        records: how many records that has.
        expected_rows: how many rows the output should have.
        expected_dimension: how long its vectors should be.
        bad: rows without a vector.
        compared: rows that were compared.
        seed: of the random sample.
        least_allowed: cosine below which a row is wrong.
        cosines: None where nothing could be compared.
        neighbours: None where that was not measured.
        asked_neighbours: how many of the nearest were asked for.
        worst: the rows with the smallest cosines, the smallest first.
        below: the rows with a cosine below the least allowed, the smallest first.
    """

    output: str
    rows: int
    dimension: int
    dtype: str
    made: MadeOf
    reference: str
    model: str
    prompt: str
    max_length: int
    inputs: tuple[str, ...]
    records: int
    expected_rows: int
    expected_dimension: int
    bad: BadRows
    compared: int
    seed: int
    least_allowed: float
    cosines: Cosines | None
    neighbours: Neighbours | None
    asked_neighbours: int
    worst: tuple[Judged, ...]
    below: tuple[Judged, ...]

    @property
    def wrong(self) -> tuple[str, ...]:
        """What is wrong, in words; nothing where all is right."""
        found: list[str] = []
        if self.rows != self.expected_rows:
            found.append(f"{_rows(self.rows)}, and the input makes {self.expected_rows:,}")
        if self.dimension != self.expected_dimension:
            found.append(
                f"vectors have {self.dimension} dimensions, and should have "
                f"{self.expected_dimension}"
            )
        if self.made.dtype not in {None, self.dtype}:
            found.append(f"values are {self.dtype}, and should be {self.made.dtype}")
        found += self.bad.faults()
        if self.below:
            count, held = len(self.below), sum(each.holds is not None for each in self.below)
            others = f"; {held:,} of them hold another's vector" if held else ""
            found.append(
                f"the least cosine is {_cosine(self.below[0].cosine)}, and {_rows(count)} of "
                f"{self.compared:,} {_are(count)} below {self.least_allowed}{others}"
            )
        return tuple(found)

    @property
    def verdict(self) -> str:
        """The last line of the table."""
        if self.wrong:
            return f"verify: WRONG: {'; '.join(self.wrong)}"
        return "verify: right" + ("" if self.compared else ", but there was no vector to compare")

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON takes it; a number that is none becomes None."""
        found = {name: getattr(self, name) for name in _PLAIN}
        found |= {
            "made": asdict(self.made),
            "bad": asdict(self.bad),
            "cosines": None if self.cosines is None else asdict(self.cosines),
            "histogram": None if self.cosines is None else dict(histogram(self.cosines)),
            "neighbours": None if self.neighbours is None else asdict(self.neighbours),
            "worst": [asdict(each) for each in self.worst],
            "below": [asdict(each) for each in self.below],
            "wrong": self.wrong,
        }
        cleaned: dict[str, Any] = _plain(found)
        return cleaned


_PLAIN = (
    *("output", "rows", "dimension", "dtype", "reference", "model", "prompt", "max_length"),
    *("inputs", "records", "expected_rows", "expected_dimension", "compared", "seed"),
    *("least_allowed", "asked_neighbours"),
)


def show(result: Result) -> str:
    """Returns the table, with the verdict as its last line."""
    made, bad = result.made, result.bad
    prompt = f'prompt "{in_one_line(result.prompt)}"' if result.prompt else "no prompt"
    lines = [
        f"output      {result.output}: {_rows(result.rows)} of {result.dimension} {result.dtype}",
        f"input       {result.records:,} records in {', '.join(result.inputs)}",
        f"bad rows    {bad.invalid:,} without a vector, {bad.listed:,} in {bad.errors_file}"
        + (" (left out of the output)" if bad.skipped else ""),
        f"model       {result.model} · {prompt} · at most {result.max_length} tokens",
        f"computed    {_computed(made)}, written as {result.dtype}",
        f"reference   {result.reference}",
        f"sample      {result.compared:,} of {_rows(result.rows)}, seed {result.seed}; a cosine "
        f"below {result.least_allowed} is wrong",
    ]
    lines += _show_cosines(result)
    lines += _show_worst(result)
    return "\n".join(in_one_line(line, LONGEST) for line in [*lines, result.verdict])


def _computed(made: MadeOf) -> str:
    if made.manifest is None:
        return "in a precision that is not known (there is no manifest)"
    return f"in {made.precision or 'an unknown precision'} by {made.engine or 'an unknown engine'}"


def _show_cosines(result: Result) -> list[str]:
    found, near = result.cosines, result.neighbours
    if found is None:
        return ["cosine      not measured: there is no vector to compare"]
    lines = [f"cosine      least {_cosine(found.least)} · mean {_cosine(found.mean)}"]
    lines += [f"            {name:20} {count:>9,}" for name, count in histogram(found)]
    if near is None:
        asked = result.asked_neighbours
        return [
            *lines,
            f"neighbours  not measured: that takes more than {asked + 1} rows with vectors, since "
            f"the nearest {asked} of so few are all there are",
        ]
    how = f"computed {_computed(result.made)}, against fp32"
    return [
        *lines,
        f"neighbours  {near.mean:.2%} of the {near.count} nearest in the sample are the same "
        f"(least {near.least:.0%}): {how}",
    ]


def _show_worst(result: Result) -> list[str]:
    if not result.worst:
        return []
    lines = [f"worst       {'row':>10} {'cosine':>10}  place: text"]
    for each in result.worst:
        held = "" if each.holds is None else f"  <- holds the vector of row {each.holds:,}"
        lines.append(
            f"            {each.row:>10,} {_cosine(each.cosine):>10}  {each.place}: "
            f'"{each.text}"{held}'
        )
    return lines


def in_one_line(text: str, longest: int = _LONGEST_TEXT) -> str:
    """Returns a text shortened, with everything that does not print as an escape."""
    shortened = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in shortened
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def _cosine(value: float) -> str:
    return "no number" if math.isnan(value) else f"{value:.7f}"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _shown(rows: NDArray[np.int64] | Sequence[int]) -> str:
    more = f" and {len(rows) - _MOST_ROWS:,} more" if len(rows) > _MOST_ROWS else ""
    return ", ".join(str(int(row)) for row in rows[:_MOST_ROWS]) + more
