"""How fast does headrace feed an encoder that costs nothing, against `tokenizers` alone?

In one run, several times over, in turn:

``first``, ``warm``
    ``headrace embed`` twice, each time in a process of its own: the file in, ``.npy`` out, through
    a real Triton server with the null encoder. The first pass finds no kept words; the warm one
    finds those of the first. Rows a second by the report, from the first byte read to the output
    in place; the whole process is quoted beside it. The server is started once and kept.
``tokenizers``
    `tokenizers` by itself on the same texts, which lie in memory: tokenized in chunks of the size
    that is fastest for it, and the ids taken out as int32 arrays; no file is read or written. On
    all cores, with its own threads, and on one.

The null encoder answers with the tokens that it was given, so every pass is checked against
`tokenizers` on a sample of the rows. Where one differs there is no result: the exit code is 1.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from numpy.typing import NDArray

from headrace.choices import choose_prompt
from headrace.config import EmbedConfig
from headrace.contract import TOKENIZER_FILE
from headrace.errors import HeadraceError, UsageError
from headrace.inputs import find_inputs
from headrace_bench import corpus
from headrace_bench.alone import load_tokenizer
from headrace_bench.feedresult import ALONE, ONE_CORE, PASSES, Result, Source, show
from headrace_bench.memory import family
from headrace_bench.options import positive, say, settings
from headrace_bench.results import add_outputs, command_line, outputs
from headrace_bench.rows import read_texts
from headrace_bench.sampling import even_rows
from headrace_bench.writing import write
from headrace_launcher.build import Entry, build
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

CHUNKS = (250, 1000, 2500, 10_000)
SEARCH_ROWS = 10_000
ALONE_ROWS = 120_000
CHECK_ROWS = 2_000
MODULUS = 65_521


class WrongVectorsError(RuntimeError):
    """The output is not what the tokens of `tokenizers` give."""


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Measures everything.

    Args:
        options: see :func:`parse_arguments`.
        folder: an empty folder for files.

    Raises:
        WrongVectorsError: an output is wrong.
        RuntimeError: a child process failed.
        HeadraceError: the model cannot be built or served, or the input cannot be read.
    """
    check_options(options)
    path = options.input
    if path is None:
        path = folder / "texts.jsonl.zst"
        say(f"writing {options.rows:,} paragraphs")
        write_corpus(options.rows, path)
    triton = find_triton()  # a download, should there be one, is no part of what is measured
    # float16, as a GPU's engine answers.
    entry = build(
        options.model, repository=folder / "models", engine=options.encoder, precision="fp16"
    )
    result = Result(settings(options), read_source(path, entry, folder, options))
    say("tokenizers: trying chunk sizes " + ", ".join(map(str, CHUNKS)))
    for name in ALONE:
        rates = _alone(result.source, entry, name, CHUNKS, SEARCH_ROWS)
        result.chunks[name] = max(rates, key=lambda size: rates[size])

    models = [entry.contract.name]  # served as headrace embed does
    with Server(
        triton,
        entry.folder.parent,
        models,
        http_port=0,
        metrics_port=None,
        drain=False,
        joined=False,
    ) as server:

        def both_passes() -> None:
            with tempfile.TemporaryDirectory(dir=folder, prefix="cache-") as cache:
                for name in PASSES:
                    report = _embed(
                        result.source,
                        entry,
                        server,
                        options=options,
                        folder=folder,
                        cache=Path(cache),
                    )
                    result.reports[name].append(report)
                    result.rates[name].append(report["rows_per_second"])

        def alone(name: str) -> Callable[[], None]:
            def run() -> None:
                size = result.chunks[name]
                result.rates[name].append(_alone(result.source, entry, name, [size])[size])

            return run

        ways = [("first, warm", both_passes), *((ALONE[name], alone(name)) for name in ALONE)]
        for repetition in range(options.repetitions):
            # Nobody is always first.
            turn = repetition % len(ways)
            for title, way in ways[turn:] + ways[:turn]:
                say(f"repetition {repetition + 1} of {options.repetitions}: {title}")
                way()
    return result


def write_corpus(rows: int, path: Path) -> None:
    """Writes so many distinct paragraphs as JSONL with an ``id`` and a ``text``, with zstd."""
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
        for number, text in enumerate(corpus.take(rows)):
            line = json.dumps({"id": number, "text": text}, ensure_ascii=False) + "\n"
            file.write(line.encode())


