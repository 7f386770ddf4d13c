"""Do headrace's vectors do on a public task what sentence-transformers' do?

The task is that of the STS benchmark: pairs of sentences, and for each a score that people gave for
how alike they are. Both sides are embedded by ``headrace embed``, file to file, and by
sentence-transformers in fp32; the result is Spearman's rank correlation, times 100, of the cosines
of the pairs with the scores. The file is one of your own: nothing is downloaded. The benchmark's
own ``sts-test.csv`` is read with ``--columns 6,7,5``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import (
    EXIT_USAGE,
    MachineError,
    MissingDependencyError,
    OutputError,
    UsageError,
)
from headrace_bench import command, corpus
from headrace_bench.machine import versions
from headrace_bench.options import positive, say
from headrace_bench.pairs import Pairs, read_pairs, spearman
from headrace_bench.vectors import cosines
from headrace_bench.verify.reference import Asked, Opener, open_reference

DIGITS = 6
"""Of cosines that are ranked: fp32 does not tell more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was found.

    Attributes:
        pairs: how many pairs.
        model: where the weights came from.
        precision: what headrace's engine computed in.
        engine: that engine, and its version.
        prompt: text in front of every sentence, "" for none.
        max_length: tokens that a sentence is cut to.
        truncated_rows: sentences among them that were cut.
        headrace: Spearman x 100 of headrace's vectors.
        reference: what computed the reference, or why there is none.
        sentence_transformers: Spearman x 100 of the reference's vectors; None where there is none.
        difference: the first less the second.
        least_cosine: smallest cosine of both vectors of one sentence.
    """

    pairs: int
    model: str
    precision: str
    engine: str
    prompt: str
    max_length: int
    truncated_rows: int
    headrace: float
    reference: str
    sentence_transformers: float | None
    difference: float | None
    least_cosine: float | None


def measure(options: argparse.Namespace, folder: Path, *, opener: Opener) -> Result:
    """Embeds the pairs and correlates.

    Args:
        options: see :func:`parse_arguments`.
        folder: an empty folder for files.
        opener: gives the reference.

    Raises:
        HeadraceError: the file cannot be read, or the model not be built or served.
    """
    check_options(options)
    pairs = read_pairs(options.pairs, options.columns, options.delimiter)
    texts = [*pairs.first, *pairs.second]
    say(f"headrace: embedding {len(texts):,} sentences")
    ours, report = _embed(texts, folder, options)
    score = _score(ours, pairs, "headrace's")
    told: str
    theirs: float | None = None
    least: float | None = None
    try:
        reference = opener(
            Asked(
                model=options.model,
                prompt=report["prompt"],
                max_length=report["max_length"],
                device=options.device,
                batch_size=options.batch_size,
            )
        )
    except MissingDependencyError as error:
        told = f"not measured: {error}"
        say(told)
    else:
        told = reference.described
        say(f"embedding the same: {told}")
        vectors = reference.encode(texts)
        theirs = _score(vectors, pairs, "sentence-transformers'")
        least = float(cosines(ours, vectors).min())
    return Result(
        pairs=len(pairs.scores),
        model=report["model_id"],
        precision=report["precision"],
        engine=report["engine"],
        prompt=report["prompt"],
        max_length=report["max_length"],
        truncated_rows=report["truncated_rows"],
        headrace=score,
        reference=told,
        sentence_transformers=theirs,
        difference=None if theirs is None else score - theirs,
        least_cosine=least,
    )


def show(result: Result) -> str:
    """Returns the table."""
    prompt = f"prompt {result.prompt!r}" if result.prompt else "no prompt"
    lines = [
        f"pairs                  {result.pairs:,}, of which {result.truncated_rows:,} sentences "
        f"were cut to {result.max_length} tokens",
        f"model                  {result.model} · {prompt}",
        f"ranks                  of cosines rounded to {DIGITS} digits: equal sentences are ties",
        f"headrace               {result.headrace:.3f} Spearman x 100 · {result.precision}, "
        f"{result.engine}",
    ]
    if result.sentence_transformers is None:
        return "\n".join([*lines, f"sentence-transformers  {result.reference}"])
    return "\n".join(
        [
            *lines,
            f"sentence-transformers  {result.sentence_transformers:.3f} Spearman x 100 · "
            f"{result.reference}",
            f"difference             {result.difference:+.3f}",
            f"least cosine           {result.least_cosine:.7f} between both vectors of a sentence",
        ]
    )


def to_json(result: Result) -> dict[str, Any]:
    """Returns everything as JSON takes it."""
    return {"versions": versions(), **asdict(result)}


def check_options(options: argparse.Namespace) -> None:
    """Checks, before anything is started, what can be checked.

    Raises:
        UsageError: the JSON file is the input.
    """
    path = options.json
    if path is not None and path.resolve() == options.pairs.resolve():
        raise UsageError(f"--json {path} is the input; name another file")


def _embed(
    texts: list[str], folder: Path, options: argparse.Namespace
) -> tuple[NDArray[np.floating], dict[str, Any]]:
    """Runs ``headrace embed``; returns float32[texts, dimension] and its report."""
    source, output, report = (folder / name for name in ("in.jsonl", "out.npy", "report.json"))
    corpus.write_jsonl(texts, source)
    words = [
        *(sys.executable, "-m", "headrace", "embed", str(source), "--output", str(output)),
        *("--model", options.model, "--precision", options.precision),
        *("--repository", str(options.repository or folder / "models")),
        *("--report", str(report), "--quiet"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        kind = UsageError if done.returncode == EXIT_USAGE else MachineError
        raise kind(f"headrace embed: {said[-1].removeprefix('headrace: ').removeprefix('error: ')}")
    try:
        return np.load(output), json.loads(report.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"{output} cannot be read: {error.strerror}") from error


def _score(vectors: NDArray[np.floating], pairs: Pairs, whose: str) -> float:
    count = len(pairs.scores)
    try:
        alike = cosines(vectors[:count], vectors[count:])
        # Of equal sentences they differ in the last bits, which is no order.
        return 100 * spearman(alike.round(DIGITS), pairs.scores)
    except ValueError as error:
        raise UsageError(
            f"{whose} cosines of the pairs: {error}; give pairs that are not all alike"
        ) from error


def _columns(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    numbers = sum(name.isdecimal() for name in names)
    if len(names) != 3 or not all(names) or numbers not in {0, 3} or "0" in names:
        raise argparse.ArgumentTypeError(
            f"expected three names, or three numbers from 1 on, as 6,7,5; not {text!r}"
        )
    return names


def _delimiter(text: str) -> str:
    found = {"tab": "\t", "\\t": "\t", "comma": ","}.get(text, text)
    if len(found) != 1 or found in '\r\n"':
        raise argparse.ArgumentTypeError(f"expected one character, or tab; not {text!r}")
    return found


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace_bench.sts",
        description="Spearman correlation with human scores of pairs of sentences, of headrace's "
        f"vectors and of sentence-transformers'. Cosines are rounded to {DIGITS} digits before "
        "they are ranked, so that equal sentences are ties and not noise. Exit codes: 0 measured, "
        "2 wrong usage or input, 4 something on the machine is missing or wrong.",
    )
    parser.add_argument("--pairs", type=Path, required=True, metavar="FILE", help="TSV or CSV")
    parser.add_argument("--model", required=True, help="as of headrace embed")
    parser.add_argument(
        "--columns",
        type=_columns,
        default=["sentence1", "sentence2", "score"],
        metavar="A,B,SCORE",
        help="names in the first line, or numbers from 1 where there is none "
        "(default: sentence1,sentence2,score)",
    )
    parser.add_argument(
        "--delimiter",
        type=_delimiter,
        help="default: a tab where the first line has one, or a comma",
    )
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--repository", type=Path, help="default: a new one, built anew")
    parser.add_argument("--device", help="where torch computes (default: a GPU if it sees one)")
    parser.add_argument("--batch-size", type=positive, default=32, help="of sentence-transformers")
    command.add_places(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, opener: Opener = open_reference) -> int:
    """Measures and prints; returns 0, 2 for wrong usage, 4 for what the machine lacks.

    Args:
        arguments: the command line.
        opener: gives the reference.
    """
    options = parse_arguments(arguments)
    return command.run(options, partial(measure, opener=opener), show, to_json)


if __name__ == "__main__":
    sys.exit(main())
