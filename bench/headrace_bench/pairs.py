"""Pairs of sentences with scores that people gave: a table in a local file."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.decompress import Stored, decompress, one_line
from headrace.errors import MachineError, UsageError

_SCORE = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a file, in order.

    Attributes:
        first: a sentence of each.
        second: the other.
        scores: float64[pairs], how alike people find them; the scale does not matter.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: NDArray[np.float64]


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lifts the limit of ``csv``, which is the whole process's, and sets it back."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@_fields_of_any_length()
def read_pairs(path: Path, columns: Sequence[str], delimiter: str | None) -> Pairs:
    """Reads a table.

    With tabs between columns, quotes are letters as any other, as in the STS benchmark's own
    files; with another delimiter they are read as in CSV (RFC 4180). Blank lines are none.

    Args:
        path: the file, UTF-8, plain or compressed with gzip or zstd.
        columns: of the two sentences and the score: three names in the first line, or three
            numbers from 1 on where there is no such line.
        delimiter: one character; None takes a tab where the first line that is not blank has one,
            else a comma.

    Raises:
        UsageError: a line lacks a column, a score is no number, or all are the same.
        MachineError: the file cannot be read.
    """
    text = _read(path)
    if delimiter is None:
        first_line = re.search(r"[^\r\n]+", text)
        delimiter = "\t" if first_line is not None and "\t" in first_line[0] else ","
    lines = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    places: list[int] | None = None
    if all(name.isdecimal() for name in columns):
        places = [int(name) - 1 for name in columns]
    first, second, scores = [], [], []
    try:
        for fields in lines:
            if not fields:
                continue
            where = f"{path}, line {lines.line_num}"
            if places is None:
                places = _places(fields, columns, where)
                continue
            if len(fields) <= max(places):
                raise UsageError(
                    f"{where}: has {len(fields)} columns, and column {max(places) + 1} is to be "
                    f"read; mend the line, or see --columns and --delimiter"
                )
            one, other, score = (fields[place] for place in places)
            first.append(one)
            second.append(other)
            scores.append(_number(score, where))
    except csv.Error as error:
        raise UsageError(
            f"{path}, line {lines.line_num}: is no line of a table: {error}; mend it, or see "
            f"--delimiter"
        ) from error
    if len(set(scores)) < 2:
        raise UsageError(
            f"{path}: the scores of {len(scores)} pairs have less than two values, so that there "
            f"is no rank correlation with them; name a file with different scores"
        )
    return Pairs(tuple(first), tuple(second), np.array(scores, np.float64))


def spearman(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Returns the rank correlation of two float64[n], -1 to 1; equal values share their mean rank.

    Raises:
        ValueError: it is not defined: the lengths differ, there is a NaN, or one does not vary.
    """
    if ours.shape != theirs.shape or np.isnan(ours).any() or np.isnan(theirs).any():
        raise ValueError("numbers that cannot be ranked against each other")
    a, b = _ranks(ours), _ranks(theirs)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not size:
        raise ValueError("numbers that do not vary have no ranks")
    return float(a @ b) / size


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[which], np.float64)


def _read(path: Path) -> str:
    try:
        with closing(Stored(path.open("rb"), str(path))) as stored:
            data = b"".join(decompress(stored))
    except FileNotFoundError as error:
        raise UsageError(f"--pairs {path}: there is no such file; check the path") from error
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {one_line(error)}; check the file") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {line}: is not UTF-8; convert the file to it") from error


def _places(fields: list[str], columns: Sequence[str], where: str) -> list[int]:
    if missing := [name for name in columns if name not in fields]:
        raise UsageError(
            f"{where}: there is no column {', '.join(map(repr, missing))}, only "
            f"{', '.join(map(repr, fields))}; name the columns with --columns, by numbers if the "
            f"file has no line with names"
        )
    return [fields.index(name) for name in columns]


def _number(text: str, where: str) -> float:
    # float() takes more: 1_0, digits of all scripts, nan.
    value = float(text) if _SCORE.fullmatch(text.strip()) else math.nan
    if not math.isfinite(value):
        raise UsageError(f"{where}: the score {text[:100]!r} is not a number; mend it")
    return value
