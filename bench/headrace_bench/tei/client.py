"""One of the processes that send requests to TEI: ``python -m headrace_bench.tei.client JOB``.

It connects, writes ``ready``, waits for a line, sends until the queue that it shares with the
others is empty, writes ``done``, waits for a line again, reads the answers and writes ``read``.
Each of its lines is a JSON object; ``error`` comes in place of any. Only what is between the first
line that it gets and ``done`` is timed: until then answers lie in a file, as they came. Beside
these, ``again`` says why a request is sent again, the first time.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from headrace.errors import ServerError
from headrace.paths import shown
from headrace_bench.tei.job import NUMBER_BYTES, Job
from headrace_bench.tei.wire import Requests, WrongAnswerError, beginning, read_answer

_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
_PASSING = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
_BUSY = (429, 503)
_CONNECT_SECONDS = 10.0  # a server whose queue of connections is full answers the next attempt
_REMEDIES = {
    413: "its --max-client-batch-size or --payload-limit is less than was sent; raise it",
    422: "its --max-client-batch-size may be less than was sent, or a text is none to it",
    424: "the model failed; its log says why",
}


class Sender:
    """Sends requests, and reads the answers later.

    Args:
        job: what to do.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._requests = Requests(Path(job.folder))
        self._chance = random.Random(f"{job.patience.seed}-{job.number}")
        self._retries = 0
        self._told = False
        self._spool = job.result("answers").open("w+b")
        self._came: list[tuple[int, str, int]] = []

    async def send(self) -> None:
        """Connects, and sends until the queue is empty.

        Raises:
            ServerError: a request failed for good.
        """
        slots = len(self._job.urls)
        async with httpx.AsyncClient(
            headers=_HEADERS,
            timeout=httpx.Timeout(self._job.patience.timeout, connect=_CONNECT_SECONDS),
            trust_env=False,
            limits=httpx.Limits(
                max_connections=slots, max_keepalive_connections=slots, keepalive_expiry=None
            ),
        ) as client:
            await asyncio.gather(
                *(self._ask(client, "GET", f"{url}/info", b"") for url in self._job.urls)
            )
            self._retries = 0
            say("ready", {})
            sys.stdin.readline()
            start, used = time.monotonic(), time.process_time()
            await asyncio.gather(*(self._slot(client, url) for url in self._job.urls))
            figures = {
                "start": start,
                "end": time.monotonic(),
                "cpu_seconds": time.process_time() - used,
                "retries": self._retries,
            }
        say("done", figures)
        sys.stdin.readline()

    def read(self) -> None:
        """Checks all answers; writes the rows and the vectors that are kept.

        Raises:
            ServerError: one is wrong.
        """
        self._spool.seek(0)
        dimension = self._job.dimension
        rows, vectors = [np.empty(0, np.int64)], [np.empty((0, dimension), np.float32)]
        for request, url, size in self._came:
            body = self._spool.read(size)
            wanted = self._requests.wanted(request)
            try:
                found = read_answer(body, self._requests.count(request), dimension, wanted)
            except WrongAnswerError as error:
                what = self._requests.name(request)
                raise ServerError(
                    f"{shown(url)}/embed: the answer to {what} {error}; check that it serves this "
                    f"model"
                ) from error
            rows.append(self._requests.rows(request)[wanted])
            vectors.append(found)
        np.save(self._job.result("rows.npy"), np.concatenate(rows))
        np.save(self._job.result("vectors.npy"), np.concatenate(vectors))
        say("read", {"requests": len(self._came)})

    async def _slot(self, client: httpx.AsyncClient, url: str) -> None:
        """Sends one request after the other."""
        # Processes that share an open file share its position, and each read moves it once
        # (POSIX, read(2)): so each number is read by one of them.
        while number := os.read(self._job.queue, NUMBER_BYTES):
            request = int.from_bytes(number, "little")
            body = self._requests.body(request)
            answer = await self._ask(client, "POST", f"{url}/embed", body, request)
            self._came.append((request, url, len(answer)))
            self._spool.write(answer)

    async def _ask(
        self,
        client: httpx.AsyncClient,
        method: str,
        url: str,
        body: bytes,
        request: int | None = None,
    ) -> bytes:
        patience, named = self._job.patience, shown(url)
        why, timeouts = "", 0
        for attempt in range(patience.retries + 1):
            if attempt:
                if not self._told:
                    say("again", f"{named}: a request is sent again: {why}")
                    self._told = True
                self._retries += 1
                await asyncio.sleep(patience.wait(attempt - 1, self._chance))
            try:
                answer = await client.request(method, url, content=body)
            except _PASSING as error:
                why = f"{type(error).__name__} {error}".strip()
                timeouts += isinstance(error, httpx.TimeoutException)
                if timeouts > patience.timeouts:
                    break
                continue
            except httpx.HTTPError as error:
                raise ServerError(
                    f"{named}: {type(error).__name__} {error}; check --tei"
                ) from error
            if answer.status_code == 200:
                return answer.content
            why = f"status {answer.status_code}: {beginning(answer.content)}"
            if answer.status_code not in _BUSY:
                remedy = _REMEDIES.get(answer.status_code, "the server's log may say why")
                raise ServerError(f"{named}: the answer{self._to(request)} has the {why}; {remedy}")
        raise ServerError(
            f"{named}: no answer{self._to(request)} in {attempt + 1} attempts, at the last "
            f"{why}; see whether the server lives and how much it is asked by others"
        )

    def _to(self, request: int | None) -> str:
        return "" if request is None else f" to {self._requests.name(request)}"


def say(kind: str, content: Any) -> None:
    """Writes a line for the parent."""
    print(json.dumps({kind: content}), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Does a job; returns the exit code."""
    (job,) = sys.argv[1:] if arguments is None else arguments
    try:
        sender = Sender(Job.from_json(job))
        asyncio.run(sender.send())
        sender.read()
    except ServerError as error:
        say("error", str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
