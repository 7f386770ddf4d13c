from __future__ import annotations

import errno
import os
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import OutputError
from headrace.sinks import ParquetSink, npy
from headrace.sinks.npy import HEADER_BYTES, PAGE_BYTES, NpySink, PageAlignedRows

RNG = np.random.default_rng(7)


def make_rows(count, dimension, bad=()):
    vectors = RNG.standard_normal((count, dimension)).astype(np.float32)
    valid = np.ones(count, np.bool_)
    valid[list(bad)] = False
    return vectors, valid


def write_npy(output, vectors, valid, blocks=None, *, dtype="float32"):
    sink = NpySink(output, dimension=vectors.shape[1], dtype=dtype)
    start = 0
    for rows in blocks or [len(vectors)]:
        sink.write(vectors[start : start + rows], valid[start : start + rows], None, start)
        start += rows
    sink.finish()
    sink.close()


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.lists(st.integers(0, 40), max_size=8),
    dimension=st.integers(1, 9),
    dtype=st.sampled_from(["float32", "float16"]),
    piece=st.sampled_from([16, 100, 1 << 20]),
    data=st.data(),
)
def test_round_trip(tmp_path_factory, blocks, dimension, dtype, piece, data):
    rows = sum(blocks)
    bad = data.draw(st.sets(st.integers(0, rows - 1)) if rows else st.just(set()))
    vectors, valid = make_rows(rows, dimension, bad)
    before = vectors.copy()
    output = tmp_path_factory.mktemp("npy") / "out.npy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npy, "_PIECE_BYTES", piece)
        write_npy(output, vectors, valid, blocks, dtype=dtype)

    expected = vectors.astype(dtype)
    expected[~valid] = np.nan
    np.testing.assert_array_equal(np.load(output), expected, strict=True)
    mapped = np.load(output, mmap_mode="r")
    assert mapped.offset == HEADER_BYTES
    assert mapped.flags.c_contiguous
    assert output.stat().st_size == HEADER_BYTES + expected.nbytes
    np.testing.assert_array_equal(vectors, before)
    assert list(output.parent.iterdir()) == [output]


def test_no_rows(tmp_path):
    output = tmp_path / "out.npy"
    write_npy(output, *make_rows(0, 384))
    assert np.load(output).shape == (0, 384)
    assert np.load(output).dtype == np.float32


def test_header_is_format_1_0_and_fits_any_size(tmp_path):
    sink = NpySink(tmp_path / "out.npy", dimension=65536, dtype="float32")
    sink.add(10**15)
    header = sink._header()
    sink.close()
    assert len(header) == HEADER_BYTES
    path = tmp_path / "header"
    path.write_bytes(header)
    with path.open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file)[0] == (10**15, 65536)


def test_garbage_in_an_invalid_row_is_neither_converted_nor_written(tmp_path, recwarn):
    vectors, valid = make_rows(3, 4, bad=[1])
    vectors[1] = 1e30
    write_npy(tmp_path / "out.npy", vectors, valid, dtype="float16")
    assert np.isnan(np.load(tmp_path / "out.npy")[1]).all()
    assert not recwarn.list


def test_values_beyond_float16_are_infinite_and_numpy_warns(tmp_path):
    vectors = np.array([[1.0, 70000.0, -70000.0, 65504.0]], np.float32)
    with pytest.warns(RuntimeWarning, match="overflow"):
        write_npy(tmp_path / "out.npy", vectors, np.ones(1, np.bool_), dtype="float16")
    assert np.load(tmp_path / "out.npy").tolist() == [[1.0, np.inf, -np.inf, 65504.0]]


def test_strided_vectors(tmp_path):
    vectors, valid = make_rows(10, 8)
    write_npy(tmp_path / "out.npy", vectors[:, ::2], valid)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors[:, ::2])


@pytest.mark.parametrize(
    ("vectors", "valid"),
    [
        (np.zeros((2, 3), np.float32), np.ones(2, np.bool_)),
        (np.zeros((2, 4), np.float64), np.ones(2, np.bool_)),
        (np.zeros(4, np.float32), np.ones(4, np.bool_)),
        (np.zeros((2, 4), np.float32), np.ones(3, np.bool_)),
        (np.zeros((2, 4), np.float32), np.ones(2, np.uint8)),
    ],
)
@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_misfits_are_refused_and_leave_the_sink_as_it_was(tmp_path, vectors, valid, ending):
    output = tmp_path / f"out.{ending}"
    settings = {"dimension": 4, "dtype": "float32"}
    if ending == "npy":
        sink = NpySink(output, **settings)
    else:
        sink = ParquetSink(output, tmp_path / "rows", id_type=None, **settings)
    with pytest.raises(ValueError, match="must be"):
        sink.write(vectors, valid, None, 0)
    sink.write(*make_rows(2, 4), None, 0)
    sink.finish()
    sink.close()
    assert output.exists()


