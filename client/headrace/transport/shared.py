"""Batches in memory that the server shares, and requests over gRPC that say where they lie."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import tritonclient.grpc as triton

from headrace.contract import EMBEDDING, Contract
from headrace.errors import MachineError
from headrace.transport.base import Slot, Transport, wrong_shape
from headrace.transport.memory import Memory

_T = TypeVar("_T")


class SharedTransport(Transport):
    """See :class:`Transport`; only names and offsets travel, each way.

    Args:
        client: the server's client.
        contract: the model's settings.
        memory: where the slots lie.
        patience: seconds within which a batch is to be answered.
    """

    def __init__(
        self,
        client: triton.InferenceServerClient,
        contract: Contract,
        memory: Memory,
        *,
        patience: float,
    ) -> None:
        super().__init__(client, contract, patience)
        self.name = memory.name
        self._memory = memory
        self._coming: deque[Slot] = deque()
        self.slots = len(memory.slots)
        self._free.extend(memory.slots)

    def submit(self, slot: Slot) -> None:
        """See :meth:`Transport.submit`."""
        self._memory.hand_over(slot)
        super().submit(slot)

    def abandon(self) -> None:
        """See :meth:`Transport.abandon`."""
        self._memory.abandon()

    def _wait(self, seconds: float) -> Slot:
        """Returns the next slot whose vectors are here.

        The vectors of all that are answered start their way before the first ones are waited for.
        """
        try:
            while True:
                slot = self._answered(0 if self._coming else seconds)
                self._coming.append(slot)
                if slot.failure is None:
                    self._attempt(slot, self._memory.fetch)
        except queue.Empty:
            if not self._coming:
                raise
        slot = self._coming.popleft()
        if slot.failure is None:
            slot.vectors = self._attempt(slot, self._memory.vectors)
        return slot

    def _attempt(self, slot: Slot, step: Callable[[Slot], _T]) -> _T | None:
        """Takes a step with a slot; what goes wrong is the slot's failure."""
        try:
            return step(slot)
        except MachineError as error:
            slot.failure = error
            return None

    def _discard(self, seconds: float) -> None:
        if self._coming:
            self._coming.popleft()
        else:
            self._answered(seconds)

    def _answered(self, seconds: float) -> Slot:
        """Returns a slot that the server has answered; raises :class:`queue.Empty`."""
        return super()._wait(seconds)

    def _place(
        self, slot: Slot, inputs: list[triton.InferInput], output: triton.InferRequestedOutput
    ) -> None:
        for tensor, place in zip([*inputs, output], self._memory.places(slot), strict=True):
            tensor.set_shared_memory(place.region, place.size, offset=place.at)

    def _read(self, slot: Slot, result: triton.InferResult) -> None:
        self._check(slot, list(result.get_output(EMBEDDING).shape))

    def _check(self, slot: Slot, shape: list[int]) -> None:
        if shape != [slot.rows, self._memory.size.dimension]:
            raise wrong_shape(slot, self._memory.size, shape)

    def _close(self) -> None:
        self._coming.clear()
        self._memory.close()
