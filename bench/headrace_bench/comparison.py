"""What a comparison measured, and how it is shown: rates, ratios, cosines, and the losses."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from headrace_bench import machine
from headrace_bench.stats import Spread, pairwise, spread

HEADRACE = "headrace"
HEADRACE_WALL = "headrace, whole process"
TORCH = "sentence-transformers"
ENGINE = "engine alone"


@dataclass(slots=True)
class Comparison:
    """What was measured; rows a second are lists, one number a repetition.

    Attributes:
        settings: what was asked for.
        precision: what headrace and the engine computed in.
        texts: number of rows, and tokens a row: mean, 5th, 50th and 95th percentile.
        rates: rows a second by way, see :data:`HEADRACE` and the names beside it.
        reports: headrace's own report of each repetition, with ``wall_seconds``.
        batch_search: rows a second of sentence-transformers by batch size.
        torch_rows: rows that sentence-transformers embedded, or 0.
        torch_batch: its batch size, or 0.
        torch_load_seconds: importing it and loading the model, or 0.
        torch_missing: why it was not measured, or "".
        cosines: smallest cosine on the common rows, by pair of ways.
        wrong: what is wrong with the vectors, one sentence each.
        hardware: see :func:`headrace_bench.machine.hardware`.
        versions: see :func:`headrace_bench.machine.versions`.
    """

    settings: dict[str, Any]
    precision: str
    texts: dict[str, float]
    rates: dict[str, list[float]] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    batch_search: dict[int, float] = field(default_factory=dict)
    torch_rows: int = 0
    torch_batch: int = 0
    torch_load_seconds: float = 0.0
    torch_missing: str = ""
    cosines: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    hardware: dict[str, object] = field(default_factory=machine.hardware)
    versions: dict[str, str] = field(default_factory=machine.versions)

    @property
    def spreads(self) -> dict[str, Spread]:
        """Median and extremes of ``rates``."""
        return {way: spread(rates) for way, rates in self.rates.items()}

    def ratio(self, ours: str, theirs: str) -> Spread:
        """Returns how many times as fast ``ours`` is as ``theirs``, pair by pair."""
        return spread(pairwise(self.rates[ours], self.rates[theirs]))

    def to_json(self) -> str:
        """Returns everything as indented JSON, the ratios included."""
        ratios = {
            f"{ours} / {theirs}": asdict(self.ratio(ours, theirs))
            for ours in self.rates
            for theirs in (TORCH, ENGINE)
            if theirs in self.rates and ours != theirs
        }
        spreads = {way: asdict(each) for way, each in self.spreads.items()}
        return json.dumps(
            asdict(self) | {"spreads": spreads, "ratios": ratios}, indent=2, ensure_ascii=False
        )


def show(result: Comparison) -> str:
    """Returns the table and everything that a reader needs to judge it."""
    texts, settings = result.texts, result.settings
    lines = [
        *machine.describe(result.hardware, result.versions),
        f"model     {settings['model']} · headrace and the engine compute in {result.precision}"
        + (f", {TORCH} in fp32" if result.torch_rows else ""),
        f"texts     {texts['rows']:,} rows from {settings['input'] or 'installed docstrings'} · "
        f"tokens a row: mean {texts['tokens_mean']:.1f}, p5 {texts['tokens_p5']:.0f}, "
        f"p50 {texts['tokens_p50']:.0f}, p95 {texts['tokens_p95']:.0f}",
        *_show_vectors(result),
        "",
        f"rows/s, median [least..most] of {settings['repetitions']}, ratios pair by pair",
        f"{'':26}{'rows/s':>24}{'times torch':>22}{'times engine':>22}",
    ]
    for way, rate in result.spreads.items():
        ratios = [
            result.ratio(way, other).show(2) if other in result.rates and other != way else "-"
            for other in (TORCH, ENGINE)
        ]
        mark = "  VECTORS WRONG" if result.wrong and way.startswith(HEADRACE) else ""
        lines.append(f"{way:26}{rate.show():>24}{ratios[0]:>22}{ratios[1]:>22}{mark}")
    if result.torch_missing:
        lines.append(f"{TORCH:26}{'not measured':>24}  {result.torch_missing}")
    return "\n".join([*lines, "", *_show_times(result), *_show_losses(result)])


def _show_vectors(result: Comparison) -> list[str]:
    pairs = " · ".join(f"{pair} {cosine:.6f}" for pair, cosine in result.cosines.items())
    lines = [f"vectors   smallest cosine: {pairs}"]
    lines += [f"WRONG     {sentence}" for sentence in result.wrong]
    if result.torch_missing:
        lines.append("          not compared with sentence-transformers, so not known to be right")
    return lines


def _show_times(result: Comparison) -> list[str]:
    reports = result.reports
    stages = {
        stage: spread([report["stage_seconds"][stage] for report in reports]).median
        for stage in reports[0]["stage_seconds"]
    }
    wall = spread([report["wall_seconds"] for report in reports])
    inside = spread([report["seconds"] for report in reports])
    building = "reused" if result.settings["repository"] else "built anew each time"
    lines = [
        f"{HEADRACE}: {inside.show(1)} s from the first byte to the output in place; "
        f"{wall.show(1)} s as a process,",
        f"  with the entry {building} ({stages['build']:.1f} s) and the server started "
        f"({stages['start']:.1f} s); padding {reports[0]['padding']:.1%}",
        "  seconds by stage (read, parse and tokenize run beside the others): "
        + ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items()),
    ]
    if result.torch_rows:
        search = ", ".join(f"{size}: {rate:.0f}" for size, rate in result.batch_search.items())
        lines += [
            f"{TORCH}: on {result.torch_rows:,} of the rows, evenly spread; loading it "
            f"({result.torch_load_seconds:.1f} s) is not in its rows/s",
            f"  batch size {result.torch_batch}, the best of (rows/s) {search}",
        ]
    lines.append(
        f"{ENGINE}: loading it, tokenizing, padding, files and server are not in its rows/s"
    )
    return lines


def _show_losses(result: Comparison) -> list[str]:
    """Returns where headrace is the slower one, and below which number of rows it must be."""
    lines = [
        f"  {way} loses to {other}: {ratio.show(2)} of its speed"
        for way in (HEADRACE, HEADRACE_WALL)
        for other in (TORCH, ENGINE)
        if other in result.rates and (ratio := result.ratio(way, other)).median < 1
    ]
    if result.torch_rows:
        rows = break_even(result)
        below = "at any number of rows" if math.isinf(rows) else f"below about {rows:,.0f} rows"
        lines.append(
            f"  from nothing to the last vector, loading and building and starting included: "
            f"{below if rows else 'never'} (computed from the medians)"
        )
    return ["where headrace loses:", *(lines or ["  nowhere"])]


def break_even(result: Comparison) -> float:
    """Returns the rows below which sentence-transformers finishes first, loading included.

    From the medians: ``load + rows / their rate = overhead + rows / our rate``. Infinite where
    headrace has the lower rate and the longer start, 0 where it is ahead from the first row.
    """
    overhead = spread([r["wall_seconds"] - r["seconds"] for r in result.reports]).median
    ours, theirs = result.spreads[HEADRACE].median, result.spreads[TORCH].median
    late = overhead - result.torch_load_seconds
    if late <= 0:
        return 0.0
    return late / (1 / theirs - 1 / ours) if ours > theirs else float("inf")
