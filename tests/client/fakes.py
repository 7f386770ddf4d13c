"""A transport that computes in this process: what a server would answer, without one."""

from __future__ import annotations

import random

import numpy as np

from headrace.transport.base import Slot, SlotSize


class FakeTransport:
    """Answers like the null engine, in random order; can fail on the n-th batch."""

    name = "fake"

    def __init__(self, contract, slots=3, seed=0, fail_at=None):
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
        self.sent = 0
        self.closed = False
        self.most_in_flight = 0

    @property
    def in_flight(self):
        return len(self.flying)

    def acquire(self):
        return self.free.pop() if self.free else None

    def submit(self, slot):
        self.sent += 1
        ids, mask = slot.shaped(slot.rows, slot.length)
        slot.vectors = vectors_of(ids, mask, self.dimension)
        self.flying.append(slot)
        self.most_in_flight = max(self.most_in_flight, len(self.flying))

    def collect(self):
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
