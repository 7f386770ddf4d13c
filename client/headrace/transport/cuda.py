"""Slots in GPU memory that the server opens by CUDA's inter-process communication.

Each GPU that server and client share has one region, allocated here and registered once. A batch
is packed into pinned memory; its ids and mask are copied to the GPU and are there when the request
is sent. When the answer comes, only the bytes that it uses are copied back. With several slots, the
copies of one batch run while another is computed and a third is packed.

Through NVIDIA's own bindings of the driver's interface (CUDA Driver API; cuda-bindings), which fit
every driver. What the server does with a handle: triton-inference-server/server,
``shared_memory_manager.cc``.
"""

from __future__ import annotations

import base64
import ctypes
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from headrace.errors import MachineError, MissingDependencyError
from headrace.transport.base import Slot, SlotSize, server_errors
from headrace.transport.memory import REGISTER_SECONDS, TIDY_SECONDS, Memory, Place, region_name

_HANDLE_BYTES = 64  # CU_IPC_HANDLE_SIZE
_BLOCK = 2 << 20  # bytes
_EVENT_FLAGS = 2  # CU_EVENT_DISABLE_TIMING
_STREAM_FLAGS = 1  # CU_STREAM_NON_BLOCKING


class CudaMemory(Memory):
    """See :class:`Memory`; used by one thread.

    Args:
        client: the server's client.
        size: of a slot.
        slots: how many; dealt out to the GPUs in turn.
        server_gpus: UUIDs of the GPUs that compute, by their numbers in the server's process.

    Raises:
        MissingDependencyError: cuda-bindings or the driver is not installed.
        MachineError: server and client share no GPU, or a GPU has no memory left.
        ServerError: the server does not take the region.
    """

    name = "cuda"

    def __init__(
        self,
        client: triton.InferenceServerClient,
        size: SlotSize,
        *,
        slots: int,
        server_gpus: Mapping[int, str],
    ) -> None:
        super().__init__(size)
        driver = Driver()
        shared = shared_gpus(driver.uuids(), server_gpus)
        if not shared:
            theirs, ours = (", ".join(uuids) for uuids in (server_gpus.values(), driver.uuids()))
            raise MachineError(
                f"server and client share no GPU (the server has {theirs}; here are "
                f"{ours or 'none'})"
            )
        # Where there are fewer slots than GPUs, other processes begin with others.
        first = os.getpid() % len(shared)
        shared = shared[first:] + shared[:first]
        self._client = client
        self._regions: list[_Region] = []
        self._events: list[Any] = []
        try:
            for place, (here, there) in enumerate(shared[:slots]):
                count = len(range(place, slots, len(shared)))
                region = _Region(driver, here, self.layout.stride * count)
                self._regions.append(region)
                region.register(client, there)
            for index in range(slots):
                region, start = self._region_of(index)
                self._events.append(region.event())
                ids, mask = (
                    region.view(start + at, np.dtype(np.int32), size.tokens)
                    for at in (0, self.layout.mask)
                )
                self.slots.append(Slot(index, ids, mask))
        except BaseException:
            self.close()
            raise

    def hand_over(self, slot: Slot) -> None:
        """See :meth:`Memory.hand_over`."""
        region, _ = self._region_of(slot.index)
        ids, mask, _ = self.places(slot)
        region.send([ids, mask], self._events[slot.index])

    def fetch(self, slot: Slot) -> None:
        """See :meth:`Memory.fetch`."""
        region, _ = self._region_of(slot.index)
        region.fetch(self.places(slot)[2], self._events[slot.index])

    def vectors(self, slot: Slot) -> NDArray[np.floating[Any]]:
        """See :meth:`Memory.vectors`."""
        region, start = self._region_of(slot.index)
        region.wait(self._events[slot.index])
        numbers = slot.rows * self.size.dimension
        view = region.view(start + self.layout.vectors, self.size.dtype, numbers)
        return view.reshape(slot.rows, self.size.dimension)

    def close(self) -> None:
        """See :meth:`Memory.close`; unregistered before it is freed: the server has it open."""
        regions, self._regions = self._regions, []
        for region in regions:
            region.unregister(self._client)
        for region in regions:
            region.free()
        self._events.clear()
        self.slots.clear()

    def _region_of(self, index: int) -> tuple[_Region, int]:
        """Returns the region that a slot lies in, and its first byte there."""
        region = self._regions[index % len(self._regions)]
        return region, self.layout.stride * (index // len(self._regions))

    def _whereabouts(self, slot: Slot) -> tuple[str, int]:
        region, start = self._region_of(slot.index)
        return region.name, start


class _Region:
    """Memory on one GPU, and as much of it pinned on the host.

    Args:
        driver: CUDA.
        device: number of the GPU in this process.
        size: bytes.
    """

    def __init__(self, driver: Driver, device: int, size: int) -> None:
        self.name = region_name()
        # A handle stands for a whole block of the driver's: this one is ours alone.
        self.size = size = -(-size // _BLOCK) * _BLOCK
        self._driver = driver
        self._device = device
        self._registered = False
        self._streams: list[Any] = []
        self._made: list[tuple[str, Any]] = []  # what frees what, in the order it was made
        self._context = driver.call("cuDevicePrimaryCtxRetain", device)
        self._made.append(("cuDevicePrimaryCtxRelease", device))
        try:
            self._enter()
            self._memory = int(self._make("cuMemAlloc", "cuMemFree", size))
            self._host = int(self._make("cuMemAllocHost", "cuMemFreeHost", size))
            # One a direction: a GPU copies both ways at once.
            for _ in range(2):
                stream = self._make("cuStreamCreate", "cuStreamDestroy", _STREAM_FLAGS)
                self._streams.append(stream)
            self._to_gpu, self._to_host = self._streams
        except BaseException:
            self.free()
            raise
        self._bytes: Any = (ctypes.c_ubyte * size).from_address(self._host)

    def register(self, client: triton.InferenceServerClient, device: int) -> None:
        """Has the server open the memory; ``device`` is the GPU's number in the server's process.

        Raises:
            MachineError: the memory cannot be shared.
            ServerError: the server does not take it.
        """
        self._enter()
        handle = self._driver.call("cuIpcGetMemHandle", self._memory)
        raw = base64.b64encode(ctypes.string_at(handle.getPtr(), _HANDLE_BYTES))
        with server_errors("the server does not take a GPU's memory"):
            client.register_cuda_shared_memory(
                self.name, raw, device, self.size, client_timeout=REGISTER_SECONDS
            )
        self._registered = True

    def unregister(self, client: triton.InferenceServerClient) -> None:
        """Has the server close the memory; where the server is gone, that is done."""
        if self._registered:
            self._registered = False
            with suppress(triton.InferenceServerException):
                client.unregister_cuda_shared_memory(self.name, client_timeout=TIDY_SECONDS)

    def event(self) -> Any:
        """Returns a new event of this GPU."""
        self._enter()
        return self._make("cuEventCreate", "cuEventDestroy", _EVENT_FLAGS)

    def view(self, start: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """Returns ``count`` numbers of ``dtype`` of the host's memory from byte ``start`` on."""
        view: NDArray[Any] = np.frombuffer(self._bytes, dtype, count, start)
        return view

    def send(self, places: Sequence[Place], event: Any) -> None:
        """Copies what lies at some places to the GPU, and waits until it is there."""
        self._enter()
        call = self._driver.call
        for _, at, size in places:
            call("cuMemcpyHtoDAsync", self._memory + at, self._host + at, size, self._to_gpu)
        call("cuEventRecord", event, self._to_gpu)
        call("cuEventSynchronize", event)

    def fetch(self, place: Place, event: Any) -> None:
        """Starts to copy what lies at a place to the host; ``event`` says when it is there."""
        self._enter()
        _, at, size = place
        call = self._driver.call
        call("cuMemcpyDtoHAsync", self._host + at, self._memory + at, size, self._to_host)
        call("cuEventRecord", event, self._to_host)

    def wait(self, event: Any) -> None:
        """Waits for an event."""
        self._driver.call("cuEventSynchronize", event)

    def free(self) -> None:
        """Frees everything, the last made first; no view of it may be used any more."""
        with suppress(MachineError):
            self._enter()
        for stream in self._streams:
            with suppress(MachineError):  # a copy that nobody waits for
                self._driver.call("cuStreamSynchronize", stream)
        while self._made:
            name, what = self._made.pop()
            with suppress(MachineError):  # a GPU that has failed has nothing left to free
                self._driver.call(name, what)

    def _enter(self) -> None:
        self._driver.call("cuCtxSetCurrent", self._context)

    def _make(self, how: str, undo: str, argument: int) -> Any:
        made = self._driver.call(how, argument)
        self._made.append((undo, made))
        return made


class Driver:
    """The CUDA driver, with its errors as ours.

    Raises:
        MissingDependencyError: cuda-bindings or the driver is not installed.
        MachineError: the driver does not start.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise MissingDependencyError(
                "transport cuda needs cuda-bindings, which is not installed; install it with: "
                "pip install 'headrace[gpu]'"
            ) from error
        self._driver = driver
        try:
            self.call("cuInit", 0)
        except RuntimeError as error:  # its library is not there
            raise MissingDependencyError(
                f"transport cuda needs NVIDIA's driver, which is not installed ({error})"
            ) from error

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the driver and returns its one result, or None.

        Raises:
            MachineError: the function failed.
        """
        error, *results = getattr(self._driver, name)(*arguments)
        if int(error) != 0:
            said = self._driver.cuGetErrorString(error)[1]
            text = said.decode() if isinstance(said, bytes) else str(said)
            raise MachineError(f"CUDA failed: {name}: {text}")
        return results[0] if results else None

    def uuids(self) -> list[str]:
        """Returns the UUIDs of the GPUs that this process sees, each at its number."""
        found = []
        for number in range(int(self.call("cuDeviceGetCount"))):
            raw = bytes(self.call("cuDeviceGetUuid", self.call("cuDeviceGet", number)).bytes).hex()
            parts = (raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:])
            found.append(f"GPU-{'-'.join(parts)}")
        return found


def shared_gpus(here: Sequence[str], there: Mapping[int, str]) -> list[tuple[int, int]]:
    """Returns the numbers of each GPU that both have: in this process and in the server's.

    Args:
        here: UUIDs in the order of this process.
        there: UUIDs by the server's numbers.
    """
    return [(here.index(uuid), number) for number, uuid in there.items() if uuid in here]
