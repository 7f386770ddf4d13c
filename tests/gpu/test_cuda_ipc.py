"""CUDA IPC against the real server and the real driver."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from headrace.transport import connect, sweep
from headrace.transport.cuda import Driver
from headrace.transport.http import HttpTransport

pytestmark = [pytest.mark.gpu, pytest.mark.server]
SLACK = 64 << 20  # bytes: the driver takes and gives back in larger pieces than we do


def batches(contract, count, seed):
    random = np.random.default_rng(seed)
    for _ in range(count):
        length = int(random.integers(1, 300))
        rows = int(random.integers(1, min(contract.max_batch, contract.token_budget // length) + 1))
        ids = random.integers(0, contract.vocab_size, (rows, length), dtype=np.int32)
        mask = (np.arange(length) < random.integers(0, length + 1, (rows, 1))).astype(np.int32)
        yield ids, mask


def embed(transport, work):
    """Sends batches, as many at once as go, and returns their vectors in order."""
    found = {}

    def collect():
        slot = transport.collect()
        found[slot.tag] = slot.vectors.copy()
        transport.release(slot)

    for number, (ids, mask) in enumerate(work):
        while (slot := transport.acquire()) is None:
            collect()
        for room, array in zip(slot.shaped(*ids.shape), (ids, mask), strict=True):
            room[:] = array
        slot.tag = number
        transport.submit(slot)
    while transport.in_flight:
        collect()
    return [found[number] for number in sorted(found)]


def opened(connection, choice, *, http=True):
    if not http:
        connection.http = None
    transport, why = connection.open_transport(choice)
    assert (transport.name, why) == (choice, "asked for")
    assert isinstance(transport, HttpTransport) == http
    return transport


def free_memory():
    """Bytes that are free on GPU 0."""
    driver = Driver()
    context = driver.call("cuDevicePrimaryCtxRetain", 0)
    driver.call("cuCtxSetCurrent", context)
    try:
        return int(driver._driver.cuMemGetInfo()[1])
    finally:
        driver.call("cuDevicePrimaryCtxRelease", 0)


@pytest.mark.parametrize("http", [True, False])
def test_vectors_are_those_of_posix_shared_memory(connection, http):
    answers = []
    for choice in ("system", "cuda"):
        transport = opened(connection, choice, http=http)
        try:
            answers.append(embed(transport, batches(connection.contract, 300, seed=1)))
        finally:
            transport.close()
    assert len(answers[0]) == len(answers[1]) == 300
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)


def test_ten_thousand_batches_and_many_clients_leave_no_memory(connection):
    opened(connection, "cuda").close()  # what the driver takes once
    before = free_memory()
    for _ in range(20):
        transport = opened(connection, "cuda")
        try:
            for vectors in embed(transport, batches(connection.contract, 500, seed=2)):
                assert np.isfinite(vectors).all()
        finally:
            transport.close()
    status = connection.client.get_cuda_shared_memory_status()
    assert not status.regions
    assert before - free_memory() < SLACK


def test_auto_takes_the_gpu_and_says_why(connection):
    transport, why = connection.open_transport("auto")
    assert (transport.name, why) == ("cuda", "server and client share a GPU")
    assert len(connection.client.get_cuda_shared_memory_status().regions) == 1
    transport.close()


DYING = """
import os, sys
import numpy as np
from headrace.transport import connect, sweep
connection = connect(sys.argv[1], [sys.argv[2]])
connection.on_gpus = True
transport, _ = connection.open_transport("cuda")
while (slot := transport.acquire()) is not None:
    ids, mask = slot.shaped(8, 128)
    ids[:], mask[:] = 5, 1
    transport.submit(slot)
os.kill(os.getpid(), 9)
"""


def test_a_client_killed_in_a_run_leaves_the_next_one_all_it_needs(null_server, connection):
    opened(connection, "cuda").close()
    before = free_memory()
    name = connection.contract.name
    for _ in range(5):
        command = [sys.executable, "-c", DYING, null_server.endpoints.grpc, name]
        assert subprocess.run(command, check=False).returncode == -9
    left = connection.client.get_cuda_shared_memory_status().regions
    assert len(left) == 5
    other = connect(null_server.endpoints.grpc, [name])
    other.on_gpus = True
    transport = opened(other, "cuda")
    try:
        deadline = time.monotonic() + 30
        while len(connection.client.get_cuda_shared_memory_status().regions) > 1:
            assert time.monotonic() < deadline
            sweep(connection.client)  # what a request still used goes when that is over
        assert len(embed(transport, batches(connection.contract, 50, seed=3))) == 50
    finally:
        transport.close()
        other.close()
    assert before - free_memory() < SLACK
