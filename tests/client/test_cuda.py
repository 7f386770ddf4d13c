"""The bookkeeping of GPU memory: slots, copies, order of freeing, errors; no GPU is needed."""

from __future__ import annotations

import importlib
import itertools
import queue
import random as random_module
import sys
from dataclasses import replace

import numpy as np
import pytest
import tritonclient.grpc as triton

from client.fakecuda import UUIDS, FakeDriver, FakeServer
from client.fakes import vectors_of
from headrace.errors import MachineError, MissingDependencyError, ServerError
from headrace.transport.base import SlotSize
from headrace.transport.connect import Connection
from headrace.transport.cuda import CudaMemory, shared_gpus
from headrace.transport.shared import SharedTransport


@pytest.fixture
def driver(monkeypatch):
    return FakeDriver().install(monkeypatch)


@pytest.fixture
def contract(make_contract):
    return make_contract(dimension=20)


@pytest.fixture
def server():
    return FakeServer(20)


def opened(server, contract, *, slots=3, gpus=UUIDS[:1]):
    gpus = dict(enumerate(gpus))
    return CudaMemory(server, SlotSize.of(contract), slots=slots, server_gpus=gpus)


class Requests(SharedTransport):
    """Sends nothing: the fake server answers in an order of its own."""

    def __init__(self, server, contract, memory, shuffle):
        super().__init__(None, contract, memory, patience=5.0)
        self._server = server
        self._shuffle = shuffle
        self._sent = []

    def submit(self, slot):
        slot.vectors = slot.failure = None
        self._memory.hand_over(slot)
        self._sent.append(slot)
        self._in_flight += 1

    def _answered(self, seconds):
        if seconds or not self._coming:
            slot = self._sent.pop(self._shuffle.randrange(len(self._sent)))
            self._server.infer(slot, self._memory.places(slot))
            return slot
        if self._sent and self._shuffle.random() < 0.5:  # another one is there already
            return self._answered(1)
        raise queue.Empty


