"""A CUDA driver made of the host's memory, and a server that looks into it: for bookkeeping."""

from __future__ import annotations

import base64
import ctypes
import sys
import types

import numpy as np

from client.fakes import vectors_of

UUIDS = ["GPU-00000000-0000-0000-0000-000000000000", "GPU-01010101-0101-0101-0101-010101010101"]


class Handle:
    def __init__(self, address):
        self._raw = ctypes.create_string_buffer(address.to_bytes(8, "little"), 64)

    def getPtr(self):
        return ctypes.addressof(self._raw)


class FakeDriver:
    """The functions of ``cuda.bindings.driver`` that headrace calls.

    A copy runs when its stream is waited for, as late as it may, so that whoever does not wait
    reads what was there before.

    Attributes:
        alive: what was made and is not freed: its kind by its number.
        calls: the names of the functions called, in turn.
        fail: names of functions that fail.
    """

    def __init__(self, gpus=1):
        self.gpus = gpus
        self.alive = {}
        self.calls = []
        self.fail = set()
        self.memory = {}
        self.pending = {}
        self.events = {}
        self.context = None
        self._next = 1

    def install(self, monkeypatch):
        module = types.ModuleType("cuda.bindings")
        module.driver = self
        monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", module)
        return self

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)
        function = getattr(type(self), f"_{name}")

        def call(*arguments):
            self.calls.append(name)
            if name in self.fail:
                return (2,)
            results = function(self, *arguments)
            return (0,) if results is None else (0, results)

        return call

    def _make(self, kind):
        number, self._next = self._next, self._next + 1
        self.alive[number] = kind
        return number

    def _free(self, number, kind):
        assert self.alive.pop(number) == kind

    def _allocate(self, size, kind):
        raw = (ctypes.c_ubyte * size)()
        ctypes.memset(raw, 0xAA, size)
        address = ctypes.addressof(raw)
        self.memory[address] = raw
        self.alive[address] = kind
        return address

    def _inside(self):
        assert self.context is not None, "no context is current"

    def _cuInit(self, flags):
        assert flags == 0

    def _cuGetErrorString(self, error):
        return b"out of memory"

    def _cuDeviceGetCount(self):
        return self.gpus

    def _cuDeviceGet(self, number):
        return number

    def _cuDeviceGetUuid(self, device):
        return types.SimpleNamespace(bytes=bytes([device] * 16))

    def _cuDevicePrimaryCtxRetain(self, device):
        self.alive[f"context {device}"] = "context"
        return device

    def _cuDevicePrimaryCtxRelease(self, device):
        self._free(f"context {device}", "context")

    def _cuCtxSetCurrent(self, context):
        self.context = context

    def _cuMemAlloc(self, size):
        self._inside()
        return self._allocate(size, "device memory")

    def _cuMemFree(self, address):
        self._free(address, "device memory")
        del self.memory[address]

    def _cuMemAllocHost(self, size):
        return self._allocate(size, "pinned memory")

    def _cuMemFreeHost(self, address):
        self._free(address, "pinned memory")
        del self.memory[address]

    def _cuStreamCreate(self, flags):
        self._inside()
        return self._make("stream")

    def _cuStreamDestroy(self, stream):
        self._free(stream, "stream")

    def _cuEventCreate(self, flags):
        return self._make("event")

    def _cuEventDestroy(self, event):
        self._free(event, "event")

    def _cuIpcGetMemHandle(self, address):
        assert self.alive[address] == "device memory"
        return Handle(address)

    def _cuMemcpyHtoDAsync(self, target, source, size, stream):
        self._inside()
        self.pending.setdefault(stream, []).append((target, source, size))

    def _cuMemcpyDtoHAsync(self, target, source, size, stream):
        self._cuMemcpyHtoDAsync(target, source, size, stream)

    def _cuMemcpyAsync(self, target, source, size, stream):
        self._cuMemcpyHtoDAsync(target, source, size, stream)

    def _cuStreamSynchronize(self, stream):
        for target, source, size in self.pending.pop(stream, []):
            ctypes.memmove(target, source, size)

    def _cuEventRecord(self, event, stream):
        self.events[event] = stream

    def _cuEventSynchronize(self, event):
        self._cuStreamSynchronize(self.events[event])


class FakeServer:
    """What a client of Triton is asked for, answering as the null engine does.

    Attributes:
        regions: device address, size and GPU by name.
        log: what was registered and unregistered.
    """

    def __init__(self, dimension):
        self.dimension = dimension
        self.regions = {}
        self.log = []
        self.refuse = None

    def register_cuda_shared_memory(
        self, name, raw_handle, device_id, byte_size, client_timeout=None
    ):
        if self.refuse is not None:
            raise self.refuse
        raw = base64.b64decode(raw_handle)
        assert len(raw) == 64
        self.regions[name] = (int.from_bytes(raw[:8], "little"), byte_size, device_id)
        self.log.append(("register", name))

    def unregister_cuda_shared_memory(self, name, client_timeout=None):
        del self.regions[name]
        self.log.append(("unregister", name))

    def infer(self, slot, places):
        """Reads and writes the slot's memory where a request's places say."""
        ids, mask, vectors = (self._view(place) for place in places)
        shape = slot.rows, slot.length
        found = vectors_of(
            ids.view(np.int32).reshape(shape), mask.view(np.int32).reshape(shape), self.dimension
        )
        vectors.view(np.float32)[:] = found.ravel()

    def _view(self, place):
        address, size, _ = self.regions[place.region]
        assert place.at % 256 == 0
        assert place.at + place.size <= size
        raw = (ctypes.c_ubyte * place.size).from_address(address + place.at)
        return np.frombuffer(raw, np.uint8)
