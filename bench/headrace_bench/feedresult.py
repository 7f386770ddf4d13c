"""What a feeding benchmark measured, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace_bench import machine
from headrace_bench.results import Outcome, Way
from headrace_bench.stats import Spread, pairwise, spread

FIRST, WARM = "first", "warm"
ALL_CORES, ONE_CORE = "all_cores", "one_core"
PASSES = {FIRST: "headrace, first pass", WARM: "headrace, warm"}
FEEDERS = (1, 2, 3, 4, 8)
ALONE = {ALL_CORES: "tokenizers, all cores", ONE_CORE: "tokenizers, one core"}


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of the input.

    Attributes:
        path: the file.
        rows: their number.
        distinct: how many of them differ from all before.
        alone: the Arrow file for `tokenizers`: all rows, or an even sample, prompt in front.
        alone_rows: how many they are.
        check: int64[n]; numbers of the rows to be checked, evenly spread.
        expected: float16[n, dimension]; what the null encoder answers for them.
    """

    path: Path
    rows: int
    distinct: int
    alone: Path
    alone_rows: int
    check: NDArray[np.int64]
    expected: NDArray[np.float16]


@dataclass(slots=True)
class Result:
    """What was measured; lists have one item a repetition.

    Attributes:
        settings: what was asked for.
        source: the rows.
        rates: rows a second by pass and by way of `tokenizers`.
        reports: headrace's own report by pass, with ``wall_seconds`` and ``server_cpu_seconds``.
        chunks: rows that `tokenizers` was given at a time.
        hardware: see :func:`headrace_bench.machine.hardware`.
        versions: see :func:`headrace_bench.machine.versions`.
    """

    settings: dict[str, Any]
    source: Source
    rates: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in (*PASSES, *ALONE)}
    )
    reports: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {name: [] for name in PASSES}
    )
    chunks: dict[str, int] = field(default_factory=dict)
    hardware: dict[str, object] = field(default_factory=machine.hardware)
    versions: dict[str, str] = field(default_factory=machine.versions)

    def ratio(self, which: str, other: str) -> Spread:
        """Returns how many times as fast the pass is as ``other``, repetition by repetition."""
        return spread(pairwise(self.rates[which], self.rates[other]))

    def stage_us(self, which: str) -> dict[str, float]:
        """Returns the processor time of a pass by stage, microseconds a row, medians.

        ``other`` is what the client computed outside of all stages: starting them, and threads of
        libraries.
        """
        reports = self.reports[which]
        stages = {
            stage: [report["stage_cpu_seconds"][stage] for report in reports]
            for stage in reports[0]["stage_cpu_seconds"]
            if stage not in {"build", "start"}
        }
        stages["other"] = [
            report["cpu_seconds"] - sum(seconds[at] for seconds in stages.values())
            for at, report in enumerate(reports)
        ]
        return {name: self._us(seconds) for name, seconds in stages.items()}

    def cpu_us(self, which: str, key: str) -> float:
        """Returns ``cpu_seconds`` or ``server_cpu_seconds`` of a pass in microseconds a row."""
        return self._us([report[key] for report in self.reports[which]])

    def hits(self, which: str) -> float:
        """Returns the share of words, 0 to 1, that a pass knew already."""
        shares = [report["new_words"] / max(1, report["words"]) for report in self.reports[which]]
        return 1 - spread(shares).median

    def calculated(self, which: str, feeders: int) -> float:
        """Returns rows a second that so many feeders would do, each on a core of its own.

        By processor time alone, with an encoder that is never waited for: all of the client's
        share but reading, which one thread of the main process does, is divided among them.
        """
        read = self.stage_us(which)["read"]
        return min(feeders * 1e6 / (self.cpu_us(which, "cpu_seconds") - read), 1e6 / read)

    def to_outcome(self, command: str) -> Outcome:
        """Returns everything in the form that all benchmarks share; ``command`` does it again."""
        settings, source, last = self.settings, self.source, self.reports[WARM][-1]
        ways = {
            title: Way(
                rates=self.rates[name],
                what=f"{last['feeders']} feeders, file to file",
            )
            for name, title in PASSES.items()
        }
        ways |= {
            title: Way(rates=self.rates[name], what=f"chunks of {self.chunks[name]:,}, in memory")
            for name, title in ALONE.items()
        }
        return Outcome(
            benchmark="feed",
            title="Feeding",
            command=command,
            settings=settings,
            texts={
                "source": settings["input"] or "paragraphs of the docstrings of what is installed",
                "rows": source.rows,
                "tokens": {"mean": last["tokens"] / source.rows},
            },
            ways=ways,
            ours=list(PASSES.values()),
            against=list(ALONE.values()),
            notes=[
                "The encoder costs nothing: this is all else that headrace does, through a real "
                "server. tokenizers alone has its texts in memory and writes nothing.",
                f"{len(source.check):,} rows of each pass are compared with what tokenizers gives; "
                "where one differs there is no result.",
                *self._whole(),
            ],
            details=self.details(),
            hardware=self.hardware,
            versions=self.versions,
        )

    def _whole(self) -> list[str]:
        """Returns what a pass does as a whole process."""
        walls = {
            title: spread([self.source.rows / each["wall_seconds"] for each in self.reports[name]])
            for name, title in PASSES.items()
        }
        return [
            f"{title}: as a whole process {wall.show()} rows/s, Python's start and the words' "
            "keeping included."
            for title, wall in walls.items()
        ]

    def details(self) -> dict[str, Any]:
        """Returns what this benchmark alone tells."""
        last = self.reports[WARM][-1]
        everything: dict[str, Any] = {
            "encoder": self.settings["encoder"],
            "feeders": last["feeders"],
            "repetitions": self.settings["repetitions"],
            "rows": self.source.rows,
            "distinct_rows": self.source.distinct,
            "mean_tokens": last["tokens"] / self.source.rows,
            "padding": last["padding"],
            "tokenizers_rows": self.source.alone_rows,
            "tokenizers_chunks": self.chunks,
        }
        for name in ALONE:
            everything[f"tokenizers_rows_per_second_{name}"] = spread(self.rates[name]).median
        for name in PASSES:
            everything |= {
                f"rows_per_second_{name}": spread(self.rates[name]).median,
                **{f"ratio_{name}_{other}": self.ratio(name, other).median for other in ALONE},
                f"stage_us_{name}": self.stage_us(name),
                f"client_cpu_us_{name}": self.cpu_us(name, "cpu_seconds"),
                f"server_cpu_us_{name}": self.cpu_us(name, "server_cpu_seconds"),
                f"cache_hits_{name}": self.hits(name),
                f"calculated_rows_per_second_{name}": {
                    feeders: self.calculated(name, feeders) for feeders in FEEDERS
                },
            }
        return everything | {"rates": self.rates, "reports": self.reports}

    def _us(self, seconds: list[float]) -> float:
        return spread(seconds).median / self.source.rows * 1e6


