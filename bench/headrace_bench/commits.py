"""What does it cost to make every block durable, beside feeding an encoder that costs nothing?

In one run, several times over, in turn: ``headrace embed`` with the null encoder as it is, and the
same with the commit of a block left out: no sync of its data, no line in the manifest, no sync of
that (the blocks' checksums and the last sync of the output are in both). Each in a process of its
own, through one server, with the words kept from a first run. Rows a second by the report, and the
processor time of the client's processes; medians, and ratios pair by pair.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace_bench.command import add_places, run
from headrace_bench.feed import write_corpus
from headrace_bench.options import positive, say
from headrace_bench.stats import pairwise, spread
from headrace_launcher.build import build
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

WITH, WITHOUT = "with", "without"
_START = "import sys; sys.argv[0] = 'headrace'; from headrace.__main__ import main; "
_LEFT_OUT = "from headrace.committer import Committer; Committer._commit = lambda *_: None; "


def embed(
    way: str, source: Path, output: Path, *, model: str, server: str, repository: Path
) -> dict[str, Any]:
    """Embeds a file in a process of its own; returns the report.

    Raises:
        RuntimeError: the process failed.
    """
    report = output.with_suffix(".json")
    command = [sys.executable, "-c", (_LEFT_OUT if way == WITHOUT else "") + _START + "main()"]
    command += ["embed", str(source), "-o", str(output), "--model", model, "--server", server]
    command += ["--repository", str(repository), "--dtype", "float16", "--overwrite", "--quiet"]
    done = subprocess.run(
        [*command, "--report", str(report)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"headrace ended with {done.returncode}: {done.stderr.strip()}")
    read: dict[str, Any] = json.loads(report.read_text())
    return read


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the reports of both ways, one of each for each repetition.

    Raises:
        RuntimeError: a process failed.
        HeadraceError: the model cannot be built or served.
    """
    source = folder / "texts.jsonl.zst"
    say(f"writing {options.rows:,} paragraphs")
    write_corpus(options.rows, source)
    entry = build(options.model, repository=folder / "models", engine="null", precision="fp16")
    name = entry.contract.name
    reports: dict[str, list[dict[str, Any]]] = {WITH: [], WITHOUT: []}
    with Server(
        find_triton(),
        folder / "models",
        [name],
        http_port=0,
        metrics_port=None,
        drain=False,
        joined=False,
    ) as server:

        def once(way: str) -> dict[str, Any]:
            return embed(
                way,
                source,
                folder / "out.npy",
                model=name,
                server=server.endpoints.grpc,
                repository=folder / "models",
            )

        once(WITH)  # learns the words
        for repetition in range(options.repetitions):
            say(f"repetition {repetition + 1} of {options.repetitions}")
            for way in (WITH, WITHOUT) if repetition % 2 else (WITHOUT, WITH):
                reports[way].append(once(way))
    return reports


def show(reports: dict[str, list[dict[str, Any]]]) -> str:
    """Returns a table of both ways, and what the commits cost."""
    lines = [f"{'':10} {'rows/s':>32} {'processor time, us a row':>32}"]
    rates = {way: [each["rows_per_second"] for each in found] for way, found in reports.items()}
    costs = {
        way: [each["cpu_seconds"] / each["rows"] * 1e6 for each in found]
        for way, found in reports.items()
    }
    for way in (WITH, WITHOUT):
        rate, cost = spread(rates[way]).show(), spread(costs[way]).show(2)
        lines.append(f"{way:10} {rate:>32} {cost:>32}")
    slower = spread([(1 / ratio - 1) * 100 for ratio in pairwise(rates[WITH], rates[WITHOUT])])
    dearer = spread([(ratio - 1) * 100 for ratio in pairwise(costs[WITH], costs[WITHOUT])])
    lines.append(f"a commit for each block takes {slower.show(1)} % of the time")
    lines.append(f"                          and {dearer.show(1)} % of the processor time")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace_bench.commits", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--rows", type=positive, default=120_000)
    parser.add_argument("--repetitions", type=positive, default=10)
    add_places(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = parse_arguments(arguments)
    return run(options, measure, show, lambda found: {"reports": found})


if __name__ == "__main__":
    sys.exit(main())
