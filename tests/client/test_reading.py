"""The blocks of a run: what is skipped, what is compared, and what ends them."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.config import EmbedConfig
from headrace.errors import DamagedInputError, InputError, UsageError
from headrace.inputs import find_inputs
from headrace.manifest import BlockRecord
from headrace.progress import Counters
from headrace.reading import Reading


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(
        "".join(json.dumps({"id": row, "text": f"text {row}"}) + "\n" for row in range(20))
    )
    return path


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def read(counters):
    """A reading of some files in blocks of four rows."""

    def go(*paths, done=(), stop=lambda: False, output="out.parquet", **settings):
        config = EmbedConfig(
            inputs=tuple(map(str, paths)), output=Path(output), model="small", **settings
        )
        return Reading(config, find_inputs(config.inputs), 4, counters, done=done, stop=stop)

    return go


def records_of(blocks):
    return [
        BlockRecord(
            block=block.index,
            input=block.input,
            first_row=block.first_row,
            rows=block.rows,
            checksum=block.checksum,
            bytes_done=block.bytes_done,
            written=block.first_row + block.rows,
            **dict.fromkeys(
                (
                    *("data_bytes", "error_bytes", "bad_rows", "truncated_rows"),
                    *("tokens", "padded_tokens", "batches"),
                ),
                0,
            ),
        )
        for block in blocks
    ]


@pytest.mark.parametrize("done", range(6))
def test_blocks_that_are_done_are_not_given_out(read, counters, source, done):
    all_of_them = list(read(source).blocks())
    assert len(all_of_them) == 5
    reading = read(source, done=records_of(all_of_them[:done]))
    left = list(reading.blocks())
    assert left == all_of_them[done:]
    assert (reading.count, reading.ended, reading.failure) == (5, True, None)
    if done:
        assert counters.bytes_done == all_of_them[done - 1].bytes_done


def test_ids_are_those_of_the_first_block_even_if_it_is_done(read, source):
    with source.open("a") as file:
        file.write('{"id": "x", "text": "y"}\n')
    first = read(source)
    records = records_of(list(first.blocks())[:2])
    assert first.ids.type == pa.int64()
    second = read(source, done=records)
    next(second.blocks())
    assert second.ids == first.ids


@pytest.mark.parametrize("change", ["input", "first_row", "rows", "checksum"])
@pytest.mark.parametrize("number", [0, 2])
def test_a_block_that_is_not_what_it_was_is_refused(read, source, change, number):
    records = records_of(read(source).blocks())
    records[number] = replace(records[number], **{change: 99})
    reading = read(source, done=records[:3])
    assert list(reading.blocks()) == []
    assert isinstance(reading.failure, UsageError)
    line = 4 * number + 1
    assert str(reading.failure).startswith(f"{source}, from line {line} on: is not what it was")
    assert not reading.ended


def test_changed_text_is_refused_and_what_is_not_done_yet_is_not_compared(read, source):
    records = records_of(read(source).blocks())
    source.write_text(source.read_text().replace("text 9", "Text 9"))
    assert len(list(read(source, done=records[:2]).blocks())) == 3
    reading = read(source, done=records[:3])
    assert list(reading.blocks()) == []
    assert "from line 9 on" in str(reading.failure)


@pytest.mark.parametrize("lines", [0, 8, 16])
def test_fewer_blocks_than_were_done_are_refused(read, source, lines):
    records = records_of(read(source).blocks())
    source.write_text("".join(source.read_text().splitlines(keepends=True)[:lines]))
    reading = read(source, done=records)
    assert list(reading.blocks()) == []
    assert isinstance(reading.failure, UsageError)
    assert f"the inputs end after {lines} records" in str(reading.failure)
    assert not reading.ended


def test_damage_ends_the_blocks_and_is_kept(read, tmp_path):
    path = tmp_path / "in.txt.gz"
    text = "".join(f"line {number * 7919 % 1009}\n" for number in range(1000)).encode()
    path.write_bytes(gzip.compress(text)[:-200])
    reading = read(path)
    blocks = list(reading.blocks())
    assert isinstance(reading.damage, DamagedInputError)
    assert reading.ended
    assert reading.failure is None
    assert b"".join(block.data for block in blocks) == text[: sum(len(b.data) for b in blocks)]
    again = read(path, done=records_of(blocks))
    assert list(again.blocks()) == []
    assert again.ended
    assert str(again.damage) == str(reading.damage)
    path.write_bytes(path.read_bytes()[:-400])
    shorter = read(path, done=records_of(blocks))
    assert list(shorter.blocks()) == []
    assert isinstance(shorter.failure, UsageError)


def test_a_failure_is_kept_and_the_blocks_before_it_are_given_out(read, source, tmp_path):
    second = tmp_path / "second.jsonl"
    second.write_text('{"text": "x"}\n')
    reading = read(source, second)
    blocks = reading.blocks()
    found = [next(blocks)]
    second.unlink()
    found += blocks
    assert len(found) == 5
    assert isinstance(reading.failure, InputError)
    assert "second.jsonl" in str(reading.failure)
    assert not reading.ended


def test_an_input_that_grows_while_it_is_read_is_a_failure(read, source):
    reading = read(source)
    blocks = reading.blocks()
    next(blocks)
    with source.open("a") as file:
        file.write('{"id": 99, "text": "late"}\n')
    list(blocks)
    assert isinstance(reading.failure, InputError)
    assert "--extend" in str(reading.failure)


def test_an_error_of_another_kind_is_not_kept(read, source, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("headrace.reading.read_blocks", fail)
    with pytest.raises(ZeroDivisionError):
        list(read(source).blocks())


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("done", [0, 2])
def test_once_it_is_to_stop_no_more_blocks_are_read(read, source, after, done):
    records = records_of(read(source).blocks())[:done]
    asked = []

    def stop():
        asked.append(None)
        return len(asked) > after

    reading = read(source, done=records, stop=stop)
    found = list(reading.blocks())
    assert [block.index for block in found] == list(range(done, after))
    assert reading.count == after
    assert not reading.ended
    assert reading.failure is None
