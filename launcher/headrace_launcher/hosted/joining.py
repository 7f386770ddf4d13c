"""Rows of requests that wait together, computed together."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .engine import Answer, DeviceArray, Ids


class Asked(NamedTuple):
    """A request.

    Attributes:
        ids: token ids, int32[rows, length].
        mask: 1 for tokens, 0 for padding, int32[rows, length].
        answer: see :meth:`Engine.submit`.
        alone: whether it is to be computed as it was sent.
    """

    ids: Ids
    mask: Ids
    answer: Answer
    alone: bool


class Shapes(NamedTuple):
    """What batches a model takes.

    Attributes:
        lengths: longest row of each bucket, ascending, int64[buckets].
        rows: most rows in a batch of each.
        budget: most padded tokens in a batch.
        multiple: padded lengths are multiples of it, or a bucket's longest row.
        pad: id that fills the shorter rows.
    """

    lengths: NDArray[np.int64]
    rows: tuple[int, ...]
    budget: int
    multiple: int
    pad: int

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Shapes:
        """Returns those of a model's headrace settings."""
        buckets = settings["buckets"]
        return cls(
            lengths=np.array([bucket["max_length"] for bucket in buckets]),
            rows=tuple(bucket["max_batch"] for bucket in buckets),
            budget=settings["token_budget"],
            multiple=settings["pad_multiple"],
            pad=settings["pad_id"],
        )


def join(asked: Sequence[Asked], shapes: Shapes) -> Iterator[tuple[Ids, Ids, Answer]]:
    """Yields the batches to compute.

    Rows are sorted into buckets by their own lengths, whatever they were padded to, and those of
    one bucket are computed together, whoever asked for them. A request that says ``alone``, or that
    lies in a GPU's memory, is computed as it was sent.

    Yields:
        Ids and mask, int32[rows, length], and what answers with the vectors.
    """
    joined: list[_Rows] = []
    apart = []
    for one in asked:
        if one.alone or isinstance(one.ids, DeviceArray) or isinstance(one.mask, DeviceArray):
            apart.append(one)
        else:
            joined.append(_Rows(one.ids, one.mask, _Collected(len(one.ids), one.answer)))
    if joined:  # first, since a run over files can wait
        yield from _batches(joined, shapes)
    yield from ((one.ids, one.mask, one.answer) for one in apart)


class _Rows(NamedTuple):
    """A request in the host's memory."""

    ids: NDArray[np.int32]
    mask: NDArray[np.int32]
    collected: _Collected


def _batches(asked: Sequence[_Rows], shapes: Shapes) -> Iterator[tuple[Ids, Ids, Answer]]:
    lengths = np.concatenate([_lengths(one.mask) for one in asked])
    first = np.cumsum([0, *(len(one.ids) for one in asked)])
    buckets = np.searchsorted(shapes.lengths, lengths)
    for bucket in np.unique(buckets).tolist():
        longest = int(shapes.lengths[bucket])
        most = max(1, min(shapes.rows[bucket], shapes.budget // longest))
        rows = np.flatnonzero(buckets == bucket)
        for start in range(0, len(rows), most):
            some = rows[start : start + most]
            length = -(-int(lengths[some].max()) // shapes.multiple) * shapes.multiple
            batch = np.full((len(some), min(length, longest)), shapes.pad, np.int32)
            yield _gather(asked, first, some, batch)


def _lengths(mask: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns up to where each row has tokens, at least 1; int64[rows]."""
    width = mask.shape[1]
    found: NDArray[np.int64] = np.where(
        mask.any(1), width - (mask[:, ::-1] != 0).argmax(1), 1
    ).astype(np.int64)
    return found


def _gather(
    asked: Sequence[_Rows],
    first: NDArray[np.int64],
    rows: NDArray[np.int64],
    ids: NDArray[np.int32],
) -> tuple[Ids, Ids, Answer]:
    """Fills a batch with some rows, ascending, counted over all requests."""
    mask = np.zeros_like(ids)
    parts: list[tuple[_Collected, NDArray[np.int64], slice]] = []
    start = 0
    begin, end = np.searchsorted(first, [rows[0], rows[-1]], "right").tolist()
    for number in range(begin - 1, end):
        mine = rows[(rows >= first[number]) & (rows < first[number + 1])] - first[number]
        if not len(mine):
            continue
        place = slice(start, start + len(mine))
        width = min(ids.shape[1], asked[number].ids.shape[1])
        ids[place, :width] = asked[number].ids[mine, :width]
        mask[place, :width] = asked[number].mask[mine, :width]
        parts.append((asked[number].collected, mine, place))
        start = place.stop

    def answer(vectors: Any, error: Exception | None) -> None:
        for collected, mine, place in parts:
            collected.take(mine, None if error is not None else vectors[place], error)

    return ids, mask, answer


class _Collected:
    """The vectors of one request, which may come in several batches; answers when all are there."""

    def __init__(self, rows: int, answer: Answer) -> None:
        self._answer = answer
        self._left = self._rows = rows
        self._vectors: Any = None
        self._error: Exception | None = None
        self._lock = threading.Lock()

    def take(self, rows: NDArray[np.int64], vectors: Any, error: Exception | None) -> None:
        """Takes the vectors of some rows, or why there are none."""
        with self._lock:
            self._left -= len(rows)
            self._error = self._error or error
            if len(rows) == self._rows:
                self._vectors = vectors
            elif vectors is not None:
                if self._vectors is None:
                    self._vectors = np.empty((self._rows, vectors.shape[1]), vectors.dtype)
                self._vectors[rows] = vectors
            if self._left:
                return
        if self._error is not None:
            self._answer(None, self._error)
        else:
            self._answer(self._vectors, None)
