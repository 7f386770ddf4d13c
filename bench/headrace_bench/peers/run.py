"""Is headrace faster than what else its users could take, and are all the vectors right?

In one run, on the same rows and the same machine, in turn and several times over:

``headrace``
    ``headrace embed`` as a process of its own, JSONL in, ``.npy`` out: by its report (from the
    first byte read to the output in place, the server running), and as a whole process.
``sentence-transformers``
    as it comes (torch in fp32, its own batch size), and with each backend that is installed, each
    with the batch size that is fastest on a few of the rows. Texts and vectors are in memory.
``OpenVINO alone``, ``TensorRT alone``
    the ceiling: the same engine, fed with batches that were tokenized, sorted and padded before.
``TEI``
    where ``--tei`` is given: driven over HTTP until more requests at once make it no faster.

Vectors come first: those of every way are compared with sentence-transformers' (torch, fp32). A
way that is wrong is shown as wrong and has no speed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

from headrace.config import Engine
from headrace.errors import UsageError
from headrace.inputs import find_inputs
from headrace_bench.cost import cost
from headrace_bench.library import (
    BACKENDS,
    CPU_SIZES,
    DEFAULT_SIZE,
    GPU_SIZES,
    REMEDY,
    SentenceTransformers,
    SentenceTransformersWay,
)
from headrace_bench.options import number, positive, say, settings, whole
from headrace_bench.peers import notes
from headrace_bench.peers.comparison import REFERENCE, Comparison, why
from headrace_bench.peers.tei import DOCKER, TeiPeer, find_tei
from headrace_bench.peers.texts import POOL, Texts, choose_texts
from headrace_bench.peers.ways import CeilingWay, HeadraceWay
from headrace_bench.results import Outcome, Way, add_outputs, command_line, outputs
from headrace_bench.sampling import even_rows
from headrace_bench.stats import spread
from headrace_bench.workload import Workload
from headrace_bench.writing import write
from headrace_launcher.build import build
from headrace_launcher.gpus import find_gpus
from headrace_launcher.locate import locate
from headrace_launcher.triton import find_triton

HEADRACE, PROCESS = "headrace", "headrace, whole process"
LIBRARY = "sentence-transformers, "
DEFAULT = f"{LIBRARY}as it comes"
MORE = """## Reproduce

