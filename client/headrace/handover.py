"""What passes between the main process of a run and its feeders: messages and shared memory.

Messages are small and pickled; text and vectors lie in memory that both map.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import errors
from headrace.blocks import Block, IdColumn
from headrace.config import EmbedConfig
from headrace.errors import HeadraceError, MachineError
from headrace.feeder import Embedded
from headrace.progress import Counters
from headrace.sinks import NpyRows

# Damage, which has more arguments than its message, is met by the reader alone.
_ERRORS: dict[str, type[HeadraceError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, HeadraceError)
    and kind is not errors.DamagedInputError
}


class Arena:
    """Memory that processes share through an inherited descriptor; it goes with the last of them.

    Args:
        descriptor: of the memory; None makes some.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("headrace") if descriptor is None else descriptor
        self._map: mmap.mmap | None = None

    def view(self, size: int) -> mmap.mmap:
        """Maps at least ``size`` bytes; arrays over an earlier, smaller map stay valid."""
        try:
            # Always: the other side may have shrunk it, and a map reaches no further than that.
            if os.fstat(self.descriptor).st_size < size:
                os.ftruncate(self.descriptor, size)
            if self._map is None or len(self._map) < size:
                self._map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        except OSError as error:
            raise MachineError(
                f"{size / 2**20:.0f} MiB of memory to share with feeders cannot be had "
                f"({error.strerror}); raise the limit (ulimit -f, memory), or pass --feeders 0"
            ) from error
        return self._map

    def array(self, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
        """Returns an array at the start of the memory."""
        kind = np.dtype(dtype)
        count = shape[0] * shape[1]
        view = self.view(max(1, count * kind.itemsize))
        return np.frombuffer(view, kind, count).reshape(shape)

    def shrink(self, size: int) -> None:
        """Gives back what lies beyond ``size`` bytes; nobody may be using it."""
        if os.fstat(self.descriptor).st_size > size:
            self._map = None
            os.ftruncate(self.descriptor, size)

    def close(self) -> None:
        """Closes the descriptor; the memory goes when the last map does."""
        self._map = None
        os.close(self.descriptor)
        self.descriptor = -1  # whoever is late gets an error, not somebody else's file


def pack(block: Block, arena: Arena) -> tuple[Block, int]:
    """Puts a block's data into shared memory.

    Returns:
        The block without its data, and the bytes that the data takes.
    """
    data = to_bytes(block.data) if block.format == "parquet" else block.data
    arena.view(max(1, len(data)))[: len(data)] = data
    return replace(block, data=b""), len(data)


def unpack(block: Block, size: int, arena: Arena) -> Block:
    """Returns the block with its data, copied out of shared memory; undoes :func:`pack`."""
    data: bytes = arena.view(max(1, size))[:size]
    return replace(block, data=batch_of(data) if block.format == "parquet" else data)


def to_bytes(batch: pa.RecordBatch) -> memoryview:
    """Returns a batch as Arrow IPC bytes, of a slice no more than the slice."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def batch_of(data: bytes) -> pa.RecordBatch:
    """Returns the batch that :func:`to_bytes` was given."""
    return pa.ipc.open_stream(data).read_next_batch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The first message to a feeder.

    Attributes:
        config: the run's settings.
        server: ``HOST:PORT`` of the gRPC endpoint.
        model: name of the model there.
        tokenizer: path of its ``tokenizer.json``.
        prompt: text in front of every row.
        max_length: tokens a row is cut to.
        dimension: length of a vector as written.
        slots: batches that the feeder may have at the server.
        busy: part of the time for which each of them is to be there.
        in_place: where it writes rows; None puts the vectors into the block's arena.
        texts: descriptors of the arenas of text, by slot.
        vectors: descriptors of the arenas of vectors, by slot.
    """

    config: EmbedConfig
    server: str
    model: str
    tokenizer: Path
    prompt: str
    max_length: int
    dimension: int
    slots: int
    busy: float
    in_place: NpyRows | None
    texts: tuple[int, ...] = ()
    vectors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A block for a feeder.

    Attributes:
        block: the block without its data.
        slot: number of the arenas that hold its data and, later, its vectors.
        size: bytes of the data.
        ids: where the run's ids come from.
        words: words that other feeders have learnt, each as of :func:`to_bytes`.
        careful: whether its batches go to the server one at a time.
    """

    block: Block
    slot: int
    size: int
    ids: IdColumn
    words: tuple[bytes, ...] = ()
    careful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A feeder can take blocks.

    Attributes:
        transport: how its batches reach the server.
        transport_reason: why that way.
        word_cache: how it remembers words, or why not.
        dear_words: whether it wants to hear of words that others have learnt.
        tokenizer_hash: SHA-256 of the tokenizer's file.
    """

    transport: str
    transport_reason: str
    word_cache: str
    dear_words: bool
    tokenizer_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a feeder is with the blocks that it has.

    Attributes:
        rows: rows done of blocks that are not.
        tokens: their tokens.
        padded_tokens: the same with padding.
    """

    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A block is embedded.

    Attributes:
        embedded: the block; its vectors are in the output, or in the slot's arena.
        words: words that the feeder has learnt since its last message, as of :func:`to_bytes`.
        counters: what the feeder has counted and timed since it began.
        cpu_seconds: its processor time since it was ready.
    """

    embedded: Embedded
    words: bytes | None
    counters: Counters = field(repr=False)
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A feeder cannot go on.

    Attributes:
        kind: name of the error's class.
        message: what it says; the whole trace where headrace did not expect it.
        index: number of the block whose fault it is, or None.
        rows: rows of the block that were alone at the server when it was lost.
    """

    kind: str
    message: str
    index: int | None = None
    rows: tuple[int, ...] = ()

    def error(self) -> HeadraceError:
        """Returns the error again."""
        if self.kind in _ERRORS:
            return _ERRORS[self.kind](self.message)
        return HeadraceError(f"internal error in a feeder; please report it:\n{self.message}")
