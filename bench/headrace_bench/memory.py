"""Does headrace's memory grow with its input?

Runs ``headrace embed --engine null`` (everything but the encoder) over a small and a large file
and reads the peak memory of each of its processes: the client, its feeders (together),
``tritonserver``, and the server's process for the model. Every row has a word of its own: with two
feeders the word cache is full after a million rows, so the small run should have more. Linux keeps
the peak of a process's resident memory as ``VmHWM`` (proc(5)); it only ever grows, so the last
value seen before a process ends is its peak. The ratio of the large run's peaks to the small one's
should be near 1.

Resident memory counts shared memory in every process that maps it; its part is shown separately,
as is the memory that is a process's own (``RssAnon``). Linux only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from headrace.errors import HeadraceError
from headrace_bench import corpus, machine
from headrace_bench.command import check_json, write_json
from headrace_launcher.build import build
from headrace_launcher.triton import find_triton

SAMPLE_SECONDS = 0.05
BASE_TEXTS = 2_000
PROC = Path("/proc")
MIB = 1 << 20
CLIENT, FEEDERS, SERVER, MODEL, OTHER = (
    "client",
    "feeders",
    "tritonserver",
    "model process",
    "other",
)
TOTAL = "sum"


@dataclass(slots=True)
class Peak:
    """Peak memory of one process, or of several together; bytes.

    Attributes:
        resident: ``VmHWM``, everything resident, shared memory included.
        own: largest ``RssAnon`` seen: what belongs to the process alone.
        shared: largest ``RssShmem`` seen: pages of POSIX shared memory.
    """

    resident: int = 0
    own: int = 0
    shared: int = 0

    def add(self, other: Peak) -> None:
        """Adds another process's peaks, which may have been at another time."""
        self.resident += other.resident
        self.own += other.own
        self.shared += other.shared


@dataclass(slots=True)
class Run:
    """One run of headrace.

    Attributes:
        rows: rows embedded.
        input_bytes: size of the input.
        output_bytes: size of the output.
        wall_seconds: of the whole process.
        report: headrace's own report.
        samples: how many times memory was looked at.
        peaks: by process, and :data:`TOTAL`, the sum of these peaks.
    """

    rows: int
    input_bytes: int
    output_bytes: int
    wall_seconds: float
    report: dict[str, Any]
    samples: int
    peaks: dict[str, Peak] = field(default_factory=dict)


