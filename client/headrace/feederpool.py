"""Feeder processes: starts them, hands blocks to them, gives the work of a dead one to another.

The blocks wait in shared memory until they are done, so a feeder's death loses nothing but time.
Who killed it cannot be told from the blocks it had; each of them is then embedded with no other
block beside it, and the one that kills a feeder again is the culprit.
"""

from __future__ import annotations

import os
import queue
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any, Self

from headrace.ahead import Ahead
from headrace.blocks import Block, name_rows
from headrace.errors import HeadraceError, MachineError, ServerLostError
from headrace.feeder import Embedded
from headrace.feederhandle import FeederHandle, Task
from headrace.handover import (
    Arena,
    Done,
    Failed,
    Progress,
    Ready,
    Setup,
    Work,
    pack,
    unpack,
)
from headrace.progress import Counters
from headrace.reading import Reading
from headrace.recovery import Recovery

# Blocks that a feeder has: one at the server, one being prepared. Not four or more: a feeder that
# sends to us then always has a thread that reads, so that both sides never wait for each other.
AT_ONCE = 2
READ_AHEAD = 2
STOP_SECONDS = 35.0  # a little more than a transport waits for the batches in flight
MOST_DEATHS = 10  # beside three for each feeder
LEARNT_BYTES = 32 << 20
_PROGRESS_SECONDS = 0.2
_CULPRIT_DEATHS = 2
_ARENA_BYTES = 64 << 20


