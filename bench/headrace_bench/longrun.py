"""A long job that is killed near its end: memory, size of the manifest, and how soon it goes on.

Runs ``headrace embed --engine null`` (everything but the encoder) over many rows, each with a word
of its own; kills the client (SIGKILL) when the manifest tells that so many rows are done; gives the
same command again and measures when the first block after that is durable. Of the memory the
largest resident sum of the client's processes is told for each tenth of the job: it should be flat,
and below what the report calculates. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from headrace_bench.command import add_places, run
from headrace_bench.memory import MIB, family, read_status, write_input
from headrace_bench.options import positive, say
from headrace_launcher.build import build
from headrace_launcher.triton import find_triton

SAMPLE_SECONDS = 0.1
TENTHS = 10
_CLIENTS = {"headrace", "python", "python3", "headrace-feeder"}


@dataclass(slots=True)
class Part:
    """One run of the job.

    Attributes:
        seconds: from the start of the process to its end.
        first_row: rows of the job that were durable when it began.
        rows: when it ended.
        first_commit: seconds to the first block that it made durable.
        resident: largest resident sum of the client's processes by tenth of the job, bytes.
    """

    seconds: float = 0.0
    first_row: int = 0
    rows: int = 0
    first_commit: float | None = None
    resident: list[int] = field(default_factory=lambda: [0] * TENTHS)


def rows_done(manifest: Path) -> int:
    """Returns the rows that a manifest tells of; 0 where there is none."""
    try:
        with manifest.open("rb") as file:
            file.seek(max(0, manifest.stat().st_size - 4096))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        if line.startswith(b'{"block"') and line.endswith(b"\n"):
            return int(json.loads(line)["written"])
    return 0


def resident(root: int) -> int:
    """Returns the resident bytes of a client and its feeders, shared memory once."""
    total = shared = 0
    for pid in family(root):
        status = read_status(pid)
        if status.get("Name") in _CLIENTS and "VmRSS" in status:
            mine = int(status.get("RssShmem", "0 kB").split()[0]) * 1024
            total += int(status["VmRSS"].split()[0]) * 1024 - mine
            shared = max(shared, mine)
    return total + shared


def watch(
    command: list[str], manifest: Path, rows: int, wanted: Callable[[int], bool]
) -> tuple[Part, int]:
    """Runs the command and watches it; returns what was seen, and the exit status.

    Args:
        command: the command.
        manifest: the job's manifest while it is not finished.
        rows: of the whole job.
        wanted: says of the rows that are durable whether to go on; else the client is killed.
    """
    part = Part(first_row=rows_done(manifest))
    part.rows = part.first_row
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            while process.poll() is None:
                part.rows = rows_done(manifest) or part.rows
                if part.first_commit is None and part.rows > part.first_row:
                    part.first_commit = time.perf_counter() - start
                tenth = min(TENTHS - 1, part.rows * TENTHS // rows)
                part.resident[tenth] = max(part.resident[tenth], resident(process.pid))
                if not wanted(part.rows):
                    process.kill()
                time.sleep(SAMPLE_SECONDS)
        finally:
            process.kill()
            process.wait()
        part.seconds = time.perf_counter() - start
        if process.returncode > 0:
            said.seek(0)
            raise RuntimeError(f"headrace ended with {process.returncode}: {said.read().strip()}")
    return part, process.returncode


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the job, kills it, goes on with it; returns all figures.

    Raises:
        RuntimeError: a run failed, or was not killed where it should have been.
        HeadraceError: the model cannot be built.
    """
    source, output = folder / "in.jsonl", folder / f"out{options.ending}"
    say(f"writing {options.rows:,} rows")
    write_input(source, options.rows)
    find_triton()
    build(options.model, repository=folder / "models", engine="null", precision="fp16")
    command = [
        *(sys.executable, "-m", "headrace", "embed", str(source), "--output", str(output)),
        *("--model", options.model, "--engine", "null", "--precision", "fp16"),
        *("--repository", str(folder / "models"), "--dtype", "float16", "--word-cache", "run"),
        *("--report", str(folder / "report.json"), "--quiet"),
    ]
    manifest = folder / f"{output.name}.partial" / "manifest.jsonl"
    stop = options.rows * options.kill_at // 100
    say(f"first run, to be killed at {stop:,} rows")
    first, status = watch(command, manifest, options.rows, lambda rows: rows < stop)
    if status >= 0:
        raise RuntimeError("the first run ended before it was killed; take more rows")
    say("second run")
    second, _ = watch(command, manifest, options.rows, lambda _: True)
    report = json.loads((folder / "report.json").read_text())
    if report["rows"] != options.rows:
        raise RuntimeError(f"{report['rows']:,} rows came out of {options.rows:,}")
    return {
        "first": asdict(first),
        "second": asdict(second),
        "report": report,
        "manifest_bytes": output.with_name(f"{output.name}.manifest.jsonl").stat().st_size,
        "input_bytes": source.stat().st_size,
    }


def show(found: dict[str, Any], rows: int) -> str:
    """Returns a short table."""
    lines = []
    for title in ("first", "second"):
        part = found[title]
        peaks = [peak / MIB for peak in part["resident"] if peak]
        commit = part["first_commit"]
        lines.append(
            f"{title:7} rows {part['first_row']:>12,} to {max(part['rows'], 0):>12,} in "
            f"{part['seconds']:6.1f} s · first block durable after "
            + (f"{commit:.1f} s" if commit is not None else "-")
            + f" · resident by tenth {' '.join(f'{peak:,.0f}' for peak in peaks)} MiB"
        )
    lines.append(
        f"calculated {found['report']['memory_bytes'] / MIB:,.0f} MiB · manifest "
        f"{found['manifest_bytes']:,} bytes for {rows:,} rows · input "
        f"{found['input_bytes'] / MIB:,.0f} MiB"
    )
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace_bench.longrun", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--rows", type=positive, default=10_000_000)
    parser.add_argument("--kill-at", type=positive, default=90, help="percent of the rows")
    parser.add_argument("--ending", choices=[".npy", ".parquet"], default=".npy")
    add_places(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = parse_arguments(arguments)
    return run(options, measure, partial(show, rows=options.rows), lambda found: found)


if __name__ == "__main__":
    sys.exit(main())