In a clone of the project `make bench` sets up everything and runs all benchmarks; elsewhere
`pip install 'headrace[launcher,cpu,bench,peers]'` and the command at the top do for this one. The
texts are the same where their SHA-256 is. What else has been measured (feeding without an encoder,
memory, exactness) stands in the project's `docs/measurements.md`.
"""
LEAST_COSINE = 0.99
"""Below it a vector is another one."""
CHECK_ROWS = 1_000
ENGINES = tuple(name for name in get_args(Engine) if name != "null")
"""The null engine computes nothing that could be compared."""
_PRICE = number(0, 1e12, above=True)


@dataclass(slots=True, kw_only=True)
class _Measured:
    """What was measured, and with what."""

    chosen: Texts
    work: Workload
    comparison: Comparison
    headrace: HeadraceWay
    ceiling: str
    tei: TeiPeer | None = None
    loading: dict[str, float] = field(default_factory=dict)
    search: dict[str, dict[int, float]] = field(default_factory=dict)


def measure(options: argparse.Namespace, folder: Path) -> Outcome:
    """Measures everything.

    Args:
        options: see :func:`parse_arguments`.
        folder: an empty folder for files.

    Raises:
        HeadraceError: the model cannot be built or served, the input cannot be read, or TEI, where
            that was asked for, cannot be found or started.
        RuntimeError: the headrace command failed.
    """
    gpus = find_gpus()
    chosen = choose_texts(options)
    find_triton()  # a download, should there be one, is no part of what is measured
    entry = build(
        options.model,
        repository=options.repository or folder / "models",
        engine=options.engine,
        precision=options.precision,
        notice=say,
    )
    if entry.contract.engine == "openvino":
        gpus = []  # then nobody has one
    work = Workload(chosen.texts, entry, folder / "texts.jsonl")
    rows = even_rows(len(chosen.texts), options.check_rows)
    model = locate(options.model, revision=None).folder
    found = _Measured(
        chosen=chosen,
        work=work,
        comparison=Comparison(rows=rows, least_cosine=options.least_cosine, seed=options.seed),
        headrace=HeadraceWay(work, entry, rows, folder),
        ceiling=f"{'OpenVINO' if entry.contract.engine == 'openvino' else 'TensorRT'} alone",
    )
    comparison = found.comparison
    with ExitStack() as stack:
        if options.tei:
            servers = stack.enter_context(
                find_tei(options.tei, model, gpus, entry.contract.max_length, options.tei_image)
            )
            found.tei = TeiPeer(servers, work, rows, folder)
        _add_library(found, model, len(gpus), options.backends)
        comparison.add(HEADRACE, lambda: found.headrace, must=True)
        comparison.add(found.ceiling, lambda: CeilingWay(work, entry, rows, gpus=max(1, len(gpus))))
        if (tei := found.tei) is not None:
            comparison.add(tei.name, lambda: tei)
        comparison.measure(options.repetitions, must=HEADRACE)
    return _outcome(found, options)


@contextmanager
def ending_children() -> Iterator[None]:
    """Kills, in the end, processes that libraries have forked meanwhile and left.

    OpenVINO's telemetry forks one to send what optimum-intel did. A process forked among threads
    may hang, deaf to SIGTERM, and Python waits for it before it ends.
    """
    before = multiprocessing.active_children()
    try:
        yield
    finally:
        for child in multiprocessing.active_children():
            if child not in before:
                child.kill()
                child.join()


def _add_library(found: _Measured, model: Path, gpus: int, wanted: Sequence[str]) -> None:
    """Adds all ways of sentence-transformers; the one in fp32 gives the reference."""
    comparison, work = found.comparison, found.work
    loaded: dict[str, SentenceTransformers] = {}

    def load(name: str) -> SentenceTransformers:
        if name not in loaded:
            loaded[name] = SentenceTransformers(
                model,
                BACKENDS[name],
                device="cuda" if gpus else "cpu",
                gpus=gpus,
                max_length=work.contract.max_length,
                prompt=work.prompt,
            )
            found.loading[name] = loaded[name].load_seconds
        return loaded[name]

    def way(name: str, sizes: Sequence[int]) -> SentenceTransformersWay:
        return SentenceTransformersWay(load(name), work.texts, comparison.rows, sizes)

    say(f"{REFERENCE}: {len(comparison.rows):,} rows, with which all others are compared")
    try:
        texts = [work.texts[row] for row in comparison.rows]
        comparison.reference = load("torch fp32").encode(texts, DEFAULT_SIZE)
        loaded["torch fp32"].empty_cache()
    except ImportError as error:
        comparison.ways[DEFAULT] = Way(missing=f"not installed ({error}); {REMEDY}")
    except Exception as error:  # noqa: BLE001 -- whatever it raises, the others are measured
        comparison.ways[DEFAULT] = Way(missing=why(error))
    if comparison.reference is None:
        say(f"sentence-transformers: {comparison.ways[DEFAULT].missing}")
        return
    comparison.add(DEFAULT, lambda: way("torch fp32", (DEFAULT_SIZE,)))
    for name, how in BACKENDS.items():
        title, device = f"{LIBRARY}{name}", "cuda" if gpus else "cpu"
        if device not in how.devices:
            if name in wanted:
                say(f"{title}: left out, it is not for {device}")
                comparison.ways[title] = Way(missing=f"not for {device}")
            continue
        if not {"all", name}.intersection(wanted):
            continue
        comparison.add(title, partial(way, name, GPU_SIZES if gpus else CPU_SIZES))
        peer = comparison.peers.get(title)
        if isinstance(peer, SentenceTransformersWay):
            found.search[title] = peer.search


def _outcome(found: _Measured, options: argparse.Namespace) -> Outcome:
    work, ways, reports = found.work, found.comparison.ways, found.headrace.reports
    ours, ceiling = ways[HEADRACE], found.ceiling
    if ours.rates:
        ways[PROCESS] = Way(
            rates=[each["rows"] / each["wall_seconds"] for each in reports],
            what="Python, starting and stopping the server too",
            wrong=ours.wrong,
            cosines=ours.cosines,
        )
    tei, told = ("", None) if found.tei is None else (found.tei.name, found.tei.describe())
    fastest = notes.fastest_of(ways, [name for name in ways if name.startswith(LIBRARY)])
    order = [HEADRACE, PROCESS, ceiling, *(n for n in ways if n.startswith(LIBRARY)), tei]
    ways = {name: ways[name] for name in order if name in ways}
    others = dict.fromkeys([DEFAULT, fastest, ceiling, tei])
    against = [name for name in others if name in ways and ways[name].counts]
    texts = {
        "rows": len(work.texts),
        "source": found.chosen.source,
        "sha256": hashlib.sha256(work.path.read_bytes()).hexdigest(),
        "left_out_rows": found.chosen.left_out,
        "truncated_rows": work.truncated_rows,
        **work.describe(),
    }
    return Outcome(
        benchmark="peers",
        title="Benchmarks",
        command=command_line("headrace bench peers", options.arguments),
        settings=settings(options),
        texts=texts,
        ways=ways,
        ours=[name for name in (HEADRACE, PROCESS) if name in ways],
        against=against,
        cost=cost(
            {name: spread(way.rates).median for name, way in ways.items() if way.counts},
            texts["tokens"]["mean"],
            price_per_hour=options.price_per_hour,
            api_price_per_million_tokens=options.api_price_per_million_tokens,
        ),
        notes=_notes(found, ways, options) + (told["notes"] if told else []),
        details={
            "reports": reports,
            "loading_seconds": found.loading,
            "batch_search": found.search,
            "order": found.comparison.order,
            "check_rows": len(found.comparison.rows),
            "tei": told,
        },
    )


def _notes(found: _Measured, ways: dict[str, Way], options: argparse.Namespace) -> list[str]:
    compared, reports = found.comparison.reference is not None, found.headrace.reports
    lines = notes.method(
        checked=len(found.comparison.rows) if compared else 0,
        reference=REFERENCE,
        least_cosine=options.least_cosine,
        repetitions=options.repetitions,
    )
    lines += notes.of_ceiling(found.ceiling, ways, HEADRACE)
    if reports:
        lines += notes.of_time(reports[-1])
    if DEFAULT in ways and ways[DEFAULT].counts and ways[HEADRACE].counts:
        load = found.loading["torch fp32"]
        lines += notes.of_start(reports, load, ways[HEADRACE].rates, ways[DEFAULT].rates)
    if found.chosen.left_out:
        lines.append(
            f"{found.chosen.left_out:,} rows that are bad or blank were left out for all, since "
            "not all take them."
        )
    if found.work.prompt:
        lines.append(f"In front of every row: {json.dumps(found.work.prompt)}.")
    return lines


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="headrace bench peers",
        description="headrace from file to file, sentence-transformers, the engine alone and TEI "
        "on the same rows. Exit codes: 0 measured, 1 headrace's vectors are wrong, 2 not measured, "
        "4 something is missing, or cannot be read or reached.",
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="any input of headrace; without, MS MARCO passages where a hub is reachable, else "
        f"docstrings; rows are drawn from its first {POOL:,}",
    )
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--rows", type=positive, default=5_000, help="rows to embed")
    parser.add_argument("--text-field", default="text", help="as of headrace embed")
    parser.add_argument(
        "--format", choices=["auto", "jsonl", "text", "parquet"], default="auto", help="likewise"
    )
    parser.add_argument("--repetitions", type=positive, default=3)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="as of headrace embed")
    parser.add_argument(
        "--repository", type=Path, help="a model repository; without, the model is built for this"
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=["all", *BACKENDS],
        default=["all"],
        help="which of sentence-transformers to measure, beside it as it comes",
    )
    parser.add_argument(
        "--tei",
        action="append",
        metavar="URL|docker",
        help="a running TEI (several: one option each), or docker, which starts one for each GPU",
    )
    parser.add_argument("--tei-image", metavar="IMAGE", help="to start, in place of the pinned one")
    parser.add_argument("--seed", type=whole(0), default=0, help="of what is drawn at random")
    parser.add_argument(
        "--check-rows", type=positive, default=CHECK_ROWS, help="rows whose vectors are compared"
    )
    parser.add_argument(
        "--least-cosine", type=number(0, 1), default=LEAST_COSINE, help="below it a vector is wrong"
    )
    parser.add_argument("--price-per-hour", type=_PRICE, help="of this machine, in any currency")
    parser.add_argument(
        "--api-price-per-million-tokens", type=_PRICE, help="of an API, to compare the cost with"
    )
    add_outputs(parser, "peers")
    options = parser.parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns 0, 1 for wrong vectors, 2 for what cannot be measured.

    Raises:
        HeadraceError: something is not as it must be.
    """
    options = parse_arguments(arguments)
    files = outputs(options)
    if options.tei_image is not None and options.tei != [DOCKER]:
        raise UsageError("--tei-image is for --tei docker; leave it out")
    if options.input is not None:
        read = find_inputs([options.input], format=options.format) if options.input != "-" else []
        inputs = {Path(item.path).resolve() for item in read if item.local}
        for path in files.all:
            if path.resolve() in inputs:
                raise UsageError(f"{path} is the input; name another file for the result")
    try:
        folders = tempfile.TemporaryDirectory(prefix="headrace-peers-")
        with folders as folder, ending_children():
            outcome = measure(options, Path(folder))
    except (RuntimeError, ValueError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    write(outcome.to_dict(), files, more=MORE)
    return 1 if outcome.wrong else 0
