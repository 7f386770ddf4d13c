"""How a server is got back: our own is started again, another one is waited for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from headrace import lifeline
from headrace.errors import ServerError, ServerLostError, UsageError
from headrace.lifeline import Elsewhere, Ours
from headrace.recovery import Lifeline, Recovery

LOST = ServerLostError("it is gone")


class Connection:
    """Notes that it is closed."""

    def __init__(self, contract, server="host:1", patience=7.0):
        self.contract = contract
        self.server = server
        self.patience = patience
        self.closed = False

    def close(self):
        self.closed = True


class Network:
    """What connecting meets, one after the other; the clock goes on only while one sleeps."""

    def __init__(self, monkeypatch):
        self.answers = []
        self.asked = []
        self.now = 1000.0
        monkeypatch.setattr(lifeline, "connect", self.connect)
        monkeypatch.setattr(lifeline, "time", self)

    def connect(self, server, names, **settings):
        self.asked.append((server, list(names), settings))
        answer = self.answers.pop(0) if self.answers else UsageError("nobody is there")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def network(monkeypatch):
    return Network(monkeypatch)


@pytest.fixture
def contract(make_contract):
    return make_contract()


@pytest.fixture
def connection(contract):
    return Connection(contract)


def test_a_server_elsewhere_that_is_there_is_connected_to_at_once(network, connection, contract):
    now = Connection(contract)
    network.answers = [now]
    waiting = Elsewhere(connection, 300)
    assert waiting.revive(LOST) is now
    assert waiting.connection is now
    assert connection.closed
    assert not now.closed
    assert network.now == 1000.0
    assert network.asked == [("host:1", ["small"], {"exact": True, "patience": 7.0})]


def test_a_server_elsewhere_is_waited_for_whatever_it_says_meanwhile(network, connection, contract):
    now = Connection(contract)
    not_yet = [ServerLostError("no"), UsageError("has no model small ready"), ServerError("hm")]
    network.answers = [*not_yet, now]
    assert Elsewhere(connection, 300).revive(LOST) is now
    assert network.now > 1000.0
    assert len(network.asked) == 4


def test_a_server_elsewhere_that_does_not_come_back_ends_the_run(network, connection):
    waiting = Elsewhere(connection, 300)
    assert "up to 300 s" in waiting.what
    with pytest.raises(
        ServerError, match=r"it is gone; the server host:1 has not come back within 300 s \(nobody"
    ) as caught:
        waiting.revive(LOST)
    assert not isinstance(caught.value, ServerLostError)
    assert 1300 <= network.now < 1310


def test_without_time_to_wait_it_is_tried_once(network, connection, contract):
    with pytest.raises(ServerError, match="within 0 s"):
        Elsewhere(connection, 0).revive(LOST)
    assert len(network.asked) == 1
    now = Connection(contract)
    network.answers = [now]
    assert Elsewhere(connection, 0).revive(LOST) is now


@pytest.mark.parametrize("change", [{"weights_hash": "9" * 64}, {"dimension": 9}])
def test_another_model_of_that_name_is_refused_and_closed(network, connection, contract, change):
    now = Connection(replace(contract, **change))
    network.answers = [now]
    waiting = Elsewhere(connection, 300)
    with pytest.raises(ServerError, match="with another model of the name small"):
        waiting.revive(LOST)
    assert now.closed
    assert waiting.connection is connection


def test_a_run_that_is_to_stop_waits_no_longer(network, connection):
    asked = []

    def stop():
        asked.append(network.now)
        return len(asked) == 3

    with pytest.raises(ServerLostError) as caught:
        Elsewhere(connection, 300, stop).revive(LOST)
    assert caught.value is LOST
    assert len(network.asked) == 3


class OwnServer:
    """A server of ours, at another port after each start."""

    def __init__(self):
        self.port = 1
        self.cause = None
        self.failure = None

    @property
    def endpoints(self):
        return SimpleNamespace(grpc=f"127.0.0.1:{self.port}")

    def obituary(self):
        return self.cause

    def restart(self):
        if self.failure is not None:
            raise self.failure
        self.port += 1


def test_our_own_server_is_started_again_at_other_ports(network, contract):
    first, second = Connection(contract), Connection(contract)
    network.answers = [first, second]
    ours = Ours(OwnServer(), ["small"], 5.0)
    assert ours.connection is first
    assert ours.revive(LOST) is second
    assert ours.connection is second
    assert (first.closed, second.closed) == (True, False)
    settings = {"exact": True, "patience": 5.0}
    assert network.asked == [
        ("127.0.0.1:1", ["small"], settings),
        ("127.0.0.1:2", ["small"], settings),
    ]


def test_our_own_server_with_another_model_is_refused(network, contract):
    first, second = Connection(contract), Connection(replace(contract, weights_hash="9" * 64))
    network.answers = [first, second]
    ours = Ours(OwnServer(), ["small"], 5.0)
    with pytest.raises(ServerError, match="another model of the name small"):
        ours.revive(LOST)
    assert second.closed
    assert ours.connection is first


def test_our_own_server_that_dies_at_once_is_started_once_more(network, contract):
    first, second = Connection(contract), Connection(contract)
    network.answers = [first, ServerError("it is gone again"), second]
    server = OwnServer()
    assert Ours(server, ["small"], 5.0).revive(LOST) is second
    assert server.port == 3
    network.answers = [first, *[ServerError("it is gone again")] * 9]
    with pytest.raises(ServerError, match="gone again"):
        Ours(server, ["small"], 5.0).revive(LOST)
    assert server.port == 6


def test_how_our_own_server_died_is_told(network, contract):
    network.answers = [Connection(contract)]
    server = OwnServer()
    ours = Ours(server, ["small"], 5.0)
    assert ours.explained(LOST) == "it is gone"
    server.cause = "killed by SIGKILL"
    assert ours.explained(LOST) == "the Triton server has died: killed by SIGKILL"


def test_our_own_server_that_does_not_start_again_ends_the_run(network, contract):
    network.answers = [Connection(contract)]
    server = OwnServer()
    ours = Ours(server, ["small"], 5.0)
    server.failure = ServerError("it does not start")
    with pytest.raises(ServerError, match="does not start"):
        ours.revive(LOST)


@pytest.mark.parametrize("kind", ["ours", "elsewhere"])
def test_each_is_a_lifeline_of_a_recovery(network, connection, contract, kind):
    now = Connection(contract)
    network.answers = [connection, now] if kind == "ours" else [now]
    line: Lifeline = (
        Ours(OwnServer(), ["small"], 5.0) if kind == "ours" else Elsewhere(connection, 9)
    )
    said = []
    assert Recovery(connection, line, said.append).recover(LOST, [0], lambda *_: "") is now
    assert said == [f"it is gone; {line.what}"]
