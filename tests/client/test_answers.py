"""The reader of HTTP answers, against a socket that says what it is told to."""

from __future__ import annotations

import socket
import threading

import pytest

from headrace.transport.http import _Connection


@pytest.fixture
def answer():
    """Says some pieces to one who connects, then closes; returns what was read of them."""
    servers = []

    def go(*pieces):
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve():
            peer, _ = server.accept()
            with peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer.recv(100)
                for piece in pieces:
                    peer.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        connection = _Connection(f"127.0.0.1:{server.getsockname()[1]}", 10.0)
        try:
            connection.send(b"ask")
            return connection.receive()
        finally:
            connection.close()
            thread.join(5)

    yield go
    for server in servers:
        server.close()


WHOLE = b"HTTP/1.1 400 Bad Request\r\nContent-Type: x\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize("size", [1, 7, len(WHOLE)])
def test_an_answer_is_read_however_it_comes(answer, size):
    pieces = [WHOLE[start : start + size] for start in range(0, len(WHOLE), size)]
    assert answer(*pieces) == (400, b"hello")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_an_answer_that_triton_does_not_give_is_refused(answer, said):
    with pytest.raises(ValueError, match="not understood"):
        answer(said)


def test_an_answer_that_breaks_off_and_one_without_end(answer):
    with pytest.raises(ConnectionResetError):
        answer(WHOLE[:-1])
    with pytest.raises((ValueError, ConnectionResetError)):
        answer(*[b"x" * 65536] * 20)
