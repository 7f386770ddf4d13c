"""Wires the stages of one run: a config and a server in, a report out.

Small inputs, and engines that need the processor themselves, are served from this process: a
thread reads and prepares blocks ahead, the caller's thread keeps the server busy and writes. Large
ones go through feeder processes, and this process only reads, hands out and keeps the order.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np

from headrace import keptwords
from headrace.ahead import Ahead
from headrace.blocks import Block, name_rows
from headrace.budget import Budget, feeders_within
from headrace.config import EmbedConfig
from headrace.contract import Contract
from headrace.errors import (
    ChangedInputError,
    DamagedInputError,
    MachineError,
    ServerLostError,
    UsageError,
)
from headrace.feeder import Embedded, Feeder, Prepared, warm_up
from headrace.feederpool import FeederPool
from headrace.fingerprint import job_of
from headrace.handover import Setup, batch_of
from headrace.inputs import Input, total_bytes
from headrace.kernels.batches import cut_lengths
from headrace.kernels.compiled import is_kept
from headrace.kernels.lines import place_lines, read_texts
from headrace.kernels.words import join_words, number_words
from headrace.manifest import BlockRecord
from headrace.output import Output
from headrace.progress import Counters, ProgressLine
from headrace.reading import Reading
from headrace.recovery import Lifeline, Recovery
from headrace.report import Report
from headrace.sharing import Part
from headrace.sinks import partial_folder
from headrace.stopping import Interrupted, Stop
from headrace.tokenizer import TextTokenizer
from headrace.transport import Connection, leftovers, sweep

SMALL_BYTES = 2 << 20  # of input as stored: less is done before another process is up
FEEDERS_AUTO_MAX = 16
_WINDOW_BATCHES = 16
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_WINDOW_ROWS = (1024, 32768)
_WINDOW_BYTES = 32 << 20
_VERSIONS_OF = ("headrace", "numba", "numpy", "pyarrow", "tokenizers", "tritonclient")


def run(
    config: EmbedConfig,
    connection: Connection,
    tokenizer: Path,
    inputs: list[Input],
    *,
    counters: Counters | None = None,
    alone: bool = False,
    lifeline: Lifeline | None = None,
    stop: Stop | None = None,
) -> tuple[Report, DamagedInputError | None]:
    """Embeds the inputs through a running server; goes on where an earlier run of the job stopped.

    Args:
        config: the run's settings.
        connection: the model on its server.
        tokenizer: the model's ``tokenizer.json``.
        inputs: what to read, as found by :func:`headrace.sources.find_inputs`.
        counters: where to count; may hold the seconds that came before.
        alone: whether this process does nothing else, so that its allocator and its garbage
            collector can be tuned.
        lifeline: gets the server back where it is lost.
        stop: by which the run can be asked to stop.

    Returns:
        The report, and the damage that ended the reading early, if there was some: the rows
        before it are written.

    Raises:
        UsageError: the settings do not fit the model, the inputs or the job as it was begun.
        BadRowError: a bad row was met with ``on_error="fail"``.
        MachineError: the server, an input or the output failed. What is durable stays, and the
            error has a note that says so.
        Interrupted: the run was asked to stop; the same holds.
    """
    contract = connection.contract
    check_settings(config, contract)
    prompt, prompt_source = choose_prompt(config, contract)
    max_length = config.max_length or contract.max_length
    counters = counters or Counters()
    stop = stop or Stop()
    rows = block_rows(config, contract)
    identity = job_of(
        config, contract, inputs, prompt=prompt, max_length=max_length, block_rows=rows
    )
    feeders, memory_bytes = _within_limit(config, connection, inputs, rows)
    line = ProgressLine(total_bytes(inputs), quiet=config.quiet)
    output = Output.open(config, contract, identity, inputs)
    for told in _found(output, inputs, config):
        line.notice(told)
    if output.done:
        counters.bytes_done = counters.bytes_resumed = output.done[-1].bytes_done
    seconds, cpu_seconds, in_order = 0.0, 0.0, False
    reading = Reading(config, inputs, rows, counters, done=output.done, stop=stop)
    recovery = Recovery(connection, lifeline, line.notice)
    job = _Job(config, connection, tokenizer, prompt, max_length, counters, recovery, stop)
    way: _Inline | _Pooled | _Nothing = _Nothing()
    try:
        sweep()  # the shared memory of runs that were killed, also where nothing is left to do
        if not output.complete:
            if alone:
                _tune_allocator(keep=feeders > 0)
            _compile_once(job)
            with _Pooled(job, feeders, output) if feeders else _Inline(job) as way, stop.heeded():
                if alone:
                    gc.freeze()  # what is there now stays: collections need not look at it
                start, cpu_start = time.perf_counter(), time.process_time()
                line.start()
                for embedded in way.embedded(reading, lambda: line.update(counters)):
                    with counters.timed("write"):
                        output.write(embedded, reading.ids.type)
                    line.update(counters)
                in_order = True
                _check_finished(reading, output, stop)
                with counters.timed("write"):
                    output.finish(reading.ids.type)
                seconds = time.perf_counter() - start
                cpu_seconds = time.process_time() - cpu_start + way.feeders_cpu_seconds
    except BaseException as error:
        kept = output.keep(wait=in_order or not stop())  # at a second signal not even for the disk
        if kept and not output.complete:
            error.add_note(_how_to_go_on(config, kept, error))
        raise
    finally:
        line.close()
    way.keep_words()
    report = Report(
        output=str(config.output),
        errors_file=output.errors_file,
        resumed_rows=output.resumed_rows,
        **_totals(output.records),
        seconds=seconds,
        rows_per_second=(output.rows - output.resumed_rows) / seconds if seconds else 0.0,
        stage_seconds=dict(counters.seconds),
        stage_cpu_seconds=dict(counters.cpu_seconds),
        cpu_seconds=cpu_seconds,
        memory_bytes=memory_bytes,
        feeders=feeders,
        feeder_deaths=way.feeder_deaths,
        server_losses=recovery.losses,
        word_cache=way.word_cache,
        **asdict(counters.tokenized),
        model=contract.name,
        model_id=contract.model_id,
        precision=contract.precision,
        engine=f"{contract.engine} {contract.engine_version}",
        dimension=config.truncate_dim or contract.dimension,
        dtype=config.dtype,
        max_length=max_length,
        prompt=prompt,
        prompt_source=prompt_source,
        transport=way.transport,
        transport_reason=way.transport_reason,
        server=recovery.connection.server,
        inputs=tuple(each.name for each in inputs),
        damage=str(reading.damage) if reading.damage else None,
        versions=_versions(),
    )
    return report, reading.damage


def _check_finished(reading: Reading, output: Output, stop: Stop) -> None:
    """Checks, when no block is in flight any more, that all of the inputs is embedded."""
    if reading.failure is not None:
        raise reading.failure
    if not (reading.ended and len(output.records) == reading.count):
        raise Interrupted(stop.number or signal.SIGINT)


def _totals(records: Sequence[BlockRecord]) -> dict[str, Any]:
    """Returns what the report tells of a whole job."""
    counts = ("bad_rows", "truncated_rows", "tokens", "padded_tokens", "batches")
    totals = {name: sum(getattr(each, name) for each in records) for name in counts}
    padded = totals.pop("padded_tokens")
    padding = 1 - totals["tokens"] / padded if padded else 0.0
    return {"rows": records[-1].written if records else 0, "padding": padding, **totals}


def _found(output: Output, inputs: list[Input], config: EmbedConfig) -> Iterator[str]:
    """Says what of earlier runs was found."""
    if output.useless:
        yield f"{partial_folder(config.output)} had no manifest, so nothing in it was of use"
    if output.done:
        yield _resumed(output, inputs)


def _resumed(output: Output, inputs: list[Input]) -> str:
    """Says what of a job is done already, and what is left."""
    last = output.done[-1]
    ends = list(accumulate(each.size or 0 for each in inputs))
    left = sum(
        number > last.input or (number == last.input and (end > last.bytes_done or size is None))
        for number, (end, size) in enumerate(zip(ends, (each.size for each in inputs), strict=True))
    )
    of = f"{left:,} of {len(inputs):,} {'file' if len(inputs) == 1 else 'files'}"
    return f"going on: {last.written:,} rows are done already, {of} left"


def _how_to_go_on(config: EmbedConfig, kept: int, error: BaseException) -> str:
    rows = f"{kept:,} rows are kept in {partial_folder(config.output)}"
    # Such as would come again, or say themselves what to do.
    if isinstance(error, UsageError | ChangedInputError) or "--overwrite" in str(error):
        return rows
    how = "the same command without --overwrite" if config.overwrite else "the same command"
    return f"{rows}; {how} goes on from there"


def block_rows(config: EmbedConfig, contract: Contract) -> int:
    """Returns the most rows of a block.

    Enough batches of the model's that few are padded much, and that requests are few; not so many
    that the vectors of a block, of which a feeder has two or three, take much memory.
    """
    if config.block_rows is not None:
        return config.block_rows
    largest = contract.max_batch
    vector = (config.truncate_dim or contract.dimension) * np.dtype(config.dtype).itemsize
    least, most = _WINDOW_ROWS
    return max(least, min(most, _WINDOW_BATCHES * largest, _WINDOW_BYTES // vector))


def choose_feeders(config: EmbedConfig, contract: Contract, inputs: list[Input]) -> int:
    """Returns how many feeder processes a run has; 0 does all in this process."""
    if config.feeders != "auto":
        return config.feeders
    size = total_bytes(inputs)
    if contract.engine == "openvino" or (size is not None and size < SMALL_BYTES):
        return 0
    return max(1, min(FEEDERS_AUTO_MAX, len(os.sched_getaffinity(0))))


def _within_limit(
    config: EmbedConfig, connection: Connection, inputs: list[Input], rows: int
) -> tuple[int, int]:
    """Returns how many feeders a run has, and the memory that its processes may take."""
    slots = _part(config, connection, 0).slots
    budget = Budget.of(config, connection.contract, rows, slots)
    wanted = choose_feeders(config, connection.contract, inputs)
    if config.share < 1:
        wanted = min(wanted, slots)  # each has at least one batch at the server
    asked = config.feeders != "auto"
    feeders = feeders_within(budget, wanted, config.memory_limit, asked=asked)
    return feeders, budget.total(feeders)


def _part(config: EmbedConfig, connection: Connection, feeders: int) -> Part:
    """Returns how many batches each feeder, or this process, has at the server, and how long."""
    each = max(1, feeders)
    if config.share < 1:
        return Part.of(config.share, connection.contract, connection.instances / each)
    return Part(max(2, -(-connection.slots // each)), 1.0)


def check_settings(config: EmbedConfig, contract: Contract) -> None:
    """Checks that a model can do what the config asks for.

    Raises:
        UsageError: it cannot; the message says which setting and why.
    """
    if config.max_length is not None and config.max_length > contract.length_limit:
        raise UsageError(
            f"--max-length {config.max_length}: the entry {contract.name} takes at most "
            f"{contract.length_limit} tokens; if the model takes more, build it with longer "
            f"--buckets"
        )
    if config.truncate_dim is not None and config.truncate_dim > contract.dimension:
        raise UsageError(
            f"--truncate-dim {config.truncate_dim}: vectors of {contract.name} have only "
            f"{contract.dimension} dimensions"
        )
    if config.normalize != contract.normalized:
        have, want = ("does", "--no-normalize") if contract.normalized else ("does not", "")
        raise UsageError(
            f"the model {contract.name} on the server {have} normalise its vectors; "
            f"build a variant with: headrace build MODEL {want}".rstrip()
        )
    if config.engine not in {"auto", contract.engine}:
        raise UsageError(
            f"--engine {config.engine}: the model {contract.name} on the server is computed by "
            f"{contract.engine}; leave --engine out, or name another model"
        )
    if config.precision not in {"auto", contract.precision}:
        raise UsageError(
            f"--precision {config.precision}: the model {contract.name} on the server computes in "
            f"{contract.precision}; build a variant with: headrace build MODEL --precision "
            f"{config.precision}"
        )


def choose_prompt(config: EmbedConfig, contract: Contract) -> tuple[str, str]:
    """Returns the text to put in front of every row, and why it is that.

    Raises:
        UsageError: the model has no prompt of that name.
    """
    if config.prompt is not None:
        return config.prompt, "--prompt"
    if config.prompt_name is not None:
        if config.prompt_name not in contract.prompts:
            known = ", ".join(sorted(contract.prompts)) or "none at all"
            raise UsageError(
                f"--prompt-name {config.prompt_name}: {contract.model_id} has no such prompt; "
                f"it has: {known}"
            )
        return contract.prompts[config.prompt_name], f"--prompt-name {config.prompt_name}"
    if contract.default_prompt is not None:
        name = contract.default_prompt
        return contract.prompts[name], f"the model's default, {name!r}; --prompt '' for none"
    return "", "none asked for"


@dataclass(frozen=True, slots=True)
class _Job:
    """What every way of running a run needs."""

    config: EmbedConfig
    connection: Connection
    tokenizer: Path
    prompt: str
    max_length: int
    counters: Counters
    recovery: Recovery
    stop: Stop


class _Nothing:
    """Nothing: the job was complete but for the name of its output."""

    feeder_deaths = 0
    word_cache = "not used"
    transport = "none"
    transport_reason = "nothing was left to do"

    def keep_words(self) -> None:
        """There are none."""


class _Inline:
    """Everything in this process."""

    feeders_cpu_seconds = 0.0
    feeder_deaths = 0

    def __init__(self, job: _Job) -> None:
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
                busy=_part(job.config, job.connection, 0).busy,
                stopping=job.stop,
            )
        except BaseException:  # an interruption, while its loops are loaded
            self._transport.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def embedded(self, reading: Reading, progress: Callable[[], None]) -> Iterator[Embedded]:
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
            self._job.config.transport, slots=_part(self._job.config, connection, 0).slots
        )
        self.transport = self._transport.name

    def keep_words(self) -> None:
        words = self._tokenizer.new_words()
        if self._job.config.word_cache == "keep" and words is not None:
            keptwords.save(self._tokenizer.hash, [words])

    def _prepared(self, reading: Reading) -> Iterator[Prepared]:
        for block in reading.blocks():
            self._blocks[block.index] = block
            yield self._feeder.prepare(block, reading.ids)


class _Pooled:
    """Through feeder processes, which put the vectors into the output where they can."""

    def __init__(self, job: _Job, feeders: int, output: Output) -> None:
        self._job = job
        self.feeders_cpu_seconds = 0.0
        self.feeder_deaths = 0
        self.transport = ""
        connection, config = job.connection, job.config
        part = _part(config, connection, feeders)
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
        yield from self._pool.run(reading, progress, first=self._first)
        self.feeders_cpu_seconds = self._pool.cpu_seconds

    def keep_words(self) -> None:
        words = [batch_of(each) for each in self._pool.learnt]
        if self._job.config.word_cache == "keep" and words:
            keptwords.save(self._tokenizer_hash, words)


def _compile_once(job: _Job) -> None:
    """Compiles the inner loops, if that was not done before, so that no two feeders do it."""
    loops = (cut_lengths, number_words, join_words, place_lines, read_texts)
    if all(is_kept(loop) for loop in loops):
        return
    if not job.config.quiet:
        sys.stderr.write("compiling the inner loops, once on this machine\n")
    with job.counters.timed("build"):
        TextTokenizer(job.tokenizer, max_length=job.max_length, word_cache="run")
        warm_up()


def _tune_allocator(*, keep: bool) -> None:
    """Has glibc keep big arrays for the next ones, or give each back to the system (mallopt(3)).

    By itself it gives them back only until the first one is freed, then keeps ever larger ones on
    its heap, which many kinds of them leave in pieces: a long run in one process would grow. The
    reader's are few and all alike, and fresh memory is slow.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 64 << 20 if keep else 256 << 10)
        if keep:
            mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _VERSIONS_OF}