def show(result: Result) -> str:
    """Returns the table and everything that a reader needs to judge it."""
    source, settings, last = result.source, result.settings, result.reports[WARM][-1]
    part = "all" if source.alone_rows == source.rows else f"{source.alone_rows:,}, evenly spread,"
    chunks = ", ".join(f"{size:,} ({ALONE[name]})" for name, size in result.chunks.items())
    share = source.distinct / source.rows
    repeats = "" if share > 0.999 else "; REPEATED ROWS MAKE A FIRST PASS LOOK WARM"
    lines = [
        *machine.describe(result.hardware, result.versions),
        f"rows      {source.rows:,} from {settings['input'] or 'installed docstrings'}, "
        f"{share:.1%} distinct{repeats} · tokens a row {last['tokens'] / source.rows:.1f} · "
        f"words a row {last['words'] / source.rows:.1f}",
        f"headrace  encoder {settings['encoder']} · {settings['dtype']} .npy · feeders "
        f"{last['feeders']} · transport {last['transport']} · padding {last['padding']:.1%}",
        f"alone     tokenizers on {part} of the rows, chunks of {chunks}",
        "",
        f"rows/s, median [least..most] of {settings['repetitions']}, ratios pair by pair",
        f"{'':24}{'rows/s':>28}{'times all cores':>22}{'times one core':>22}",
    ]
    for name, title in (PASSES | ALONE).items():
        ratios = [result.ratio(name, other).show(2) if name in PASSES else "" for other in ALONE]
        rate = spread(result.rates[name]).show()
        lines.append(f"{title:24}{rate:>28}{ratios[0]:>22}{ratios[1]:>22}".rstrip())
    for name, title in PASSES.items():
        reports = result.reports[name]
        walls = spread([source.rows / report["wall_seconds"] for report in reports])
        stages = ", ".join(f"{stage} {us:.2f}" for stage, us in result.stage_us(name).items())
        lines += [
            "",
            f"{title}: as a whole process {walls.show()} rows/s · words known before "
            f"{result.hits(name):.2%} ({reports[-1]['word_cache']}) · rows tokenized plainly "
            f"{reports[-1]['plain_rows']:,}, checked {reports[-1]['checked_rows']:,}",
            f"  processor time a row in us: client {result.cpu_us(name, 'cpu_seconds'):.2f}, "
            f"server {result.cpu_us(name, 'server_cpu_seconds'):.2f}",
            f"  of the client's: {stages}",
            "  calculated for so many feeders with a core for each: "
            + ", ".join(f"{count}: {result.calculated(name, count):,.0f}" for count in FEEDERS),
        ]
    return "\n".join(lines)
