"""What every benchmark of ways to embed writes down, in one format: JSON, and all made from it.

The JSON has, whatever the benchmark:

``format``, ``benchmark``, ``title``, ``date``, ``command``
    what it is; ``format`` is :data:`FORMAT`.
``settings``, ``hardware``, ``versions``
    what was asked for, and on what it ran.
``texts``
    ``source`` and ``rows``, mostly ``sha256`` of these as JSONL, ``left_out_rows`` and
    ``truncated_rows``; and where it is known how long they are: ``tokens`` and
    ``characters`` a row, each with ``mean`` and mostly ``p5``, ``p50``, ``p95`` and ``most``.
``ways``
    by name: see :class:`Way`; with ``rows_per_second`` (``median``, ``least``, ``most``) and
    ``times``, the ratio to each way of ``against``, repetition by repetition.
``against``, ``ours``
    the ways that others are measured by, and those that are headrace's.
``losses``
    where headrace is the slower one, one sentence each.
``cost``
    see :mod:`headrace_bench.cost`, or null.
``notes``
    what a reader must know to judge the figures, one paragraph each.
``details``
    the rest, which differs from one benchmark to the other.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import UsageError
from headrace.paths import shown
from headrace_bench import machine
from headrace_bench.stats import Spread, pairwise, spread
from headrace_bench.vectors import Cosines

FORMAT = 1


@dataclass(slots=True, kw_only=True)
class Way:
    """One way to do the work, and what was measured of it.

    Attributes:
        rates: rows a second, one number a repetition.
        what: how it was run, in a few words.
        cosines: of its vectors to the reference's, or None where they were not compared.
        wrong: what is wrong with its vectors, or ""; then it is not measured, or does not count.
        missing: why it was not measured, or "".
    """

    rates: list[float] = field(default_factory=list)
    what: str = ""
    cosines: Cosines | None = None
    wrong: str = ""
    missing: str = ""

    @property
    def counts(self) -> bool:
        """Whether there is a speed to be shown."""
        return bool(self.rates) and not self.wrong and not self.missing


@dataclass(slots=True, kw_only=True)
class Outcome:
    """A benchmark's result; the module says what each field is in the JSON.

    Attributes:
        told_losses: where headrace loses, if a benchmark says so itself.
    """

    benchmark: str
    title: str
    command: str
    settings: dict[str, Any]
    texts: dict[str, Any]
    ways: dict[str, Way]
    ours: Sequence[str]
    against: Sequence[str] = ()
    told_losses: list[str] | None = None
    cost: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, object] = field(default_factory=machine.hardware)
    versions: dict[str, str] = field(default_factory=machine.versions)
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    @property
    def wrong(self) -> bool:
        """Whether a way of headrace's own has wrong vectors."""
        return any(self.ways[name].wrong for name in self.ours)

    def ratio(self, name: str, other: str) -> Spread:
        """Returns how many times as fast one way is as another, repetition by repetition.

        Raises:
            ValueError: they were not measured equally often.
        """
        return spread(pairwise(self.ways[name].rates, self.ways[other].rates))

    def losses(self) -> list[str]:
        """Returns, for each of headrace's ways, to which others it loses."""
        if self.told_losses is not None:
            return self.told_losses
        found = []
        for name in self.ours:
            for other, way in self.ways.items():
                if other in self.ours or not (way.counts and self.ways[name].counts):
                    continue
                if (ratio := self.ratio(name, other)).median < 1:
                    found.append(f"{name} loses to {other}: {ratio.show(2)} of its speed")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON takes it; NaN becomes null."""
        ways: dict[str, Any] = {}
        for name, way in self.ways.items():
            rate = spread(way.rates) if way.counts else None
            others = [other for other in self.against if self.ways[other].counts and other != name]
            ways[name] = {
                **asdict(way),
                "rows_per_second": asdict(rate) if rate else None,
                "times": {o: asdict(self.ratio(name, o)) for o in others} if rate else {},
            }
        everything = {
            "format": FORMAT,
            "benchmark": self.benchmark,
            "title": self.title,
            "date": self.date,
            "command": self.command,
            "settings": self.settings,
            "hardware": self.hardware,
            "versions": self.versions,
            "texts": self.texts,
            "ways": ways,
            "ours": list(self.ours),
            "against": list(self.against),
            "losses": self.losses(),
            "cost": self.cost,
            "notes": self.notes,
            "details": self.details,
        }
        found: dict[str, Any] = json.loads(
            json.dumps(everything, ensure_ascii=False), parse_constant=lambda _: None
        )
        return found


def distribution(numbers: NDArray[Any]) -> dict[str, float]:
    """Returns what ``texts`` tells of lengths: mean, percentiles, the longest.

    Args:
        numbers: of any type [rows], at least one.
    """
    low, middle, high = np.percentile(numbers, [5, 50, 95])
    return {
        "mean": float(numbers.mean()),
        "p5": float(low),
        "p50": float(middle),
        "p95": float(high),
        "most": float(numbers.max()),
    }


def show_lengths(lengths: Mapping[str, float]) -> str:
    """Returns a distribution in words; of some only the mean is known."""
    if "p50" not in lengths:
        return f"mean {lengths['mean']:,.1f}"
    return (
        f"mean {lengths['mean']:,.1f}, 5 % up to {lengths['p5']:,.0f}, half up to "
        f"{lengths['p50']:,.0f}, 95 % up to {lengths['p95']:,.0f}, the longest "
        f"{lengths['most']:,.0f}"
    )


def command_line(program: str, arguments: Sequence[str]) -> str:
    """Returns the command that does the same again; ``program`` may have several words.

    URIs are without user, keys and options, also behind ``--option=``.
    """
    return " ".join([program, *(shlex.quote(_harmless(word)) for word in arguments)])


def _harmless(word: str) -> str:
    option, equals, value = word.partition("=")
    return option + equals + shown(value) if word.startswith("--") else shown(word)


def add_outputs(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds the options that say where results go: :func:`outputs` reads them.

    Args:
        parser: of a benchmark.
        name: of the files in the folder.
    """
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks"),
        metavar="FOLDER",
        help=f"where {name}.json, .svg, .png and .md go, made if it is missing (benchmarks)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the JSON goes there instead")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="the page of Markdown goes there instead"
    )
    parser.add_argument(
        "--chart", type=Path, metavar="FILE", help="the chart goes there instead (.svg or .png)"
    )
    parser.set_defaults(name=name)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files to write."""

    json: Path
    markdown: Path
    charts: tuple[Path, ...]

    @property
    def all(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.json, self.markdown, *self.charts)


def outputs(options: argparse.Namespace) -> Outputs:
    """Returns where results go; nothing is made yet.

    Raises:
        UsageError: one of them cannot be a file.
    """
    folder, name = options.output, options.name
    chart = options.chart
    if chart is not None and chart.suffix not in {".svg", ".png"}:
        raise UsageError(f"--chart {chart}: the name must end in .svg or .png")
    found = Outputs(
        json=options.json or folder / f"{name}.json",
        markdown=options.markdown or folder / f"{name}.md",
        charts=(chart,) if chart else (folder / f"{name}.svg", folder / f"{name}.png"),
    )
    if len({path.resolve() for path in found.all}) < len(found.all):
        raise UsageError("two results cannot be one file; name different ones")
    for path in found.all:
        parent = path.absolute().parent
        if path.is_dir() or not (parent.is_dir() or path.parent == folder):
            raise UsageError(f"{path} is not a file in a folder that exists; name another")
        if not os.access(path if path.exists() else parent, os.W_OK) and parent.is_dir():
            raise UsageError(f"{path} cannot be written; name another file")
    above = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not above.is_dir():
        raise UsageError(f"--output {folder} cannot be made: {above} is a file; name another")
    return found
