"""Callers of a text model: how many a second, how soon answered, and beside a run over files?

Callers who each ask for the vector of one short text after the other, over gRPC, with Triton's
dynamic batching and without, in turn; then beside ``headrace embed`` on the same server, with and
without ``--share``. Of the answers' times the median and the 99th percentile; the mean batch by
Triton's own counters of the encoder (rows by executions), in which the batches of the run over
files are counted, too; its rows a second by the same. All on one machine: the callers, the server
and the run share its processors.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from headrace.contract import text_name
from headrace_bench.command import add_places, run
from headrace_bench.corpus import take, write_jsonl
from headrace_bench.longrun import rows_done
from headrace_bench.options import positive, say
from headrace_launcher.build import build
from headrace_launcher.serve import with_text_models
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

WORDS = 12
"""Of a caller's text, at most: about a search query."""
TEXTS = 2000
START_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What callers saw.

    Attributes:
        way: what was measured.
        connections: callers at a time.
        answers: vectors that came.
        errors: requests without one.
        per_second: answers a second.
        p50: milliseconds until an answer, half of them.
        p99: the same, 99 of a hundred.
        batch: mean rows of an execution.
        file_rows: rows a second of the run over files; 0 without one.
    """

    way: str
    connections: int
    answers: int
    errors: int
    per_second: float
    p50: float
    p99: float
    batch: float
    file_rows: float = 0.0


def counters(server: str, name: str) -> tuple[int, int]:
    """Returns how many rows a model has computed, and in how many executions."""
    with triton.InferenceServerClient(server) as client:
        found = client.get_inference_statistics(name).model_stats[0]
    return int(found.inference_count), int(found.execution_count)


async def _load(
    server: str, name: str, texts: Sequence[str], connections: int, seconds: float
) -> tuple[list[float], int]:
    """Returns the seconds until each answer, and how many requests had none."""
    times: list[float] = []
    errors = 0
    end = time.perf_counter() + seconds

    async def caller(seed: int) -> None:
        nonlocal errors
        chance = random.Random(seed)
        async with triton_aio.InferenceServerClient(server) as client:
            while (start := time.perf_counter()) < end:
                tensor = triton_aio.InferInput("text", [1, 1], "BYTES")
                text = chance.choice(texts).encode()
                tensor.set_data_from_numpy(np.array([[text]], object))
                try:
                    await client.infer(text_name(name), [tensor])
                except triton.InferenceServerException:
                    errors += 1
                times.append(time.perf_counter() - start)

    await asyncio.gather(*(caller(seed) for seed in range(connections)))
    return times, errors


class Callers:
    """Who asks a model.

    Args:
        server: ``HOST:PORT`` of the gRPC endpoint.
        name: of the entry.
        texts: what they ask for.
        seconds: how long.
    """

    def __init__(self, server: str, name: str, texts: Sequence[str], seconds: float) -> None:
        self._server = server
        self._name = name
        self._texts = texts
        self._seconds = seconds

    def ask(self, way: str, connections: int) -> Seen:
        """Lets so many ask; 0 only waits."""
        if not connections:
            time.sleep(self._seconds)
            nothing = dict.fromkeys(("per_second", "p50", "p99", "batch"), 0.0)
            return Seen(way=way, connections=0, answers=0, errors=0, **nothing)
        before = counters(self._server, self._name)
        start = time.perf_counter()
        times, errors = asyncio.run(
            _load(self._server, self._name, self._texts, connections, self._seconds)
        )
        took = time.perf_counter() - start
        after = counters(self._server, self._name)
        rows, executions = after[0] - before[0], after[1] - before[1]
        p50, p99 = np.percentile(times, [50, 99]) * 1000
        return Seen(
            way=way,
            connections=connections,
            answers=len(times) - errors,
            errors=errors,
            per_second=(len(times) - errors) / took,
            p50=float(p50),
            p99=float(p99),
            batch=rows / max(1, executions),
        )

    def ask_beside(self, way: str, connections: int) -> Seen:
        """The same beside a run over files, whose rows the model has computed, too."""
        start, before = time.perf_counter(), counters(self._server, self._name)
        seen = self.ask(way, connections)
        rows = counters(self._server, self._name)[0] - before[0] - seen.answers
        return replace(seen, file_rows=rows / (time.perf_counter() - start))


@contextmanager
def a_run_over_files(
    source: Path, folder: Path, *, model: str, server: str, repository: Path, share: float
) -> Iterator[None]:
    """Runs ``headrace embed`` on the server meanwhile, from its first durable block on.

    Raises:
        RuntimeError: it ended, or had no row in time.
    """
    output = folder / f"out-{time.monotonic_ns()}.npy"
    command = [sys.executable, "-m", "headrace", "embed", str(source), "-o", str(output)]
    command += ["--model", model, "--server", server, "--repository", str(repository)]
    command += ["--share", str(share), "--quiet", "--overwrite", "--word-cache", "run"]
    manifest = folder / f"{output.name}.partial" / "manifest.jsonl"
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not rows_done(manifest):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise RuntimeError(f"headrace embed has no rows: {said.read().strip()}")
                time.sleep(0.1)
            yield
            if process.poll() is not None:
                raise RuntimeError("the run over files ended too early; give it more --file-rows")
        finally:
            process.terminate()
            process.wait()


def measure(options: argparse.Namespace, folder: Path) -> list[Seen]:
    """Measures all ways, in turn.

    Raises:
        RuntimeError: a run over files failed.
        HeadraceError: the model cannot be built or served.
    """
    repository = folder / "models"
    say("gathering texts")
    paragraphs = take(options.file_rows)
    queries = [" ".join(text.split()[:WORDS]) for text in paragraphs[:TEXTS]]
    source = folder / "texts.jsonl"
    write_jsonl(paragraphs, source)
    entry = build(options.model, repository=repository, engine=options.engine)
    name = entry.contract.name
    names = with_text_models([name], repository)
    triton_found = find_triton()
    found: list[Seen] = []
    for repetition in range(options.repetitions):
        for way, joined in (("dynamic batching", True), ("without", False)):
            say(f"repetition {repetition + 1} of {options.repetitions}: {way}")
            with Server(triton_found, repository, names, http_port=0, joined=joined) as server:
                callers = Callers(server.endpoints.grpc, name, queries, options.seconds)
                found += [callers.ask(way, number) for number in options.connections]
    for repetition in range(options.repetitions):
        with Server(triton_found, repository, names, http_port=0) as server:
            grpc = server.endpoints.grpc
            callers = Callers(grpc, name, queries, options.seconds)
            for share in options.shares:
                way = f"beside a run, --share {share:g}"
                say(f"repetition {repetition + 1}: {way}")
                with a_run_over_files(
                    source, folder, model=name, server=grpc, repository=repository, share=share
                ):
                    found += [
                        callers.ask_beside(way, number) for number in (0, *options.connections)
                    ]
    return found


def show(found: Sequence[Seen]) -> str:
    """Returns a table; of several repetitions the median of each figure."""
    lines = [
        f"{'':28} {'callers':>7} {'answers/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'batch':>6} "
        f"{'errors':>6} {'file rows/s':>11}"
    ]
    keys = dict.fromkeys((each.way, each.connections) for each in found)
    for way, connections in keys:
        mine = [each for each in found if (each.way, each.connections) == (way, connections)]

        def middle(field: str, mine: Sequence[Seen] = mine) -> float:
            return float(np.median([getattr(each, field) for each in mine]))

        lines.append(
            f"{way:28} {connections:>7} {middle('per_second'):>9,.1f} {middle('p50'):>8,.1f} "
            f"{middle('p99'):>8,.1f} {middle('batch'):>6,.2f} "
            f"{sum(each.errors for each in mine):>6} {middle('file_rows'):>11,.1f}"
        )
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace_bench.serving", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--connections", type=positive, nargs="+", default=[64, 4])
    parser.add_argument("--seconds", type=positive, default=30, help="for each figure")
    parser.add_argument("--repetitions", type=positive, default=2)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.8, 0.5])
    parser.add_argument("--file-rows", type=positive, default=100_000)
    add_places(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = parse_arguments(arguments)
    return run(options, measure, show, lambda found: {"seen": [asdict(each) for each in found]})


if __name__ == "__main__":
    sys.exit(main())
