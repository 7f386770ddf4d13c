"""A benchmark's result -> its files, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from headrace.errors import MissingDependencyError, OutputError
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

    Raises:
        OutputError: one of the files cannot be written; the others are.
    """
    print(table(result) if shown is None else shown)
    written: list[Path] = []
    failed: list[str] = []

    def attempt(path: Path, make: Callable[[Path], object]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
            written.append(path)
        except OSError as error:
            failed.append(f"{path} cannot be written: {error.strerror or error}")

    told = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    attempt(files.json, lambda path: path.write_text(told, "utf-8"))
    try:
        for path in files.charts:
            attempt(path, partial(draw, result))
    except MissingDependencyError as error:
        say(f"no chart: {error}")
    chart = next((path for path in files.charts if path in written), None)
    attempt(files.markdown, lambda path: write_page(result, path, chart, more))
    if written:
        say("written: " + ", ".join(str(path) for path in files.all if path in written))
    if failed:
        raise OutputError(f"{'; '.join(failed)}; name another file")
