"""How fast is Hugging Face Text Embeddings Inference (TEI), asked as well as can be over HTTP?

What is easy for TEI is done for it: texts go sorted by length, the batch size and the number of
requests in flight are those that were fastest, requests are made before the clock starts, answers
parsed after it has stopped, and several processes send them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.errors import UsageError
from headrace_bench.options import say
from headrace_bench.tei.driver import BUSY, Driven, Load, drive
from headrace_bench.tei.info import NOT_TEI, checked_url, info
from headrace_bench.tei.job import Patience
from headrace_bench.tei.wire import quote

BATCH_SIZES = (1, 8, 32, 128, 512, 2048)
GROWTH = 1.05
"""What twice the requests in flight must come to, or the server is saturated."""

_FIRST_ROWS, _WARM_UP = 256, 32  # rows, and of these a request
_IN_FLIGHT = 32  # of one process, about
_LONGEST = 4  # times as long as a try should take: what needs more is not tried


class TeiWay:
    """Measures one or several servers with TEI's API, as if they were one.

    Attributes:
        infos: what each says of itself.
        name: what the figures are called.
        batch_size: rows of a request; :meth:`search` chooses it.
        concurrency: requests in flight, over all servers; likewise.
        table: rows a second by batch size and concurrency, of what :meth:`search` has tried.
        saturated: whether twice the requests in flight made it no faster; False means that it
            may be faster than was seen.
        rates: rows a second of each repetition.
        vectors: float32[len(keep), dimension] of the last repetition.
        retries: times that a request of a repetition was sent again.
        cpu_seconds: processor time of the sending processes, of each repetition.
        driver_bound: whether one of them used more than 90 % of a core in a repetition, so that
            it may be what was slow.

    Args:
        urls: of the servers; each has the same model.
        texts: the rows.
        dimension: of a vector.
        prompt: what goes before each text.
        keep: int64[n]: rows whose vectors are wanted, in this order; None for all.
        batch_size: where nothing is searched.
        concurrency: likewise; None for 8 a server.
        seconds: how long each try of :meth:`search` should take.
        patience: with failures in passing.
        folder: for files, which may hold all texts and answers; None is the system's.

    Raises:
        UsageError: a URL is none, or two have different models.
        ServerError: one does not answer.
        ValueError: there are no texts, or no such rows to keep.
        MissingDependencyError: httpx is not installed.
    """

    def __init__(
        self,
        urls: Sequence[str],
        texts: Sequence[str],
        dimension: int,
        prompt: str = "",
        *,
        keep: NDArray[np.int64] | None = None,
        batch_size: int = 32,
        concurrency: int | None = None,
        seconds: float = 2.5,
        patience: Patience | None = None,
        folder: Path | None = None,
    ) -> None:
        if not texts:
            raise ValueError("no texts to measure TEI with")
        if not urls:
            raise UsageError("no server to measure; name one with --tei URL")
        self._urls = [checked_url(url) for url in urls]
        self.infos = [info(url) for url in self._urls]
        models = {found.model_id for found in self.infos}
        if len(models) > 1:
            raise UsageError(
                f"the servers have different models ({', '.join(sorted(map(str, models)))}); "
                f"give those of one model"
            )
        names = {found.name for found in self.infos}
        self.name = names.pop() if len(names) == 1 else NOT_TEI
        self._keep = np.arange(len(texts)) if keep is None else np.asarray(keep, np.int64)
        if len(self._keep) and not 0 <= self._keep.min() <= self._keep.max() < len(texts):
            raise ValueError(f"rows to keep that are not among {len(texts):,}")
        self._wanted = np.zeros(len(texts), np.bool_)
        self._wanted[self._keep] = True
        self._quoted = [quote(prompt + text) for text in texts]
        lengths = np.array([len(text) for text in texts])
        # The longest first, so that nothing long is left for the end, when others have no work.
        self._order = np.argsort(-lengths, kind="stable")
        self._dimension, self._seconds, self._folder = dimension, seconds, folder
        self._patience = patience or Patience()
        self._cores = len(os.sched_getaffinity(0))
        self._in_flight = _IN_FLIGHT
        self._rate = 0.0  # rows a second, as last seen
        self.batch_size = batch_size
        self.concurrency = 8 * len(urls) if concurrency is None else concurrency
        self.table: dict[tuple[int, int], float] = {}
        self.saturated = False
        self.rates: list[float] = []
        self.vectors: NDArray[np.float32] = np.empty((0, dimension), np.float32)
        self.retries = 0
        self.cpu_seconds: list[float] = []
        self.driver_bound = False

    @property
    def batch_sizes(self) -> list[int]:
        """Those of :data:`BATCH_SIZES` that all servers take, and the largest that they take."""
        most = min(found.max_client_batch_size or 32 for found in self.infos)
        return sorted({size for size in BATCH_SIZES if size <= most} | {min(most, BATCH_SIZES[-1])})

    @property
    def most_in_flight(self) -> int:
        """Most requests in flight that are tried."""
        return sum(found.max_concurrent_requests or 512 for found in self.infos)

    def search(self) -> None:
        """Chooses the batch size and the requests in flight that are fastest.

        Batch sizes are compared with as many requests in flight as fill the servers' queues, since
        TEI counts rows, or as many as are worked off in half a try; then, with the best size,
        requests in flight are doubled.

        Raises:
            ServerError: a request failed for good, or an answer is wrong.
        """
        servers, most = len(self._urls), self.most_in_flight
        size = max(size for size in self.batch_sizes if size <= _WARM_UP)
        self._rate, _ = self._drive(self._evenly(_FIRST_ROWS), size, 2 * servers)
        for size in self.batch_sizes:
            rows = min(most, int(self._rate * self._seconds / 2))
            concurrency = max(2 * servers, -(-rows // size))
            if not self.table or self._can_try(size, concurrency):
                self._try(size, concurrency)
        size = max(self.table, key=lambda tried: self.table[tried])[0]
        best, concurrency, self.saturated = 0.0, servers, False
        while concurrency <= most and not self.saturated:
            if best and not self._can_try(size, concurrency):
                break
            rate = self._try(size, concurrency)
            self.saturated = rate < best * GROWTH
            best, concurrency = max(best, rate), 2 * concurrency
        self.batch_size, self.concurrency = max(self.table, key=lambda tried: self.table[tried])

    def measure(self) -> None:
        """Embeds all texts once.

        Raises:
            ServerError: a request failed for good, or an answer is wrong.
        """
        rate, driven = self._drive(self._order, self.batch_size, self.concurrency, keep=True)
        found = np.empty(len(self._order), np.int64)
        found[driven.rows] = np.arange(len(driven.rows))
        self.vectors = driven.vectors[found[self._keep]]
        self.rates.append(rate)
        self.retries += driven.retries
        self.cpu_seconds.append(driven.cpu_seconds)
        self.driver_bound = self.driver_bound or driven.busiest > BUSY

    def _can_try(self, size: int, concurrency: int) -> bool:
        """Whether there are rows, and time, for so much in flight."""
        rows = size * concurrency
        return rows <= len(self._order) and 2 * rows <= self._rate * self._seconds * _LONGEST

    def _try(self, size: int, concurrency: int) -> float:
        """Returns rows a second of a try, made once."""
        key = (size, concurrency)
        if key in self.table:
            return self.table[key]
        say(f"{self.name}: trying requests of {size} rows, {concurrency} in flight")
        rows = self._rate * self._seconds
        if all(tried != size for tried, _ in self.table):
            rows = min(rows, _FIRST_ROWS)  # it may be slower by far
        for _ in range(3):
            places = self._evenly(max(int(rows), 2 * size * concurrency))
            self._rate, driven = self._drive(places, size, concurrency)
            if driven.busiest > BUSY and self._processes(concurrency) < min(
                self._cores, concurrency
            ):
                self._in_flight = max(1, self._in_flight // 2)
            elif driven.seconds > self._seconds / 2 or len(places) == len(self._order):
                break
            rows = self._rate * self._seconds
        self.table[key] = self._rate
        return self._rate

    def _evenly(self, rows: int) -> NDArray[np.int64]:
        """Returns so many rows, evenly spread over the lengths, the longest first."""
        total = len(self._order)
        count = min(rows, total)
        return self._order[np.arange(count) * total // count]

    def _processes(self, concurrency: int) -> int:
        return max(1, min(self._cores, -(-concurrency // self._in_flight)))

    def _drive(
        self, rows: NDArray[np.int64], size: int, concurrency: int, *, keep: bool = False
    ) -> tuple[float, Driven]:
        driven = drive(
            Load(
                urls=self._urls,
                quoted=self._quoted,
                rows=rows,
                wanted=self._wanted[rows] if keep else np.zeros(len(rows), np.bool_),
                dimension=self._dimension,
                batch_size=size,
                concurrency=concurrency,
                processes=self._processes(concurrency),
                patience=self._patience,
                folder=self._folder,
            )
        )
        return len(rows) / driven.seconds, driven
