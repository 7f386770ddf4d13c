"""TensorRT plans on a GPU, where Triton has no TensorRT backend of its own."""

from __future__ import annotations

import importlib
import queue
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .device import Driver
from .engine import Answer, DeviceArray, Ids

_BUFFERS = 3  # one filled, one computed, one sent
_STREAM_FLAGS = 1  # CU_STREAM_NON_BLOCKING
_EVENT_FLAGS = 1 | 2  # CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING
_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}


def load(folder: Path, settings: dict[str, Any], device: int) -> GpuEngine:
    """Returns the engine of the plan in ``folder``, on the GPU of that number."""
    return TensorRtEngine(folder, settings, device)


class Buffers(NamedTuple):
    """Device addresses of one batch's arrays, and the event that says that it is computed."""

    ids: int
    mask: int
    vectors: int
    done: Any


class GpuEngine(ABC):
    """Copies batches in, has them computed, and sends vectors out, each beside the others.

    ``submit`` copies a batch into buffers of the engine's own, on a stream of its own, and waits
    for that alone, since Triton takes the request's memory back afterwards; the computation is then
    only enqueued. A thread waits for each batch in turn and answers. When all buffers are in use
    ``submit`` blocks.

    Args:
        settings: the model's headrace settings.
        device: number of the GPU in this process.
    """

    def __init__(self, settings: dict[str, Any], device: int) -> None:
        self._dimension = int(settings["dimension"])
        self._dtype = np.dtype(settings["dtype"])
        rows = max(bucket["max_batch"] for bucket in settings["buckets"])
        tokens = rows * settings["buckets"][-1]["max_length"] * 4
        self.driver = Driver(device)
        self.driver.enter()
        call = self.driver.call
        self._addresses: list[int] = []
        self._copying = call("cuStreamCreate", _STREAM_FLAGS)
        self._computing = call("cuStreamCreate", _STREAM_FLAGS)
        self._free: queue.SimpleQueue[Buffers] = queue.SimpleQueue()
        self._events = [call("cuEventCreate", _EVENT_FLAGS) for _ in range(_BUFFERS)]
        for event in self._events:
            ids, mask = self.allocate(tokens), self.allocate(tokens)
            vectors = self.allocate(rows * self._dimension * self._dtype.itemsize)
            self._free.put(Buffers(ids, mask, vectors, event))
        self._running: queue.SimpleQueue[tuple[Buffers, int, Answer] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="answers", daemon=True)
        self._thread.start()

    def allocate(self, size: int) -> int:
        """Returns the address of so many bytes on the GPU, freed with the engine."""
        address = int(self.driver.call("cuMemAlloc", max(1, size)))
        self._addresses.append(address)
        return address

    def submit(self, ids: Ids, mask: Ids, answer: Answer) -> None:
        """See :meth:`Engine.submit`."""
        buffers = self._free.get()
        try:
            self.driver.enter()
            rows, length = ids.shape
            for array, address in ((ids, buffers.ids), (mask, buffers.mask)):
                self._copy(array, address)
            self.driver.call("cuStreamSynchronize", self._copying)
            self.enqueue(buffers, rows, length, int(self._computing))
            self.driver.call("cuEventRecord", buffers.done, self._computing)
        except BaseException:
            self._free.put(buffers)
            raise
        self._running.put((buffers, rows, answer))

    @abstractmethod
    def enqueue(self, buffers: Buffers, rows: int, length: int, stream: int) -> None:
        """Enqueues the computation of ``buffers.vectors`` on a stream, and does not wait for it.

        ``buffers.ids`` and ``.mask`` hold int32[rows, length]; ``.vectors`` has room for [rows,
        dimension] in the settings' type. Raises an error if that cannot be.
        """

    def release(self) -> None:  # noqa: B027 -- most have nothing else
        """Lets go of what computes, when nothing runs any more."""

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        self._running.put(None)
        self._thread.join()
        self.driver.enter()
        self.release()
        call = self.driver.call
        for address in self._addresses:
            call("cuMemFree", address)
        for event in self._events:
            call("cuEventDestroy", event)
        for stream in (self._copying, self._computing):
            call("cuStreamDestroy", stream)
        self.driver.close()

    def _copy(self, array: Ids, address: int) -> None:
        size = int(np.prod(array.shape)) * 4
        if isinstance(array, DeviceArray):
            # From whichever GPU: addresses are the same everywhere (unified addressing).
            self.driver.call("cuMemcpyAsync", address, array.address, size, self._copying)
        else:
            source = np.ascontiguousarray(array)
            self.driver.call("cuMemcpyHtoDAsync", address, source.ctypes.data, size, self._copying)
            if source is not array:  # it goes when this returns
                self.driver.call("cuStreamSynchronize", self._copying)

    def _send(self) -> None:
        self.driver.enter()
        while (item := self._running.get()) is not None:
            buffers, rows, answer = item
            shape = (rows, self._dimension)
            vectors = DeviceArray(buffers.vectors, shape, self._dtype, self.driver.device)
            try:
                self.driver.call("cuEventSynchronize", buffers.done)
                answer(vectors, None)
            except Exception as error:  # noqa: BLE001 -- the next batch is another client's
                with suppress(Exception):  # there may be nobody left to tell
                    answer(None, error)
            finally:
                self._free.put(buffers)


