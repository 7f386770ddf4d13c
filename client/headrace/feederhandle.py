"""One feeder process as its parent sees it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Self

from headrace.handover import Progress, Ready, Setup, Work
from headrace.progress import Counters

# A block's arrays are as large as those of the block before: memory that was given back to the
# system in between would have to be asked for, page by page, again. And large pages are fewer.
_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "OPENBLAS_NUM_THREADS": "1",
}
_START = (
    "import gc, json, sys; gc.disable(); sys.path[:] = json.loads(sys.argv[2]); "
    "from headrace.feederprocess import main; main(int(sys.argv[1]))"
)


@dataclass(slots=True)
class Task:
    """A block on its way.

    Attributes:
        work: what a feeder is told of it.
        deaths: feeders that died while they had it.
    """

    work: Work
    deaths: int = 0

    @property
    def index(self) -> int:
        """Number of the block in the run."""
        return self.work.block.index


@dataclass(slots=True, eq=False)
class FeederHandle:
    """A feeder process, what it has to do, and what it has said.

    Attributes:
        process: the process.
        connection: to and from it.
        ready: its first message, or None.
        tasks: the blocks that it has, by number.
        news: words that others have learnt and that it has not been told yet.
        counters: what it had counted at its last finished block.
        progress: how far it is with the blocks that it has.
        cpu_seconds: its processor time at its last finished block.
    """

    process: subprocess.Popen[bytes]
    connection: Connection
    ready: Ready | None = None
    tasks: dict[int, Task] = field(default_factory=dict)
    news: list[bytes] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    progress: Progress = field(default_factory=Progress)
    cpu_seconds: float = 0.0

    @classmethod
    def start(cls, setup: Setup, *, spare_cores: bool) -> Self:
        """Starts a process and tells it what to do.

        Args:
            setup: its first message; the descriptors in it are handed down.
            spare_cores: whether ``tokenizers`` may use more cores than the feeder's own.
        """
        chosen = dict(_ENVIRONMENT)
        if not spare_cores:
            chosen["TOKENIZERS_PARALLELISM"] = "false"
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                # The same modules as here, and nothing of the folder that it happens to run in.
                [sys.executable, "-P", "-c", _START, str(theirs.fileno()), json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=chosen | os.environ,
                pass_fds=[theirs.fileno(), *setup.texts, *setup.vectors],
                start_new_session=True,
            )
        feeder = cls(process, Connection(ours.detach()))
        feeder.send(setup)
        return feeder

    @property
    def cause(self) -> str:
        """How the process, which has ended, ended."""
        status = self.process.returncode
        if status == -signal.SIGKILL:
            return "killed; if the machine ran out of memory, the kernel's log says so"
        return f"ended by {signal.Signals(-status).name}" if status < 0 else f"status {status}"

    def send(self, message: Any) -> None:
        """Sends a message, if the process lives; who listens to it notices if it does not."""
        with suppress(OSError):
            self.connection.send(message)

    def end(self, seconds: float = 0.5) -> None:
        """Ends the process, if it has not ended within some seconds, and reaps it."""
        with suppress(subprocess.TimeoutExpired):  # it may be on its way out
            self.process.wait(seconds)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.connection.close()
