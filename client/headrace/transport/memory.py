"""Where the slots of a transport lie, so that the server reads and writes them in place."""

from __future__ import annotations

import os
import secrets
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from headrace.contract import Contract, is_leftover, machine_tag
from headrace.transport.base import Slot, SlotSize

_PREFIX = "headrace"
_ALIGNMENT = 256  # of CUDA's allocations, and more than a CPU wants
REGISTER_SECONDS = 60.0
TIDY_SECONDS = 10.0  # for a server that may hang: what it is told here is no more than tidy


class Place(NamedTuple):
    """Where a tensor lies in a region that the server knows.

    Attributes:
        region: the region's name.
        at: first byte.
        size: bytes.
    """

    region: str
    at: int
    size: int


class Layout(NamedTuple):
    """How ids, mask and vectors of a slot lie in memory, side by side.

    Attributes:
        stride: bytes from one slot to the next.
        mask: first byte of the mask in its slot; the ids lie at 0.
        vectors: first byte of the vectors in their slot.
    """

    stride: int
    mask: int
    vectors: int

    @classmethod
    def of(cls, size: SlotSize) -> Layout:
        """Returns the layout of slots of a size."""
        tokens, vectors = _aligned(size.token_bytes), _aligned(size.vector_bytes)
        return cls(stride=2 * tokens + vectors, mask=tokens, vectors=2 * tokens)


def slot_bytes(contract: Contract) -> int:
    """Returns the bytes that a batch in flight takes in memory."""
    return Layout.of(SlotSize.of(contract)).stride


class Memory(ABC):
    """Slots in memory that a server shares.

    Attributes:
        name: of the transport.
        slots: all of them.
    """

    name: str
    slots: list[Slot]

    def __init__(self, size: SlotSize) -> None:
        self.size = size
        self.layout = Layout.of(size)
        self.slots = []

    def places(self, slot: Slot) -> list[Place]:
        """Returns where the slot's ids, mask and vectors lie: as much of it as its batch uses."""
        region, start = self._whereabouts(slot)
        tokens = slot.rows * slot.length * 4
        return [
            Place(region, start, tokens),
            Place(region, start + self.layout.mask, tokens),
            Place(
                region,
                start + self.layout.vectors,
                slot.rows * self.size.dimension * self.size.dtype.itemsize,
            ),
        ]

    def hand_over(self, slot: Slot) -> None:  # noqa: B027 -- nothing to do where it is one memory
        """Makes the slot's ids and mask ready for the server, before the request is sent."""

    def fetch(self, slot: Slot) -> None:  # noqa: B027
        """Starts the vectors' way back, when the answer is there."""

    @abstractmethod
    def vectors(self, slot: Slot) -> NDArray[np.floating[Any]]:
        """Returns the vectors, float[rows, dimension], after :meth:`fetch`; waits for them."""

    @abstractmethod
    def close(self) -> None:
        """Takes the memory from the server and frees it; idempotent."""

    def abandon(self) -> None:  # noqa: B027 -- most goes with the process
        """Removes what would outlive this process, which is about to end, without waiting."""

    @abstractmethod
    def _whereabouts(self, slot: Slot) -> tuple[str, int]:
        """Returns the region that the slot lies in, and its first byte there."""


def region_name() -> str:
    """Returns a new region's name, ``headrace-MACHINE-PID-RANDOM``.

    So the leftovers of a process that died can be told from those of one that lives.
    """
    return f"{_PREFIX}-{machine_tag()}-{os.getpid()}-{secrets.token_hex(6)}"


def is_leftover_region(name: str) -> bool:
    """Returns whether a region belongs to a dead headrace process of this machine."""
    parts = name.split("-")
    return len(parts) == 4 and parts[0] == _PREFIX and is_leftover(parts[1], parts[2])


def sweep_cuda(client: triton.InferenceServerClient) -> None:
    """Has the server give up the GPU memory of headrace processes that are gone.

    Only regions of this machine and PID namespace whose process is dead are touched. A server
    without GPUs may not know of such memory: then there is none.
    """
    with suppress(triton.InferenceServerException):
        status = client.get_cuda_shared_memory_status(client_timeout=TIDY_SECONDS)
        for name in filter(is_leftover_region, status.regions):
            # One that a request still uses goes the next time.
            with suppress(triton.InferenceServerException):
                client.unregister_cuda_shared_memory(name, client_timeout=TIDY_SECONDS)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
