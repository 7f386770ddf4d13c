"""How a transport tells that its server is lost, and that it then waits for nothing more."""

from __future__ import annotations

import json
import queue
import socket
import threading
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from headrace.contract import EMBEDDING
from headrace.errors import MachineError, ServerError, ServerLostError
from headrace.transport.base import Slot, SlotSize, Transport, server_errors
from headrace.transport.http import HttpTransport
from headrace.transport.memory import Memory

AGES = 3600.0  # nothing here is waited for so long: a test that waits hangs
LOST = ["UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"]


def said(status, message="no"):
    return triton.InferenceServerException(message, status=status)


def raised(error):
    """What an error of the library is turned into."""
    with pytest.raises(ServerError) as caught, server_errors("it failed"):
        raise error
    return caught.value


@pytest.mark.parametrize("code", LOST)
def test_no_answer_means_that_the_server_is_lost(code):
    error = raised(said(f"StatusCode.{code}"))
    assert isinstance(error, ServerLostError)
    assert str(error) == "it failed: no"
    assert (error.block, error.rows) == (None, ())


@pytest.mark.parametrize("code", sorted({each.name for each in grpc.StatusCode} - set(LOST)))
def test_an_answer_that_is_an_error_does_not(code):
    error = raised(said(f"StatusCode.{code}"))
    assert type(error) is ServerError
    assert str(error) == "it failed: no"


def test_an_error_without_a_status_does_not():
    assert type(raised(said(None))) is ServerError


def test_what_grpc_itself_raises_means_that_it_is_lost():
    assert isinstance(raised(grpc.RpcError("channel closed")), ServerLostError)


class Client:
    """A gRPC client that hands its requests to the test."""

    def __init__(self):
        self.requests = []
        self.refuses = None

    def async_infer(self, model, inputs, callback, *, outputs, parameters, client_timeout):
        assert parameters == {"alone": True}
        if self.refuses is not None:
            raise self.refuses
        self.requests.append(callback)
        self.timeout = client_timeout


class Plain(Transport):
    """A transport that has nothing to place and nothing to free."""

    name = "plain"

    def __init__(self, client, contract, patience=AGES):
        super().__init__(client, contract, patience)
        self.slots = 2
        self.ended = []
        size = SlotSize.of(contract)
        self._free.extend(
            Slot(number, np.zeros(size.tokens, np.int32), np.zeros(size.tokens, np.int32))
            for number in range(self.slots)
        )

    def _place(self, slot, inputs, output):
        pass

    def _read(self, slot, result):
        if isinstance(result, Exception):
            raise result
        return result

    def _close(self):
        self.ended.append("closed")

    def abandon(self):
        self.ended.append("abandoned")


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def plain(client, make_contract):
    return Plain(client, make_contract())


def send(transport, count):
    slots = [transport.acquire() for _ in range(count)]
    for slot in slots:
        slot.shaped(2, 3)
        transport.submit(slot)
    return slots


def test_a_request_has_the_time_that_a_batch_may_take(plain, client):
    send(plain, 1)
    assert client.timeout == AGES


@pytest.mark.parametrize("code", [*LOST, "INTERNAL", "UNKNOWN", None])
def test_a_batch_that_fails_can_be_sent_again(plain, client, code):
    send(plain, 1)
    client.requests[0](None, said(code and f"StatusCode.{code}", "out of memory"))
    with pytest.raises(ServerLostError, match="a batch of 2 rows of 3 tokens: out of memory"):
        plain.collect()


def test_an_answer_that_is_not_as_promised_is_no_loss(plain, client):
    send(plain, 1)
    client.requests[0](ServerError("another shape"), None)
    with pytest.raises(ServerError, match="another shape") as caught:
        plain.collect()
    assert type(caught.value) is ServerError


def test_what_is_wrong_on_this_side_is_no_loss_either(plain, client):
    send(plain, 1)
    client.requests[0](MachineError("the copy failed"), None)
    with pytest.raises(MachineError, match=r"^the copy failed$") as caught:
        plain.collect()
    assert not isinstance(caught.value, ServerError)


def test_a_request_that_cannot_be_sent_loses_the_server(plain, client):
    client.refuses = said("StatusCode.UNAVAILABLE")
    with pytest.raises(ServerLostError, match="could not be sent"):
        send(plain, 1)
    assert plain.in_flight == 0
    plain.close()
    assert plain.ended == ["abandoned"]


