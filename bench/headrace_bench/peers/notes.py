"""What a reader must know to judge the figures of a comparison, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from headrace_bench.results import Way
from headrace_bench.stats import pairwise, spread

Report = Mapping[str, Any]


def method(*, checked: int, reference: str, least_cosine: float, repetitions: int) -> list[str]:
    """Returns how it was measured.

    Args:
        checked: rows whose vectors were compared; 0 where there was nothing to compare with.
        reference: with what.
        least_cosine: below which a vector is wrong.
        repetitions: how often everything was measured.
    """
    if checked:
        vectors = (
            f"Vectors of {checked:,} rows, evenly spread, are compared with those of {reference}, "
            f"before a way is measured and after each repetition; below a cosine of {least_cosine} "
            "a way is wrong, and has no speed."
        )
    else:
        vectors = (
            "Not compared with sentence-transformers, so it is not known whether the vectors are "
            "right."
        )
    return [
        vectors,
        "All ways embed the same rows, whole, in turn; of several repetitions (here: "
        f"{repetitions}), each in an order drawn at random, the median is told, with the least and "
        "the most; ratios are taken within a repetition.",
        "headrace reads JSONL and writes .npy; its clock runs from the first byte read to the "
        "output in place, while its server runs; the whole process is the line below. No words "
        "are known when a repetition begins, and its server is new.",
        "sentence-transformers has its texts and its vectors in memory, is warm, and its loading "
        "is not counted; it sorts the texts by length, as it always does. Its batch size is the "
        "fastest of a few on some of the rows, but for the one that is taken as it comes.",
    ]


def of_ceiling(name: str, ways: Mapping[str, Way], headrace: str) -> list[str]:
    """Returns what the ceiling is, where it was measured.

    Args:
        name: of the ceiling.
        ways: all, by name.
        headrace: name of headrace's own.
    """
    if not (ways[name].counts and ways[headrace].counts):
        return []
    share = spread(pairwise(ways[headrace].rates, ways[name].rates))
    least = "" if share.median < 1 else " That it is above 1 is what this machine's noise does."
    return [
        f"{name} is the ceiling: no files, no server, no tokenizing and no sorting, loaded anew in "
        f"each repetition as headrace's server is. headrace has {share.show(2)} of it.{least}"
    ]


def of_time(report: Report) -> list[str]:
    """Returns where the time of one of headrace's runs went, by its report."""
    stages = report["stage_seconds"]
    return [
        f"Of headrace's last {report['seconds']:.1f} s {stages['wait']:.1f} s were waiting for the "
        f"engine (reading {stages['read']:.2f} s, parsing {stages['parse']:.2f} s and tokenizing "
        f"{stages['tokenize']:.2f} s lie beside that; packing {stages['pack']:.2f} s, writing "
        f"{stages['write']:.2f} s); padding {report['padding']:.1%}. Starting the server took "
        f"{stages['start']:.1f} s."
    ]


def of_start(
    reports: Sequence[Report], load: float, ours: Sequence[float], theirs: Sequence[float]
) -> list[str]:
    """Returns who is done first from nothing, by the number of rows.

    Args:
        reports: of headrace, with ``seconds`` and ``wall_seconds``.
        load: seconds for loading sentence-transformers.
        ours: rows a second, one number a repetition.
        theirs: the same of sentence-transformers as it comes.
    """
    overhead = median(each["wall_seconds"] - each["seconds"] for each in reports)
    return [
        f"From nothing to the last vector headrace spends {overhead:.1f} s beside the rows and "
        f"sentence-transformers {load:.1f} s for loading. By the medians: "
        + done_first(overhead, load, median(ours), median(theirs))
    ]


def done_first(overhead: float, load: float, ours: float, theirs: float) -> str:
    """Returns in words who is done first with how many rows.

    ``overhead + rows / ours`` and ``load + rows / theirs`` are equal at
    ``(overhead - load) / (1 / theirs - 1 / ours)`` rows.

    Args:
        overhead: seconds that headrace spends before and after the rows.
        load: seconds that the other one spends before them.
        ours: rows a second.
        theirs: rows a second.
    """
    late, gain = overhead - load, 1 / theirs - 1 / ours
    other = "sentence-transformers as it comes"
    if late <= 0 and gain >= 0:
        return "headrace is done first with any number of rows."
    if late >= 0 and gain <= 0:
        return f"{other} is done first with any number of rows."
    first, then = ("headrace", other) if late < 0 else (other, "headrace")
    return f"{first} is done first with fewer than {late / gain:,.0f} rows, {then} with more."


def fastest_of(ways: Mapping[str, Way], names: Sequence[str]) -> str:
    """Returns which of some ways has the highest median, of those with right vectors; or ""."""
    right = [name for name in names if ways[name].counts]
    return max(right, key=lambda name: median(ways[name].rates), default="")