class FeederPool:
    """Runs the blocks of one run through several feeder processes; a context manager.

    Args:
        setup: what the feeders need to know; its descriptors are filled in here.
        count: number of processes.
        counters: where to count; shared with the rest of the run.
        recovery: gets the server back where it is lost.
        stop: says whether no further block is to be begun.

    Attributes:
        ready: what a feeder said when it was ready; set once the pool is entered.
        learnt: words that feeders have learnt, as of :func:`headrace.handover.to_bytes`; the
            first :data:`LEARNT_BYTES` or so.
        cpu_seconds: processor time of all feeders since they were ready, dead ones included.
        deaths: feeders that died.
    """

    def __init__(
        self,
        setup: Setup,
        count: int,
        counters: Counters,
        recovery: Recovery,
        *,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.ready: Ready | None = None
        self.learnt: list[bytes] = []
        self.cpu_seconds = 0.0
        self.deaths = 0
        self._learnt_bytes = 0
        self._recovery = recovery
        self._stop = stop
        self._count = count
        self._counters = counters
        slots = AT_ONCE * count + READ_AHEAD
        self._texts = [Arena() for _ in range(slots)]
        self._vectors = [Arena() for _ in range(slots)]
        self._setup = replace(
            setup,
            texts=tuple(arena.descriptor for arena in self._texts),
            vectors=tuple(arena.descriptor for arena in self._vectors),
        )
        self._in_place = setup.in_place is not None
        # The last one freed first: memory that has been used is faster than memory that has not.
        self._free: queue.LifoQueue[int] = queue.LifoQueue()
        for slot in range(slots):
            self._free.put(slot)
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._feeders: list[FeederHandle] = []
        self._suspects: deque[Task] = deque()
        self._done: dict[int, tuple[Task, Embedded] | HeadraceError] = {}
        self._finished = Progress()
        self._stopped = False
        self._closed = False

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                self._start()
            while not all(feeder.ready for feeder in self._feeders):
                self._listen(None)
        except BaseException as error:
            self._close(at_once=isinstance(error, KeyboardInterrupt))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close(at_once=kind is not None and issubclass(kind, KeyboardInterrupt))

    def run(
        self,
        reading: Reading,
        progress: Callable[[], None] = lambda: None,
        *,
        first: int = 0,
    ) -> Iterator[Embedded]:
        """Embeds the blocks of ``reading`` and yields them in order.

        Args:
            reading: the run's inputs.
            progress: called now and then.
            first: number of the first block that ``reading`` gives.

        Raises:
            BadRowError: a row is bad, with ``on_error="fail"``.
            MachineError: the server is lost and does not come back, or a block kills feeders.
        """
        expected = first
        with (
            Ahead(self._read(reading), name="headrace-read", wake=self._wake) as ahead,
            self._reading(),
        ):
            while True:
                self._dispatch(ahead)
                while expected in self._done:
                    found = self._done.pop(expected)
                    if isinstance(found, HeadraceError):
                        raise found
                    task, embedded = found
                    self._counters.bytes_done = embedded.bytes_done
                    yield self._with_vectors(task, embedded)
                    if not self._in_place:
                        self._release(task.work.slot)
                    expected += 1
                stop = self._stop()
                busy = any(feeder.tasks for feeder in self._feeders) or (
                    self._suspects and not stop
                )
                if (ahead.ended or stop) and not busy:
                    break
                if not self._feeders:  # each has met a bad row, and nobody is left for the rest
                    raise self._first_error()
                self._listen(_PROGRESS_SECONDS)
                progress()
        for feeder in self._feeders:
            self._add_up(feeder)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._stopped = True

    def _first_error(self) -> HeadraceError:
        found = sorted(self._done.items())
        return next(error for _, error in found if isinstance(error, HeadraceError))

    def _read(self, reading: Reading) -> Iterator[Task]:
        """Reads blocks into shared memory; runs in a thread of its own."""
        for block in reading.blocks():
            slot = None
            while slot is None and not self._stopped:
                with suppress(queue.Empty):
                    slot = self._free.get(timeout=0.1)
            if slot is None:
                return
            with self._counters.timed("read"):
                bare, size = pack(block, self._texts[slot])
            yield Task(Work(block=bare, slot=slot, size=size, ids=reading.ids))

    def _release(self, slot: int) -> None:
        for arena in (self._texts[slot], self._vectors[slot]):
            arena.shrink(_ARENA_BYTES)
        self._free.put(slot)

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):  # it is awake already, or has ended
            os.write(self._wake_in, b"!")

    def _dispatch(self, ahead: Ahead[Task]) -> None:
        """Gives blocks to the feeders that have room.

        One over which a feeder has died gets a feeder to itself, and one over which the server was
        lost more than once gets the server to itself.
        """
        for feeder in sorted(self._feeders, key=lambda each: len(each.tasks)):
            if self._stop():
                return
            if feeder.ready is None or any(task.deaths for task in feeder.tasks.values()):
                continue
            busy = [index for each in self._feeders for index in each.tasks]
            if any(map(self._recovery.careful, busy)):
                return
            if self._suspects:
                careful = self._recovery.careful(self._suspects[0].index)
                if not (busy if careful else feeder.tasks):
                    self._give(feeder, self._suspects.popleft())
                continue
            while len(feeder.tasks) < AT_ONCE and (task := ahead.take(0)) is not None:
                self._give(feeder, task)

    def _give(self, feeder: FeederHandle, task: Task) -> None:
        feeder.tasks[task.index] = task
        words, feeder.news = tuple(feeder.news), []
        careful = self._recovery.careful(task.index)
        feeder.send(replace(task.work, words=words, careful=careful))

    def _listen(self, seconds: float | None) -> None:
        """Waits for messages, or for a feeder's end, and deals with them."""
        handles: dict[Any, FeederHandle] = {feeder.connection: feeder for feeder in self._feeders}
        for source in wait([*handles, self._wake_out], seconds):
            if source == self._wake_out:
                os.read(self._wake_out, 4096)
                continue
            feeder = handles[source]
            if feeder not in self._feeders:  # ended over the message before this one
                continue
            try:
                message = feeder.connection.recv()
            except (EOFError, OSError):
                self._on_death(feeder)
            else:
                self._on_message(feeder, message)

    def _on_message(self, feeder: FeederHandle, message: Any) -> None:
        match message:
            case Ready():
                feeder.ready = self.ready = message
            case Progress():
                feeder.progress = message
            case Done():
                self._on_done(feeder, message)
            case Failed(kind=ServerLostError.__name__):
                self._on_loss(
                    ServerLostError(message.message, block=message.index, rows=message.rows)
                )
            case Failed(index=None):
                raise message.error()
            case Failed(index=int(index)):
                # It has finished the blocks before this one and ends; those after do not matter.
                self._done[index] = message.error()
                self._add_up(feeder)
                self._feeders.remove(feeder)
                feeder.end()
        live = [self._finished, *(each.progress for each in self._feeders)]
        self._counters.rows = sum(each.rows for each in live)
        self._counters.tokens = sum(each.tokens for each in live)
        self._counters.padded_tokens = sum(each.padded_tokens for each in live)

    def _on_done(self, feeder: FeederHandle, done: Done) -> None:
        embedded = done.embedded
        self._recovery.finished(embedded.index)
        task = feeder.tasks.pop(embedded.index)
        self._done[embedded.index] = (task, embedded)
        if self._in_place:
            self._release(task.work.slot)
        feeder.counters, feeder.cpu_seconds = done.counters, done.cpu_seconds
        feeder.progress = Progress()
        self._finished = Progress(
            rows=self._finished.rows + embedded.rows,
            tokens=self._finished.tokens + embedded.tokens,
            padded_tokens=self._finished.padded_tokens + embedded.padded_tokens,
        )
        self._counters.batches += embedded.batches
        self._counters.bad_rows += len(embedded.bad)
        self._counters.truncated_rows += embedded.truncated_rows
        if done.words is not None:
            if self._learnt_bytes < LEARNT_BYTES:
                self.learnt.append(done.words)
                self._learnt_bytes += len(done.words)
            if self.ready is not None and self.ready.dear_words:
                for other in self._feeders:
                    if other is not feeder:
                        other.news.append(done.words)

    def _with_vectors(self, task: Task, embedded: Embedded) -> Embedded:
        if self._in_place:
            return embedded
        shape = (embedded.rows, self._setup.dimension)
        arena = self._vectors[task.work.slot]
        return replace(embedded, vectors=arena.array(shape, self._setup.config.dtype))

    def _start(self) -> None:
        alone = self._count < len(os.sched_getaffinity(0))
        feeder = FeederHandle.start(self._setup, spare_cores=alone)
        if self.ready is not None and self.ready.dear_words:
            feeder.news = list(self.learnt)
        self._feeders.append(feeder)

    def _on_death(self, feeder: FeederHandle) -> None:
        """Deals with a feeder that has died: its blocks are done again, by others."""
        feeder.end()
        self._feeders.remove(feeder)
        self._add_up(feeder)
        self.deaths += 1
        how = feeder.cause
        tasks = sorted(feeder.tasks.values(), key=lambda task: task.index)
        for task in tasks:
            task.deaths += 1
            if task.deaths >= _CULPRIT_DEATHS:
                raise MachineError(
                    f"{self._place(task)}: a feeder process died of these lines, and another one "
                    f"with nothing else to do too ({how}); find the one that does it, by halves, "
                    f"and take it out"
                )
        if self.deaths > MOST_DEATHS + 3 * self._count:
            raise MachineError(f"feeder processes keep dying ({how}); try fewer with --feeders")
        self._suspects = deque(sorted([*self._suspects, *tasks], key=lambda task: task.index))
        self._start()

    def _on_loss(self, lost: ServerLostError) -> None:
        """Deals with a server that is gone: its blocks are done again, by new feeders.

        Each has lost it, whether or not it has noticed yet.
        """
        tasks: dict[int, Task] = {}
        for feeder in self._feeders:
            tasks |= feeder.tasks
            feeder.end(0)
            self._add_up(feeder)
        self._feeders.clear()
        if self._stop():
            return
        try:
            connection = self._recovery.recover(
                lost, tasks, lambda block, rows: name_rows(self._block_of(tasks[block]), rows)
            )
        except ServerLostError:
            if self._stop():
                return
            raise
        self._setup = replace(self._setup, server=connection.server)
        again = sorted([*self._suspects, *tasks.values()], key=lambda task: task.index)
        self._suspects = deque(again)
        for _ in range(self._count):
            self._start()

    def _block_of(self, task: Task) -> Block:
        work = task.work
        return unpack(work.block, work.size, self._texts[work.slot])

    def _place(self, task: Task) -> str:
        block = task.work.block
        if block.format == "parquet":
            return f"{block.file}, rows {block.first_line} to {block.first_line + block.rows - 1}"
        block = self._block_of(task)
        lines = block.data.count(b"\n") + (not block.data.endswith(b"\n"))
        return f"{block.file}, lines {block.first_line} to {block.first_line + lines - 1}"

    def _add_up(self, feeder: FeederHandle) -> None:
        """Adds what a feeder has used to the totals, once."""
        self._counters.add_feeder(feeder.counters)
        self.cpu_seconds += feeder.cpu_seconds
        feeder.counters, feeder.cpu_seconds = Counters(), 0.0

    def _close(self, *, at_once: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            for feeder in self._feeders:
                if at_once:
                    feeder.process.kill()
                feeder.send(None)
            deadline = time.monotonic() + STOP_SECONDS
            for feeder in self._feeders:
                with suppress(subprocess.TimeoutExpired):
                    feeder.process.wait(max(0.0, deadline - time.monotonic()))
        finally:  # also where a second Ctrl-C cuts it short
            for feeder in self._feeders:
                feeder.end()
            for arena in (*self._texts, *self._vectors):
                arena.close()
            os.close(self._wake_in)
            os.close(self._wake_out)
