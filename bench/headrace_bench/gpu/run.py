"""How much of a GPU does headrace use, from file to file, and is it faster than torch alone?

For each geometry (the sizes of known encoders, with random weights: how fast one is does not depend
on its weights) a model is written and built: by TensorRT, or where that is not installed as
:mod:`headrace_bench.gpu.torchbert`. One server is started; then, several times over, in turn:

``cuda``, ``system``, ``grpc``
    ``headrace embed`` as a process of its own, JSONL in, float16 ``.npy`` out, with each of the
    transports. Rows a second by its report, from the first byte read to the output in place. A
    first pass, with ``--transport auto``, comes before and is quoted apart: it learns the words,
    and the engine meets all shapes.
``sentence-transformers``
    on the same GPU, in the same precision, texts and vectors in memory, with the batch size that
    is fastest on a few of the texts.
``matrix product``
    a large one in torch, which says what the GPU can do.

Every pass's vectors are looked at and compared with the first one's; where they are wrong, it is
said so and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from headrace.config import EmbedConfig
from headrace.errors import MachineError, MissingDependencyError, UsageError
from headrace_bench import corpus
from headrace_bench.exactness import bert
from headrace_bench.geometry import GEOMETRIES, Geometry, write_model
from headrace_bench.gpu import busy
from headrace_bench.gpu.result import TORCH, Measured, Result, not_installed, show
from headrace_bench.gpu.texts import resized, shapes_of
from headrace_bench.gpu.torchentry import publish_entry
from headrace_bench.gpu.ways import (
    HeadraceWay,
    Read,
    TorchWay,
    TransportError,
    compared,
    matrix_product,
)
from headrace_bench.options import positive, say, settings
from headrace_bench.results import add_outputs, command_line, outputs
from headrace_bench.sampling import evenly
from headrace_bench.writing import write
from headrace_launcher.build import Entry, build
from headrace_launcher.engines import tensorrt
from headrace_launcher.gpus import Gpu, find_gpus
from headrace_launcher.models import find_model
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

TRAINING_TEXTS = 20_000
MOST_TEXTS = 100_000
PRODUCT = "matrix product"
LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99}
"""Smallest cosine, without what all vectors have in common, that counts as the same vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where everything is computed.

    Attributes:
        device: ``cuda`` or ``cpu``.
        gpu: the GPU, or None on a CPU.
        transports: which to measure, the one that should be fastest first.
        batch_sizes: which sentence-transformers tries.
        product_size: rows and columns of the matrices of the product.
    """

    device: str = "cuda"
    gpu: Gpu | None = None
    transports: tuple[str, ...] = ("cuda", "system", "grpc")
    batch_sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)
    product_size: int = 8192


def measure(
    options: argparse.Namespace, place: Place, geometries: Sequence[Geometry], folder: Path
) -> Result:
    """Measures everything.

    Args:
        options: see :func:`parse_arguments`.
        place: where.
        geometries: one vocabulary for all.
        folder: an empty folder for files.

    Raises:
        RuntimeError: a child process failed.
        HeadraceError: a model cannot be built or served.
    """
    found: dict[str, Any] = {}
    read: Read = None
    if place.gpu is not None:
        found = asdict(place.gpu) | {"driver": busy.driver_version()}
        read = busy.reader(place.gpu)
    result = Result(settings(options), place.device, found, place.product_size)
    say(f"writing {options.rows:,} texts")
    base = list(islice(corpus.paragraphs(), min(options.rows, MOST_TEXTS)))
    tokenizer = bert(base[:TRAINING_TEXTS], lowercase=True, size=geometries[0].vocabulary)
    texts = base
    if options.length is not None or len(base) < options.rows:
        texts = resized(base, options.rows, options.length, tokenizer)
    source = folder / "texts.jsonl"
    corpus.write_jsonl(texts, source)
    find_triton()  # a download, should there be one, is no part of what is measured
    for geometry in geometries:
        with tempfile.TemporaryDirectory(dir=folder, prefix="model-") as scratch:
            work = _Work(options, place, read, texts, source, Path(scratch))
            result.measured.append(_measure_one(work, geometry, tokenizer))
    return result


@dataclass(frozen=True, slots=True)
class _Work:
    """What every geometry is measured with."""

    options: argparse.Namespace
    place: Place
    read: Read
    texts: list[str]
    source: Path
    folder: Path


def _measure_one(work: _Work, geometry: Geometry, tokenizer: Tokenizer) -> Measured:
    options, place = work.options, work.place
    say(f"{geometry.name}: writing and building the model")
    model = work.folder / geometry.name
    write_model(geometry, model, tokenizer)
    entry, reason = build_entry(model, work.folder / "models", options, place.device)
    contract = entry.contract
    config = EmbedConfig(
        inputs=(str(work.source),),
        output=work.folder / "out.npy",
        model=contract.name,
        dtype="float16",
    )
    result = Measured(
        geometry=geometry,
        engine=f"{contract.engine} {contract.engine_version}",
        engine_reason=reason,
        precision=contract.precision,
        shapes=shapes_of(config, entry),
    )
    with Server(
        find_triton(),
        entry.folder.parent,
        [contract.name],
        http_port=0,
        metrics_port=None,
        drain=False,
        joined=False,
    ) as server:
        headrace = HeadraceWay(
            work.source,
            len(work.texts),
            entry,
            server.endpoints.grpc,
            feeders=options.feeders,
            folder=work.folder,
            kept=options.st_rows,
            read=work.read,
        )
        say(f"{geometry.name}: first pass")
        first = headrace.run("auto")
        result.warm_up = first.report
        if first.wrong:
            result.wrong.append(f"first pass: {first.wrong}")

        def embed(transport: str) -> Callable[[], None]:
            def run() -> None:
                if transport in result.missing:
                    return
                try:
                    done = headrace.run(transport)
                except TransportError as error:
                    if result.reports.get(transport) or server.poll() is not None:
                        raise
                    result.missing[transport] = str(error)
                    say(f"{geometry.name}: {transport}: {error}")
                    return
                result.reports.setdefault(transport, []).append(done.report)
                cosine = compared(done.vectors, first.vectors)
                result.cosines[transport] = min(cosine, result.cosines.get(transport, 1.0))
                if done.wrong:
                    result.wrong.append(f"{transport}: {done.wrong}")

            return run

        ways: list[tuple[str, Callable[[], None]]] = [
            (transport, embed(transport)) for transport in place.transports
        ]
        torch = _torch_way(work, model, result)
        if torch is not None:
            ways.append((TORCH, torch.measure))
        ways.append((PRODUCT, _product_way(work, result)))
        for repetition in range(options.repetitions):
            # Nobody is always first.
            turn = repetition % len(ways)
            for name, run in ways[turn:] + ways[:turn]:
                say(
                    f"{geometry.name}: repetition {repetition + 1} of {options.repetitions}: {name}"
                )
                run()
    if not result.reports:
        raise RuntimeError("; ".join(f"{way}: {why}" for way, why in result.missing.items()))
    # In the order in which they are listed, whoever came first.
    result.reports = {way: result.reports[way] for way in place.transports if way in result.reports}
    if torch is not None:
        result.torch_rates, result.torch_busy = torch.rates, torch.busy
        result.batch_search, result.torch_batch = torch.way.search, torch.way.batch_size
        result.torch_rows = len(torch.vectors)
        result.cosines[TORCH] = compared(torch.vectors, first.vectors)
    least = LEAST_COSINE[result.precision]
    result.wrong += [
        f"{way}: the smallest cosine to the first pass is {cosine:.6f}, below {least}"
        for way, cosine in result.cosines.items()
        if not cosine >= least
    ]
    return result


def build_entry(
    model: Path, repository: Path, options: argparse.Namespace, device: str
) -> tuple[Entry, str]:
    """Builds a model with the engine that was asked for; returns it and why it is that one.

    Raises:
        MissingDependencyError: the engine is not installed.
        HeadraceError: the model cannot be built.
    """
    engine, reason = options.engine, "asked for"
    if engine == "auto":
        engine, reason = "torch", "TensorRT is not installed"
        with suppress(MissingDependencyError):
            tensorrt.version("tensorrt")
            engine, reason = "tensorrt", "TensorRT is installed"
        say(f"engine: {engine}, for {reason}")
    if engine == "torch":
        found = find_model(str(model))
        return publish_entry(found, repository, precision=options.precision, device=device), reason
    return (
        build(
            str(model),
            repository=repository,
            engine=engine,
            precision=options.precision,
            notice=say,
        ),
        reason,
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="headrace bench gpu",
        description="headrace from file to file on a GPU, by transport, against "
        "sentence-transformers and against a large matrix product on the same GPU. Exit codes: 0 "
        "measured, 1 vectors are wrong, 2 not measured, 4 no GPU or something else is missing.",
    )
    parser.add_argument("--geometry", choices=[*GEOMETRIES, "all"], default="all")
    parser.add_argument("--rows", type=positive, default=200_000, help="rows to embed")
    parser.add_argument(
        "--length",
        type=positive,
        metavar="TOKENS",
        help="mean tokens a row, with the spread of real paragraphs; without, as long as those are",
    )
    parser.add_argument("--repetitions", type=positive, default=3)
    parser.add_argument(
        "--engine",
        choices=["auto", "tensorrt", "torch"],
        default="auto",
        help="auto: TensorRT where it is installed",
    )
    parser.add_argument("--precision", choices=["fp16", "bf16", "fp32"], default="fp16")
    parser.add_argument("--feeders", default="auto", metavar="auto|N", help="as of headrace embed")
    parser.add_argument(
        "--st-rows",
        type=positive,
        default=20_000,
        help=f"rows for {TORCH}, and to compare vectors, at most",
    )
    add_outputs(parser, "gpu")
    options = parser.parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns 0, 1 for wrong vectors, 2 for what cannot be measured.

    Raises:
        UsageError: an option cannot be followed.
        MachineError: there is no GPU, or something else is not as it must be.
    """
    options = parse_arguments(arguments)
    check_options(options)
    gpus = find_gpus()
    if not gpus:
        raise MachineError(
            "bench gpu: no NVIDIA GPU was found, and this measures one ('headrace doctor' says "
            "what is seen)"
        )
    if len(gpus) > 1:
        # One is measured: the server, the client and torch are all to see that one alone.
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[0].uuid
        say(f"of {len(gpus)} GPUs the first is measured: {gpus[0].name}")
    chosen = [*GEOMETRIES] if options.geometry == "all" else [options.geometry]
    return report(options, Place(gpu=gpus[0]), [GEOMETRIES[name] for name in chosen])


