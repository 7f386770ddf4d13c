"""Which rows of an output are looked at, and the texts that they are of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.blocks import name_rows
from headrace_bench.rows import TextBlock

_MOST_PLACES = 5


@dataclass(frozen=True, slots=True)
class Pick:
    """A row of the sample.

    Attributes:
        row: its number in the output.
        place: where its text stands: file, and line or row.
        text: what was embedded, without a prompt.
        record: number of its record in the input.
        id: of the record, as Python has it; None where none was read.
    """

    row: int
    place: str
    text: str
    record: int
    id: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the input has.

    Attributes:
        records: how many records.
        good: how many that have a text and are not listed as bad.
        picks: the rows that were asked for and have a text, ascending.
        unlisted: how many have no text and are not listed as bad.
        unlisted_places: where the first of these stand, and what is wrong with them.
        readable: int64[n], the records that are listed as bad and have a text, ascending.
        misplaced: int64[n], the records that are listed as bad and have none, with another line
            than theirs; ascending.
    """

    records: int
    good: int
    picks: tuple[Pick, ...]
    unlisted: int
    unlisted_places: tuple[str, ...]
    readable: NDArray[np.int64]
    misplaced: NDArray[np.int64]


def draw(total: int, count: int, seed: int, without: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns int64[n]: at most ``count`` rows below ``total``, drawn at random, ascending.

    Args:
        total: how many rows there are.
        count: how many to draw.
        seed: the same draws the same rows.
        without: int64[m], rows that are not drawn; ascending, each once.
    """
    without = without[without < total]
    left = total - len(without)
    drawn = np.random.default_rng(seed).choice(left, min(count, left), replace=False)
    # So many rows that may be drawn lie before each of the others.
    before = without - np.arange(len(without))
    return np.sort(drawn + np.searchsorted(before, drawn, side="right")).astype(np.int64)


def find_texts(
    blocks: Iterable[TextBlock],
    wanted: NDArray[np.int64],
    listed: NDArray[np.int64],
    lines: NDArray[np.int64],
    *,
    skip: bool,
) -> Found:
    """Reads an input once and takes the texts of some rows out; the others are not kept.

    Args:
        blocks: the input.
        wanted: int64[n], rows of the output, ascending.
        listed: int64[m], records that are described as bad, ascending.
        lines: int64[m], the lines that these are said to have, 0 for none.
        skip: whether bad records have no row in the output, so that row k is the k-th good one.

    Raises:
        HeadraceError: the input cannot be read.
    """
    records = good = unlisted = 0
    picks: list[Pick] = []
    places: list[str] = []
    readable = [np.empty(0, np.int64)]
    misplaced: list[int] = []
    for block in blocks:
        rows = block.block.rows
        start, stop = np.searchsorted(listed, [records, records + rows])
        valid = np.ones(rows, np.bool_)
        valid[listed[start:stop] - records] = False
        textless = [bad.row for bad in block.bad]
        readable.append(np.setdiff1d(listed[start:stop], np.array(textless, np.int64) + records))
        for bad in block.bad:
            if valid[bad.row]:
                unlisted += 1
                if len(places) < _MOST_PLACES:
                    places.append(f"{block.block.place_of(bad)} ({bad.reason})")
                valid[bad.row] = False
            elif lines[np.searchsorted(listed, records + bad.row)] != (bad.line or 0):
                misplaced.append(records + bad.row)
        left = np.flatnonzero(valid)
        begin, places_of = (good, left) if skip else (records, np.arange(rows))
        first, last = np.searchsorted(wanted, [begin, begin + len(places_of)])
        for row in wanted[first:last].tolist():
            at = int(places_of[row - begin])
            if valid[at]:
                place = name_rows(block.block, [at])
                own = None if block.ids is None else block.ids[at].as_py()
                picks.append(Pick(row, place, block.texts[at].as_py(), records + at, own))
        records += rows
        good += len(left)
    return Found(
        records=records,
        good=good,
        picks=tuple(picks),
        unlisted=unlisted,
        unlisted_places=tuple(places),
        readable=np.concatenate(readable),
        misplaced=np.array(misplaced, np.int64),
    )
