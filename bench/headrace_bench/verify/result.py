"""What a check of an output has found: what is wrong, a table for a person, and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from headrace.errors import LONGEST
from headrace_bench.vectors import Cosines, histogram
from headrace_bench.verify.madeof import MadeOf
from headrace_bench.verify.rows import BadRows, Ids, Lengths, are, rows_of

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
        lengths: of the vectors.
        ids: of Parquet outputs.
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
    lengths: Lengths
    ids: Ids
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
            found.append(f"{rows_of(self.rows)}, and the input makes {self.expected_rows:,}")
        if self.made.rows not in {None, self.rows}:
            found.append(f"{rows_of(self.rows)}, and its manifest tells of {self.made.rows:,}")
        if self.dimension != self.expected_dimension:
            found.append(
                f"vectors have {self.dimension} dimensions, and should have "
                f"{self.expected_dimension}"
            )
        if self.made.dtype not in {None, self.dtype}:
            found.append(f"values are {self.dtype}, and should be {self.made.dtype}")
        found += self.bad.faults()
        found += self.ids.faults()
        found += self.lengths.faults()
        if self.below:
            count, held = len(self.below), sum(each.holds is not None for each in self.below)
            others = f"; {held:,} of them hold another's vector" if held else ""
            least = self.below[0].cosine
            if math.isfinite(least):  # cut, not rounded: it is not to look like what it is below
                least = math.floor(least * 1e7) / 1e7
            found.append(
                f"the least cosine is {_cosine(least)}, and {rows_of(count)} of "
                f"{self.compared:,} {are(count)} below {self.least_allowed}{others}"
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
            "lengths": asdict(self.lengths),
            "ids": asdict(self.ids),
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
        f"output      {result.output}: {rows_of(result.rows)} of {result.dimension} {result.dtype}",
        f"input       {result.records:,} records in {', '.join(result.inputs)}",
        f"bad rows    {bad.invalid:,} without a vector, {bad.listed:,} in {bad.errors_file}"
        + (f", {bad.by_model:,} of these by the model" if bad.by_model else "")
        + (" (left out of the output)" if bad.skipped else ""),
        f"lengths     {_of_lengths(result.lengths)}",
        *([f"ids         {_of_ids(result.ids)}"] if result.ids.what else []),
        f"model       {result.model} · {prompt} · at most {result.max_length} tokens",
        f"computed    {_computed(made)}, written as {result.dtype}",
        f"reference   {result.reference}",
        f"sample      {result.compared:,} of {rows_of(result.rows)}, seed {result.seed}; a cosine "
        f"below {result.least_allowed} is wrong",
    ]
    lines += _show_cosines(result)
    lines += _show_worst(result)
    return "\n".join(in_one_line(line, LONGEST) for line in [*lines, result.verdict])


def _computed(made: MadeOf) -> str:
    if made.manifest is None:
        return "in a precision that is not known (there is no manifest)"
    return f"in {made.precision or 'an unknown precision'} by {made.engine or 'an unknown engine'}"


def _of_lengths(lengths: Lengths) -> str:
    right = lengths.compared - len(lengths.odd)
    if lengths.what == "1":
        return f"{right:,} of {lengths.compared:,} vectors have 1"
    return f"not normalized: {right:,} of {lengths.compared:,} in the sample have {lengths.what}"


def _of_ids(ids: Ids) -> str:
    if not ids.compared:
        return ids.what
    right = ids.compared - len(ids.wrong)
    return f"{ids.what}: {right:,} of the {ids.compared:,} in the sample are right"


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