def report(options: argparse.Namespace, place: Place, geometries: Sequence[Geometry]) -> int:
    """Measures, prints the table, writes the JSON; returns the exit code.

    Raises:
        HeadraceError: something is not as it must be.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-gpu-") as folder:
            result = measure(options, place, geometries, Path(folder))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    outcome = result.to_outcome(command_line("headrace bench gpu", options.arguments))
    write(outcome.to_dict(), outputs(options), show(result))
    return 1 if result.wrong else 0


def check_options(options: argparse.Namespace) -> None:
    """Checks, before anything is started, what can be checked.

    Raises:
        UsageError: a file to write or the feeders cannot be what they are to be.
    """
    outputs(options)
    if options.feeders != "auto" and not options.feeders.isdigit():
        raise UsageError(f"--feeders {options.feeders}: auto or a number")


def _torch_way(work: _Work, model: Path, result: Measured) -> TorchWay | None:
    place = work.place
    say(f"{result.geometry.name}: {TORCH}: loading, trying batch sizes {place.batch_sizes}")
    try:
        return TorchWay(
            model,
            evenly(work.texts, work.options.st_rows),
            device=place.device,
            precision=result.precision,
            batch_sizes=place.batch_sizes,
            read=work.read,
        )
    except ImportError as error:
        result.torch_missing = not_installed(error)
        say(f"{TORCH}: {result.torch_missing}")
        return None


def _product_way(work: _Work, result: Measured) -> Callable[[], None]:
    place = work.place

    def run() -> None:
        try:
            rate = matrix_product(place.device, result.precision, place.product_size)
        except ImportError as error:
            result.product_missing = not_installed(error)
        else:
            result.products.append(rate)

    return run
