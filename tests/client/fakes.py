"""A transport that computes in this process: what a server would answer, without one."""

from __future__ import annotations

import random

import numpy as np

from headrace.errors import ServerLostError
from headrace.transport.base import Slot, SlotSize


class Plan:
    """What happens to the transports of a run: events by number, counted over all of them.

    Args:
        events: what to call at the n-th submit or collect, from 1; it may raise.
        kills: says of a slot's ids and mask whether the server dies of them.
    """

    def __init__(self, events=None, kills=lambda ids, mask: False):
        self.events = events or {}
        self.kills = kills
        self.calls = 0
        self.losses = []  # of each: the blocks that were at the server

    def meet(self, transport, *, collecting=False):
        self.calls += 1
        try:
            if event := self.events.get(self.calls):
                event()
            if collecting and any(self.kills(*_filled(slot)) for slot in transport.flying):
                lose()
        except ServerLostError:
            transport.lost = True
            self.losses.append(transport.blocks_in_flight)
            raise


def lose():
    raise ServerLostError("the server is gone")


def _filled(slot):
    return slot.shaped(slot.rows, slot.length)


class FakeTransport:
    """Answers like the null engine, in random order; can fail on the n-th batch, or be lost."""

    name = "fake"

    def __init__(self, contract, slots=3, seed=0, fail_at=None, plan=None):
        size = SlotSize.of(contract)
        self.dimension = size.dimension
        self.slots = slots
        self.free = [
            Slot(i, np.zeros(size.tokens, np.int32), np.zeros(size.tokens, np.int32))
            for i in range(slots)
        ]
        self.flying = []
        self.random = random.Random(seed)
        self.fail_at = fail_at
        self.plan = plan or Plan()
        self.lost = False
        self.sent = 0
        self.rows_sent = 0
        self.closed = False
        self.most_in_flight = 0
        self.log = []  # after each submit: of each batch in flight, its block

    @property
    def in_flight(self):
        return len(self.flying)

    @property
    def blocks_in_flight(self):
        return [slot.tag[0].block.index for slot in self.flying]

    def acquire(self):
        assert not self.lost
        return self.free.pop() if self.free else None

    def submit(self, slot):
        assert not self.lost
        self.plan.meet(self)
        self.sent += 1
        self.rows_sent += slot.rows
        slot.vectors = vectors_of(*_filled(slot), self.dimension)
        self.flying.append(slot)
        self.most_in_flight = max(self.most_in_flight, len(self.flying))
        self.log.append(self.blocks_in_flight)

    def collect(self, within=None):
        assert not self.lost
        self.plan.meet(self, collecting=True)
        if self.fail_at is not None and self.sent >= self.fail_at:
            from headrace.errors import ServerError

            raise ServerError("planted")
        return self.flying.pop(self.random.randrange(len(self.flying)))

    def release(self, slot):
        slot.vectors = slot.tag = None
        slot.ids[:] = -7
        self.free.append(slot)

    def close(self):
        self.closed = True


def vectors_of(ids, mask, dimension):
    """What the null engine answers: token count, sum of ids, then the ids themselves."""
    vectors = np.zeros((len(ids), dimension), np.float32)
    kept = ids * mask
    head = np.column_stack([mask.sum(1), kept.sum(1, dtype=np.int64) % 65521, kept])
    width = min(dimension, head.shape[1])
    vectors[:, :width] = head[:, :width]
    return vectors


def vector_of(row_ids, dimension):
    """The same for one row of ids."""
    ids = np.array([row_ids], np.int64).reshape(1, -1)
    return vectors_of(ids, np.ones_like(ids), dimension)[0]


def as_halves(vectors):
    """The null engine's answer in float16: each number n as n // 256 and n % 256."""
    rows, dimension = vectors.shape
    pairs = np.stack([vectors // 256, vectors % 256], axis=2).reshape(rows, -1)
    return pairs[:, :dimension].astype(np.float16)