@pytest.mark.parametrize(("gpus", "slots"), [(1, 1), (1, 4), (2, 1), (2, 5)])
def test_vectors_are_those_of_their_batches(monkeypatch, contract, server, gpus, slots):
    driver = FakeDriver(gpus).install(monkeypatch)
    random = np.random.default_rng(5)
    memory = opened(server, contract, slots=slots, gpus=UUIDS[:gpus])
    transport = Requests(server, contract, memory, random_module.Random(3))
    assert (transport.name, transport.slots) == ("cuda", slots)
    assert len(server.regions) == min(gpus, slots)
    answered = 0

    def check():
        slot = transport.collect()
        ids, mask = slot.tag
        np.testing.assert_array_equal(slot.vectors, vectors_of(ids, mask, 20))
        transport.release(slot)

    for _ in range(100):
        while (slot := transport.acquire()) is None:
            check()
            answered += 1
        length = int(random.integers(1, 129))
        rows = int(random.integers(1, min(contract.max_batch, 512 // length) + 1))
        ids, mask = slot.shaped(rows, length)
        ids[:] = random.integers(0, 30522, (rows, length))
        mask[:] = np.arange(length) < random.integers(0, length + 1, (rows, 1))
        slot.tag = ids.copy(), mask.copy()
        transport.submit(slot)
    while transport.in_flight:
        check()
        answered += 1
    transport.close()
    transport.close()
    assert answered == 100
    assert not driver.alive
    assert not server.regions


def test_slots_do_not_overlap(driver, contract, server):
    memory = opened(server, contract, slots=4)
    size = memory.size
    used = []
    for slot in memory.slots:
        slot.rows, slot.length = size.rows, size.tokens // size.rows
        used += [(place.at, place.at + place.size) for place in memory.places(slot)]
    used.sort()
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(used))
    memory.close()


def test_only_the_bytes_that_are_used_are_copied(driver, contract, server):
    memory = opened(server, contract, slots=1)
    (slot,) = memory.slots
    slot.shaped(3, 5)
    memory.hand_over(slot)
    memory.fetch(slot)
    (stream,) = driver.pending
    assert [size for _, _, size in driver.pending[stream]] == [3 * 20 * 4]
    memory.vectors(slot)
    assert not driver.pending
    memory.close()


def test_memory_is_unregistered_before_it_is_freed(driver, contract, server):
    seen = []

    class Watched(FakeServer):
        def unregister_cuda_shared_memory(self, name, client_timeout=None):
            seen.append("device memory" in driver.alive.values())
            super().unregister_cuda_shared_memory(name)

    memory = opened(Watched(20), contract)
    memory.close()
    memory.close()
    assert seen == [True]
    assert not driver.alive
    frees = [name for name in driver.calls if name in {"cuMemFree", "cuMemFreeHost"}]
    assert frees == ["cuMemFreeHost", "cuMemFree"]
    assert driver.calls[-1] == "cuDevicePrimaryCtxRelease"


def test_a_server_that_is_gone_does_not_keep_the_memory(driver, contract, server):
    def gone(name, client_timeout=None):
        raise triton.InferenceServerException("unavailable")

    memory = opened(server, contract)
    server.unregister_cuda_shared_memory = gone
    memory.close()
    assert not driver.alive


def test_what_the_server_does_not_take_is_freed(driver, contract, server):
    server.refuse = triton.InferenceServerException("failed to open CUDA IPC handle")
    with pytest.raises(ServerError, match="does not take a GPU's memory: failed to open"):
        opened(server, contract)
    assert not driver.alive


@pytest.mark.parametrize(
    "name", ["cuMemAlloc", "cuMemAllocHost", "cuStreamCreate", "cuEventCreate", "cuIpcGetMemHandle"]
)
def test_a_call_that_fails_leaves_nothing(driver, contract, server, name):
    driver.fail = {name}
    with pytest.raises(MachineError, match=f"CUDA failed: {name}: out of memory"):
        opened(server, contract)
    assert not driver.alive
    assert not server.regions


def test_a_gpu_that_fails_in_a_run_is_told_and_let_go(driver, contract, server):
    memory = opened(server, contract)
    slot = memory.slots[0]
    slot.shaped(2, 2)
    driver.fail = {"cuEventSynchronize", "cuMemFree"}
    with pytest.raises(MachineError, match="cuEventSynchronize"):
        memory.hand_over(slot)
    memory.close()
    assert set(driver.alive.values()) == {"device memory"}  # what could not be freed, no more


def test_a_copy_that_fails_is_the_batch_s_failure_and_the_drain_does_not_wait_for_it(
    driver, contract, server
):
    memory = opened(server, contract)
    transport = Requests(server, contract, memory, random_module.Random(1))
    slot = transport.acquire()
    ids, mask = slot.shaped(2, 2)
    ids[:], mask[:] = 1, 1
    transport.submit(slot)
    driver.fail = {"cuMemcpyDtoHAsync"}
    with pytest.raises(MachineError, match="CUDA failed: cuMemcpyDtoHAsync"):
        transport.collect()
    assert transport.in_flight == 0
    transport.close()
    assert not driver.alive


def test_gpus_are_told_by_uuid_not_by_number():
    a, b, c = "GPU-a", "GPU-b", "GPU-c"
    assert shared_gpus([a, b], {0: b, 1: a}) == [(1, 0), (0, 1)]
    assert shared_gpus([c, a], {2: a}) == [(1, 2)]
    assert shared_gpus([a], {0: b}) == []


def test_the_servers_number_is_registered(monkeypatch, contract, server):
    FakeDriver(2).install(monkeypatch)
    memory = opened(server, contract, gpus=["GPU-elsewhere", UUIDS[1]])
    assert [device for _, _, device in server.regions.values()] == [1]
    memory.close()


def test_processes_with_few_slots_begin_with_other_gpus(monkeypatch, contract, server):
    FakeDriver(2).install(monkeypatch)
    numbers = []
    for pid in (4, 5):
        monkeypatch.setattr("headrace.transport.cuda.os.getpid", lambda pid=pid: pid)
        memory = opened(server, contract, slots=1, gpus=UUIDS)
        numbers += [device for _, _, device in server.regions.values()]
        memory.close()
    assert sorted(numbers) == [0, 1]


def test_a_copy_that_nobody_waits_for_is_over_before_its_memory_goes(driver, contract, server):
    memory = opened(server, contract, slots=1)
    (slot,) = memory.slots
    slot.shaped(2, 2)
    memory.fetch(slot)
    memory.close()
    assert not driver.pending
    assert not driver.alive


def test_a_server_that_hangs_keeps_the_memory_that_it_may_write_to(driver, contract, server):
    memory = opened(server, contract)
    transport = Requests(server, contract, memory, random_module.Random(1))
    slot = transport.acquire()
    ids, mask = slot.shaped(2, 2)
    ids[:], mask[:] = 1, 1
    transport.submit(slot)

    def hangs(seconds):
        raise queue.Empty

    transport._answered = hangs
    transport.close()
    assert "device memory" in driver.alive.values()
    assert server.regions
    memory.close()
    assert not driver.alive


def test_without_a_shared_gpu_both_sides_are_named(driver, contract, server):
    with pytest.raises(MachineError, match=rf"share no GPU \(the server has GPU-x; .*{UUIDS[0]}"):
        opened(server, contract, gpus=["GPU-x"])


def test_without_the_bindings_the_remedy_is_told(monkeypatch, contract, server):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headrace\[gpu\]'"):
        opened(server, contract)


def test_without_a_driver_that_is_told(driver, contract, server):
    def missing(flags):
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    driver.cuInit = missing
    with pytest.raises(MissingDependencyError, match="NVIDIA's driver, which is not installed"):
        opened(server, contract)


class TestChoice:
    """Which transport ``auto`` takes, and what it says of the others."""

    @pytest.fixture
    def connection(self, make_contract, monkeypatch):
        module = importlib.import_module("headrace.transport.connect")
        monkeypatch.setattr(module, "sweep", lambda client: None)
        connection = Connection(
            client=FakeServer(8),
            server="127.0.0.1:1",
            contract=make_contract(engine="tensorrt", capability="9.0"),
            instances=2,
            on_gpus=True,
            gpus=dict(enumerate(UUIDS)),
        )

        def register(name, key, size, client_timeout):
            if connection.server == "elsewhere:1":
                raise triton.InferenceServerException("no such region")

        connection.client.register_system_shared_memory = register
        connection.client.unregister_system_shared_memory = lambda name, client_timeout: None
        return connection

    def test_a_shared_gpu_is_taken(self, driver, connection):
        transport, why = connection.open_transport("auto")
        assert (transport.name, why) == ("cuda", "server and client share a GPU")
        assert transport.slots == 2 * connection.contract.in_flight + 2
        transport.close()
        assert not driver.alive

    def test_else_shared_memory_and_the_reason(self, driver, connection):
        connection.gpus = {0: "GPU-x"}
        transport, why = connection.open_transport("auto")
        assert transport.name == "system"
        assert why.startswith(
            "server and client share memory; not cuda: server and client share no"
        )
        transport.close()
        with pytest.raises(MachineError, match="share no GPU"):
            connection.open_transport("cuda")

    def test_else_messages_and_both_reasons(self, driver, connection):
        connection.gpus = {}
        connection.server = "elsewhere:1"
        transport, why = connection.open_transport("auto")
        assert transport.name == "grpc"
        assert "not system: " in why
        assert "not cuda: the server does not say which GPUs it has" in why
        transport.close()

    def test_a_model_on_a_cpu_has_no_use_for_it(self, driver, connection):
        connection.on_gpus = False
        transport, why = connection.open_transport("auto")
        assert transport.name == "system"
        assert why == "server and client share memory; not cuda: a CPU computes the model"
        transport.close()
        with pytest.raises(MachineError, match="computed by a CPU; use --transport system"):
            connection.open_transport("cuda")
        assert not driver.calls


def test_vectors_in_half_take_half_the_bytes(driver, make_contract):
    contract = make_contract(dtype="float16", dimension=384)
    halves, whole = (
        opened(FakeServer(384), each).layout.stride
        for each in (contract, replace(contract, dtype="float32"))
    )
    assert halves < whole
