"""A feeder's process: takes blocks from the main process of a run until it is told to stop.

:mod:`headrace.feederpool` starts it with the descriptor of a socket; what passes over it is in
:mod:`headrace.handover`. It ends with the main process, however that ends.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from headrace.ahead import Ahead
from headrace.blocks import Block
from headrace.errors import BadRowError, HeadraceError, ServerLostError
from headrace.feeder import Embedded, Feeder, Prepared
from headrace.handover import (
    Arena,
    Done,
    Failed,
    Progress,
    Ready,
    Setup,
    Work,
    batch_of,
    to_bytes,
    unpack,
)
from headrace.progress import Counters
from headrace.sinks import PageAlignedRows
from headrace.tokenizer import TextTokenizer
from headrace.transport import connect

PROGRESS_SECONDS = 0.2
_PR_SET_NAME = 15


class _Stopped(Exception):  # noqa: N818 -- not an error
    """The main process wants no more."""


def main(descriptor: int) -> None:
    """Runs a feeder to its end.

    Args:
        descriptor: of the socket to the main process.
    """
    # A Ctrl-C in the terminal, or a SIGTERM to all of a service's processes, is the main process's
    # to handle, in its order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, b"headrace-feeder", 0, 0, 0)
    connection = Connection(descriptor)
    process: _Process | None = None
    try:
        process = _Process(connection)
        process.run()
    except (EOFError, ConnectionError):  # the main process is gone
        if process is not None:
            process.abandon()
        os._exit(1)
    except BaseException as error:  # noqa: BLE001 -- the main process must hear of it
        known = isinstance(error, HeadraceError)
        message = str(error) if known else traceback.format_exc()
        index: int | None = None
        rows: tuple[int, ...] = ()
        if process and isinstance(error, BadRowError):
            index = process.faulty
        elif isinstance(error, ServerLostError):
            index, rows = error.block, error.rows
        with suppress(OSError):
            connection.send(Failed(type(error).__name__, message, index, rows))
    # Threads of libraries may still be about; there is nothing left for them to do.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class _Process:
    """One feeder: prepares blocks in a thread, embeds them in the main one."""

    def __init__(self, connection: Connection) -> None:
        setup: Setup = connection.recv()
        self._connection = connection
        self._setup = setup
        self._texts = [Arena(each) for each in setup.texts]
        self._vectors = [Arena(each) for each in setup.vectors]
        self._works: dict[int, Work] = {}
        self._rooms: dict[int, PageAlignedRows] = {}
        self._spare: list[PageAlignedRows] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="headrace-write")
        self._writing: tuple[Embedded, Future[None]] | None = None
        self._learnt: dict[int, bytes | None] = {}
        self._bad_row: BadRowError | None = None
        self._stop = False
        self._said = time.monotonic()
        self.faulty: int | None = None
        self.counters = Counters()
        config = setup.config
        server = connect(setup.server, [setup.model], exact=True, patience=config.request_timeout)
        self._tokenizer = TextTokenizer(
            setup.tokenizer,
            max_length=setup.max_length,
            prompt=setup.prompt,
            expected_hash=server.contract.tokenizer_hash,
            word_cache=config.word_cache,
            tried=True,  # by the process that starts this one
        )
        self._transport, why = server.open_transport(
            config.transport, slots=setup.slots, tidy=False
        )
        self._feeder = Feeder(
            config,
            server.contract,
            self._tokenizer,
            self._transport,
            self.counters,
            place=self._room_of if setup.in_place else self._arena_of,
            busy=setup.busy,
        )
        gc.freeze()  # what is there now stays: later collections need not look at it
        gc.enable()
        self._cpu_start = time.process_time()
        connection.send(
            Ready(
                transport=self._transport.name,
                transport_reason=why,
                word_cache=self._tokenizer.cache_note,
                dear_words=self._tokenizer.dear_words,
                tokenizer_hash=self._tokenizer.hash,
            )
        )

    @property
    def cpu_seconds(self) -> float:
        """Processor time since the feeder was ready."""
        return time.process_time() - self._cpu_start

    def run(self) -> None:
        """Embeds what comes, until there is no more.

        Raises:
            HeadraceError: a block cannot be embedded.
        """
        with closing(self._transport), Ahead(self._prepared(), name="headrace-prepare") as ahead:
            try:
                for embedded in self._feeder.run(ahead, self._progress, self._settle):
                    self._hand_over(embedded)
            except _Stopped:
                return
            if self._bad_row is not None:
                raise self._bad_row

    def abandon(self) -> None:
        """Removes what would outlive this process."""
        self._transport.abandon()

    def _works_received(self) -> Iterator[Work]:
        while not self._stop:
            try:
                work = self._connection.recv()
            except (EOFError, OSError):  # the main process is gone
                self.abandon()
                os._exit(1)
            if work is None:
                self._stop = True
                return
            yield work

    def _prepared(self) -> Iterator[Prepared]:
        """Prepares the blocks that come; runs in a thread of its own."""
        for work in self._works_received():
            for words in work.words:
                self._tokenizer.adopt(batch_of(words))
            block: Block = unpack(work.block, work.size, self._texts[work.slot])
            self._works[block.index] = work
            try:
                prepared = self._feeder.prepare(block, work.ids)
            except BadRowError as error:
                # The blocks before it are still to be finished: one of them may be bad too.
                self.faulty, self._bad_row = block.index, error
                return
            self._learnt[block.index] = self._new_words()
            yield replace(prepared, careful=work.careful)

    def _new_words(self) -> bytes | None:
        """The words learnt since the last block, where somebody wants them."""
        if self._setup.config.word_cache != "keep" and not self._tokenizer.dear_words:
            return None
        words = self._tokenizer.new_words()
        return None if words is None else bytes(to_bytes(words))

    def _arena_of(self, block: Prepared) -> NDArray[np.floating]:
        arena = self._vectors[self._works[block.index].slot]
        return arena.array((block.rows, self._setup.dimension), self._setup.config.dtype)

    def _room_of(self, block: Prepared) -> NDArray[np.floating]:
        assert self._setup.in_place is not None
        room = self._spare.pop() if self._spare else PageAlignedRows(self._setup.in_place)
        self._rooms[block.index] = room
        return room.array(block.first_row, block.rows)

    def _hand_over(self, embedded: Embedded) -> None:
        """Gives a block's vectors to the main process, or to the thread that writes them."""
        if self._setup.in_place is None:
            self._tell(embedded)
            return
        self._settle()
        self._writing = embedded, self._writer.submit(self._write, embedded)

    def _write(self, embedded: Embedded) -> None:
        """Writes a block's rows; in a thread of its own, since a disk may take its time."""
        assert self._setup.in_place is not None
        assert embedded.vectors is not None
        with self.counters.timed("write"):
            self._setup.in_place.write(embedded.vectors, embedded.first_row)

    def _settle(self) -> None:
        """Waits for the block that is being written, if there is one, and tells of it.

        Raises:
            OutputError: it could not be written.
        """
        if self._writing is None:
            return
        embedded, written = self._writing
        written.result()
        self._writing = None
        self._spare.append(self._rooms.pop(embedded.index))
        self._tell(embedded)

    def _tell(self, embedded: Embedded) -> None:
        del self._works[embedded.index]
        self._connection.send(
            Done(
                embedded=replace(embedded, vectors=None),
                words=self._learnt.pop(embedded.index),
                counters=self.counters,
                cpu_seconds=self.cpu_seconds,
            )
        )
        counters = self.counters
        counters.rows = counters.tokens = counters.padded_tokens = 0
        self._said = time.monotonic()

    def _progress(self) -> None:
        if self._stop and self._bad_row is None and self._works:
            raise _Stopped
        if self._writing is not None and self._writing[1].done():
            self._settle()
        now = time.monotonic()
        if now - self._said >= PROGRESS_SECONDS:
            self._said = now
            counters = self.counters
            self._connection.send(
                Progress(
                    rows=counters.rows,
                    tokens=counters.tokens,
                    padded_tokens=counters.padded_tokens,
                )
            )
