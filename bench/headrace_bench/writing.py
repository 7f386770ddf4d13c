"""A benchmark's result -> its files, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headrace.errors import MissingDependencyError
from headrace_bench.chart import draw
from headrace_bench.options import say
from headrace_bench.page import table, write_page
from headrace_bench.results import Outputs


def write(
    result: Mapping[str, Any], files: Outputs, shown: str | None = None, more: str = ""
) -> None:
    """Prints a result, writes all of its files and says where they are.

    A chart is left out, and that is said, where there is nothing to draw it with.

    Args:
        result: the JSON of :mod:`headrace_bench.results`.
        files: where to.
        shown: what to print; without it, the table of :mod:`headrace_bench.page`.
        more: Markdown for the end of the page.
    """
    print(table(result) if shown is None else shown)
    for path in files.all:
        path.parent.mkdir(parents=True, exist_ok=True)
    files.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    written = [files.json, files.markdown]
    try:
        for path in files.charts:
            draw(result, path)
            written.append(path)
    except (MissingDependencyError, OSError) as error:
        say(f"no chart: {error}")
    chart = next((path for path in files.charts if path in written), None)
    write_page(result, files.markdown, chart, more)
    say("written: " + ", ".join(map(str, written)))
