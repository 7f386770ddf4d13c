"""What passes between the main process and its feeders."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from headrace import errors
from headrace.blocks import Block
from headrace.handover import Arena, Failed, batch_of, pack, to_bytes, unpack


@pytest.fixture
def arena():
    made = Arena()
    yield made
    made.close()


def block_of(data, kind="jsonl", rows=1):
    return Block(
        index=3,
        file="f",
        format=kind,
        data=data,
        first_row=10,
        first_line=11,
        rows=rows,
        bytes_done=99,
    )


@pytest.mark.parametrize("data", [b"", b"x", b'{"text": "a"}\n' * 1000, "é\0".encode() * 70_000])
def test_bytes_come_out_as_they_went_in(arena, data):
    bare, size = pack(block_of(data), arena)
    assert bare.data == b""
    assert len(pickle.dumps(bare)) < 500
    other = Arena(arena.descriptor)
    assert unpack(bare, size, other) == block_of(data)


def test_a_batch_comes_out_as_it_went_in_though_it_was_a_slice(arena):
    batch = pa.record_batch({"text": [f"t{i}" for i in range(100)], "id": range(100)}).slice(7, 5)
    bare, size = pack(block_of(batch, "parquet", 5), arena)
    assert size < 2000
    again = unpack(bare, size, arena).data
    assert again.equals(batch)


def test_data_that_was_unpacked_does_not_change_with_the_next_block(arena):
    first = pa.record_batch({"text": ["one"]})
    got = unpack(*pack(block_of(first, "parquet"), arena), arena)
    pack(block_of(pa.record_batch({"text": ["two"]}), "parquet"), arena)
    assert got.data.equals(first)


def test_an_arena_grows_shrinks_and_grows_again(arena):
    other = Arena(arena.descriptor)
    for size in (10, 5_000_000, 3, 8_000_000):
        data = bytes([size % 251]) * size
        bare, taken = pack(block_of(data), arena)
        assert unpack(bare, taken, other).data == data
        arena.shrink(1000)
    numbers = arena.array((1000, 3), "float16")
    numbers[:] = 2
    np.testing.assert_array_equal(other.array((1000, 3), "float16"), 2)
    kept = other.array((2, 3), "float16")
    other.view(9_000_000)
    assert kept[1, 2] == 2


def test_what_was_shrunk_can_be_written_by_the_other_side_again(arena):
    other = Arena(arena.descriptor)
    other.array((3_000_000, 1), "float32")[:] = 1
    arena.shrink(1000)
    again = other.array((3_000_000, 1), "float32")
    again[:] = 2
    assert arena.array((3_000_000, 1), "float32")[-1, 0] == 2


def test_a_batch_as_bytes():
    batch = pa.record_batch({"word": [b"x", b"y"], "ids": [[1, 2], None]})
    assert batch_of(to_bytes(batch)).equals(batch)
    assert len(to_bytes(pa.record_batch({"n": range(10_000)}).slice(5, 2))) < 1000


@pytest.mark.parametrize(
    "kind",
    [
        *("BadRowError", "MachineError", "MissingDependencyError", "OutputError", "ServerError"),
        *("TokenizationError", "UsageError"),
    ],
)
def test_errors_keep_their_kind_and_words(kind):
    error = pickle.loads(pickle.dumps(Failed(kind, "what and where"))).error()
    assert type(error) is getattr(errors, kind)
    assert str(error) == "what and where"


def test_an_unexpected_error_keeps_its_trace():
    error = Failed("KeyError", "Traceback ... KeyError: 5").error()
    assert type(error) is errors.HeadraceError
    assert "KeyError: 5" in str(error)
