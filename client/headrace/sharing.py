"""A share of a server: what a run over files leaves to callers who wait for an answer.

Two things keep callers waiting: batches of a file that wait before their requests, and batches of a
file that are being computed. A run with a share keeps no more batches at the server than compute
at once, so that none waits; and after each answer it rests as long as makes its share of the time.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from typing import NamedTuple

from headrace.contract import Contract

_NEARLY = 1e-9  # of what floats leave over


class Part(NamedTuple):
    """What a share comes to.

    Attributes:
        slots: batches that may be at the server at once, at least 1.
        busy: part of the time for which each of them is.
    """

    slots: int
    busy: float

    @classmethod
    def of(cls, share: float, contract: Contract, instances: float) -> Part:
        """Returns it.

        Args:
            share: part of the server's time, below 1.
            contract: the model's settings; half of what keeps an instance busy is being computed,
                the other half waits.
            instances: of the model; for one of several feeders its part of them.
        """
        whole = share * contract.in_flight * instances / 2
        slots = max(1, math.ceil(whole - _NEARLY))
        return cls(slots, min(1.0, whole / slots))


class Pace:
    """Says when the next batch may be sent.

    Args:
        busy: part of the time for which each slot is to be, above 0.
        slots: batches that may be at the server at once.
        clock: seconds, as :func:`time.monotonic`.
    """

    def __init__(
        self, busy: float, slots: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rest = 1 / busy - 1
        self._slots = slots
        self._clock = clock
        self._ends: list[float] = []  # of each slot that rests

    def answered(self, sent: float) -> None:
        """Notes that a batch is back, which was sent at that time."""
        now = self._clock()
        heapq.heappush(self._ends, now + (now - sent) * self._rest)

    def seconds(self, in_flight: int) -> float:
        """Returns how long to wait with the next batch; 0 for not at all.

        Args:
            in_flight: batches that are at the server.
        """
        now = self._clock()
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        if in_flight + len(self._ends) < self._slots or not self._ends:
            return 0.0
        return self._ends[0] - now