class Watch:
    """Follows a process and all below it.

    Args:
        root: process id of headrace.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: dict[int, tuple[str, Peak]] = {}
        self.samples = 0

    def sample(self) -> None:
        """Looks at every process of the family once."""
        self.samples += 1
        for pid in family(self._root):
            status = read_status(pid)
            if "VmHWM" not in status:
                continue  # it has just ended
            name = status["Name"]
            before, peak = self._seen.get(pid, (name, Peak()))
            if name not in {before, "headrace-feeder"}:  # a feeder has only named itself
                peak = Peak()  # it has become another program, whose peak begins anew
            peak.resident = max(peak.resident, _bytes(status, "VmHWM"))
            peak.own = max(peak.own, _bytes(status, "RssAnon"))
            peak.shared = max(peak.shared, _bytes(status, "RssShmem"))
            self._seen[pid] = (name, peak)

    def peaks(self) -> dict[str, Peak]:
        """Returns the peaks by what the process is; several processes of a kind are added up."""
        found: dict[str, Peak] = {}
        for pid, (name, peak) in self._seen.items():
            found.setdefault(self._kind(pid, name), Peak()).add(peak)
        total = Peak()
        for peak in found.values():
            total.add(peak)
        order = [kind for kind in (CLIENT, FEEDERS, SERVER, MODEL, OTHER) if kind in found]
        return {kind: found[kind] for kind in order} | {TOTAL: total}

    def _kind(self, pid: int, name: str) -> str:
        if pid == self._root:
            return CLIENT
        if name == "headrace-feeder":
            return FEEDERS
        if name == "tritonserver":
            return SERVER
        # Linux cuts names to 15 characters: triton_python_backend_stub.
        return MODEL if name.startswith("triton_python_b") else OTHER


def family(root: int) -> list[int]:
    """Returns ``root`` and the process ids of all its descendants that are alive."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                # The name, in parentheses, may hold anything; the parent is the second after it.
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            except (OSError, IndexError):
                continue
            children.setdefault(int(parent), []).append(int(folder.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def read_status(pid: int) -> dict[str, str]:
    """Returns the fields of ``/proc/PID/status``; empty if the process is gone."""
    try:
        text = (PROC / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, _, value in pairs}


def distinct_texts() -> Iterator[str]:
    """Yields paragraphs without end, each different from all before it by its number."""
    base = corpus.take(BASE_TEXTS)
    for number, text in enumerate(cycle(base)):
        yield f"{text} ({number})"


def write_input(path: Path, rows: int) -> None:
    """Writes so many distinct rows as JSONL, one at a time."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(islice(distinct_texts(), rows)):
            file.write(json.dumps({"id": number, "text": text}, ensure_ascii=False) + "\n")


def measure(rows: int, options: argparse.Namespace, repository: Path, folder: Path) -> Run:
    """Embeds ``rows`` rows and watches the memory; the files are removed again.

    Raises:
        RuntimeError: the headrace command failed.
        OSError: there is no room for the files.
    """
    source, output, report = folder / "in.jsonl", folder / "out.npy", folder / "report.json"
    write_input(source, rows)
    command = [
        *(sys.executable, "-m", "headrace", "embed", str(source), "--output", str(output)),
        *("--model", options.model, "--engine", "null", "--repository", str(repository)),
        *("--feeders", options.feeders, "--dtype", options.dtype, "--word-cache", "run"),
        *("--report", str(report), "--overwrite", "--quiet"),
    ]
    # To a file: a pipe that nobody reads while we watch could fill up and stop the run.
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said)
        watch = Watch(process.pid)
        try:
            while process.poll() is None:
                watch.sample()
                time.sleep(SAMPLE_SECONDS)
        finally:
            process.kill()
            process.wait()
        wall = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"headrace ended with {process.returncode}: {said.read().strip()}")
    run = Run(
        rows=rows,
        input_bytes=source.stat().st_size,
        output_bytes=output.stat().st_size,
        wall_seconds=wall,
        report=json.loads(report.read_text()),
        samples=watch.samples,
        peaks=watch.peaks(),
    )
    source.unlink()
    output.unlink()
    return run


def ratios(small: Run, large: Run) -> dict[str, dict[str, float]]:
    """Returns the large run's peaks over the small one's, by process and kind of memory."""
    return {
        kind: {
            name: value / base
            for name, value in asdict(large.peaks[kind]).items()
            if (base := asdict(small.peaks[kind])[name])
        }
        for kind in large.peaks
        if kind in small.peaks
    }


def show(small: Run, large: Run) -> str:
    """Returns the table."""
    grown = ratios(small, large)
    lines = [
        f"{run.rows:>9,} rows: {run.input_bytes / MIB:,.0f} MiB in, "
        f"{run.output_bytes / MIB:,.0f} MiB out, {run.wall_seconds:.1f} s "
        f"({run.report['rows_per_second']:,.0f} rows/s with an engine that computes nothing)"
        for run in (small, large)
    ]
    lines += [
        "",
        "peak memory in MiB: all that is resident (of it the process's own, shared memory)",
        f"{'':16}{f'{small.rows:,} rows':>26}{f'{large.rows:,} rows':>26}{'ratio (own)':>16}",
    ]
    for kind in large.peaks:
        cells = [_cell(run.peaks.get(kind)) for run in (small, large)]
        ratio = grown.get(kind, {})
        shown = f"{ratio['resident']:.2f} ({ratio['own']:.2f})" if "own" in ratio else "-"
        lines.append(f"{kind:16}{cells[0]:>26}{cells[1]:>26}{shown:>16}")
    lines.append("the sum counts shared memory once for each process that maps it")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace_bench.memory",
        description="Peak memory of headrace for a small and a large input.",
    )
    parser.add_argument("--small", type=int, default=3_000_000, help="rows of the small input")
    parser.add_argument("--large", type=int, default=10_000_000, help="rows of the large input")
    parser.add_argument("--feeders", default="2", metavar="auto|N", help="as of headrace embed")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float16")
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--repository", type=Path, help="use it; without, a new one is made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args(arguments)
    if not 0 < options.small < options.large:
        parser.error("--small must be at least 1 and less than --large")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns 0, or 2 for what cannot be measured."""
    options = parse_arguments(arguments)
    try:
        check_json(options.json)
        with tempfile.TemporaryDirectory(prefix="headrace-memory-") as name:
            folder = Path(name)
            find_triton()  # a download, should there be one, is no part of what is measured
            repository = options.repository or folder / "models"
            entry = build(options.model, repository=repository, engine="null")
            _check_room(folder, options.large, entry.contract.dimension)
            runs = []
            for rows in (options.small, options.large):
                print(f"{rows:,} rows", file=sys.stderr, flush=True)
                runs.append(measure(rows, options, repository, folder))
    except (HeadraceError, OSError, RuntimeError, ValueError) as error:
        print(f"memory: {error}", file=sys.stderr)
        return 2
    small, large = runs
    hardware, versions = machine.hardware(), machine.versions()
    print("\n".join(machine.describe(hardware, versions)))
    print(show(small, large))
    if options.json:
        everything = {
            "small": asdict(small),
            "large": asdict(large),
            "ratios": ratios(small, large),
            "hardware": hardware,
            "versions": versions,
        }
        try:
            write_json(options.json, everything)
        except HeadraceError as error:
            print(f"memory: {error}", file=sys.stderr)
            return error.exit_code
    return 0


def _check_room(folder: Path, rows: int, dimension: int) -> None:
    needed = rows * (4 * dimension + 512)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"{rows:,} rows need about {needed / 2**30:.1f} GiB in {folder.parent}, where "
            f"{free / 2**30:.1f} are free; set TMPDIR to another folder or lower --large"
        )


def _bytes(status: dict[str, str], key: str) -> int:
    return int(status.get(key, "0 kB").split()[0]) * 1024


def _cell(peak: Peak | None) -> str:
    if peak is None:
        return "-"
    return f"{peak.resident / MIB:,.0f} ({peak.own / MIB:,.0f}, {peak.shared / MIB:,.0f})"


if __name__ == "__main__":
    sys.exit(main())