class TensorRtEngine(GpuEngine):
    """A plan, with a context for each of its profiles; they share the memory of activations.

    Args:
        folder: where ``model.plan`` lies.
        settings: the model's headrace settings.
        device: number of the GPU in this process.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], device: int) -> None:
        self._trt = trt = _library(settings["engine"])
        if trt.__version__ != settings["engine_version"]:
            raise RuntimeError(
                f"the plan was built by {settings['engine']} {settings['engine_version']}, and "
                f"this is {trt.__version__}; build it again: headrace build MODEL"
            )
        super().__init__(settings, device)
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = runtime.deserialize_cuda_engine((folder / "model.plan").read_bytes())
        if self._engine is None:
            raise RuntimeError(
                f"{settings['engine']} cannot load the plan, which is for compute capability "
                f"{settings['capability']}; build it again on this machine: headrace build MODEL"
            )
        self._lengths = [bucket["max_length"] for bucket in settings["buckets"]]
        # The largest of all profiles': no context may be given less (TensorRT, IExecutionContext).
        size = self._engine.device_memory_size_v2
        memory = self.allocate(size)
        self._contexts = []
        for index in range(self._engine.num_optimization_profiles):
            context = self._engine.create_execution_context(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
            if context is None or not context.set_optimization_profile_async(
                index, int(self._computing)
            ):
                raise RuntimeError(
                    f"TensorRT has no context for profile {index}: the GPU may be out of memory"
                )
            # One batch is computed at a time, so all may compute in the same place.
            context.set_device_memory(memory, size)
            self._contexts.append(context)
        self.driver.call("cuStreamSynchronize", self._computing)

    def enqueue(self, buffers: Buffers, rows: int, length: int, stream: int) -> None:
        """See :meth:`GpuEngine.enqueue`."""
        place = next(at for at, longest in enumerate(self._lengths) if length <= longest)
        context = self._contexts[place]
        done = context.set_tensor_address("embedding", buffers.vectors)
        for name, address in (("input_ids", buffers.ids), ("attention_mask", buffers.mask)):
            done &= context.set_input_shape(name, (rows, length))
            done &= context.set_tensor_address(name, address)
        if not (done and context.execute_async_v3(stream)):
            raise RuntimeError(f"TensorRT did not take a batch of {rows} rows of {length} tokens")

    def release(self) -> None:
        """See :meth:`GpuEngine.release`."""
        self._contexts.clear()
        self._engine = None


def _library(engine: str) -> Any:
    for name in _MODULES[engine]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise RuntimeError(f"{engine} is not installed for the Python that Triton runs")
