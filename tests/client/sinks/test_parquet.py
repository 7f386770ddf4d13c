from __future__ import annotations

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import OutputError
from headrace.sinks import ParquetSink, parquet, stage_again
from headrace.sinks.parquet import group_rows

RNG = np.random.default_rng(7)
DTYPES = ["float32", "float16"]


def make_rows(count, dimension, bad=()):
    vectors = RNG.standard_normal((count, dimension)).astype(np.float32)
    valid = np.ones(count, np.bool_)
    valid[list(bad)] = False
    return vectors, valid


def open_on(output, dimension, *, dtype="float32", id_type=None, blocks=()):
    rows = output.with_name("rows.arrows")
    return ParquetSink(
        output, rows, dimension=dimension, dtype=dtype, id_type=id_type, blocks=blocks
    )


def write_parquet(output, vectors, valid, blocks=None, *, dtype="float32", ids=None):
    id_type = None if ids is None else ids.type
    sink = open_on(output, vectors.shape[1], dtype=dtype, id_type=id_type)
    start = 0
    for rows in blocks or [len(vectors)]:
        here = slice(start, start + rows)
        sink.write(vectors[here], valid[here], None if ids is None else ids[here], start)
        start += rows
    sink.finish()
    sink.close()


def expect(vectors, valid, dtype):
    return [
        row.tolist() if ok else None
        for row, ok in zip(vectors.astype(dtype).astype(np.float32), valid, strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.lists(st.integers(0, 40), max_size=8),
    dimension=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    id_type=st.sampled_from([None, pa.int64(), pa.string(), pa.large_string()]),
    group_values=st.sampled_from([1, 16, 150, 1 << 20]),
    data=st.data(),
)
def test_round_trip(tmp_path_factory, blocks, dimension, dtype, id_type, group_values, data):
    rows = sum(blocks)
    bad = data.draw(st.sets(st.integers(0, rows - 1)) if rows else st.just(set()))
    vectors, valid = make_rows(rows, dimension, bad)
    ids = None
    if id_type == pa.int64():
        ids = pa.array(RNG.integers(-(2**63), 2**63 - 1, rows), id_type)
    elif id_type is not None:
        ids = pa.array([None if i % 7 == 3 else f"é{i}" for i in range(rows)], id_type)
    output = tmp_path_factory.mktemp("parquet") / "out.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_GROUP_VALUES", group_values)
        write_parquet(output, vectors, valid, blocks, dtype=dtype, ids=ids)
        group = group_rows(dimension)

    table = pq.read_table(output)
    values = pa.float32() if dtype == "float32" else pa.float16()
    element = pa.field("element", values, nullable=False)
    assert table.schema == pa.schema(
        [("id", id_type or pa.int64()), ("embedding", pa.list_(element, dimension))]
    )
    assert table["id"].to_pylist() == (list(range(rows)) if ids is None else ids.to_pylist())
    read = [None if v is None else [float(x) for x in v] for v in table["embedding"].to_pylist()]
    assert read == expect(vectors, valid, dtype)
    metadata = pq.ParquetFile(output).metadata
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [group] * (rows // group) + [rows % group] * (rows % group > 0)


def test_the_file_does_not_depend_on_how_rows_arrive(tmp_path):
    vectors, valid = make_rows(5000, 16, bad=range(0, 5000, 11))
    ids = pa.array([f"row {i}" for i in range(5000)])
    files = []
    for blocks in ([5000], [1, 1023, 2000, 0, 1976]):
        output = tmp_path / "out.parquet"
        write_parquet(output, vectors, valid, blocks, ids=ids)
        files.append(output.read_bytes())
    assert files[0] == files[1]


def test_a_row_group_is_bounded_by_rows_and_by_values():
    assert group_rows(1) == 65536
    assert group_rows(384) == 32768
    assert group_rows(1024) == 16384
    assert group_rows(4096) == 4096
    assert group_rows(1 << 30) == 1


def test_plain_pages_without_dictionary(tmp_path):
    write_parquet(tmp_path / "out.parquet", *make_rows(2000, 64))
    column = pq.ParquetFile(tmp_path / "out.parquet").metadata.row_group(0).column(1)
    assert column.compression == "UNCOMPRESSED"
    assert set(column.encodings) == {"PLAIN", "RLE"}
    assert not column.is_stats_set


def test_the_first_row_numbers_the_rows(tmp_path):
    output = tmp_path / "out.parquet"
    sink = open_on(output, 2)
    sink.write(*make_rows(2, 2), None, 10)
    sink.write(*make_rows(3, 2), None, 2**40)
    sink.finish()
    sink.close()
    expected = [10, 11, 2**40, 2**40 + 1, 2**40 + 2]
    assert pq.read_table(output)["id"].to_pylist() == expected


def test_the_callers_buffers_may_be_used_again(tmp_path):
    output = tmp_path / "out.parquet"
    vectors, valid = make_rows(3, 4, bad=[1])
    expected = expect(vectors, valid, "float32")
    sink = open_on(output, 4)
    sink.write(vectors, valid, None, 0)
    vectors[:] = 9
    valid[:] = True
    sink.finish()
    sink.close()
    assert pq.read_table(output)["embedding"].to_pylist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_pandas_reads_it(tmp_path, dtype):
    vectors, valid = make_rows(50, 8, bad=[0, 17])
    write_parquet(tmp_path / "out.parquet", vectors, valid, dtype=dtype)
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert frame["id"].tolist() == list(range(50))
    assert frame["embedding"].isna().tolist() == (~valid).tolist()
    np.testing.assert_array_equal(
        np.stack(frame["embedding"][valid]), vectors[valid].astype(dtype), strict=True
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_duckdb_reads_it(tmp_path, dtype):
    vectors, valid = make_rows(50, 8, bad=[0, 17])
    output = tmp_path / "out.parquet"
    write_parquet(output, vectors, valid, dtype=dtype, ids=pa.array([f"r{i}" for i in range(50)]))
    rows = duckdb.execute("SELECT id, embedding FROM read_parquet(?)", [str(output)]).fetchall()
    assert [row[0] for row in rows] == [f"r{i}" for i in range(50)]
    assert [row[1] for row in rows] == expect(vectors, valid, dtype)
    cosine = duckdb.execute(
        "SELECT array_cosine_similarity(embedding::FLOAT[8], embedding::FLOAT[8]) "
        "FROM read_parquet(?) WHERE id = 'r1'",
        [str(output)],
    ).fetchone()
    assert cosine == pytest.approx((1.0,), abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(tmp_path, dtype):
    output = tmp_path / "out.parquet"
    write_parquet(output, *make_rows(0, 8), dtype=dtype)
    assert pq.read_table(output).num_rows == 0
    assert pq.read_table(output).schema.field("embedding").type.list_size == 8
    assert pd.read_parquet(output).columns.tolist() == ["id", "embedding"]
    assert duckdb.execute("SELECT * FROM read_parquet(?)", [str(output)]).fetchall() == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_invalid_rows(tmp_path, dtype):
    vectors, valid = make_rows(5, 3, bad=range(5))
    vectors[:] = np.nan
    write_parquet(tmp_path / "out.parquet", vectors, valid, dtype=dtype)
    assert pq.read_table(tmp_path / "out.parquet")["embedding"].to_pylist() == [None] * 5


@pytest.mark.parametrize(
    ("id_type", "ids"),
    [
        (pa.string(), None),
        (pa.string(), pa.array([1, 2])),
        (None, pa.array(["a", "b"])),
        (pa.string(), pa.array(["a"])),
    ],
)
def test_ids_of_another_type_or_number_are_refused(tmp_path, id_type, ids):
    output = tmp_path / "out.parquet"
    sink = open_on(output, 4, id_type=id_type)
    with pytest.raises(ValueError, match="ids must be"):
        sink.write(*make_rows(2, 4), ids, 0)
    sink.close()


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_sink_goes_on_where_one_stopped(tmp_path, dtype):
    vectors, valid = make_rows(300, 8, bad=[7, 299])
    ids = pa.array([f"r{row}" for row in range(300)])
    write_parquet(tmp_path / "want.parquet", vectors, valid, dtype=dtype, ids=ids)
    output, ends = tmp_path / "out.parquet", []
    first = open_on(output, 8, dtype=dtype, id_type=pa.string())
    for start, stop in ((0, 100), (100, 130), (130, 200)):
        first.write(vectors[start:stop], valid[start:stop], ids[start:stop], start)
        first.sync()
        ends.append(first.size)
    first.close()  # of the last block nobody has noted that it was written
    second = open_on(output, 8, dtype=dtype, id_type=pa.string(), blocks=ends[:2])
    second.write(vectors[130:], valid[130:], ids[130:], 130)
    second.finish()
    second.close()
    assert output.read_bytes() == (tmp_path / "want.parquet").read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [[], [40], [1, 100, 101, 260]])
def test_a_complete_file_is_staged_again(tmp_path, monkeypatch, dtype, blocks):
    monkeypatch.setattr(parquet, "_GROUP_VALUES", 500)  # row groups of 32
    vectors, valid = make_rows(300, 8, bad=[7, 250, 299])
    ids = pa.array([None if row == 8 else row for row in range(300)])
    complete, output = tmp_path / "complete.parquet", tmp_path / "out.parquet"
    write_parquet(complete, vectors, valid, dtype=dtype, ids=ids)
    shape = {"whole": 300, "dimension": 8, "dtype": dtype}
    ends = stage_again(complete, output.with_name("rows.arrows"), blocks, **shape)
    assert len(ends) == len(blocks)
    kept = blocks[-1] if blocks else 0
    sink = open_on(output, 8, dtype=dtype, id_type=pa.int64(), blocks=ends)
    sink.write(vectors[kept:], valid[kept:], ids[kept:], kept)
    sink.finish()
    sink.close()
    assert output.read_bytes() == complete.read_bytes()


@pytest.mark.parametrize("harm", [(0, 64), (100, 2000), (0, 4000)])
def test_staged_rows_that_are_damaged_are_told_with_their_file(tmp_path, harm):
    output, rows = tmp_path / "out.parquet", tmp_path / "rows.arrows"
    sink = ParquetSink(output, rows, dimension=4, dtype="float32", id_type=pa.int64())
    sink.write(*make_rows(500, 4), pa.array(range(500)), 0)
    size = sink.size
    sink.close()
    with rows.open("r+b") as file:
        file.seek(harm[0])
        file.write(b"\xff" * (harm[1] - harm[0]))
    with pytest.raises(OutputError, match=r"rows\.arrows is damaged.* --overwrite to start anew"):
        open_on(output, 4, dtype="float32", id_type=pa.int64(), blocks=[size]).finish()


def test_an_error_of_the_thread_that_writes_is_raised_and_what_is_staged_stays(tmp_path):
    output = tmp_path / "missing" / "out.parquet"
    rows = tmp_path / "rows.arrows"
    sink = ParquetSink(output, rows, dimension=4, dtype="float32", id_type=None)
    sink._writer._thread.join()
    with pytest.raises(OutputError, match="No such file"):
        sink.write(*make_rows(5, 4), None, 0)
    sink.close()
    assert rows.stat().st_size > sink.size
