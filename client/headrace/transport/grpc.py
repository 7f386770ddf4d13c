"""Batches inside the gRPC messages: works against any server, wherever it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from headrace.contract import EMBEDDING, Contract
from headrace.transport.base import Slot, SlotSize, Transport, wrong_shape


class GrpcTransport(Transport):
    """See :class:`Transport`; ids and vectors travel inside the messages."""

    name = "grpc"

    def __init__(
        self,
        client: triton.InferenceServerClient,
        contract: Contract,
        *,
        slots: int,
        patience: float,
    ) -> None:
        super().__init__(client, contract, patience)
        size = SlotSize.of(contract)
        self._size = size
        self.slots = slots
        for index in range(slots):
            ids, mask = np.empty((2, size.tokens), np.int32)
            self._free.append(Slot(index, ids, mask))

    def _place(
        self, slot: Slot, inputs: list[triton.InferInput], output: triton.InferRequestedOutput
    ) -> None:
        del output
        for tensor, array in zip(inputs, slot.shaped(slot.rows, slot.length), strict=True):
            tensor.set_data_from_numpy(array)

    def _read(self, slot: Slot, result: triton.InferResult) -> NDArray[np.floating[Any]]:
        vectors: NDArray[np.floating[Any]] = result.as_numpy(EMBEDDING)
        if vectors.shape != (slot.rows, self._size.dimension):
            raise wrong_shape(slot, self._size, list(vectors.shape))
        return vectors

    def _close(self) -> None:
        pass
