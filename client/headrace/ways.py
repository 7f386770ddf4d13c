"""The ways to embed blocks: in this process, through feeder processes, or not at all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from headrace import keptwords
from headrace.ahead import Ahead
from headrace.blocks import Block, name_rows
from headrace.choices import part_of
from headrace.config import EmbedConfig
from headrace.errors import (
    MachineError,
    ServerLostError,
)
from headrace.feeder import Embedded, Feeder, Prepared, warm_up
from headrace.feederpool import FeederPool
from headrace.handover import Setup, batch_of
from headrace.kernels.batches import cut_lengths
from headrace.kernels.compiled import is_kept
from headrace.kernels.lines import place_lines, read_texts
from headrace.kernels.words import join_words, number_words
from headrace.output import Output
from headrace.progress import Counters
from headrace.reading import Reading
from headrace.recovery import Recovery
from headrace.stopping import Stop
from headrace.tokenizer import TextTokenizer
from headrace.transport import Connection, leftovers, sweep


@dataclass(frozen=True, slots=True)
class Job:
    """What every way of running a run needs."""

    config: EmbedConfig
    connection: Connection
    tokenizer: Path
    prompt: str
    max_length: int
    counters: Counters
    recovery: Recovery
    stop: Stop


class Nothing:
    """Nothing: the job was complete but for the name of its output."""

    feeder_deaths = 0
    word_cache = "not used"
    transport = "none"
    transport_reason = "nothing was left to do"

    def keep_words(self) -> None:
        """There are none."""


class Inline:
    """Everything in this process."""

    feeders_cpu_seconds = 0.0
    feeder_deaths = 0

    def __init__(self, job: Job) -> None:
        self._job = job
        self._blocks: dict[int, Block] = {}

    def __enter__(self) -> Self:
        job = self._job
        contract = job.connection.contract
        self._tokenizer = TextTokenizer(
            job.tokenizer,
            max_length=job.max_length,
            prompt=job.prompt,
            expected_hash=contract.tokenizer_hash,
            word_cache=job.config.word_cache,
        )
        self.word_cache = self._tokenizer.cache_note
        try:
            self._open_transport(job.connection)
        except ServerLostError as error:
            self._reach_again(error, ())
        try:
            self._feeder = Feeder(
                job.config,
                contract,
                self._tokenizer,
                self._transport,
                job.counters,
                busy=part_of(job.config, job.connection, 0).busy,
                stopping=job.stop,
            )
        except BaseException:  # an interruption, while its loops are loaded
            self._transport.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def embedded(self, reading: Reading, progress: Callable[[], None]) -> Iterator[Embedded]:
        """Yields the blocks when their vectors are there, in order."""
        with Ahead(self._prepared(reading), name="headrace-prepare") as ahead:
            while True:
                try:
                    for embedded in self._feeder.run(ahead, progress):
                        self._job.recovery.finished(embedded.index)
                        del self._blocks[embedded.index]
                        yield embedded
                except ServerLostError as error:
                    if not self._recover(error):
                        return
                else:
                    return

    def _recover(self, lost: ServerLostError) -> bool:
        """Gets the server back; returns whether it is wanted: a run that stops needs none."""
        job = self._job
        try:
            if not job.stop():
                self._transport.close()
                self._reach_again(lost, self._feeder.in_flight)
                self._feeder.take_up(self._transport, job.recovery.careful)
        except ServerLostError:
            if not job.stop():
                raise
        return not job.stop()

    def _reach_again(self, lost: ServerLostError, in_flight: Sequence[int]) -> None:
        while True:
            connection = self._job.recovery.recover(
                lost, in_flight, lambda block, rows: name_rows(self._blocks[block], rows)
            )
            try:
                self._open_transport(connection)
            except ServerLostError as error:
                lost, in_flight = error, ()
            else:
                return

    def _open_transport(self, connection: Connection) -> None:
        self._transport, self.transport_reason = connection.open_transport(
            self._job.config.transport, slots=part_of(self._job.config, connection, 0).slots
        )
        self.transport = self._transport.name

    def keep_words(self) -> None:
        """Keeps the words that were learnt for later runs, where that is wanted."""
        words = self._tokenizer.new_words()
        if self._job.config.word_cache == "keep" and words is not None:
            keptwords.save(self._tokenizer.hash, [words])

    def _prepared(self, reading: Reading) -> Iterator[Prepared]:
        for block in reading.blocks():
            self._blocks[block.index] = block
            yield self._feeder.prepare(block, reading.ids)


class Pooled:
    """Through feeder processes, which put the vectors into the output where they can."""

    def __init__(self, job: Job, feeders: int, output: Output) -> None:
        self._job = job
        self.feeders_cpu_seconds = 0.0
        self.feeder_deaths = 0
        self.transport = ""
        connection, config = job.connection, job.config
        part = part_of(config, connection, feeders)
        setup = Setup(
            config=config,
            server=connection.server,
            model=connection.contract.name,
            tokenizer=job.tokenizer.absolute(),
            prompt=job.prompt,
            max_length=job.max_length,
            dimension=config.truncate_dim or connection.contract.dimension,
            slots=part.slots,
            busy=part.busy,
            in_place=output.open_in_place(),
        )
        self._first = len(output.done)
        self._pool = FeederPool(setup, feeders, job.counters, job.recovery, stop=job.stop)

    def __enter__(self) -> Self:
        if self._job.config.transport != "grpc":
            with suppress(MachineError):  # a server elsewhere may not know of shared memory
                sweep(self._job.connection.client)
        try:
            with self._job.counters.timed("start"):
                self._pool.__enter__()
        except BaseException:  # an interruption, which has killed feeders that shared memory
            self._sweep()
            raise
        ready = self._pool.ready
        assert ready is not None
        self.transport, self.transport_reason = ready.transport, ready.transport_reason
        self.word_cache = ready.word_cache
        self._tokenizer_hash = ready.tokenizer_hash
        return self

    def __exit__(self, *how: Any) -> None:
        try:
            self._pool.__exit__(*how)
        finally:
            self.feeder_deaths = self._pool.deaths
            self._sweep()

    def _sweep(self) -> None:
        """Removes what a feeder leaves that was killed, by others or by the pool in the end.

        What lies on a GPU only the server can tell.
        """
        if leftovers() or self.transport == "cuda":
            with suppress(MachineError):
                sweep(self._job.recovery.connection.client)

    def embedded(self, reading: Reading, progress: Callable[[], None]) -> Iterator[Embedded]:
        """Yields the blocks when their vectors are there, in order."""
        yield from self._pool.run(reading, progress, first=self._first)
        self.feeders_cpu_seconds = self._pool.cpu_seconds

    def keep_words(self) -> None:
        """Keeps the words that were learnt for later runs, where that is wanted."""
        words = [batch_of(each) for each in self._pool.learnt]
        if self._job.config.word_cache == "keep" and words:
            keptwords.save(self._tokenizer_hash, words)


def compile_once(job: Job) -> None:
    """Compiles the inner loops, if that was not done before, so that no two feeders do it."""
    loops = (cut_lengths, number_words, join_words, place_lines, read_texts)
    if all(is_kept(loop) for loop in loops):
        return
    if not job.config.quiet:
        sys.stderr.write("compiling the inner loops, once on this machine\n")
    with job.counters.timed("build"):
        TextTokenizer(job.tokenizer, max_length=job.max_length, word_cache="run")
        warm_up()
