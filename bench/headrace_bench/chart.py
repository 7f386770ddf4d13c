"""A benchmark's result -> a bar chart (SVG or PNG)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.errors import MissingDependencyError

OURS, THEIRS, WRONG = "#0b6e4f", "#8d99ae", "#c1121f"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draws rows a second by way: bars to the median, lines from least to most.

    A way whose vectors are wrong has no bar, and says so; so has one that was not measured.

    Args:
        result: the JSON of :mod:`headrace_bench.results`.
        path: the file; its suffix says the kind.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingDependencyError(
            f"a chart needs {error.name}, which is not installed; pip install 'headrace[bench]'"
        ) from error
    names = list(result["ways"])
    ways = [result["ways"][name] for name in names]
    # The same result gives the same file, but for matplotlib's version.
    with matplotlib.rc_context({"svg.hashsalt": "headrace", "svg.fonttype": "none"}):
        figure = figures.Figure(figsize=(9, 1.2 + 0.42 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        most = max((way["rows_per_second"] or {"most": 0})["most"] for way in ways) or 1.0
        for place, (name, way) in enumerate(zip(names, ways, strict=True)):
            rate = way["rows_per_second"]
            if rate is None:
                wrong = bool(way["wrong"])
                axes.text(
                    most * 0.01,
                    place,
                    "wrong vectors" if wrong else "not measured",
                    va="center",
                    color=WRONG if wrong else THEIRS,
                )
                continue
            middle = rate["median"]
            axes.barh(place, middle, color=OURS if name in result["ours"] else THEIRS, height=0.62)
            axes.hlines(place, rate["least"], rate["most"], color="black", linewidth=1.2)
            label = max(middle, rate["most"]) + most * 0.01
            axes.text(label, place, f"{middle:,.0f}", va="center")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, most * 1.12)
        axes.set_xlabel(f"rows/s, {result['texts']['rows']:,} rows; {result['date']}")
        axes.spines[["top", "right"]].set_visible(False)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)
