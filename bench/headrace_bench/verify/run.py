"""Are the vectors of a finished output those that sentence-transformers gives for its texts?

Every row of the output is looked at: rows without a vector are to be those that
``OUTPUT.errors.jsonl`` describes, and no others. Every record of the input is counted. Of a random
sample of the rows the texts are embedded again by sentence-transformers in fp32 and compared: by
cosine, and by the nearest rows of the sample that both give. How the output was made (model,
prompt, length, dimension, bad rows) is told by ``OUTPUT.manifest.jsonl``.

Memory grows with the sample and with the number of bad rows alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.errors import OutputError, UsageError
from headrace.paths import shown
from headrace.sinks import errors_path, manifest_path
from headrace_bench.machine import describe, hardware, versions
from headrace_bench.options import not_negative, positive, say, settings
from headrace_bench.rows import read_texts
from headrace_bench.vectors import agreement, cosines, summary
from headrace_bench.verify.madeof import MadeOf, made_of
from headrace_bench.verify.reference import Asked, Opener, Reference, open_reference
from headrace_bench.verify.result import BadRows, Judged, Neighbours, Result, in_one_line, show
from headrace_bench.verify.sampled import Found, Pick, draw, find_texts
from headrace_bench.verify.written import Scan, Written, open_written, read_bad_rows, scan

LEAST_COSINES = {"fp32": 0.999, "fp16": 0.999, "bf16": 0.99}
"""Least cosine to allow, where nobody says, by what the output was computed in.

Far below what rounding costs, and far above what another text's vector has.
"""
LEAST_COSINE = min(LEAST_COSINES.values())
"""The same where it is not known what it was computed in."""
SURELY_ANOTHERS = 0.99
"""Cosine to another row's vector from which on a wrong row is said to hold it."""
_CHUNK = 256  # wrong rows that are compared with the whole sample at once


def measure(
    options: argparse.Namespace, written: Written, made: MadeOf, reference: Reference
) -> Result:
    """Compares an output with what it should be.

    Args:
        options: see :func:`parse_arguments`.
        written: the output.
        made: how it was made.
        reference: what its vectors should be.

    Raises:
        HeadraceError: a file cannot be read, or the reference fails.
    """
    skipped = made.on_error == "skip"
    listed = read_bad_rows(errors_path(written.path))
    sample = draw(written.rows, options.sample, options.seed, listed[:0] if skipped else listed)
    say(f"looking at {written.rows:,} rows of {written.path}")
    seen = scan(written, sample)
    say("reading the input")
    found = find_texts(
        read_texts(
            options.input,
            text_field=made.text_field,
            format=made.format,
            own=_own_files(options.output),  # which may lie in a folder that is read
        ),
        sample[~np.isin(sample, seen.invalid)],
        listed,
        skip=skipped,
    )
    expected = min(made.dimension or reference.dimension, reference.dimension)
    picks = found.picks if written.dimension == expected else ()
    ours = seen.vectors[np.searchsorted(sample, [pick.row for pick in picks])]
    theirs = np.empty_like(ours)
    if picks:
        say(f"embedding {len(picks):,} of its texts again: {reference.described}")
        theirs = reference.encode([pick.text for pick in picks])[:, :expected]
    known = cosines(ours, theirs)
    least = options.min_cosine
    if least is None:
        least = LEAST_COSINES.get(made.precision or "", LEAST_COSINE)
    judged = _judge(picks, ours, theirs, known, least)
    below = tuple(each for each in judged if not each.cosine >= least)
    return Result(
        output=str(written.path),
        rows=written.rows,
        dimension=written.dimension,
        dtype=written.dtype.name,
        made=made,
        reference=reference.described,
        model=reference.model,
        prompt=reference.prompt,
        max_length=reference.max_length,
        inputs=tuple(map(shown, options.input)),
        records=found.records,
        expected_rows=found.good if skipped else found.records,
        expected_dimension=expected,
        bad=_bad_rows(written, seen, listed, found, skipped=skipped),
        compared=len(picks),
        seed=options.seed,
        least_allowed=least,
        cosines=summary(known) if picks else None,
        neighbours=_neighbours(ours, theirs, known, options.neighbours),
        asked_neighbours=options.neighbours,
        worst=judged[: options.worst],
        below=below,
    )


def _bad_rows(
    written: Written, seen: Scan, listed: NDArray[np.int64], found: Found, *, skipped: bool
) -> BadRows:
    unlisted, unfounded = seen.invalid, listed[listed >= found.records]
    if not skipped:
        unlisted = np.setdiff1d(seen.invalid, listed)
        unfounded = np.setdiff1d(listed, seen.invalid)
    return BadRows(
        errors_file=errors_path(written.path).name,
        invalid=len(seen.invalid),
        listed=len(listed),
        unlisted=unlisted,
        unfounded=unfounded,
        textless=found.unlisted,
        textless_places=found.unlisted_places,
        skipped=skipped,
    )


