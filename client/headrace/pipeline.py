"""Wires the stages of one run: a config and a server in, a report out.

Small inputs, and engines that need the processor themselves, are served from this process: a
thread reads and prepares blocks ahead, the caller's thread keeps the server busy and writes. Large
ones go through feeder processes, and this process only reads, hands out and keeps the order.
"""

from __future__ import annotations

import ctypes
import gc
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

from headrace.budget import Budget, feeders_within
from headrace.choices import block_rows, check_settings, choose_feeders, choose_prompt, part_of
from headrace.config import EmbedConfig
from headrace.errors import (
    ChangedInputError,
    DamagedInputError,
    UsageError,
)
from headrace.fingerprint import job_of
from headrace.inputs import Input, total_bytes
from headrace.manifest import BlockRecord
from headrace.output import Output
from headrace.progress import Counters, ProgressLine
from headrace.reading import Reading
from headrace.recovery import Lifeline, Recovery
from headrace.report import Report
from headrace.sinks import partial_folder
from headrace.stopping import Interrupted, Stop
from headrace.transport import Connection, sweep
from headrace.ways import Inline, Job, Nothing, Pooled, compile_once

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
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
    job = Job(config, connection, tokenizer, prompt, max_length, counters, recovery, stop)
    way: Inline | Pooled | Nothing = Nothing()
    try:
        sweep()  # the shared memory of runs that were killed, also where nothing is left to do
        if not output.complete:
            if alone:
                _tune_allocator(keep=feeders > 0)
            compile_once(job)
            with Pooled(job, feeders, output) if feeders else Inline(job) as way, stop.heeded():
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


def _within_limit(
    config: EmbedConfig, connection: Connection, inputs: list[Input], rows: int
) -> tuple[int, int]:
    """Returns how many feeders a run has, and the memory that its processes may take."""
    slots = part_of(config, connection, 0).slots
    budget = Budget.of(config, connection.contract, rows, slots)
    wanted = choose_feeders(config, connection.contract, inputs)
    if config.share < 1:
        wanted = min(wanted, slots)  # each has at least one batch at the server
    asked = config.feeders != "auto"
    feeders = feeders_within(budget, wanted, config.memory_limit, asked=asked)
    return feeders, budget.total(feeders)


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
