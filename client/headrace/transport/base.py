"""What every transport does: slots for batches, requests in flight, answers as they finish."""

from __future__ import annotations

import queue
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from headrace.contract import ALONE, ATTENTION_MASK, EMBEDDING, INPUT_IDS, Contract
from headrace.errors import MachineError, ServerError, ServerLostError

GRACE_SECONDS = 5.0  # for the request's own deadline to be told
DRAIN_SECONDS = 30.0


# What gRPC says where the server is gone, hangs, or ends.
_LOST = {f"StatusCode.{name}" for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")}


@contextmanager
def server_errors(what: str) -> Iterator[None]:
    """Turns what tritonclient and gRPC raise into :class:`ServerError`, saying ``what`` failed.

    Raises:
        ServerLostError: there was no answer.
        ServerError: the answer was an error.
    """
    try:
        yield
    except triton.InferenceServerException as error:
        kind = ServerLostError if error.status() in _LOST else ServerError
        raise kind(f"{what}: {error.message()}") from error
    except grpc.RpcError as error:
        raise ServerLostError(f"{what}: {error}") from error


@dataclass(slots=True, eq=False)
class Slot:
    """Room for one batch: its ids on the way there, its vectors on the way back.

    Attributes:
        index: number of the slot in its transport.
        ids: int32[capacity]; a batch's ids, row by row.
        mask: int32[capacity]; 1 where ``ids`` holds a token, 0 where it holds padding.
        tag: whatever the owner wants back with the answer.
        rows: rows of the batch in the slot.
        length: padded tokens of each row.
        vectors: float[rows, dimension], once the answer is there; a view that is valid until the
            slot is released.
        failure: why there is no answer, or None.
        sent: when the batch was submitted, in seconds of :func:`time.monotonic`.
    """

    index: int
    ids: NDArray[np.int32]
    mask: NDArray[np.int32]
    tag: Any = None
    rows: int = 0
    length: int = 0
    vectors: NDArray[np.floating[Any]] | None = None
    failure: Exception | None = None
    sent: float = 0.0

    def shaped(self, rows: int, length: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Gives the slot a shape; returns its ids and mask, int32[rows, length], to be filled."""
        self.rows, self.length = rows, length
        total = rows * length
        return (
            self.ids[:total].reshape(rows, length),
            self.mask[:total].reshape(rows, length),
        )


@dataclass(frozen=True, slots=True)
class SlotSize:
    """How much a slot holds.

    Attributes:
        tokens: most padded tokens of a batch.
        rows: most rows of a batch.
        dimension: length of a vector.
        dtype: type of a vector's numbers, as the server answers.
    """

    tokens: int
    rows: int
    dimension: int
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))

    @classmethod
    def of(cls, contract: Contract) -> SlotSize:
        """Returns the size that fits every batch that ``contract`` allows."""
        return cls(
            tokens=max(contract.token_budget, contract.length_limit),
            rows=contract.max_batch,
            dimension=contract.dimension,
            dtype=np.dtype(contract.dtype),
        )

    @property
    def token_bytes(self) -> int:
        """Bytes of the ids (and again of the mask)."""
        return self.tokens * 4

    @property
    def vector_bytes(self) -> int:
        """Bytes of the vectors."""
        return self.rows * self.dimension * self.dtype.itemsize


def one_line(error: BaseException) -> str:
    """Returns an error's message, or its kind where it has none, without line ends."""
    if isinstance(error, triton.InferenceServerException):
        return str(error.message())
    return " ".join(str(error).split()) or type(error).__name__


def wrong_shape(slot: Slot, size: SlotSize, shape: list[int]) -> ServerError:
    """Returns the error for an answer that is not what the model's settings promise."""
    return ServerError(
        f"the server answered vectors of shape {shape}, the model's settings promise "
        f"{[slot.rows, size.dimension]}; build the entry again: headrace build MODEL --force"
    )


class Transport(ABC):
    """Batches to the server and vectors back, several in flight; used by one thread.

    ``acquire`` a slot, fill it, ``submit`` it; ``collect`` an answered one, read its vectors,
    ``release`` it. Answers come in any order.

    Attributes:
        name: ``cuda``, ``system`` or ``grpc``.
        slots: how many batches can be in flight.
    """

    name: str

    def __init__(
        self, client: triton.InferenceServerClient, contract: Contract, patience: float
    ) -> None:
        """Holds what every way has in common.

        Args:
            client: the server's client.
            contract: the model's settings.
            patience: seconds within which a batch is to be answered.
        """
        self.slots = 0
        self._patience = patience
        self._lost = False
        self._client = client
        self._model = contract.name
        # In turn, not the last one first: every slot's memory is touched early, none later.
        self._free: deque[Slot] = deque()
        self._done: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._in_flight = 0
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Batches submitted and not yet collected."""
        return self._in_flight

    def acquire(self) -> Slot | None:
        """Returns a free slot, or None if there is none: then ``collect`` one first."""
        return self._free.popleft() if self._free else None

    def submit(self, slot: Slot) -> None:
        """Sends the slot's batch and returns at once.

        Raises:
            ServerLostError: the request could not be sent.
        """
        slot.vectors = slot.failure = None
        slot.sent = time.monotonic()
        inputs = [
            triton.InferInput(name, [slot.rows, slot.length], "INT32")
            for name in (INPUT_IDS, ATTENTION_MASK)
        ]
        output = triton.InferRequestedOutput(EMBEDDING)
        self._place(slot, inputs, output)

        def answered(result: Any, error: Exception | None) -> None:
            # In a thread of gRPC's: nothing may be raised here, only handed over.
            try:
                if error is None:
                    slot.vectors = self._read(slot, result)
                slot.failure = error
            except Exception as wrong:  # noqa: BLE001 -- collect() raises it in the right thread
                slot.failure = wrong
            self._done.put(slot)

        with self._losing(), server_errors("the request could not be sent"):
            self._client.async_infer(
                self._model,
                inputs,
                answered,
                outputs=[output],
                parameters={ALONE: True},
                client_timeout=self._patience,
            )
        self._in_flight += 1

    def collect(self, within: float | None = None) -> Slot | None:
        """Waits for the next answer and returns its slot, with ``vectors`` set.

        Args:
            within: seconds to wait; None waits as long as an answer may take.

        Returns:
            The slot; None where there is no answer ``within`` so long.

        Raises:
            ServerLostError: the server answered with an error, or not at all: it may do better
                when it is asked again, or another one may.
            ServerError: the answer is not what the model's settings promise.
        """
        with self._losing():
            most = self._patience + GRACE_SECONDS
            try:
                slot = self._wait(most if within is None else min(within, most))
            except queue.Empty:
                if within is not None and within < most:
                    return None
                raise self._hangs() from None
            self._in_flight -= 1
            if slot.failure is None:
                return slot
            what = f"the server failed a batch of {slot.rows} rows of {slot.length} tokens"
            match slot.failure:
                case MachineError() as error if not isinstance(error, ServerError):
                    raise error  # it is this side's
                case ServerError() as error if not isinstance(error, ServerLostError):
                    raise ServerError(f"{what}: {error}") from error
                case error:
                    raise ServerLostError(f"{what}: {one_line(error)}") from error

    def release(self, slot: Slot) -> None:
        """Gives a slot back; its arrays must not be used any more."""
        slot.vectors = slot.tag = None
        self._free.append(slot)

    def close(self) -> None:
        """Waits for what is in flight, then frees everything; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._lost:
            self._in_flight = 0
            self._free.clear()
            self.abandon()
            return
        answered = False
        try:
            while self._in_flight:
                self._discard(DRAIN_SECONDS)
                self._in_flight -= 1
            answered = True
        except queue.Empty:
            pass  # the server hangs, and may still write what it has not answered
        finally:
            self._in_flight = 0
            self._free.clear()
            if answered:
                self._close()
            else:
                self.abandon()

    def abandon(self) -> None:  # noqa: B027 -- most leave nothing
        """Removes what would outlive this process, which is about to end, without waiting."""

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Notes that the server was lost, so that nobody waits for its answers any more."""
        try:
            yield
        except ServerLostError:
            self._lost = True
            raise

    def _hangs(self) -> ServerLostError:
        return ServerLostError(f"the server has not answered for {self._patience:.0f} s")

    def _wait(self, seconds: float) -> Slot:
        """Returns the next slot that is answered, or has failed.

        Raises:
            queue.Empty: none is within so many seconds.
        """
        return self._done.get(timeout=seconds)

    def _discard(self, seconds: float) -> None:
        """Waits for an answer that nobody wants; raises as :meth:`_wait`."""
        self._wait(seconds)

    @abstractmethod
    def _place(
        self, slot: Slot, inputs: list[triton.InferInput], output: triton.InferRequestedOutput
    ) -> None:
        """Says where the inputs lie and where the output is to go."""

    @abstractmethod
    def _read(self, slot: Slot, result: triton.InferResult) -> NDArray[np.floating[Any]] | None:
        """Checks an answer; returns its vectors, float[rows, dimension], if it holds them."""

    @abstractmethod
    def _close(self) -> None:
        """Frees what the transport holds."""
