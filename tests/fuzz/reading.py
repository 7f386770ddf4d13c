"""A file read as a run reads it, with everything checked that holds for any file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import pyarrow as pa

from headrace import decompress, inputs
from headrace.blocks import Block
from headrace.decompress import Stored
from headrace.errors import DamagedInputError, HeadraceError, MachineError, UsageError
from headrace.handover import batch_of, to_bytes
from headrace.inputs import Input
from headrace.records import detect_id_type, parse
from headrace.sources import read_blocks

_LONGEST_MESSAGE = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How a file is cut into blocks."""

    block_bytes: int
    block_rows: int
    first_rows: int | None = None


@dataclass(slots=True)
class Reading:
    """What came out of a file.

    Attributes:
        rows: (line or row in the file, text or None where it is bad, id) of each.
        reasons: of the bad ones.
        cuts: (first row, first line, rows) of each block.
        error: what ended it, or None.
    """

    rows: list[tuple[int, str | None, Any]] = field(default_factory=list)
    reasons: list[tuple[int, str]] = field(default_factory=list)
    cuts: list[tuple[int, int, int]] = field(default_factory=list)
    error: HeadraceError | None = None


@contextmanager
def seams(chunk: int, gzip_chunk: int, read: int) -> Iterator[None]:
    """Has the decoders work in other steps, so that their seams lie elsewhere."""
    old = decompress._CHUNK, decompress._GZIP_CHUNK, decompress._READ
    decompress._CHUNK, decompress._GZIP_CHUNK, decompress._READ = chunk, gzip_chunk, read
    try:
        yield
    finally:
        decompress._CHUNK, decompress._GZIP_CHUNK, decompress._READ = old


def read_path(path: Path, limits: Limits, *, form: str, columns: Sequence[str]) -> Reading:
    """Reads a file by its name."""
    return _read(lambda: inputs.find_inputs([str(path)], format=form), limits, columns)


def read_pipe(data: bytes, limits: Limits, *, form: str, columns: Sequence[str]) -> Reading:
    """Reads the bytes from standard input, which is a pipe."""
    reader, writer = os.pipe()

    def feed() -> None:
        try:
            with os.fdopen(writer, "wb", buffering=0) as file:
                file.write(data)
        except BrokenPipeError:
            pass

    thread, old = Thread(target=feed), sys.stdin
    sys.stdin = os.fdopen(reader)
    thread.start()
    try:
        return _read(lambda: inputs.find_inputs(["-"], format=form), limits, columns)
    finally:
        sys.stdin.close()
        sys.stdin = old
        thread.join()


def read_dribble(
    data: bytes, chance: Random, limits: Limits, *, kind: str, columns: Sequence[str]
) -> Reading:
    """Reads the bytes from a stream that gives a few at a time."""

    class Dribble(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, chance.randint(1, 9)))

    stream = Input(name="s", format=kind, size=None, stream=Stored(Dribble(data), "s"))
    return _read(lambda: [stream], limits, columns)


def _read(find: Callable[[], list[Input]], limits: Limits, columns: Sequence[str]) -> Reading:
    reading = Reading()
    text, identifier = columns[0], columns[1] if len(columns) > 1 else None
    try:
        found = find()
        blocks = read_blocks(
            found,
            columns=columns,
            block_bytes=limits.block_bytes,
            block_rows=limits.block_rows,
            first_rows=limits.first_rows,
        )
        kind, done = None, 0
        for block in blocks:
            if kind is None and identifier:
                kind = detect_id_type(block, identifier) or "string"
            assert block.index == len(reading.cuts), "a block's number"
            assert block.first_row == len(reading.rows), "a block's first row"
            assert 1 <= block.rows <= limits.block_rows, f"rows of a block: {block.rows}"
            assert done <= block.bytes_done, "bytes done go back"
            assert block.bytes_done <= (found[0].size or 1 << 60), "more bytes done than there are"
            done = block.bytes_done
            reading.cuts.append((block.first_row, block.first_line, block.rows))
            _take(block, reading, text, identifier if block.format != "text" else None, kind)
    except (UsageError, DamagedInputError, MachineError) as error:
        message = str(error)
        assert message.isprintable(), f"not one line of printable characters: {message!r}"
        assert len(message) < _LONGEST_MESSAGE, f"a message of {len(message)} characters"
        # Its frames hold decoders, and those their windows.
        reading.error = error.with_traceback(None)
        error.__cause__ = error.__context__ = None
    return reading


def _take(
    block: Block, reading: Reading, text: str, identifier: str | None, kind: str | None
) -> None:
    records = parse(block, text_field=text, id_field=identifier, id_type=kind or "string")
    records.texts.validate(full=True)
    assert records.texts.type == pa.string(), records.texts.type
    assert len(records.texts) == block.rows, "rows of a block and of its texts"
    assert not records.texts.null_count, "a null among the texts"
    texts: list[str | None] = records.texts.to_pylist()
    numbers = list(range(block.first_line, block.first_line + block.rows))
    if block.format == "parquet":
        again = batch_of(to_bytes(block.data))
        assert again.equals(block.data) or again.to_pydict() == block.data.to_pydict(), "handover"
    elif block.format == "jsonl":
        lines = block.data.split(b"\n")
        numbers = [block.first_line + i for i, line in enumerate(lines) if line.strip(b" \t\r")]
    ids = [None] * block.rows if records.ids is None else records.ids.to_pylist()
    before = -1
    for bad in records.bad:
        assert before < bad.row, "the order of bad rows"
        assert bad.reason.isprintable(), f"not a line: {bad.reason!r}"
        assert texts[bad.row] == "", "the text of a bad row"
        assert bad.line == (None if block.format == "parquet" else numbers[bad.row]), "a bad line"
        before, texts[bad.row] = bad.row, None
        reading.reasons.append((len(reading.rows) + bad.row, bad.reason))
    reading.rows += zip(numbers, texts, ids, strict=True)
