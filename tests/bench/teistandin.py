"""A server with TEI's API and no model: vectors are made of the texts, faults come as asked for.

Run as a program it serves until it is killed: ``python teistandin.py PORT [SECONDS]``; it is ready
after so many.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

DIMENSION = 8
INFO: dict[str, Any] = {
    "model_id": "stand-in",
    "model_sha": None,
    "model_dtype": "float32",
    "model_type": {"embedding": {"pooling": "mean"}},
    "max_concurrent_requests": 16,
    "max_input_length": 256,
    "max_batch_tokens": 16384,
    "max_batch_requests": None,
    "max_client_batch_size": 32,
    "auto_truncate": True,
    "tokenization_workers": 2,
    "version": "1.9.3",
    "sha": None,
    "docker_label": None,
}


def vector_of(text: str) -> list[float]:
    """Returns the vector of a text, of numbers that float32 holds exactly."""
    return [byte / 256 + 1 / 512 for byte in hashlib.shake_256(text.encode()).digest(DIMENSION)]


@dataclass
class Faults:
    """What is wrong with answers of /embed; numbers count down as they are used.

    Attributes:
        statuses: answered so often each, in this order: [(429, 3), (503, 1)].
        drops: connections closed in place of an answer.
        wrong: ``dimension``, ``few``, ``nan``, ``null``, ``text`` or ``json``: of every answer.
        of: the text whose request alone has this fault; "" for all.
        status: of every answer.
    """

    statuses: list[tuple[int, int]] = field(default_factory=list)
    drops: int = 0
    wrong: str = ""
    of: str = ""
    status: int = 200


class StandIn:
    """The server, in a thread; a context.

    Args:
        request_seconds: that every request takes, one after the other.
        row_seconds: that every row of it takes beside.
        ready_after: seconds until /health says so.
        port: 0 for a free one.
        info: replaces some of what /info says; a text is said as it is.
    """

    def __init__(
        self, *, request_seconds=0.0, row_seconds=0.0, ready_after=0.0, port=0, info=None
    ) -> None:
        self.request_seconds, self.row_seconds = request_seconds, row_seconds
        self.info = info if isinstance(info, str) else json.dumps(INFO | (info or {}))
        self.most_rows = INFO["max_client_batch_size"]
        if not isinstance(info, str):
            self.most_rows = json.loads(self.info)["max_client_batch_size"]
        self.faults = Faults()
        self.texts: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.logins: list[str] = []
        self.connections = self.in_flight = self.most_in_flight = 0
        self._ready = time.monotonic() + ready_after
        self._port = port
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> StandIn:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def forget(self) -> None:
        """Sets the counters back."""
        self.texts.clear()
        self.sizes.clear()
        self.connections = self.most_in_flight = 0

    async def _serve(self) -> None:
        self._loop, self._stop, self._turn = asyncio.get_running_loop(), asyncio.Event(), None
        self._turn = asyncio.Lock()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self._port)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _connection(self, reader, writer) -> None:
        asked_for_vectors = False
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *headers = head.decode().strip().split("\r\n")
                method, path, _ = first.split()
                self.logins += [h[21:] for h in headers if h.lower().startswith("authorization: ")]
                lengths = [h for h in headers if h.lower().startswith("content-length:")]
                body = await reader.readexactly(int(lengths[0].split(":")[1]) if lengths else 0)
                if path == "/embed" and not asked_for_vectors:
                    self.connections += 1
                    asked_for_vectors = True
                status, answer = await self._answer(method, path, body)
                if not status:
                    break
                head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(answer)}\r\n\r\n"
                writer.write(head.encode() + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, method, path, body) -> tuple[int, bytes]:
        if (method, path) == ("GET", "/info"):
            return 200, self.info.encode()
        if (method, path) == ("GET", "/health"):
            return (200, b"") if time.monotonic() >= self._ready else (503, b"not yet")
        if (method, path) != ("POST", "/embed"):
            return 404, b""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._embed(json.loads(body))
        finally:
            self.in_flight -= 1

    async def _embed(self, asked) -> tuple[int, bytes]:
        texts, faults = asked["inputs"], self.faults
        assert asked["truncate"] is asked["normalize"] is True
        if len(texts) > self.most_rows:
            return 413, b'{"error":"batch size > maximum allowed","error_type":"validation"}'
        if faults.drops:
            faults.drops -= 1
            return 0, b""
        if faults.statuses:
            status, left = faults.statuses.pop(0)
            if left > 1:
                faults.statuses.insert(0, (status, left - 1))
            return status, b'{"error":"Model is overloaded","error_type":"overloaded"}'
        if faults.status != 200:
            return faults.status, b'{"error":"it failed","error_type":"backend"}'
        if self.request_seconds or self.row_seconds:
            async with self._turn:
                await asyncio.sleep(self.request_seconds + self.row_seconds * len(texts))
        self.texts.update(texts)
        self.sizes.append(len(texts))
        found: list[Any] = [vector_of(text) for text in texts]
        if faults.wrong and (not faults.of or faults.of in texts):
            place = texts.index(faults.of) if faults.of else 0
            if faults.wrong == "json":
                return 200, b"<html>"
            if faults.wrong == "few":
                found.pop()
            elif faults.wrong == "dimension":
                found[place] = found[place][:-1]
            else:
                found[place][3] = {"nan": float("nan"), "null": None, "text": "x"}[faults.wrong]
        return 200, json.dumps(found, separators=(",", ":")).encode()


if __name__ == "__main__":
    wait = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    with StandIn(port=int(sys.argv[1]), ready_after=wait):
        threading.Event().wait()