def _judge(
    picks: Sequence[Pick],
    ours: NDArray[np.float32],
    theirs: NDArray[np.float32],
    known: NDArray[np.float64],
    least: float,
) -> tuple[Judged, ...]:
    """Returns all rows that were compared, the least alike first."""
    order = np.argsort(np.where(np.isnan(known), -np.inf, known), kind="stable")
    wrong = [int(at) for at in order if known[at] < least]
    held: dict[int, int] = {}
    enough = max(least, SURELY_ANOTHERS)
    for start in range(0, len(wrong), _CHUNK):
        some = wrong[start : start + _CHUNK]
        for at, alike in zip(some, _units(ours[some]) @ _units(theirs).T, strict=True):
            other = int(np.argmax(alike))
            if other != at and alike[other] >= enough:
                held[at] = picks[other].row
    return tuple(
        Judged(
            picks[at].row,
            in_one_line(picks[at].place, 200),
            float(known[at]),
            in_one_line(picks[at].text),
            held.get(at),
        )
        for at in order.tolist()
    )


def _neighbours(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], known: NDArray[np.float64], count: int
) -> Neighbours | None:
    """Returns how far the nearest rows are the same; None where all other rows are among them."""
    some = ~np.isnan(known)
    if some.sum() <= count + 1:
        return None
    shares = agreement(ours[some], theirs[some], count)
    return Neighbours(count, float(shares.mean()), float(shares.min()))


def _units(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.nan_to_num(vectors / np.maximum(lengths, 1e-30)), np.float32)


def _own_files(output: Path) -> list[Path]:
    paths = [output, errors_path(output), manifest_path(output)]
    return [path.parent.resolve() / path.name for path in paths]


def check_options(options: argparse.Namespace) -> None:
    """Checks, before anything is loaded, what can be checked.

    Raises:
        UsageError: the JSON file cannot be what it is to be.
    """
    path = options.json
    if path is None:
        return
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UsageError(f"--json {path} is not a file in a folder that exists")
    if path.resolve() in {*_own_files(options.output), *(Path(x).resolve() for x in options.input)}:
        raise UsageError(f"--json {path} is what is to be looked at; name another file")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="headrace verify",
        description="Compares a finished output with sentence-transformers in fp32, on a random "
        "sample of its rows, and all of it with the number of records and with its errors file. "
        "Exit codes: 0 right, 1 wrong, 2 wrong usage, 4 something is missing or cannot be read.",
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a .npy or .parquet file")
    parser.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="FILE",
        help="what it was made of; several in their order, each with its own --input",
    )
    parser.add_argument("--sample", type=positive, default=1000, help="rows to compare, at most")
    parser.add_argument("--seed", type=not_negative, default=0, help="of the random sample")
    parser.add_argument(
        "--min-cosine",
        type=_cosine,
        help="below this a row is wrong (default: "
        + ", ".join(f"{least} for {name}" for name, least in LEAST_COSINES.items())
        + ")",
    )
    parser.add_argument("--neighbours", type=positive, default=10, help="nearest rows to compare")
    parser.add_argument("--worst", type=not_negative, default=5, help="rows to show")
    parser.add_argument("--batch-size", type=positive, default=32, help="texts computed at once")
    parser.add_argument("--device", help="where torch computes (default: a GPU if it sees one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    told = parser.add_argument_group("in place of what OUTPUT.manifest.jsonl tells")
    told.add_argument("--model", help="as of headrace embed; its weights are to be the same")
    told.add_argument("--text-field")
    told.add_argument("--format", choices=["auto", "jsonl", "text", "parquet"])
    told.add_argument("--prompt", help="text in front of every row, '' for none")
    told.add_argument("--max-length", type=positive, metavar="TOKENS")
    told.add_argument("--truncate-dim", type=positive, metavar="DIMENSIONS")
    told.add_argument("--on-error", choices=["null", "skip", "fail"])
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, opener: Opener = open_reference) -> int:
    """Checks an output and prints what was found; returns 0 where it is right, 1 where it is not.

    Args:
        arguments: the command line.
        opener: gives the reference.

    Raises:
        UsageError: an option cannot be followed, or the output is not there or not finished.
        MachineError: a file cannot be read, or sentence-transformers is missing or fails.
    """
    options = parse_arguments(arguments)
    check_options(options)
    written = open_written(options.output)
    made = made_of(options.output, options)
    reference = opener(
        Asked(
            model=made.model,
            revision=made.revision,
            weights=made.weights,
            prompt=made.prompt,
            max_length=made.max_length,
            device=options.device,
            batch_size=options.batch_size,
        )
    )
    result = measure(options, written, made, reference)
    machine, found = hardware(), versions()
    print("\n".join(describe(machine, found)))
    print(show(result))
    if options.json is not None:
        asked = settings(options) | {"input": result.inputs}  # URIs without their secrets
        everything = {"settings": asked, "machine": machine, "versions": found, **result.to_json()}
        try:
            options.json.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{options.json} cannot be written: {error.strerror}") from error
    return 1 if result.wrong else 0


def _cosine(text: str) -> float:
    value = float(text)
    if math.isnan(value) or not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from -1 to 1, not {text}")
    return value
