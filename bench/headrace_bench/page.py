"""A benchmark's result -> a table for the terminal, and a page of Markdown.

Both are made from the JSON alone (:mod:`headrace_bench.results`), so a page can be made again, and
checked, from the file that lies beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from headrace_bench import machine
from headrace_bench.cost import money
from headrace_bench.results import show_lengths
from headrace_bench.stats import Spread
from headrace_bench.vectors import EDGES, Cosines, histogram

Json = Mapping[str, Any]
UNCOMPARED = "vectors not compared"


def table(result: Json) -> str:
    """Returns what is printed: the machine, the texts, the ways, the losses, the cost."""
    texts = result["texts"]
    lines = [
        *machine.describe(result["hardware"], result["versions"]),
        f"texts     {texts['rows']:,} rows: {texts['source']}",
        *(f"          {line}" for line in _lengths(texts)),
        "",
        f"rows/s, median [least..most] of {_repetitions(result)}; ratios repetition by repetition",
    ]
    width = max(map(len, result["ways"])) + 2
    against = result["against"]
    for number, other in enumerate(against, 1):
        lines.append(f"  x{number}: times {other}")
    ways = result["ways"].values()
    # What was not measured has no ratios, and may go on to the end of its line.
    rates = _width(28, (_rate(way) for way in ways if not way["missing"]))
    columns = [(other, _width(20, (_times(way, other) for way in ways))) for other in against]
    heads = "".join(f"{f'x{number}':>{size}}" for number, (_, size) in enumerate(columns, 1))
    lines.append(f"{'':{width}}{'rows/s':>{rates}}{heads}  least cosine")
    for name, way in result["ways"].items():
        ratios = "".join(f"{_times(way, other):>{size}}" for other, size in columns)
        lines.append(f"{name:{width}}{_rate(way):>{rates}}{ratios}  {_cosine(way)}".rstrip())
    lines += [f"WRONG     {line}" for line in _wrong(result)]
    lines += ["", "where headrace loses:", *(f"  {each}" for each in _losses(result))]
    if result["cost"]:
        lines += ["", "cost:", *(f"  {line}" for line in result["cost"]["arithmetic"])]
    if result["notes"]:
        lines += ["", *result["notes"]]
    return "\n".join(lines)


def _width(least: int, cells: Iterable[str]) -> int:
    """Returns the width of a column that keeps two spaces to the one on its left."""
    return max([least, *(len(cell) + 2 for cell in cells)])


def page(result: Json, *, chart: str | None = None, more: str = "") -> str:
    """Returns the page.

    Args:
        result: the JSON.
        chart: name of the picture, from where the page lies; None for none.
        more: Markdown for the end of the page.
    """
    lines = [
        f"# {result['title']}",
        "",
        "Written by this command:",
        "",
        "```console",
        result["command"],
        "```",
        "",
        f"{result['date']}, on this machine: {_machine(result)}.",
        *(
            ["Machines drift: compare the ratios, which are of runs in turn, not the rates."]
            if result["against"]
            else []
        ),
        "",
        *_texts(result),
        "## Speed",
        "",
    ]
    if chart is not None:
        lines += [f"![rows a second by way]({chart})", ""]
    lines += [*_speed(result), "", "Where headrace loses:", ""]
    lines += [f"- {each}" for each in _losses(result)]
    lines.append("")
    if any(way["cosines"] or way["wrong"] for way in result["ways"].values()):
        lines += ["## Vectors", "", *_vectors(result), ""]
    if result["cost"]:
        lines += ["## Cost", "", *_cost(result["cost"]), ""]
    if result["notes"]:
        lines += ["## Method", "", *(f"- {note}" for note in result["notes"]), ""]
    if more:
        lines += [more.strip(), ""]
    return "\n".join(lines)


def write_page(result: Json, path: Path, chart: Path | None, more: str = "") -> None:
    """Writes the page; ``chart`` is the picture that it shows, wherever that lies."""
    name = None if chart is None else os.path.relpath(chart.absolute(), path.absolute().parent)
    path.write_text(page(result, chart=name, more=more), encoding="utf-8")


def _repetitions(result: Json) -> int:
    return max((len(way["rates"]) for way in result["ways"].values()), default=0)


def _machine(result: Json) -> str:
    hardware = result["hardware"]
    gpus = [f"{gpu['name']} ({gpu['memory_bytes'] / 2**30:.0f} GiB)" for gpu in _gpus(result)]
    extensions = ", ".join(hardware["extensions"]) or "no vector extensions"
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return (
        f"{hardware['cores']} cores of {hardware['processor']} ({extensions}), "
        f"{hardware['memory_bytes'] / 2**30:.0f} GiB, "
        f"{', '.join(gpus) if gpus else 'no GPU'}, {hardware['system']}; {versions}"
    )


def _gpus(result: Json) -> list[Json]:
    found: list[Json] = result["hardware"].get("gpus", [])
    return found


def _lengths(texts: Json) -> Iterator[str]:
    for unit in ("tokens", "characters"):
        if unit in texts:
            yield f"{unit} a row: {show_lengths(texts[unit])}"
    if texts.get("truncated_rows"):
        yield f"{texts['truncated_rows']:,} rows are longer than the model takes, and were cut"
    if texts.get("sha256"):
        yield f"SHA-256 of the rows as JSONL: {texts['sha256']}"


def _texts(result: Json) -> list[str]:
    texts = result["texts"]
    lines = ["## Texts", "", f"{texts['rows']:,} rows: {texts['source']}.", ""]
    lengths = [f"- {line}" for line in _lengths(texts)]
    return [*lines, *lengths, ""] if lengths else lines


def _speed(result: Json) -> Iterator[str]:
    against = result["against"]
    yield (
        f"| way | rows/s, median [least..most] of {_repetitions(result)} |"
        + "".join(f" times {_cell(other)} |" for other in against)
    )
    yield "|---|---|" + "---|" * len(against)
    for name, way in result["ways"].items():
        what = f" ({way['what']})" if way["what"] else ""
        ratios = "".join(f" {_times(way, other)} |" for other in against)
        yield f"| {_cell(name + what)} | {_cell(_rate(way))} |{ratios}"


def _vectors(result: Json) -> Iterator[str]:
    cosines = {name: way["cosines"] for name, way in result["ways"].items() if way["cosines"]}
    if cosines:
        edges = [name for name, _ in histogram(Cosines(1, 1, (0,) * (len(EDGES) + 1), 0))]
        yield "| way | least cosine | mean | rows with a cosine " + " | ".join(edges) + " |"
        yield "|---|---|---|" + "---|" * len(edges)
        for name, found in cosines.items():
            counts = " | ".join(f"{count:,}" for count in found["counts"])
            least, mean = _number(found["least"]), _number(found["mean"])
            yield f"| {_cell(name)} | {least} | {mean} | {counts} |"
    wrong = list(_wrong(result))
    if wrong:
        yield ""
        yield from (f"- **wrong**: {each}" for each in wrong)


def _cost(cost: Json) -> Iterator[str]:
    yield "| way | 10^6 rows | 10^9 tokens |"
    yield "|---|---|---|"
    rows = dict(cost["ways"]) | ({"API": cost["api"]} if cost["api"] else {})
    for name, each in rows.items():
        million, billion = money(each["per_million_rows"]), money(each["per_billion_tokens"])
        yield f"| {_cell(name)} | {million} | {billion} |"
    yield ""
    yield "The arithmetic, with the medians:"
    yield ""
    yield from (f"- {line}" for line in cost["arithmetic"])


def _wrong(result: Json) -> Iterator[str]:
    for name, way in result["ways"].items():
        if way["wrong"]:
            yield f"{name}: {way['wrong']}"


def _losses(result: Json) -> list[str]:
    return [*result["losses"]] or ["nowhere, of what was measured"]


def _rate(way: Json) -> str:
    if way["wrong"]:
        return "WRONG VECTORS"
    if way["missing"]:
        return f"not measured: {way['missing']}"
    return _spread(way["rows_per_second"]).show()


def _cell(text: str) -> str:
    """Returns a text as a table of Markdown takes it."""
    return text.replace("|", "\\|")


def _times(way: Json, other: str) -> str:
    found = way["times"].get(other)
    return _spread(found).show(2) if found else ""


def _cosine(way: Json) -> str:
    if way["missing"]:
        return ""
    return _number(way["cosines"]["least"]) if way["cosines"] else UNCOMPARED


def _number(cosine: float | None) -> str:
    return "not a number" if cosine is None else f"{cosine:.6f}"


def _spread(found: Json) -> Spread:
    return Spread(found["median"], found["least"], found["most"])