def test_a_server_that_says_nothing_at_all_is_lost(client, make_contract, monkeypatch):
    plain = Plain(client, make_contract())
    waited = []

    def wait(seconds):
        waited.append(seconds)
        raise queue.Empty

    monkeypatch.setattr(plain, "_wait", wait)
    send(plain, 1)
    with pytest.raises(ServerLostError, match="has not answered for 3600 s"):
        plain.collect()
    assert waited[0] >= AGES
    plain.close()
    assert len(waited) == 1


def test_a_lost_servers_answers_are_not_waited_for(plain, client):
    send(plain, 2)
    client.requests[0](None, said("StatusCode.UNAVAILABLE"))
    with pytest.raises(ServerLostError):
        plain.collect()
    plain.close()
    plain.close()
    assert plain.ended == ["abandoned"]
    assert plain.acquire() is None


def test_a_server_that_is_there_is_waited_for(plain, client):
    send(plain, 2)
    thread = threading.Thread(
        target=lambda: [answer(np.zeros((2, 8)), None) for answer in client.requests]
    )
    thread.start()
    plain.close()
    thread.join()
    assert plain.ended == ["closed"]


class Ram(Memory):
    """Slots that only this process has."""

    name = "ram"

    def __init__(self, size, slots):
        super().__init__(size)
        self.ended = []
        self.slots = [
            Slot(number, np.zeros(size.tokens, np.int32), np.zeros(size.tokens, np.int32))
            for number in range(slots)
        ]

    def vectors(self, slot):
        return np.zeros((slot.rows, self.size.dimension), np.float32)

    def close(self):
        self.ended.append("closed")

    def abandon(self):
        self.ended.append("abandoned")

    def _whereabouts(self, slot):
        return "ram", 0


class Server:
    """Takes connections, and answers those that it is told to."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.http = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.peers = []

    def accept(self):
        peer, _ = self.socket.accept()
        self.peers.append(peer)
        return peer

    def answer(self, peer, status=200, rows=2, dimension=8):
        assert peer.recv(1 << 16).startswith(b"POST /v2/models/small/infer")
        outputs = [{"name": EMBEDDING, "shape": [rows, dimension]}]
        told = {"outputs": outputs} if status == 200 else {"error": "planted"}
        body = json.dumps(told).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n"
        peer.sendall(head.encode() + body)

    def close(self):
        for each in (*self.peers, self.socket):
            each.close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture
def http(server, make_contract):
    contract = make_contract()
    memory = Ram(SlotSize.of(contract), 2)
    made = HttpTransport(SimpleNamespace(), contract, memory, http=server.http, patience=AGES)
    yield made
    made.abandon()


def test_one_request_that_is_never_answered_loses_the_server_whatever_others_get(http, server):
    (hangs,) = send(http, 1)
    server.accept()
    for _ in range(3):
        (other,) = send(http, 1)
        if len(server.peers) == 1:
            server.accept()
        server.answer(server.peers[1])
        assert http.collect() is other
        http.release(other)
    hangs.sent -= AGES  # so long ago that it was sent
    (other,) = send(http, 1)  # this one has its time before it
    with pytest.raises(ServerLostError, match="has not answered for 3600 s"):
        http.collect()
    http.close()
    assert "abandoned" in http._memory.ended
    assert "closed" not in http._memory.ended


def test_an_answer_that_is_there_is_read_however_late(http, server):
    (slot,) = send(http, 1)
    server.answer(server.accept())
    slot.sent -= AGES
    while not http._poll.poll(100):
        pass
    assert http.collect() is slot
    assert slot.vectors.shape == (2, 8)


def test_an_answer_that_is_an_error_loses_the_server(http, server):
    send(http, 1)
    server.answer(server.accept(), status=500)
    with pytest.raises(ServerLostError, match="2 rows of 3 tokens: planted"):
        http.collect()


def test_an_answer_of_another_shape_is_no_loss(http, server):
    send(http, 1)
    server.answer(server.accept(), dimension=9)
    with pytest.raises(ServerError, match=r"\[2, 9\]") as caught:
        http.collect()
    assert type(caught.value) is ServerError
    http.close()
    assert http._memory.ended == ["closed"]


def test_a_connection_that_breaks_loses_the_server_and_nothing_is_waited_for(http, server):
    send(http, 2)
    peers = [server.accept(), server.accept()]
    peers[0].close()
    with pytest.raises(ServerLostError, match="ConnectionResetError"):
        http.collect()
    http.close()
    assert "closed" not in http._memory.ended


def test_nobody_at_the_port_loses_the_server(http, server):
    server.close()
    with pytest.raises(ServerLostError, match="could not be sent"):
        send(http, 1)
    http.close()
    assert http._memory.ended == ["abandoned"]
