"""The gateway among those who ask wrongly, too much, too slowly or go away, and its own end."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import psutil
import pytest

from headrace_launcher.serve import with_text_models
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton
from integration.serving.callers import (
    AUTO,
    FP32,
    NULL,
    OPENAI,
    TEI,
    a_gateway,
    by_tei,
    connect,
    same,
    started,
)

pytestmark = pytest.mark.server


def test_heads_without_end(gateway):
    assert b"200" not in raw(gateway, b"GET /health HTTP/1.1\r\nX: " + b"a" * (1 << 20))
    assert httpx.head(f"{gateway}/health").status_code == 200
    assert by_tei(gateway, ["still there"]).shape == (1, 384)


def raw(url, data):
    """Sends bytes; returns what comes back until the connection is closed."""
    got = b""
    with connect(url) as connection:
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                got += part
        except ConnectionError:
            pass
    return got


HOSTILE = [
    (OPENAI, b"{bad", 400),
    (TEI, b"{bad", 422),
    (OPENAI, b"", 400),
    (OPENAI, b"[" * 100_000, 400),
    (OPENAI, b'{"model": "m", "input": "\xff"}', 400),
    (OPENAI, b'{"input": "a"}', 400),
    (OPENAI, {"model": FP32, "input": 5}, 400),
    (OPENAI, {"model": FP32, "input": None}, 400),
    (OPENAI, {"model": FP32, "input": []}, 400),
    (OPENAI, {"model": FP32, "input": ["a", 1]}, 400),
    (OPENAI, {"model": FP32, "input": [[1, "a"]]}, 400),
    (OPENAI, {"model": FP32, "input": [1.5]}, 400),
    (OPENAI, {"model": FP32, "input": [10**30]}, 400),
    (OPENAI, {"model": FP32, "input": [-1]}, 400),
    (OPENAI, {"model": FP32, "input": "a", "dimensions": 0}, 400),
    (OPENAI, {"model": FP32, "input": "a", "dimensions": 9999}, 400),
    (OPENAI, {"model": FP32, "input": "a", "encoding_format": "hex"}, 400),
    (OPENAI, {"model": FP32, "input": "a", "prompt_name": "nope"}, 400),
    (OPENAI, {"model": "nope", "input": "a"}, 404),
    (OPENAI, {"model": "../" * 99, "input": "a"}, 404),
    (OPENAI, {"model": FP32, "input": ["a"] * 100_000}, 413),
    (TEI, {"inputs": ["a"] * 100_000}, 413),
    (TEI, {"inputs": "a", "normalize": "maybe"}, 422),
    (TEI, {"inputs": "a", "normalize": False}, 422),
    (TEI, {"inputs": {"a": 1}}, 422),
    (TEI, {"inputs": "a", "truncation_direction": "Left"}, 422),
    (TEI, b'{"inputs": "' + b"a" * (17 << 20) + b'"}', 413),
    (TEI, b'{"inputs":[' + b"{}," * 3_000_000 + b"{}]}", 413),  # which took gigabytes
    (TEI, b'{"inputs":[' + b"{}," * 1_000 + b"{}]}", 422),
    (TEI, {"inputs": "a", "dimensions": True}, 422),
    (TEI, {"inputs": "a", "dimensions": 385}, 422),
    (TEI, {"inputs": "a", "truncate": "yes"}, 422),
    (TEI, b'{"inputs": "a", "prompt_name": "x\\udfff"}', 422),
    (OPENAI, {"model": FP32, "input": "a", "prompt_name": "query\0"}, 400),
    (OPENAI, b"[]", 400),
    ("/nothing", {"inputs": "a"}, 404),
]


@pytest.mark.parametrize(("path", "body", "status"), HOSTILE)
def test_hostile_requests_get_their_status(gateway, path, body, status):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{gateway}{path}", content=data, headers=headers, timeout=60)
    assert answer.status_code == status, answer.text[:300]
    told = answer.json()["error"]
    assert len(answer.content) < 2000
    if path == OPENAI:
        assert set(told) == {"message", "type", "param", "code"}
        assert told["message"]
    else:
        assert told
        assert answer.json()["error_type"]
    assert by_tei(gateway, ["still there"]).shape == (1, 384)


@pytest.mark.parametrize(
    ("wrong", "field", "said"),
    [
        ({"prompt_name": "nope"}, "prompt_name", "has no prompt 'nope'"),
        ({"input": [5] * 300_000}, "input", "300,000 token ids, and at most 262,144"),
        # of a text that cannot be embedded: so it is known before any is
        ({"input": ["a" * (2 << 20)], "dimensions": 385}, "dimensions", "have 384"),
    ],
)
def test_the_field_that_is_wrong_is_named(gateway, wrong, field, said):
    answer = httpx.post(f"{gateway}{OPENAI}", json={"model": FP32, "input": "a"} | wrong)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert said in answer.json()["error"]["message"]


def test_other_methods_and_surrogates(gateway):
    assert httpx.get(f"{gateway}{TEI}").status_code == 405
    lone = b'{"inputs": "a \\ud800 b"}'
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{gateway}{TEI}", content=lone, headers=headers)
    assert answer.status_code == 200
    same(np.array(answer.json(), np.float32), by_tei(gateway, ["a \ufffd b"]), FP32)


def test_a_body_without_end_is_refused_and_not_kept(gateway):
    head = b"POST /embed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    with connect(gateway) as connection:
        connection.sendall(head)
        try:
            for _ in range(64):
                connection.sendall(chunk)
        except OSError:
            pass  # it has closed the connection
        try:
            got = connection.recv(65536)
        except OSError:
            got = b""
    assert not got or b" 413 " in got
    assert by_tei(gateway, ["still there"]).shape == (1, 384)


IMPATIENT = """
import sys
from headrace_launcher.gateway.run import run_gateway
from headrace_launcher.gateway.settings import GatewaySettings
server, model = sys.argv[1:]
settings = GatewaySettings(
    server=server, model=model, api_key="", max_concurrent=64, max_inputs=4096,
    max_body_bytes=1 << 24, timeout=60.0, auto_truncate=True, patience=1.5, drain=1,
)
run_gateway(settings, host="127.0.0.1", port=0, ready=lambda url: print("gateway", url, flush=True))
"""


@pytest.fixture(scope="module")
def impatient(serving):
    """A gateway whose callers have a second and a half for everything."""
    command = [sys.executable, "-c", IMPATIENT, serving.endpoints.grpc, NULL]
    with started(command) as (url, process):
        yield url, process


POST = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
GET = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"G", b""),
        (POST, b""),
        (POST + b"Content-Length: 100\r\n\r\n{", b"408"),
        (GET + b"GET /metrics HTTP/1.1\r\nX", b"200"),  # answered, and then the same
    ],
)
def test_who_does_not_go_on_is_not_waited_for(impatient, sent, status):
    url, _ = impatient
    with connect(url) as connection:
        connection.sendall(sent)
        got = b""
        while part := connection.recv(65536):  # until it is closed, or the test's time is up
            got += part
    assert (got.split(b" ")[1] if got else b"") == status
    assert by_tei(url, ["meanwhile"]).shape == (1, 384)


def test_an_answer_that_nobody_reads_is_not_kept(impatient):
    url, process = impatient
    before = len(psutil.Process(process.pid).net_connections())
    data = json.dumps({"inputs": ["word " * 5] * 4000}).encode()  # some 10 MB come back
    with connect(url, SO_RCVBUF=4096) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
        deadline = time.monotonic() + 30
        assert connection.recv(1) == b"H"  # it has begun
        while len(psutil.Process(process.pid).net_connections()) > before:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert by_tei(url, ["meanwhile"]).shape == (1, 384)


def test_callers_who_go_away_leave_nothing(impatient):
    url, process = impatient
    data = json.dumps({"inputs": ["word " * 200] * 64}).encode()
    for _ in range(20):
        with connect(url) as connection:
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
    assert by_tei(url, ["and after"]).shape == (1, 384)
    wait_until_running(url, 1)
    assert psutil.Process(process.pid).memory_info().rss < 1 << 30


def test_a_caller_who_goes_away_is_not_worked_for(serving, gateway):
    data = json.dumps({"inputs": ["word " * 250] * 2000}).encode()  # a minute's work on two cores
    before = rows_of(serving)
    with connect(gateway) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
        wait_until_running(gateway, 2)
    wait_until_running(gateway, 1)
    by_tei(gateway, ["after what is computed just now"])
    assert rows_of(serving) < before + 1800


def wait_until_running(url, count):
    """Waits until so many requests are worked on, the one that asks among them."""
    deadline = time.monotonic() + 30
    while f"headrace_gateway_running {count}.0" not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rows_of(serving):
    """How many rows the engine has computed."""
    told = httpx.get(f"http://{serving.endpoints.metrics}/metrics").text
    (line,) = re.findall(rf'^nv_inference_count{{model="{FP32}",.*', told, flags=re.MULTILINE)
    return float(line.split()[-1])


def test_more_requests_than_can_be_worked_on_are_told_to_come_again(serving):
    with a_gateway(serving.endpoints.grpc, "--model", FP32, "--max-concurrent", 2) as (url, _):
        body = {"inputs": ["word " * 100] * 100}

        def ask(_):
            return httpx.post(f"{url}/embed", json=body, timeout=120)

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(12)))
        codes = [each.status_code for each in answers]
        assert set(codes) == {200, 429}
        refused = next(each for each in answers if each.status_code == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error_type"] == "Overloaded"
        assert by_tei(url, ["now there is room"]).shape == (1, 384)


def test_the_key(serving):
    key = {"HEADRACE_API_KEY": "secret-of-mine"}
    with a_gateway(serving.endpoints.grpc, "--model", FP32, environment=key) as (url, process):
        body = {"input": "a", "model": FP32}
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-of-mine"}):
            answer = httpx.post(f"{url}{OPENAI}", json=body, headers=header)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{url}/metrics").status_code == 401
        assert httpx.get(f"{url}/health").status_code == 200
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret-of-mine")
        assert len(client.embeddings.create(input="a", model=FP32).data[0].embedding) == 384
        assert "secret" not in " ".join(psutil.Process(process.pid).cmdline())


def test_health_models_info_and_metrics(gateway):
    assert httpx.get(f"{gateway}/health").status_code == 200
    client = openai.OpenAI(base_url=f"{gateway}/v1", api_key="none")
    assert [each.id for each in client.models.list()] == sorted([FP32, AUTO, NULL])
    info = httpx.get(f"{gateway}/info").json()
    assert info["max_input_length"] == 256
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    by_tei(gateway, ["a", "b"])
    counted = httpx.get(f"{gateway}/metrics").text
    assert 'headrace_gateway_requests_total{route="/embed",status="200"}' in counted
    assert "headrace_gateway_texts_total" in counted


def test_what_is_said_of_it_and_upgrades_log_nothing(serving):
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    with a_gateway(serving.endpoints.grpc, "--model", FP32) as (url, process):
        paths = httpx.get(f"{url}/openapi.json").json()["paths"]
        names = [way["operationId"] for path in paths.values() for way in path.values()]
        assert len(names) == len(set(names))
        with connect(url) as connection:
            connection.sendall(f"GET /metrics HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 200"
        process.terminate()
        assert process.stderr.read().strip() == "headrace: stopped"


def test_without_a_server_it_says_so_and_gets_well_when_there_is_one(repository):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    with a_gateway(f"127.0.0.1:{port}") as (url, _):
        assert httpx.get(f"{url}/health").status_code == 503
        answer = httpx.post(f"{url}/embed", json={"inputs": "a"}, timeout=30)
        assert answer.status_code == 503
        assert "is not there just now" in answer.json()["error"]
        names = with_text_models([NULL], repository)
        with Server(find_triton(), repository, names, grpc_port=port):
            deadline = time.monotonic() + 30
            while httpx.get(f"{url}/health").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.5)
            assert by_tei(url, ["a"]).shape == (1, 384)  # the only model is taken
        assert httpx.get(f"{url}/health", timeout=30).status_code == 503


def test_requests_that_do_not_end_in_time_are_told_that_the_gateway_ends(serving):
    command = [sys.executable, "-c", IMPATIENT, serving.endpoints.grpc, FP32]
    texts = ["word " * 250] * 1000
    with started(command) as (url, process), ThreadPoolExecutor(2) as pool:
        openai_body, tei_body = {"model": FP32, "input": texts}, {"inputs": texts}
        asked = [
            pool.submit(httpx.post, f"{url}{path}", json=body, timeout=60)
            for path, body in ((OPENAI, openai_body), (TEI, tei_body))
        ]
        time.sleep(1)
        process.terminate()
        answers = [each.result() for each in asked]
        assert process.wait(30) == 0
        said = process.stderr.read()
    assert [each.status_code for each in answers] == [503, 503]
    assert all(int(each.headers["Retry-After"]) >= 1 for each in answers)
    assert answers[0].json()["error"]["type"] == "server_error"
    assert answers[1].json()["error_type"] == "Unhealthy"
    assert len(said.splitlines()) == 1, said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_that_is_stopped_lets_requests_end(serving, number):
    with a_gateway(serving.endpoints.grpc, "--model", FP32) as (url, process):
        body = {"inputs": ["word " * 200] * 60}
        with ThreadPoolExecutor(3) as pool:
            asked = [
                pool.submit(httpx.post, f"{url}/embed", json=body, timeout=60) for _ in range(3)
            ]
            time.sleep(0.7)
            process.send_signal(number)
            answers = [each.result() for each in asked]
        assert [each.status_code for each in answers] == [200] * 3
        assert len(answers[0].json()) == 60
        assert process.wait(30) == 0
        assert "stopped" in process.stderr.read()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
