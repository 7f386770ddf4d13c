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
import importlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import HeadraceError
from headrace_bench.cost import cost
from headrace_bench.options import REMEDY, fraction, positive, price, say, settings
from headrace_bench.peers.tei import TeiPeer, find_tei
from headrace_bench.peers.texts import POOL, choose_texts
from headrace_bench.peers.ways import (
    CPU_SIZES,
    DEFAULT_SIZE,
    GPU_SIZES,
    SEARCH_ROWS,
    CeilingWay,
    HeadraceWay,
    Peer,
    SentenceTransformers,
    SentenceTransformersWay,
)
from headrace_bench.results import Outcome, Way, add_outputs, command_line, outputs
from headrace_bench.sampling import even_rows
from headrace_bench.stats import spread
from headrace_bench.vectors import cosines, summary
from headrace_bench.workload import Workload
from headrace_bench.writing import write
from headrace_launcher.build import Entry, build
from headrace_launcher.gpus import find_gpus
from headrace_launcher.locate import locate
from headrace_launcher.triton import find_triton

HEADRACE, PROCESS = "headrace", "headrace, whole process"
DEFAULT = "sentence-transformers, as it comes"
MORE = """## Reproduce

`make bench` in a clone of the project sets up everything and runs this and the other benchmarks;
`pip install 'headrace[launcher,cpu,bench,peers]'` and the command at the top repeat this one alone.
What else has been measured (feeding without an encoder, memory, exactness) stands in
`docs/measurements.md`.
"""
LEAST_COSINE = 0.99
"""Below it a vector is another one."""
CHECK_ROWS = 1_000
BACKENDS = {
    # by what it is called: backend of sentence-transformers, dtype, devices
    "torch fp32": ("torch", "float32", ("cpu", "cuda")),
    "torch bf16": ("torch", "bfloat16", ("cpu", "cuda")),
    "torch fp16": ("torch", "float16", ("cuda",)),
    "ONNX": ("onnx", "float32", ("cpu", "cuda")),
    "OpenVINO": ("openvino", "float32", ("cpu",)),
}
PACKAGES = {"onnx": ("onnxruntime", "optimum.onnxruntime"), "openvino": ("optimum.intel",)}
BACKENDS_REMEDY = "pip install 'headrace[peers]'"


@dataclass(slots=True)
class _Run:
    """What a comparison consists of, while it is put together."""

    options: argparse.Namespace
    work: Workload
    rows: NDArray[np.int64]  # whose vectors are compared
    ways: dict[str, Way] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    reference: NDArray[np.floating] | None = None
    loading: dict[str, float] = field(default_factory=dict)

    def compare(self, way: Way, vectors: NDArray[np.floating]) -> None:
        """Notes what is wrong with vectors, and their cosines if these are the worst so far."""
        if self.reference is None:
            return
        if vectors.shape != self.reference.shape:
            way.wrong = f"its vectors have {vectors.shape[-1]} dimensions"
            return
        found = summary(cosines(vectors, self.reference))
        if way.cosines is None or not found.least >= way.cosines.least:
            way.cosines = found
        if not found.least >= self.options.least_cosine:
            way.wrong = (
                f"the least cosine to {self.options.reference} is {found.least:.6f}, below "
                f"{self.options.least_cosine}"
            )

    def add(self, name: str, make: Callable[[], Peer], *, must: bool = False) -> None:
        """Adds a way, if it can be had, and compares its first vectors."""
        say(f"{name}: first vectors")
        way = self.ways[name] = Way()
        try:
            peer = make()
            vectors = peer.first()
        except Exception as error:
            if must:
                raise
            way.missing = _why(error)
            say(f"{name}: not measured: {way.missing}")
            return
        way.what = peer.what
        self.compare(way, vectors)
        if way.wrong:
            say(f"{name}: WRONG: {way.wrong}")
        else:
            self.peers[name] = peer

    def measure(self, name: str) -> None:
        """Measures a way once and compares its vectors again."""
        way = self.ways[name]
        try:
            rate, vectors = self.peers[name].measure()
        except Exception as error:
            if name == HEADRACE:
                raise
            way.missing = _why(error)
            say(f"{name}: not measured: {way.missing}")
            del self.peers[name]
            return
        way.rates.append(rate)
        self.compare(way, vectors)
        if way.wrong:
            say(f"{name}: WRONG: {way.wrong}")
            del self.peers[name]


