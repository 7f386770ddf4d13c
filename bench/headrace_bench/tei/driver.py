"""Processes that send requests to TEI, all at once: started, heard, timed, and ended."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ServerError
from headrace_bench.options import say
from headrace_bench.tei.job import NUMBER_BYTES, Job, Patience
from headrace_bench.tei.wire import write_requests
from headrace_launcher.processes import die_with

BUSY = 0.9
"""Share of a core from which on a process may be what is slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent, and how.

    Attributes:
        urls: whom to ask; requests in flight are spread over them.
        quoted: texts as JSON, by the numbers of their rows.
        rows: int64[n]: which of them, in this order.
        wanted: bool[n]: whose vectors to keep.
        dimension: of a vector.
        batch_size: most rows of a request.
        concurrency: requests in flight, of all processes together.
        processes: how many.
        patience: with failures.
        folder: for files; None is the system's.
    """

    urls: Sequence[str]
    quoted: Sequence[bytes]
    rows: NDArray[np.int64]
    wanted: NDArray[np.bool_]
    dimension: int
    batch_size: int
    concurrency: int
    processes: int
    patience: Patience
    folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """What came of it.

    Attributes:
        seconds: from the first process's start to the last one's end.
        requests: that were sent.
        retries: times that one was sent again.
        cpu_seconds: processor time of the processes meanwhile.
        busiest: largest share of a core that one of them used.
        rows: int64[k]: rows whose vectors were to be kept.
        vectors: float32[k, dimension]: of these rows.
    """

    seconds: float
    requests: int
    retries: int
    cpu_seconds: float
    busiest: float
    rows: NDArray[np.int64]
    vectors: NDArray[np.float32]


def drive(load: Load) -> Driven:
    """Sends a load once; no process is left, whatever happens.

    Raises:
        ServerError: a request failed for good, an answer is wrong, or a process ended.
    """
    with ExitStack() as stack:
        name = stack.enter_context(
            tempfile.TemporaryDirectory(dir=load.folder, prefix="headrace-tei-")
        )
        folder = Path(name)
        requests = write_requests(
            folder, load.quoted, load.rows, load.wanted, batch_size=load.batch_size
        )
        numbers = folder / "queue"
        numbers.write_bytes(np.arange(requests, dtype=f"<u{NUMBER_BYTES}").tobytes())
        queue = os.open(numbers, os.O_RDONLY)
        stack.callback(os.close, queue)
        # One by one in turn, so that the same number of requests in flight asks each URL.
        urls = [load.urls[slot % len(load.urls)] for slot in range(load.concurrency)]
        jobs = [
            Job(
                folder=name,
                number=number,
                urls=urls[number :: load.processes],
                queue=queue,
                dimension=load.dimension,
                patience=load.patience,
            )
            for number in range(min(load.processes, load.concurrency))
        ]
        clients = [stack.enter_context(_Client(job)) for job in jobs]
        _hear(clients, "ready")
        for client in clients:
            client.tell()
        done = _hear(clients, "done")
        for client in clients:
            client.tell()
        read = _hear(clients, "read")
        if sum(found["requests"] for found in read) != requests:
            raise ServerError(f"not all {requests:,} requests were sent; this is a fault of ours")
        spans = [found["end"] - found["start"] for found in done]
        return Driven(
            seconds=max(found["end"] for found in done) - min(found["start"] for found in done),
            requests=requests,
            retries=sum(found["retries"] for found in done),
            cpu_seconds=sum(found["cpu_seconds"] for found in done),
            busiest=max(
                found["cpu_seconds"] / max(span, 1e-9)
                for found, span in zip(done, spans, strict=True)
            ),
            rows=np.concatenate([np.load(job.result("rows.npy")) for job in jobs]),
            vectors=np.concatenate([np.load(job.result("vectors.npy")) for job in jobs]),
        )


class _Client:
    """A process; leaving the context kills it."""

    def __init__(self, job: Job) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by __exit__
        self._heard = b""
        # A session of its own: Ctrl-C is for the benchmark, which ends its processes itself.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "headrace_bench.tei.client", job.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=[job.queue],
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()),  # noqa: PLW1509 -- takes no lock
        )

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()

    def fileno(self) -> int:
        """Returns the descriptor on which it is heard."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def tell(self) -> None:
        """Lets it go on."""
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), b"\n")
        except BrokenPipeError as error:
            raise self._ended() from error

    def hear(self) -> Iterator[dict[str, Any]]:
        """Yields the lines that it has written, of which there may be none that is whole yet.

        Raises:
            ServerError: it says so, or has ended.
        """
        chunk = os.read(self.fileno(), 1 << 16)
        if not chunk:
            raise self._ended()
        *lines, self._heard = (self._heard + chunk).split(b"\n")
        for line in lines:
            found: dict[str, Any] = json.loads(line)
            if "error" in found:
                raise ServerError(found["error"])
            yield found

    def _ended(self) -> ServerError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return ServerError(
            f"a process that sends requests to TEI ended with {code}: "
            f"{said[-1] if said else 'it said nothing'}; run it again, with less in flight if it "
            f"lacked memory"
        )


def _hear(clients: Sequence[_Client], word: str) -> list[dict[str, Any]]:
    """Returns what each process says with a word, once all have said it.

    Of why requests are sent again the first is said on standard error.
    """
    told = False
    found: dict[int, dict[str, Any]] = {}
    with selectors.DefaultSelector() as selector:
        for number, client in enumerate(clients):
            selector.register(client, selectors.EVENT_READ, number)
        while len(found) < len(clients):
            for key, _ in selector.select():
                for line in clients[key.data].hear():
                    if word in line:
                        found[key.data] = line[word]
                        selector.unregister(key.fileobj)
                    elif not told:
                        say(line["again"])
                        told = True
    return [found[number] for number in range(len(clients))]