@pytest.fixture
def rows_in_place(tmp_path):
    """Opens an output of float16 rows of 100 dimensions; returns the sink and its NpyRows."""
    sink = NpySink(tmp_path / "out.npy", dimension=100, dtype="float16")
    yield sink, sink.in_place
    sink.close()


def write_blocks(rows, edges, wanted):
    """Writes the blocks between ``edges`` out of order, from two rooms in turn."""
    rooms = [PageAlignedRows(rows), PageAlignedRows(rows)]
    for number, (start, stop) in enumerate(reversed(list(pairwise(edges)))):
        vectors = rooms[number % 2].array(start, stop - start)
        vectors[:] = wanted[start:stop]
        rows.write(vectors, start)


EDGES = [0, 1, 9000, 9021, 20_000, 40_000, 40_001, 48_000]


@pytest.mark.parametrize("direct", ["as it is", "no open", "no write", "half a page"])
def test_rows_written_in_place_are_the_rows(rows_in_place, tmp_path, monkeypatch, direct):
    sink, rows = rows_in_place
    wanted = np.random.default_rng(3).random((EDGES[-1], 100), np.float32).astype(np.float16)
    opened, written = os.open, os.pwrite
    past_cache: set[int] = set()
    sizes: list[int] = []

    def open_(path, flags, *rest):
        if flags & os.O_DIRECT and direct == "no open":
            raise OSError(errno.EINVAL, "no such flag")
        # Without the flag itself, which not every folder for tests can take.
        file = opened(path, flags & ~os.O_DIRECT, *rest)
        (past_cache.add if flags & os.O_DIRECT else past_cache.discard)(file)
        return file

    def pwrite(file, data, at):
        if file not in past_cache:
            return written(file, data, at)
        assert at % PAGE_BYTES == len(data) % PAGE_BYTES == 0
        assert np.frombuffer(data, np.uint8).ctypes.data % PAGE_BYTES == 0
        if direct == "no write":
            raise OSError(errno.EINVAL, "not here")
        sizes.append(len(data))
        if direct == "half a page":  # so that the rest cannot be written past the cache
            with rows.path.open("r+b") as buffered:
                return written(buffered.fileno(), data[: PAGE_BYTES + 512], at)
        return written(file, data, at)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", pwrite)
    write_blocks(rows, EDGES, wanted)
    monkeypatch.undo()
    sink.add(EDGES[-1])
    sink.finish()
    sink.close()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)
    assert (len(sizes) >= 4) == (direct in {"as it is", "half a page"})


def test_rows_that_lie_anywhere_are_written_too(rows_in_place, tmp_path):
    sink, rows = rows_in_place
    wanted = np.random.default_rng(4).random((20_000, 100), np.float32).astype(np.float16)
    rows.write(wanted, 0)
    sink.add(len(wanted))
    sink.finish()
    sink.close()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)


def test_an_error_of_the_disk_past_the_cache_is_told(rows_in_place, monkeypatch):
    _, rows = rows_in_place
    vectors = PageAlignedRows(rows).array(0, 20_000)

    opened, written = os.open, os.pwrite
    past_cache: set[int] = set()

    def open_(path, flags, *rest):
        file = opened(path, flags & ~os.O_DIRECT, *rest)
        (past_cache.add if flags & os.O_DIRECT else past_cache.discard)(file)
        return file

    def full(file, data, at):
        if file in past_cache:
            raise OSError(errno.ENOSPC, "full")
        return written(file, data, at)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="free space there"):
        rows.write(vectors, 0)


def test_another_sink_goes_on_where_one_stopped(tmp_path):
    vectors, valid = make_rows(30, 5, bad=[3, 29])
    write_npy(tmp_path / "want.npy", vectors, valid)
    first = NpySink(tmp_path / "out.npy", dimension=5, dtype="float32")
    first.write(vectors[:10], valid[:10], None, 0)
    first.sync()
    size = first.size
    first.write(vectors[10:25], valid[10:25], None, 10)  # and nobody has noted that
    first.close()
    second = NpySink(tmp_path / "out.npy", dimension=5, dtype="float32", size=size)
    assert second.rows == 10
    second.write(vectors[10:], valid[10:], None, 10)
    second.finish()
    second.close()
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "want.npy").read_bytes()