@dataclass(frozen=True, slots=True)
class _Names:
    """Of the ways that are not always called the same; "" where there is none."""

    ceiling: str
    tei: str


def measure(options: argparse.Namespace, folder: Path) -> Outcome:
    """Measures everything.

    Args:
        options: see :func:`parse_arguments`.
        folder: an empty folder for files.

    Raises:
        HeadraceError: the model cannot be built or served, or the input cannot be read.
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
    work = Workload(chosen.texts, entry, folder / "texts.jsonl")
    run = _Run(options, work, even_rows(len(chosen.texts), options.check_rows))
    ceiling = f"{'OpenVINO' if entry.contract.engine == 'openvino' else 'TensorRT'} alone"
    headrace = HeadraceWay(work, entry, run.rows, folder)
    with ExitStack() as stack:
        tei: TeiPeer | None = None
        if options.tei:  # first of all: whoever asked for it should not wait to hear that it fails
            servers = stack.enter_context(
                find_tei(
                    options.tei,
                    locate(options.model, revision=None).folder,
                    gpus,
                    entry.contract.max_length,
                    options.tei_image,
                )
            )
            tei = TeiPeer(servers, work, run.rows, folder)
        on_gpu = bool(gpus) and entry.contract.engine != "openvino"
        _add_sentence_transformers(run, entry, "cuda" if on_gpu else "cpu")
        run.add(HEADRACE, lambda: headrace, must=True)
        run.add(ceiling, lambda: CeilingWay(work, entry, run.rows, gpus=max(1, len(gpus))))
        if tei is not None:
            run.add(servers.name, lambda: tei)
        _measure_in_turn(run, options.repetitions)
        details = {
            "reports": headrace.reports,
            "loading_seconds": run.loading,
            "batch_search": {
                name: peer.search
                for name, peer in run.peers.items()
                if isinstance(peer, SentenceTransformersWay)
            },
            "check_rows": len(run.rows),
            "left_out_rows": chosen.left_out,
            "tei": None if tei is None else tei.describe(),
        }
    names = _Names(ceiling, "" if tei is None else servers.name)
    return _outcome(run, chosen.source, names, headrace, details)


def _add_sentence_transformers(run: _Run, entry: Entry, device: str) -> None:
    """Adds all of its ways that can be had here; the one in fp32 gives the reference."""
    options, contract = run.options, entry.contract
    folder = locate(options.model, revision=None).folder
    sizes = CPU_SIZES if device == "cpu" else GPU_SIZES
    loaded: dict[str, SentenceTransformers] = {}

    def load(name: str) -> SentenceTransformers:
        backend, dtype, _ = BACKENDS[name]
        for package in PACKAGES.get(backend, ()):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ImportError(f"{error}; {BACKENDS_REMEDY}") from error
        found = SentenceTransformers(
            folder,
            backend=backend,
            dtype=dtype,
            device=device,
            max_length=contract.max_length,
            prompt=run.work.prompt,
        )
        run.loading[name] = found.load_seconds
        return found

    try:
        say(f"{options.reference}: {len(run.rows):,} rows, with which all others are compared")
        loaded["torch fp32"] = load("torch fp32")
        texts = [run.work.texts[row] for row in run.rows]
        run.reference = loaded["torch fp32"].encode(texts, DEFAULT_SIZE)
    except ImportError as error:
        run.ways[DEFAULT] = Way(missing=f"not installed ({error}); {REMEDY}")
        say(f"sentence-transformers: {run.ways[DEFAULT].missing}")
        return
    run.add(
        DEFAULT,
        lambda: SentenceTransformersWay(
            loaded["torch fp32"], run.work.texts, run.rows, (DEFAULT_SIZE,)
        ),
    )
    for name, (_, _, devices) in BACKENDS.items():
        if device in devices and (options.backends == ["all"] or name in options.backends):
            run.add(
                f"sentence-transformers, {name}",
                lambda name=name: SentenceTransformersWay(  # type: ignore[misc]
                    loaded.get(name) or load(name), run.work.texts, run.rows, sizes
                ),
            )


def _measure_in_turn(run: _Run, repetitions: int) -> None:
    for repetition in range(repetitions):
        names = list(run.peers)
        # Nobody is always first or always after the same neighbour.
        turn = repetition % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            say(f"repetition {repetition + 1} of {repetitions}: {name}")
            run.measure(name)


def _outcome(
    run: _Run, source: str, names: _Names, headrace: HeadraceWay, details: dict[str, Any]
) -> Outcome:
    options, work, ceiling, tei = run.options, run.work, names.ceiling, names.tei
    ours = run.ways[HEADRACE]
    if ours.rates:
        run.ways[PROCESS] = Way(
            rates=[each["rows"] / each["wall_seconds"] for each in headrace.reports],
            what="Python, starting and stopping the server too",
            wrong=ours.wrong,
            cosines=ours.cosines,
        )
    fastest = fastest_of(run.ways, [n for n in run.ways if n.startswith("sentence-transformers, ")])
    order = [HEADRACE, PROCESS, ceiling, *(n for n in run.ways if n.startswith("sentence")), tei]
    ways = {name: run.ways[name] for name in order if name in run.ways}
    against = [name for name in dict.fromkeys([DEFAULT, fastest, ceiling, tei]) if name in ways]
    described = {"rows": len(work.texts), "source": source, **work.describe()}
    truncated = [report["truncated_rows"] for report in headrace.reports[:1]]
    described["truncated_rows"] = truncated[0] if truncated else 0
    medians = {name: spread(way.rates).median for name, way in ways.items() if way.counts}
    outcome = Outcome(
        benchmark="peers",
        title="Benchmarks",
        command=command_line("headrace bench peers", options.arguments),
        settings=settings(options),
        texts=described,
        ways=ways,
        ours=[name for name in (HEADRACE, PROCESS) if name in ways],
        against=against,
        cost=cost(
            medians,
            described["tokens"]["mean"],
            price_per_hour=options.price_per_hour,
            api_price_per_million_tokens=options.api_price_per_million_tokens,
        ),
        details=details,
    )
    outcome.notes = _notes(outcome, run, headrace, ceiling)
    return outcome


def fastest_of(ways: dict[str, Way], names: Sequence[str]) -> str:
    """Returns which of some ways has the highest median, of those with right vectors; or ""."""
    right = [name for name in names if ways[name].counts]
    return max(right, key=lambda name: spread(ways[name].rates).median, default="")


def break_even(overhead: float, load: float, ours: float, theirs: float) -> float:
    """Returns the number of rows below which the other one is done first.

    From nothing to the last vector: ``load + rows / theirs = overhead + rows / ours``. Infinite
    where headrace is slower and later, 0 where it is ahead from the first row.

    Args:
        overhead: seconds that headrace spends before and after the rows.
        load: seconds that the other one spends before them.
        ours: rows a second.
        theirs: rows a second.
    """
    late = overhead - load
    if late <= 0:
        return 0.0
    return late / (1 / theirs - 1 / ours) if ours > theirs else math.inf


def _notes(outcome: Outcome, run: _Run, headrace: HeadraceWay, ceiling: str) -> list[str]:
    """Returns what a reader must know to judge the figures."""
    ways, options = outcome.ways, run.options
    notes = []
    if run.reference is None:
        notes.append(
            "Not compared with sentence-transformers, so it is not known whether the vectors are "
            f"right: {REMEDY}."
        )
    else:
        notes.append(
            f"Vectors of {len(run.rows):,} rows, evenly spread, are compared with those of "
            f"{options.reference}, before a way is measured and after each repetition; below a "
            f"cosine of {options.least_cosine} a way is wrong, and has no speed."
        )
    notes.append(
        "All ways embed the same rows, whole, in turn; of several repetitions (here: "
        f"{options.repetitions}), each in another order, the median is told, with the least and "
        "the most; ratios are taken within a repetition."
    )
    notes.append(
        "headrace reads JSONL and writes .npy; its clock runs from the first byte read to the "
        "output in place, while its server runs; the whole process is the line below. No words are "
        "known when a repetition begins. sentence-transformers has its texts and its vectors in "
        "memory, and its loading is not counted; its batch size is the fastest of a few on "
        f"{SEARCH_ROWS} of the rows, but for the one that is taken as it comes."
    )
    if ways[ceiling].counts:
        notes.append(
            f"{ceiling} is the ceiling: no files, no server, no tokenizing and no sorting; "
            "headrace cannot be faster than that."
        )
    if headrace.reports:
        report = headrace.reports[-1]
        stages = report["stage_seconds"]
        notes.append(
            f"Of headrace's last {report['seconds']:.1f} s {stages['wait']:.1f} s were waiting for "
            f"the engine (reading {stages['read']:.2f} s, parsing {stages['parse']:.2f} s and "
            f"tokenizing {stages['tokenize']:.2f} s lie beside that; packing {stages['pack']:.2f} "
            f"s, writing {stages['write']:.2f} s); padding {report['padding']:.1%}. Starting the "
            f"server took {stages['start']:.1f} s."
        )
    if DEFAULT in ways and ways[DEFAULT].counts and ways[HEADRACE].counts:
        overhead = spread([r["wall_seconds"] - r["seconds"] for r in headrace.reports]).median
        load = run.loading["torch fp32"]
        rows = break_even(
            overhead,
            load,
            spread(ways[HEADRACE].rates).median,
            spread(ways[DEFAULT].rates).median,
        )
        if not rows:
            first = "headrace is done first with any number of rows"
        elif math.isinf(rows):
            first = "sentence-transformers as it comes is done first with any number of rows"
        else:
            first = f"sentence-transformers as it comes is done first below {rows:,.0f} rows"
        notes.append(
            f"From nothing to the last vector headrace spends {overhead:.1f} s beside the rows and "
            f"sentence-transformers {load:.1f} s for loading; so, by the medians, {first}."
        )
    if run.work.prompt:
        notes.append(f"In front of every row: {json.dumps(run.work.prompt)}.")
    if outcome.details["tei"]:
        notes += outcome.details["tei"]["notes"]
    return notes


def _why(error: BaseException) -> str:
    """Returns in one line why something could not be measured."""
    kind = "" if isinstance(error, HeadraceError | ImportError) else f"{type(error).__name__}: "
    said = (str(error).strip() or "no message").splitlines()[0]
    return f"{kind}{said}"[:300]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="headrace bench peers",
        description="headrace from file to file, sentence-transformers, the engine alone and TEI "
        "on the same rows. Exit codes: 0 measured, 1 headrace's vectors are wrong, 2 not measured.",
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
    parser.add_argument("--engine", default="auto", help="as of headrace embed")
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
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    parser.add_argument(
        "--check-rows", type=positive, default=CHECK_ROWS, help="rows whose vectors are compared"
    )
    parser.add_argument(
        "--least-cosine", type=fraction, default=LEAST_COSINE, help="below it a vector is wrong"
    )
    parser.add_argument("--price-per-hour", type=price, help="of this machine, in any currency")
    parser.add_argument(
        "--api-price-per-million-tokens", type=price, help="of an API, to compare the cost with"
    )
    add_outputs(parser, "peers")
    options = parser.parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    options.reference = "sentence-transformers (torch, fp32)"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns 0, 1 for wrong vectors, 2 for what cannot be measured.

    Raises:
        HeadraceError: something is not as it must be.
    """
    options = parse_arguments(arguments)
    files = outputs(options)
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-peers-") as folder:
            outcome = measure(options, Path(folder))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    write(outcome.to_dict(), files, more=MORE)
    return 1 if outcome.wrong else 0
