"""Blocks of text in, blocks of vectors out: keeps the server busy and the rows in order.

Two halves, in two threads: :meth:`Feeder.prepare` turns a block into tokens while
:meth:`Feeder.run` has the batches of the block before it at the server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.batcher import Batch, fill, plan_batches
from headrace.blocks import Block
from headrace.config import EmbedConfig, IdType
from headrace.contract import Contract
from headrace.progress import Counters
from headrace.records import BadRow, parse
from headrace.tokenizer import TextTokenizer
from headrace.tokens import Tokens
from headrace.transport import Slot, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A block that is ready to be embedded.

    Attributes:
        file: the input that it comes from.
        first_row: number of its first record in the whole run.
        bytes_done: bytes of input, as stored, up to its end.
        tokens: of every row; those of a bad row stand for an empty text and are not used.
        ids: the id column, or None.
        bad: its bad rows.
    """

    file: str
    first_row: int
    bytes_done: int
    tokens: Tokens
    ids: pa.Array | None
    bad: tuple[BadRow, ...]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """bool[rows]; False at the bad rows."""
        valid = np.ones(len(self.tokens.truncated), np.bool_)
        valid[[bad.row for bad in self.bad]] = False
        return valid


@dataclass(frozen=True, slots=True)
class Embedded:
    """A block whose vectors are there.

    Attributes:
        block: the block.
        vectors: float32[rows, dimension]; undefined at the bad rows.
    """

    block: Prepared
    vectors: NDArray[np.float32]


@dataclass(slots=True)
class _Job:
    block: Prepared
    vectors: NDArray[np.float32]
    waiting: int = 0
    sent: bool = False
    tokens_done: int = 0


class Feeder:
    """Prepares blocks and embeds them, several batches in flight, blocks out in order.

    Args:
        config: the run's settings.
        contract: the model's settings.
        tokenizer: makes the tokens.
        transport: reaches the server.
        counters: where to count; shared with the rest of the run.
    """

    def __init__(
        self,
        config: EmbedConfig,
        contract: Contract,
        tokenizer: TextTokenizer,
        transport: Transport,
        counters: Counters,
    ) -> None:
        self._config = config
        self._contract = contract
        self._tokenizer = tokenizer
        self._transport = transport
        self._counters = counters
        self._dimension = config.truncate_dim or contract.dimension
        self._bytes_finished = 0

    def prepare(self, block: Block, *, id_field: str | None, id_type: IdType) -> Prepared:
        """Parses and tokenizes a block; of a bad row nothing is sent to the server."""
        with self._counters.timed("parse"):
            records = parse(
                block, text_field=self._config.text_field, id_field=id_field, id_type=id_type
            )
        with self._counters.timed("tokenize"):
            tokens = self._tokenizer.encode(records.texts)
        return Prepared(
            file=block.file,
            first_row=block.first_row,
            bytes_done=block.bytes_done,
            tokens=tokens,
            ids=records.ids,
            bad=records.bad,
        )

    def run(
        self, blocks: Iterable[Prepared], progress: Callable[[], None] = lambda: None
    ) -> Iterator[Embedded]:
        """Embeds ``blocks`` and yields them in the same order.

        Batches of the next block go out before the last ones of this block are back.

        Args:
            blocks: what :meth:`prepare` made.
            progress: called after each answer.

        Raises:
            ServerError: the server failed a batch or is gone.
        """
        jobs: deque[_Job] = deque()
        for block in blocks:
            vectors = np.empty((len(block.tokens.truncated), self._dimension), np.float32)
            job = _Job(block, vectors)
            jobs.append(job)
            rows = np.flatnonzero(block.valid)
            for batch in plan_batches(block.tokens.lengths, rows, self._contract):
                while (slot := self._transport.acquire()) is None:
                    self._collect()
                    self._locate(jobs[0])
                    progress()
                self._submit(job, batch, slot)
            job.sent = True
            while jobs and jobs[0].sent and not jobs[0].waiting:
                yield self._finished(jobs.popleft())
        while jobs:
            while jobs[0].waiting:
                self._collect()
                self._locate(jobs[0])
                progress()
            yield self._finished(jobs.popleft())

    def _submit(self, job: _Job, batch: Batch, slot: Slot) -> None:
        with self._counters.timed("pack"):
            ids, mask = slot.shaped(len(batch.rows), batch.length)
            fill(batch, job.block.tokens, self._contract.pad_id, ids, mask)
            slot.tag = (job, batch)
            self._transport.submit(slot)
        job.waiting += 1

    def _collect(self) -> None:
        with self._counters.timed("wait"):
            slot = self._transport.collect()
        job, batch = slot.tag
        assert slot.vectors is not None
        job.vectors[batch.rows] = self._cut(slot.vectors)
        self._transport.release(slot)
        job.waiting -= 1
        tokens = int(job.block.tokens.lengths[batch.rows].sum())
        job.tokens_done += tokens
        counters = self._counters
        counters.rows += len(batch.rows)
        counters.tokens += tokens
        counters.padded_tokens += len(batch.rows) * batch.length
        counters.batches += 1

    def _locate(self, oldest: _Job) -> None:
        """Says how far into the input the oldest block's answers reach, by tokens."""
        done = oldest.tokens_done / max(1, len(oldest.block.tokens.ids))
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

    def _finished(self, job: _Job) -> Embedded:
        counters = self._counters
        counters.rows += len(job.block.bad)
        counters.bad_rows += len(job.block.bad)
        counters.truncated_rows += int(np.count_nonzero(job.block.tokens.truncated))
        counters.bytes_done = self._bytes_finished = job.block.bytes_done
        return Embedded(job.block, job.vectors)
