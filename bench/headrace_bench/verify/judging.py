"""An output, compared with what it should be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.paths import shown
from headrace.sinks import errors_path, manifest_path
from headrace_bench.options import say
from headrace_bench.rows import read_texts
from headrace_bench.vectors import agreement, cosines, summary
from headrace_bench.verify.madeof import MadeOf
from headrace_bench.verify.reference import Reference
from headrace_bench.verify.result import Judged, Neighbours, Result, in_one_line
from headrace_bench.verify.rows import BadRows, Ids, Lengths
from headrace_bench.verify.sampled import Found, Pick, draw, find_texts
from headrace_bench.verify.written import (
    Listed,
    Scan,
    Written,
    read_bad_rows,
    scan,
)

LEAST_COSINES = {"fp32": 0.999, "fp16": 0.999, "bf16": 0.99}
"""Least cosine to allow, where nobody says, by what the output was computed in.

Far below what rounding costs, and far above what another text's vector has.
"""
LEAST_COSINE = min(LEAST_COSINES.values())
"""The same where it is not known what it was computed in."""
LENGTH, LENGTH_FP16, LENGTH_BF16 = 1e-4, 2e-3, 1e-2
"""By how much the length of a vector may differ from 1, by what it was computed or written in."""
RAW_LENGTHS = 5
"""So many times that, relatively, where it was not made 1 but came out of the computation."""
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
    errors = read_bad_rows(errors_path(written.path))
    listed = errors.rows
    sample = draw(written.rows, options.sample, options.seed, listed[:0] if skipped else listed)
    say(f"looking at {written.rows:,} rows of {written.path}")
    seen = scan(written, sample, _tolerance(written, made))
    say("reading the input")
    of_records = made.ids if made.ids != "row numbers" else None
    found = find_texts(
        read_texts(
            options.input,
            text_field=made.text_field,
            format=made.format,
            own=own_files(options.output),  # which may lie in a folder that is read
            id_field=made.id_field if of_records else None,
            id_type="string" if of_records == "string" else "int64",
        ),
        sample[~np.isin(sample, seen.invalid)],
        listed,
        errors.lines,
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
        bad=_bad_rows(errors_path(written.path).name, seen, errors, found, made),
        lengths=_lengths(
            made,
            seen,
            picks,
            rows=written.rows - len(seen.invalid),
            off=_off(ours, theirs),
            tolerance=RAW_LENGTHS * _tolerance(written, made),
        ),
        ids=_ids(written, made, dict(zip(sample.tolist(), seen.ids, strict=False)), found.picks),
        compared=len(picks),
        seed=options.seed,
        least_allowed=least,
        cosines=summary(known) if picks else None,
        neighbours=_neighbours(ours, theirs, known, options.neighbours),
        asked_neighbours=options.neighbours,
        worst=judged[: options.worst],
        below=below,
    )


def _tolerance(written: Written, made: MadeOf) -> float:
    """Returns by how much the length of a vector may differ from 1."""
    if made.precision in {"bf16", None}:
        return LENGTH_BF16
    return LENGTH if written.dtype == np.float32 and made.precision == "fp32" else LENGTH_FP16


def _lengths(
    made: MadeOf,
    seen: Scan,
    picks: Sequence[Pick],
    *,
    rows: int,
    off: NDArray[np.floating],
    tolerance: float,
) -> Lengths:
    """Compares lengths with 1, or with the reference's where vectors are not normalized.

    Where nobody tells whether they are, they are not if most of the sample have the reference's.

    Args:
        made: how the output was made.
        seen: what a look at every row has found.
        picks: the sample.
        rows: how many vectors the output has.
        off: how far the lengths of the sample's differ from the reference's, relatively.
        tolerance: by how much they may.
    """
    sampled = np.array([pick.row for pick in picks], np.int64)
    ones = Lengths("1", rows, seen.odd)
    reference = Lengths("the reference's", len(sampled), sampled[~(off <= tolerance)])
    normalized = made.normalized
    if normalized is None:
        normalized = 2 * len(reference.odd) >= len(sampled)
    return ones if normalized else reference


def _ids(written: Written, made: MadeOf, had: dict[int, Any], picks: Sequence[Pick]) -> Ids:
    """Compares the ids of the rows that were picked with those of their records."""
    if written.path.suffix == ".npy":
        return Ids("", 0, ())
    if made.ids is None:
        return Ids("not checked: nobody tells where they come from", 0, ())
    if not written.ids:
        return Ids("missing, and there should be some", 0, ())
    numbers = made.ids == "row numbers"
    wrong = [pick.row for pick in picks if had[pick.row] != (pick.record if numbers else pick.id)]
    return Ids(
        "row numbers" if numbers else f"those of the field {made.id_field}",
        len(picks),
        tuple(wrong),
    )


def _bad_rows(name: str, seen: Scan, errors: Listed, found: Found, made: MadeOf) -> BadRows:
    listed, skipped = errors.rows, made.on_error == "skip"
    unlisted, unfounded = seen.invalid, listed[listed >= found.records]
    if not skipped:
        unlisted = np.setdiff1d(seen.invalid, listed)
        unfounded = np.setdiff1d(listed, seen.invalid)
    return BadRows(
        errors_file=name,
        invalid=len(seen.invalid),
        listed=len(listed),
        unlisted=unlisted,
        unfounded=unfounded,
        textless=found.unlisted,
        textless_places=found.unlisted_places,
        by_model=len(errors.by_model),
        readable=np.setdiff1d(found.readable, errors.by_model),
        misplaced=np.setdiff1d(found.misplaced, errors.by_model),
        skipped=skipped,
        allowed=made.on_error != "fail",
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


def _off(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.floating]:
    """Returns how far lengths differ, relatively; infinity where the right one is 0."""
    lengths, wanted = (np.linalg.norm(each.astype(np.float64), axis=1) for each in (ours, theirs))
    return np.asarray(
        np.divide(
            np.abs(lengths - wanted),
            wanted,
            out=np.where(lengths == wanted, 0.0, np.inf),
            where=wanted > 0,
        )
    )


def _units(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.nan_to_num(vectors / np.maximum(lengths, 1e-30)), np.float32)


def own_files(output: Path) -> list[Path]:
    """Returns an output, its errors file and its manifest."""
    paths = [output, errors_path(output), manifest_path(output)]
    return [path.parent.resolve() / path.name for path in paths]
