"""Batches in memory that the server shares, and requests over HTTP that say where they lie.

What travels is some hundred bytes each way, and costs less than over gRPC, whose Python side hands
every request from thread to thread. Only where the server's HTTP endpoint is known: its
port stands in the name of a server that headrace has started. The protocol is KServe's with
Triton's shared-memory extension (github.com/triton-inference-server/server, docs/protocol).
"""

from __future__ import annotations

import json
import queue
import re
import select
import socket
import time
from http.client import HTTPConnection, HTTPException
from typing import Any

import tritonclient.grpc as triton

from headrace.contract import ALONE, ATTENTION_MASK, EMBEDDING, INPUT_IDS, Contract
from headrace.errors import ServerError, ServerLostError
from headrace.transport.base import Slot
from headrace.transport.memory import Memory, Place
from headrace.transport.shared import SharedTransport

_MAX_ANSWER_BYTES = 1 << 20
_HEAD_END = b"\r\n\r\n"
_HEAD = re.compile(rb"http/1\.1 (\d{3})[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n")
ANSWER_SECONDS = 2.0


def answers(http: str, name: str) -> bool:
    """Returns whether the server of that name answers at an HTTP endpoint, ``HOST:PORT``.

    Behind a forwarded port there may be another one.
    """
    connection = HTTPConnection(http, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/v2")
        told = json.loads(connection.getresponse().read(_MAX_ANSWER_BYTES))
        return isinstance(told, dict) and told.get("name") == name
    except (OSError, HTTPException, ValueError):
        return False
    finally:
        connection.close()


class HttpTransport(SharedTransport):
    """See :class:`SharedTransport`; requests go over one kept HTTP connection a slot.

    Args:
        client: the server's client.
        contract: the model's settings.
        memory: where the slots lie.
        http: ``HOST:PORT`` of the server's HTTP endpoint.
        patience: seconds within which a batch is to be answered.
    """

    def __init__(
        self,
        client: triton.InferenceServerClient,
        contract: Contract,
        memory: Memory,
        *,
        http: str,
        patience: float,
    ) -> None:
        super().__init__(client, contract, memory, patience=patience)
        self._head = (
            f"POST /v2/models/{contract.name}/infer HTTP/1.1\r\nHost: {http}\r\n"
            f"Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._connections = [_Connection(http, patience) for _ in range(self.slots)]
        self._poll = select.poll()
        self._asked: dict[int, Slot] = {}
        self._ready: list[int] = []

    def submit(self, slot: Slot) -> None:
        """See :meth:`headrace.transport.Transport.submit`."""
        slot.vectors = slot.failure = None
        slot.sent = time.monotonic()
        self._memory.hand_over(slot)
        body = self._body(slot)
        with self._losing():
            try:
                descriptor = self._connections[slot.index].send(
                    b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
                )
            except OSError as error:
                raise ServerLostError(f"the request could not be sent: {error}") from error
        self._asked[descriptor] = slot
        self._poll.register(descriptor, select.POLLIN)
        self._in_flight += 1

    def _answered(self, seconds: float) -> Slot:
        if not self._ready:
            if seconds and self._asked:  # the deadline is each request's, whatever others do
                oldest = min(slot.sent for slot in self._asked.values())
                seconds = max(0.0, min(seconds, oldest + self._patience - time.monotonic()))
            self._ready = [at for at, _ in self._poll.poll(seconds * 1000)]
        if not self._ready:
            raise queue.Empty
        descriptor = self._ready.pop()
        self._poll.unregister(descriptor)
        slot = self._asked.pop(descriptor)
        try:
            status, body = self._connections[slot.index].receive()
            answer = json.loads(body)
            if status != 200:
                said = str(answer.get("error") if isinstance(answer, dict) else answer)
                slot.failure = ServerLostError(said.removeprefix("[request id: <id_unknown>] "))
            else:
                self._check(slot, answer["outputs"][0]["shape"])
        except ServerError as error:
            slot.failure = error
        except (OSError, ValueError, LookupError, TypeError) as error:
            slot.failure = ServerLostError(f"{type(error).__name__}: {error}")
        return slot

    def _body(self, slot: Slot) -> bytes:
        def tensor_at(name: str, shape: list[int] | None, place: Place) -> dict[str, Any]:
            parameters = {
                "shared_memory_region": place.region,
                "shared_memory_offset": place.at,
                "shared_memory_byte_size": place.size,
            }
            tensor: dict[str, Any] = {"name": name, "parameters": parameters}
            return tensor if shape is None else tensor | {"shape": shape, "datatype": "INT32"}

        ids, mask, vectors = self._memory.places(slot)
        shape = [slot.rows, slot.length]
        request = {
            "parameters": {ALONE: True},
            "inputs": [
                tensor_at(INPUT_IDS, shape, ids),
                tensor_at(ATTENTION_MASK, shape, mask),
            ],
            "outputs": [tensor_at(EMBEDDING, None, vectors)],
        }
        return json.dumps(request).encode()

    def abandon(self) -> None:
        """See :meth:`headrace.transport.Transport.abandon`."""
        for connection in self._connections:
            connection.close()
        super().abandon()

    def _close(self) -> None:
        for connection in self._connections:
            connection.close()
        super()._close()


class _Connection:
    """One kept connection to Triton, one request at a time (RFC 9112).

    The standard library's client spends most of a request's time on headers that nobody reads; this
    one looks for the status and the length of the body alone.

    Args:
        http: ``HOST:PORT``.
        patience: seconds that sending or receiving may stall.
    """

    def __init__(self, http: str, patience: float) -> None:
        host, _, port = http.rpartition(":")
        self._patience = patience
        self._address = host.strip("[]"), int(port)
        self._socket: socket.socket | None = None

    def send(self, request: bytes) -> int:
        """Sends a request, connects first where that is yet to be done; returns the descriptor."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, self._patience)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(request)
        return self._socket.fileno()

    def receive(self) -> tuple[int, bytes]:
        """Reads an answer.

        Returns:
            Its status and its body.

        Raises:
            OSError: the connection broke.
            ValueError: this is no answer that Triton gives.
        """
        data = self._more(b"")
        while (end := data.find(_HEAD_END)) < 0:
            data = self._more(data)
        head = data[: end + 2].lower()
        found = _HEAD.match(head)
        length = _LENGTH.search(head)
        if found is None or length is None:
            raise ValueError(f"an answer that is not understood: {data[:end]!r}")
        start = end + len(_HEAD_END)
        stop = start + int(length[1])
        while len(data) < stop:
            data = self._more(data)
        return int(found[1]), data[start:stop]

    def close(self) -> None:
        """Closes it; idempotent."""
        if self._socket is not None:
            self._socket.close()

    def _more(self, data: bytes) -> bytes:
        assert self._socket is not None
        part = self._socket.recv(1 << 16)
        if not part:
            raise ConnectionResetError("the server has closed the connection")
        if len(data) + len(part) > _MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
        return data + part
