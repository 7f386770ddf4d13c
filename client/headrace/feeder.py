"""Blocks of text in, blocks of vectors out: keeps the server busy and the rows in order.

Two halves, in two threads: :meth:`Feeder.prepare` turns a block into tokens while
:meth:`Feeder.run` has the batches of the block before it at the server.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.ahead import Ahead
from headrace.batcher import Batch, compile_loops, fill, plan_batches
from headrace.blocks import BadRow, Block, IdColumn
from headrace.config import EmbedConfig
from headrace.contract import Contract
from headrace.errors import BadRowError, ServerLostError
from headrace.progress import Counters
from headrace.records import parse
from headrace.sharing import Pace
from headrace.tokenizer import TextTokenizer
from headrace.tokens import Tokens
from headrace.transport import Slot, Transport

NO_NUMBER = "the model gives NaN for it; see its weights, or try --precision fp32"
_POLL_SECONDS = 0.2  # how often whoever waits looks up


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A block that is ready to be embedded.

    Attributes:
        index: number of the block in the run.
        file: the input that it comes from.
        first_row: number of its first record in the whole run.
        bytes_done: bytes of input, as stored, up to its end.
        input: number of the input that it comes from.
        checksum: see :attr:`headrace.blocks.Block.checksum`.
        careful: whether its batches go to the server one at a time, with no other beside them.
        tokens: of every row; those of a bad row stand for an empty text and are not used.
        ids: the id column, or None.
        bad: its bad rows.
    """

    index: int
    file: str
    first_row: int
    bytes_done: int
    input: int
    checksum: int
    careful: bool = False
    tokens: Tokens
    ids: pa.Array | None
    bad: tuple[BadRow, ...]

    @property
    def rows(self) -> int:
        """How many records the block has."""
        return len(self.tokens.truncated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A block whose vectors are there.

    Attributes:
        index: number of the block in the run.
        file: the input that it comes from.
        first_row: number of its first record in the whole run.
        bytes_done: bytes of input, as stored, up to its end.
        input: number of the input that it comes from.
        checksum: see :attr:`headrace.blocks.Block.checksum`.
        rows: records in the block.
        ids: the id column, or None.
        bad: its bad rows.
        vectors: float32 or float16[rows, dimension], as the run writes, NaN in the bad rows; valid
            until the next block is asked for. None where they are in the output already.
        truncated_rows: rows cut to ``max_length``.
        tokens: tokens of the rows, special tokens included, padding not.
        padded_tokens: tokens computed, padding included.
        batches: batches sent.
    """

    index: int
    file: str
    first_row: int
    bytes_done: int
    input: int
    checksum: int
    rows: int
    ids: pa.Array | None
    bad: tuple[BadRow, ...]
    vectors: NDArray[np.floating] | None
    truncated_rows: int
    tokens: int
    padded_tokens: int
    batches: int

    @property
    def valid(self) -> NDArray[np.bool_]:
        """bool[rows]; False at the bad rows."""
        return valid_rows(self.rows, self.bad)


@dataclass(slots=True)
class _Job:
    block: Prepared
    lengths: NDArray[np.int64]
    vectors: NDArray[np.floating]
    waiting: int = 0
    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    batches: int = 0
    sent: Batch | None = None  # the last one


Place = Callable[[Prepared], "NDArray[np.floating]"]


class Feeder:
    """Prepares blocks and embeds them, several batches in flight, blocks out in order.

    Args:
        config: the run's settings.
        contract: the model's settings.
        tokenizer: makes the tokens.
        transport: reaches the server.
        counters: where to count; shared with the rest of the run.
        place: gives the array to put a block's vectors in, [rows, dimension]; by default one of
            the feeder's own, used again for later blocks.
        busy: part of the time for which each of the transport's slots is to be busy.
        stopping: says whether no further block is to be begun.
    """

    def __init__(
        self,
        config: EmbedConfig,
        contract: Contract,
        tokenizer: TextTokenizer,
        transport: Transport,
        counters: Counters,
        *,
        place: Place | None = None,
        busy: float = 1.0,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._contract = contract
        self._tokenizer = tokenizer
        self._transport = transport
        self._counters = counters
        counters.tokenized = tokenizer.counts
        self._dimension = config.truncate_dim or contract.dimension
        self._bytes_finished = counters.bytes_resumed
        self._place = place or self._take
        self._own = place is None
        self._spare: list[NDArray[np.floating]] = []
        self._stopping = stopping
        self._pace = Pace(busy, transport.slots) if busy < 1 else None
        self._jobs: deque[_Job] = deque()
        self._again: deque[Prepared] = deque()
        warm_up()  # now, and not when the first block is there

    def prepare(self, block: Block, ids: IdColumn) -> Prepared:
        """Parses and tokenizes a block; of a bad row nothing is sent to the server.

        Raises:
            BadRowError: a row is bad, with ``on_error="fail"``.
        """
        with self._counters.timed("parse"):
            records = parse(
                block,
                text_field=self._config.text_field,
                id_field=ids.field,
                id_type=ids.json_type,
            )
        if records.bad and self._config.on_error == "fail":
            bad = records.bad[0]
            raise BadRowError(
                f"{block.place_of(bad)}: {bad.reason}; mend it, or pass --on-error null or skip"
            )
        with self._counters.timed("tokenize"):
            tokens = self._tokenizer.encode(records.texts)
        return Prepared(
            index=block.index,
            file=block.file,
            first_row=block.first_row,
            bytes_done=block.bytes_done,
            input=block.input,
            checksum=block.checksum,
            tokens=tokens,
            ids=records.ids,
            bad=records.bad,
        )

    def run(
        self,
        blocks: Ahead[Prepared],
        progress: Callable[[], None] = lambda: None,
        idle: Callable[[], None] = lambda: None,
    ) -> Iterator[Embedded]:
        """Embeds ``blocks`` and yields them in the same order.

        Batches of the next block go out before the last ones of this block are back. Where the
        server is lost, see :meth:`take_up`.

        Args:
            blocks: what :meth:`prepare` made.
            progress: called after each answer.
            idle: called before it waits for a block with nothing else to do.

        Raises:
            ServerLostError: the server failed a batch or is gone.
            ServerError: what it answers is not what its settings promise.
        """
        jobs = self._jobs
        while True:
            if not jobs:
                idle()
            alone = bool(jobs) and jobs[-1].block.careful
            block = None if alone else self._next(blocks, progress, wait=not jobs)
            if block is not None:
                job = _Job(block, block.tokens.lengths, self._place(block))
                jobs.append(job)
                for batch in self._planned(job):
                    while (slot := self._free_slot(job)) is None:
                        self._collect(self._resting())
                        self._locate(jobs[0])
                        progress()
                    self._submit(job, batch, slot)
            elif not jobs:
                return
            elif jobs[0].waiting:
                self._collect()
                self._locate(jobs[0])
                progress()
            while jobs and not jobs[0].waiting:
                yield from self._finished(jobs.popleft())

    @property
    def in_flight(self) -> list[int]:
        """Numbers of the blocks that have batches at the server."""
        return [job.block.index for job in self._jobs if job.waiting]

    def take_up(self, transport: Transport, careful: Callable[[int], bool]) -> None:
        """Has the blocks that are not finished sent again, when the server was lost.

        Args:
            transport: to the server that is there now.
            careful: says of a block whether its batches are to go one at a time.
        """
        self._transport = transport
        self._again.extendleft(
            replace(job.block, careful=careful(job.block.index)) for job in reversed(self._jobs)
        )
        for job in self._jobs:
            self._counters.rows -= job.rows
            self._counters.tokens -= job.tokens
            self._counters.padded_tokens -= job.padded_tokens
            self._counters.batches -= job.batches
        self._jobs.clear()

    def _free_slot(self, job: _Job) -> Slot | None:
        in_flight = self._transport.in_flight
        if job.block.careful and in_flight:
            return None
        if self._pace is not None and (seconds := self._pace.seconds(in_flight)):
            if in_flight:
                return None  # there is an answer to be waited for meanwhile
            with self._counters.timed("wait"):
                while seconds and not self._stopping():
                    time.sleep(min(seconds, _POLL_SECONDS))
                    seconds = self._pace.seconds(0)
        return self._transport.acquire()

    def _planned(self, job: _Job) -> list[Batch]:
        with self._counters.timed("pack"):
            rows = np.flatnonzero(valid_rows(job.block.rows, job.block.bad))
            return list(plan_batches(job.lengths, rows, self._contract))

    def _next(
        self, blocks: Ahead[Prepared], progress: Callable[[], None], *, wait: bool
    ) -> Prepared | None:
        """Returns the block to begin; None where there is none yet or, with ``wait``, no more."""
        if self._again:
            return self._again.popleft()
        if not wait:
            return None if self._stopping() else blocks.take(0)
        with self._counters.timed("starve"):
            while not (blocks.ended or self._stopping()):
                if (block := blocks.take(_POLL_SECONDS)) is not None:
                    return block
                progress()
        return None

    def _submit(self, job: _Job, batch: Batch, slot: Slot) -> None:
        with self._counters.timed("pack"):
            ids, mask = slot.shaped(len(batch.rows), batch.length)
            fill(batch, job.block.tokens, self._contract.pad_id, ids, mask)
            slot.tag = (job, batch)
            job.sent = batch
            self._transport.submit(slot)
        job.waiting += 1

    def _resting(self) -> float | None:
        """Returns how long to wait for an answer where a slot rests, and is free after that."""
        if self._pace is None:
            return None
        return self._pace.seconds(self._transport.in_flight) or None

    def _collect(self, within: float | None = None) -> None:
        try:
            with self._counters.timed("wait"):
                slot = self._transport.collect(within)
        except ServerLostError as error:
            alone = self._jobs[-1]
            if alone.block.careful and alone.sent is not None:
                error.block, error.rows = alone.block.index, tuple(alone.sent.rows.tolist())
            raise
        if slot is None:
            return
        if self._pace is not None:
            self._pace.answered(slot.sent)
        job, batch = slot.tag
        assert slot.vectors is not None
        with self._counters.timed("scatter"):
            with np.errstate(over="ignore"):  # beyond float16 is infinity, as documented
                job.vectors[batch.rows] = self._cut(slot.vectors)
            self._transport.release(slot)
        job.waiting -= 1
        job.rows += len(batch.rows)
        tokens = int(job.lengths[batch.rows].sum())
        padded = len(batch.rows) * batch.length
        job.tokens += tokens
        job.padded_tokens += padded
        job.batches += 1
        counters = self._counters
        counters.rows += len(batch.rows)
        counters.tokens += tokens
        counters.padded_tokens += padded
        counters.batches += 1

    def _locate(self, oldest: _Job) -> None:
        """Says how far into the input the oldest block's answers reach, by tokens."""
        done = oldest.tokens / max(1, len(oldest.block.tokens.ids))
        here = oldest.block.bytes_done - self._bytes_finished
        self._counters.bytes_done = self._bytes_finished + int(done * here)

    def _cut(self, vectors: NDArray[np.floating]) -> NDArray[np.floating]:
        """Shortens vectors of a server that answers more dimensions than were asked for."""
        if vectors.shape[1] == self._dimension:
            return vectors
        cut = vectors[:, : self._dimension].astype(np.float32)
        if self._contract.normalized:
            norms = np.linalg.norm(cut, axis=1, keepdims=True)
            cut /= np.maximum(norms, 1e-12)
        return cut

    def _take(self, block: Prepared) -> NDArray[np.floating]:
        spare = self._spare.pop() if self._spare else None
        if spare is None or len(spare) < block.rows:
            spare = np.empty((block.rows, self._dimension), self._config.dtype)
        return spare

    def _finished(self, job: _Job) -> Iterator[Embedded]:
        block, counters = job.block, self._counters
        truncated = int(np.count_nonzero(block.tokens.truncated))
        bad = (*block.bad, *self._not_numbers(job))
        counters.rows += len(block.bad)
        counters.bad_rows += len(bad)
        counters.truncated_rows += truncated
        counters.bytes_done = self._bytes_finished = block.bytes_done
        vectors = job.vectors[: block.rows]
        vectors[[each.row for each in bad]] = np.nan
        yield Embedded(
            index=block.index,
            file=block.file,
            first_row=block.first_row,
            bytes_done=block.bytes_done,
            input=block.input,
            checksum=block.checksum,
            rows=block.rows,
            ids=block.ids,
            bad=tuple(sorted(bad, key=lambda each: each.row)),
            vectors=vectors,
            truncated_rows=truncated,
            tokens=job.tokens,
            padded_tokens=job.padded_tokens,
            batches=job.batches,
        )
        if self._own:
            self._spare.append(job.vectors)

    def _not_numbers(self, job: _Job) -> list[BadRow]:
        """Returns the rows for which the model gives NaN, which else would look like bad rows.

        Raises:
            BadRowError: there is one, with ``on_error="fail"``.
        """
        block = job.block
        vectors = job.vectors[: block.rows]
        # Dividing by a norm that is none spreads it over the whole vector.
        parts = vectors[:, :1] if self._contract.normalized else vectors
        wrong = np.isnan(parts).any(1)
        if not wrong.any():
            return []
        wrong[[each.row for each in block.bad]] = False
        rows = np.flatnonzero(wrong).tolist()
        if rows and self._config.on_error == "fail":
            raise BadRowError(
                f"{block.file}, row {block.first_row + rows[0]} of the run: {NO_NUMBER}; or pass "
                f"--on-error null or skip"
            )
        return [BadRow(row, None, NO_NUMBER) for row in rows]


def warm_up() -> None:
    """Loads, or compiles, the loops of parsing and batching, and imports what they need."""
    compile_loops()
    data = b'{"text": "a"}\n'
    block = Block(
        index=0,
        file="",
        format="jsonl",
        data=data,
        first_row=0,
        first_line=1,
        rows=1,
        bytes_done=len(data),
    )
    parse(block, text_field="text", id_field=None, id_type="string")


def valid_rows(rows: int, bad: Iterable[BadRow]) -> NDArray[np.bool_]:
    """Returns bool[rows], False at the bad rows."""
    valid = np.ones(rows, np.bool_)
    valid[[each.row for each in bad]] = False
    return valid