def check_options(options: argparse.Namespace) -> None:
    """Checks, before anything is started, what can be checked.

    Raises:
        UsageError: the input, a file to write or the feeders cannot be what they are to be.
    """
    if str(options.input) == "-":
        raise UsageError("--input -: the input is read several times; name a file")
    read = [] if options.input is None else find_inputs([str(options.input)], format="text")
    inputs = {Path(item.path).resolve() for item in read}
    for path in outputs(options).all:
        if path.resolve() in inputs:
            raise UsageError(f"{path} is the input; name another file for the result")
    if options.feeders != "auto" and not options.feeders.isdigit():
        raise UsageError(f"--feeders {options.feeders}: auto or a number")
    _config(options, Path("out.npy"))


def read_source(path: Path, entry: Entry, folder: Path, options: argparse.Namespace) -> Source:
    """Reads the input twice: to count its rows, and to take a sample of them.

    Raises:
        HeadraceError: it cannot be read.
        RuntimeError: it has no rows, or bad ones.
    """
    config = replace(
        _config(options, folder / "out.npy"), inputs=(str(path),), model=entry.contract.name
    )
    hashes = [np.array([hash(text) for text in texts.to_pylist()]) for texts in _texts(config)]
    rows = sum(map(len, hashes))
    if not rows:
        raise RuntimeError(f"{path} has no rows")
    contract = entry.contract
    prompt = choose_prompt(config, contract)[0]
    sample = even_rows(rows, ALONE_ROWS)
    texts = [prompt + text for text in _taken(config, sample)]
    alone = folder / "texts.arrow"
    table = pa.table({"text": pa.array(texts, pa.large_string())})
    with pa.OSFile(str(alone), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    some = even_rows(len(sample), CHECK_ROWS)
    tokenizer = load_tokenizer(entry.folder / TOKENIZER_FILE, contract.max_length)
    checked = tokenizer.encode_batch_fast([texts[row] for row in some])
    return Source(
        path=path,
        rows=rows,
        distinct=len(np.unique(np.concatenate(hashes))),
        alone=alone,
        alone_rows=len(texts),
        check=sample[some],
        expected=null_vectors([row.ids for row in checked], contract.dimension),
    )


def null_vectors(rows: Sequence[Sequence[int]], dimension: int) -> NDArray[np.float16]:
    """Returns what the null encoder answers in float16.

    Token count, sum of ids modulo 65,521 and the ids; each number n as n // 256 and n % 256.
    """
    vectors = np.zeros((len(rows), dimension), np.float16)
    for vector, ids in zip(vectors, rows, strict=True):
        numbers = np.array([len(ids), sum(ids) % MODULUS, *ids])
        head = np.stack([numbers // 256, numbers % 256], axis=1).ravel()[:dimension]
        vector[: len(head)] = head
    return vectors


def check(output: Path, source: Source) -> None:
    """Compares the written vectors with what they must be.

    Raises:
        WrongVectorsError: they differ.
    """
    vectors = np.load(output, mmap_mode="r")
    if vectors.shape != (source.rows, source.expected.shape[1]):
        raise WrongVectorsError(
            f"the output has the shape {list(vectors.shape)}, the input {source.rows:,} rows"
        )
    wrong = np.flatnonzero((vectors[source.check] != source.expected).any(axis=1))
    if len(wrong):
        raise WrongVectorsError(
            f"{len(wrong):,} of {len(source.check):,} rows that were looked at are not what "
            f"tokenizers gives, the first is row {source.check[wrong[0]]:,}"
        )


def cpu_seconds(pids: Sequence[int]) -> float:
    """Returns the processor time of processes, seconds (clock_getcpuclockid(3)).

    Raises:
        RuntimeError: one of them is gone.
    """
    total = 0.0
    for pid in pids:
        clock = ctypes.c_int()
        if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
            raise RuntimeError(f"process {pid} is gone")
        total += time.clock_gettime(clock.value)
    return total


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="headrace bench feed",
        description="headrace from file to file with an encoder that costs nothing, against "
        "tokenizers alone. Exit codes: 0 measured, 1 an output is wrong, 2 not measured.",
    )
    parser.add_argument("--input", type=Path, help="any input of headrace; without, docstrings")
    parser.add_argument("--text-field", default="text", help="as of headrace embed")
    parser.add_argument(
        "--format", choices=["auto", "jsonl", "text", "parquet"], default="auto", help="likewise"
    )
    parser.add_argument("--encoder", choices=["null"], default="null")
    parser.add_argument(
        "--rows", type=positive, default=120_000, help="rows to write where there is no --input"
    )
    parser.add_argument("--feeders", default="auto", metavar="auto|N", help="as of headrace embed")
    parser.add_argument("--repetitions", type=positive, default=5)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float16")
    add_outputs(parser, "feed")
    options = parser.parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns 0, 1 for wrong vectors, 2 for what cannot be measured."""
    options = parse_arguments(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-feed-") as folder:
            result = measure(options, Path(folder))
    except WrongVectorsError as error:
        print(f"feed: WRONG: {error}", file=sys.stderr)
        return 1
    except (HeadraceError, OSError, RuntimeError, ValueError) as error:
        print(f"feed: {error}", file=sys.stderr)
        return 2
    outcome = result.to_outcome(command_line("headrace bench feed", options.arguments))
    write(outcome.to_dict(), outputs(options), show(result))
    return 0


def _config(options: argparse.Namespace, output: Path) -> EmbedConfig:
    return EmbedConfig(
        inputs=(str(options.input),),
        output=output,
        model=options.model,
        text_field=options.text_field,
        format=options.format,
        feeders=options.feeders if options.feeders == "auto" else int(options.feeders),
    )


def _texts(config: EmbedConfig) -> Iterator[pa.Array]:
    """Yields the texts of the input; a bad row would make another benchmark of it.

    Raises:
        RuntimeError: a row is bad.
    """
    for block in read_texts(config.inputs, text_field=config.text_field, format=config.format):
        for bad in block.bad:
            raise RuntimeError(
                f"{block.block.place_of(bad)}: {bad.reason}; measure a file without bad rows"
            )
        yield block.texts


def _taken(config: EmbedConfig, rows: NDArray[np.int64]) -> Iterator[str]:
    """Yields the texts of ``rows``, ascending row numbers."""
    first = 0
    for texts in _texts(config):
        inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(texts))]
        yield from texts.take(pa.array(inside - first)).to_pylist()
        first += len(texts)


def _embed(
    source: Source,
    entry: Entry,
    server: Server,
    *,
    options: argparse.Namespace,
    folder: Path,
    cache: Path,
) -> dict[str, Any]:
    """Runs ``headrace embed`` once, checks its output, removes it, returns the report."""
    assert server.pid is not None
    output, report = folder / "out.npy", folder / "report.json"
    command = [
        *(sys.executable, "-m", "headrace", "embed", str(source.path), "--output", str(output)),
        *("--model", entry.contract.name, "--engine", options.encoder),
        *("--server", server.endpoints.grpc, "--repository", str(entry.folder.parent)),
        *("--word-cache", "keep", "--feeders", options.feeders, "--dtype", options.dtype),
        *("--text-field", options.text_field, "--format", options.format),
        *("--report", str(report), "--quiet"),
    ]
    pids = family(server.pid)
    before, start = cpu_seconds(pids), time.perf_counter()
    _run(command, {"XDG_CACHE_HOME": str(cache)})
    wall, server_cpu = time.perf_counter() - start, cpu_seconds(pids) - before
    check(output, source)
    output.unlink()
    found: dict[str, Any] = json.loads(report.read_text())
    return found | {"wall_seconds": wall, "server_cpu_seconds": server_cpu}


def _alone(
    source: Source, entry: Entry, name: str, chunks: Sequence[int], rows: int = ALONE_ROWS
) -> dict[int, float]:
    """Measures `tokenizers` in a process of its own; returns rows a second by chunk size."""
    command = [
        *(sys.executable, "-m", "headrace_bench.alone", str(source.alone)),
        *(str(entry.folder / TOKENIZER_FILE), str(entry.contract.max_length)),
        *("--rows", str(rows), "--chunks", *map(str, chunks)),
        *(["--one-core"] if name == ONE_CORE else []),
    ]
    parallel = "false" if name == ONE_CORE else "true"
    found = json.loads(_run(command, {"TOKENIZERS_PARALLELISM": parallel}))
    return {int(size): rate for size, rate in found.items()}


def _run(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[2]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
