"""Measuring TEI, with a server in its place."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient

from bench.teistandin import DIMENSION, StandIn, vector_of
from headrace.errors import ServerError, UsageError
from headrace_bench.tei.info import NOT_TEI, info, wait_ready
from headrace_bench.tei.job import Patience
from headrace_bench.tei.way import TeiWay
from headrace_launcher.gateway.app import make_app
from headrace_launcher.gateway.settings import GatewaySettings
from headrace_launcher.processes import children_of, parent_of

QUICK = Patience(retries=3, first=0.01, longest=0.02)


def texts_of(number):
    chance = random.Random(1)
    return [f"{row} " + "x" * chance.randrange(40) for row in range(number)]


def expected(texts):
    return np.array([vector_of(text) for text in texts], np.float32)


@pytest.fixture
def stand_in():
    with StandIn() as server:
        yield server


# What a server says of itself


def test_a_build_of_tei_has_its_name():
    with StandIn(info={"docker_label": "sha-630ddc7"}) as server:
        found = info(server.url)
        assert found.genuine
        assert found.name == "TEI 1.9.3"
        assert found.model_id == "stand-in"
        assert found.model_dtype == "float32"
        assert (found.max_client_batch_size, found.max_concurrent_requests) == (32, 16)
        assert (found.max_batch_tokens, found.max_input_length) == (16384, 256)
        assert TeiWay([server.url], ["a"], DIMENSION).name == "TEI 1.9.3"


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"docker_label": ""},
        {"version": None, "sha": "0123"},
        # What headrace's gateway says.
        {"version": "0.1.0", "model_sha": "0123", "sha": None, "docker_label": None},
    ],
)
def test_what_has_no_build_is_not_called_tei(said):
    with StandIn(info=said) as server:
        found = info(server.url)
        assert not found.genuine
        assert found.name == NOT_TEI
        assert TeiWay([server.url], ["a"], DIMENSION).name == NOT_TEI


def test_one_of_several_that_is_not_tei_makes_all_no_tei():
    with StandIn(info={"sha": "0123"}) as real, StandIn() as other:
        assert TeiWay([real.url, other.url], ["a"], DIMENSION).name == NOT_TEI


def test_the_gateway_of_headrace_says_that_it_is_not_tei(make_contract):
    class Backend:
        async def find(self, model):
            return make_contract()

    app = make_app(
        GatewaySettings(
            server="127.0.0.1:1",
            model=None,
            api_key="",
            max_concurrent=8,
            max_inputs=32,
            max_body_bytes=1 << 20,
            timeout=1.0,
            auto_truncate=True,
        )
    )
    app.state.backend = Backend()
    said = TestClient(app).get("/info").text
    assert json.loads(said)["version"]
    with StandIn(info=said) as server:
        assert info(server.url).name == NOT_TEI


def test_what_a_server_says_is_one_short_line():
    said = {"version": "1\n# 2 | \x1b[31m", "sha": "0123", "model_id": "m" * 1000}
    with StandIn(info=said) as server:
        found = info(server.url)
    assert found.name == "TEI 1\ufffd# 2 | \ufffd[31m"
    assert found.model_id == "m" * 99 + "…"


@pytest.mark.parametrize("said", ["<html>", "[1]"])
def test_something_else_at_info_is_said(said):
    with StandIn(info=said) as server, pytest.raises(ServerError, match=r"/info: no .*--tei URL"):
        info(server.url)


def test_nobody_there_is_said():
    with StandIn() as server:
        url = server.url
    with pytest.raises(ServerError, match=r"/info: ConnectError.*start TEI"):
        info(url)
    with pytest.raises(ServerError, match=r"not ready within 0\.1 s"):
        wait_ready(url, 0.1)
    for wrong in ("127.0.0.1:80", "http://[", "ftp://x"):
        with pytest.raises((UsageError, ServerError)):
            info(wrong)


def test_user_and_password_are_for_the_server_alone():
    with StandIn(info="<html>") as server, pytest.raises(ServerError) as wrong:
        info(server.url.replace("//", "//user:p@ssword@"))
    with StandIn() as server:
        url = server.url.replace("//", "//user:p@ssword@")
        server.faults.status = 500
        way = TeiWay([url], ["a"], DIMENSION)
        with pytest.raises(ServerError) as refused:
            way.measure()
        server.faults.status, server.faults.wrong = 200, "few"
        with pytest.raises(ServerError) as odd:
            way.measure()
        assert {base64.b64decode(login) for login in server.logins} == {b"user:p@ssword"}
        assert f"{server.url}/embed: the answer to request 0" in str(refused.value)
        assert f"{server.url}/embed: the answer to request 0" in str(odd.value)
    with pytest.raises(ServerError) as gone:
        info(url)
    with pytest.raises(ServerError) as never:
        wait_ready(url, 0)
    for error in (refused, odd, gone, never):
        assert server.url in str(error.value)
    with pytest.raises(UsageError) as none:
        info("user:p@ssword@h:80")
    with pytest.raises(UsageError) as no_port:
        info("http://user:ssword/@h:80")
    for error in (wrong, refused, odd, gone, never, none, no_port):
        assert "user" not in str(error.value)
        assert "ssword" not in str(error.value)


def test_readiness_is_waited_for():
    with StandIn(ready_after=0.5) as server:
        looked = []
        wait_ready(server.url, 20, lambda: looked.append(1))
        assert looked
        wait_ready(server.url + "/", 0)

    def gone():
        raise RuntimeError("gone")

    with StandIn(ready_after=60) as server, pytest.raises(RuntimeError, match="gone"):
        wait_ready(server.url, 20, gone)


def test_servers_of_different_models_are_refused(stand_in):
    with StandIn(info={"model_id": "other"}) as other, pytest.raises(UsageError, match="different"):
        TeiWay([stand_in.url, other.url], ["a"], DIMENSION)


# Measuring


def test_every_row_is_sent_once_and_its_vector_is_in_its_place(stand_in):
    texts = texts_of(500)
    keep = np.array([7, 499, 0, 250, 7])
    way = TeiWay([stand_in.url], texts, DIMENSION, "query: ", keep=keep, concurrency=6)
    way.batch_size = 16
    way.measure()
    sent = ["query: " + text for text in texts]
    assert stand_in.texts == dict.fromkeys(sent, 1)
    assert (way.vectors == expected([sent[row] for row in keep])).all()
    assert way.vectors.dtype == np.float32
    assert stand_in.sizes.count(16) == 31
    assert 1 <= stand_in.connections <= 6
    assert stand_in.most_in_flight <= 6
    assert len(way.rates) == len(way.cpu_seconds) == 1
    assert way.rates[0] > 0 < way.cpu_seconds[0]
    assert way.retries == 0


def test_without_a_choice_all_vectors_are_kept_and_nothing_is_left(tmp_path):
    texts = texts_of(300)
    before = set(children_of(os.getpid()))
    with StandIn(request_seconds=0.001) as a, StandIn(request_seconds=0.001) as b:
        way = TeiWay([a.url, b.url + "/"], texts, DIMENSION, batch_size=2, folder=tmp_path)
        # More than one process, whatever the machine has.
        way._cores = 2
        way._in_flight = 8
        way.measure()
        assert (way.vectors == expected(texts)).all()
        assert a.texts + b.texts == dict.fromkeys(texts, 1)
        assert a.texts
        assert b.texts
        assert a.connections + b.connections <= 16
        assert way.concurrency == 16
    assert set(children_of(os.getpid())) <= before
    assert list(tmp_path.iterdir()) == []


def test_what_passes_is_tried_again(stand_in):
    texts = texts_of(100)
    stand_in.faults.statuses = [(429, 4), (503, 3)]
    stand_in.faults.drops = 2
    patience = Patience(retries=9, first=0.01, longest=0.02)
    way = TeiWay([stand_in.url], texts, DIMENSION, batch_size=4, patience=patience)
    way.measure()
    assert way.retries == 9
    assert (way.vectors == expected(texts)).all()
    assert stand_in.texts == dict.fromkeys(texts, 1)


def test_a_slow_answer_is_asked_for_again_and_in_the_end_given_up():
    patience = Patience(retries=1, first=0.01, longest=0.01, timeout=0.2)
    with StandIn(request_seconds=30) as server:
        way = TeiWay([server.url], ["a"], DIMENSION, patience=patience)
        with pytest.raises(ServerError, match=r"in 2 attempts, at the last ReadTimeout"):
            way.measure()


def test_a_server_that_never_answers_is_soon_given_up_and_that_is_said(capsys):
    patience = Patience(first=0.01, longest=0.01, timeout=0.2)
    with StandIn(request_seconds=30) as server:
        way = TeiWay([server.url], ["a", "b"], DIMENSION, patience=patience, batch_size=1)
        with pytest.raises(ServerError, match=r"in 3 attempts, at the last ReadTimeout"):
            way.measure()
    again = f"{server.url}/embed: a request is sent again: ReadTimeout\n"
    assert capsys.readouterr().err == again


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, r"no answer to request 0 \(rows 0\) in 4 attempts, at the last status 429"),
        (424, r"status 424: .*it failed.*; the model failed"),
        (500, r"status 500: .*; the server's log"),
    ],
)
def test_what_lasts_is_an_error(stand_in, status, words):
    stand_in.faults.status = status
    way = TeiWay([stand_in.url], ["a"], DIMENSION, patience=QUICK)
    before = set(children_of(os.getpid()))
    with pytest.raises(ServerError, match=rf"{stand_in.url}/embed: .*{words}"):
        way.measure()
    assert set(children_of(os.getpid())) <= before
    assert way.rates == []


def test_a_batch_over_the_limit_is_an_error_with_a_remedy(stand_in):
    way = TeiWay([stand_in.url], texts_of(40), DIMENSION, batch_size=33, patience=QUICK)
    with pytest.raises(ServerError, match=r"413: .*batch size >.*--max-client-batch-size"):
        way.measure()


@pytest.mark.parametrize("wrong", ["dimension", "few", "null", "json"])
def test_one_wrong_answer_is_noticed_and_named(stand_in, wrong):
    texts = texts_of(60)
    stand_in.faults.wrong, stand_in.faults.of = wrong, texts[41]
    keep = np.array([3]) if wrong in ("dimension", "null") else None
    way = TeiWay([stand_in.url], texts, DIMENSION, keep=keep, batch_size=1, concurrency=4)
    with pytest.raises(ServerError, match=r"/embed: the answer to request \d+ \(rows 41\)"):
        way.measure()


def test_no_rows_are_refused(stand_in):
    with pytest.raises(ValueError, match="no texts"):
        TeiWay([stand_in.url], [], DIMENSION)
    for row in (-1, 2):
        with pytest.raises(ValueError, match="rows to keep"):
            TeiWay([stand_in.url], ["a", "b"], DIMENSION, keep=np.array([row]))
    with pytest.raises(UsageError, match="--tei"):
        TeiWay([], ["a"], DIMENSION)


# The end


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_an_interruption(tmp_path, way):
    program = textwrap.dedent(
        f"""
        import sys
        from headrace_bench.tei.way import TeiWay
        TeiWay([sys.argv[1]], ["a"] * 1000, {DIMENSION}, batch_size=1).measure()
        """
    )
    with StandIn(request_seconds=0.2) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", program, server.url],
            stderr=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
        deadline = time.monotonic() + 30
        while not server.in_flight:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        children = children_of(process.pid)
        assert children
        process.send_signal(way)
        process.communicate(timeout=30)
        assert process.returncode
        while any(parent_of(child) is not None for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    if way == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []
