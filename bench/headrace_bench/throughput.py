"""How fast is headrace from file to file, against sentence-transformers and the engine alone?

Three ways to embed the same texts take turns, several times over, in one run:

``headrace``
    The command ``headrace embed`` as a process of its own: JSONL in, ``.npy`` out. Two times are
    quoted: that of its report (from the first byte read to the output in place, server running)
    and that of the whole process (Python, building the entry, starting and stopping the server).
``sentence-transformers``
    torch in fp32 on the CPU in this process, texts and vectors in memory, with the batch size that
    is fastest on a few of the texts. Loading torch and the model is not counted, as it is not in
    headrace's first time; it is measured once and quoted. It runs on an even sample of the texts
    if there are many, for it is slow.
``engine``
    The ceiling: the very engine class that the server hosts, with the same model file and the same
    batches, tokenized, sorted and padded beforehand, in this process. No files and no server.

Vectors are compared before speed: numbers of a run whose vectors are wrong are marked so, and the
exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.errors import HeadraceError
from headrace_bench import corpus
from headrace_bench.comparison import ENGINE, HEADRACE, HEADRACE_WALL, TORCH, Comparison, show
from headrace_bench.options import positive, say, settings
from headrace_bench.ways import (
    BATCH_SIZES,
    REMEDY,
    EngineWay,
    HeadraceWay,
    TorchWay,
    Workload,
    even_rows,
    evenly,
    least_cosine,
)
from headrace_launcher.build import build
from headrace_launcher.triton import find_triton

LEAST_COSINE = {"fp32": 0.99999, "bf16": 0.9995}
"""Smallest cosine to sentence-transformers' fp32 vectors that counts as the same vector."""


def compare(options: argparse.Namespace, folder: Path) -> Comparison:
    """Measures everything.

    Args:
        options: see :func:`parse_arguments`.
        folder: an empty folder for files.

    Raises:
        RuntimeError: the headrace command failed.
        HeadraceError: the model cannot be built, or the texts cannot be read.
    """
    texts = _texts(options)
    find_triton()  # a download, should there be one, is no part of what is measured
    repository = options.repository or folder / "models"
    entry = build(options.model, repository=repository, precision=options.precision)
    work = Workload(texts, entry, folder / "texts.jsonl")
    result = Comparison(settings(options), entry.contract.precision, work.describe())
    ours = HeadraceWay(work, options.model, options.precision, options.repository, folder)
    engine = EngineWay(work, entry)
    torch: TorchWay | None = None
    sample = even_rows(len(texts), options.st_rows)
    try:
        say(f"{TORCH}: loading, trying batch sizes {', '.join(map(str, BATCH_SIZES))}")
        torch = TorchWay(options.model, evenly(texts, options.st_rows), BATCH_SIZES)
    except ImportError as error:
        result.torch_missing = f"not installed ({error}); install it with: {REMEDY}"
        say(f"{TORCH}: {result.torch_missing}")
    ways: list[tuple[str, Callable[[], None]]] = [(HEADRACE, ours.measure)]
    if torch is not None:
        ways.append((TORCH, torch.measure))
    ways.append((ENGINE, engine.measure))
    for repetition in range(options.repetitions):
        # Nobody is always first or always after the same neighbour.
        turn = repetition % len(ways)
        for name, measure in ways[turn:] + ways[:turn]:
            say(f"repetition {repetition + 1} of {options.repetitions}: {name}")
            measure()
    result.reports = ours.reports
    result.rates[HEADRACE] = ours.rates("seconds")
    result.rates[HEADRACE_WALL] = ours.rates("wall_seconds")
    result.cosines[f"{HEADRACE} : {ENGINE}"] = least_cosine(ours.vectors, engine.vectors)
    if torch is not None:
        result.rates[TORCH] = torch.rates
        result.batch_search = torch.search
        result.torch_rows, result.torch_batch = len(sample), torch.batch_size
        result.torch_load_seconds = torch.load_seconds
        result.cosines[f"{HEADRACE} : {TORCH}"] = least_cosine(ours.vectors[sample], torch.vectors)
    result.rates[ENGINE] = engine.rates
    least = LEAST_COSINE[result.precision]
    for pair, cosine in result.cosines.items():
        if not cosine >= least:
            result.wrong.append(f"the smallest cosine of {pair} is {cosine:.6f}, below {least}")
    return result


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace_bench.throughput",
        description="headrace from file to file, sentence-transformers, and the engine alone.",
    )
    parser.add_argument("--rows", type=positive, default=20_000, help="texts to embed")
    parser.add_argument("--st-rows", type=positive, default=2_000, help="texts for torch, at most")
    parser.add_argument("--repetitions", type=positive, default=3)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument(
        "--repository", type=Path, help="use it; without, headrace builds anew each time"
    )
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--input", type=Path, help="JSONL with 'text'; without, docstrings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns 0, 1 for wrong vectors, 2 for what cannot be measured."""
    options = parse_arguments(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-throughput-") as folder:
            result = compare(options, Path(folder))
    except (HeadraceError, OSError, RuntimeError, ValueError) as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 2
    print(show(result))
    if options.json:
        options.json.write_text(result.to_json() + "\n", encoding="utf-8")
    return 1 if result.wrong else 0


def _texts(options: argparse.Namespace) -> list[str]:
    rows: int = options.rows
    if options.input is None:
        return corpus.take(rows)
    texts: list[str] = []
    with options.input.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if len(texts) == rows:
                break
            try:
                texts.append(str(json.loads(line)["text"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{options.input}, line {number}: no text in 'text'") from error
    if not texts:
        raise ValueError(f"{options.input} has no rows")
    return texts


if __name__ == "__main__":
    sys.exit(main())
