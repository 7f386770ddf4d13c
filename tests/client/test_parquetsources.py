"""Parquet files as rows: any row groups, any types, and files that contradict themselves."""

from __future__ import annotations

import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.blocks import LIMITS, blocks_of, until_damage
from headrace.errors import UsageError
from headrace.inputs import find_inputs
from headrace.records import parse
from headrace.sources import column_type, read_blocks


def parquet(path, table, **options):
    pq.write_table(table, path, **options)
    return find_inputs([str(path)])


def rows_of(blocks):
    return [row for block in blocks for row in block.data.to_pylist()]


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.none() | st.text(max_size=8), max_size=30),
    limits=st.tuples(st.integers(1, 30), st.integers(1, 8)),
    group=st.integers(1, 12),
)
def test_parquet_rows(tmp_path, texts, limits, group):
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    inputs = parquet(tmp_path / "a.parquet", table, row_group_size=group)
    sizes = dict(zip(("block_bytes", "block_rows"), limits, strict=True))
    blocks = list(read_blocks(inputs, columns=["text", "id"], **sizes))
    assert rows_of(blocks) == [{"text": text, "id": i} for i, text in enumerate(texts)]
    for block in blocks:
        assert block.first_line == block.first_row == block.data.column("id")[0].as_py()
        assert block.rows == block.data.num_rows <= sizes["block_rows"]
        length = sum(len((text or "").encode()) for text in block.data.column("text").to_pylist())
        assert length <= sizes["block_bytes"] or block.rows == 1
    if blocks:
        assert blocks[-1].bytes_done == inputs[0].size


def test_parquet_paths(tmp_path):
    meta = [{"text": "a", "n": 1}, None, {"text": None, "n": 2}]
    table = pa.table({"meta": meta, "meta.flat": ["x", "y", "z"], "other": [1, 2, 3]})
    inputs = parquet(tmp_path / "a.parquet", table)
    blocks = list(read_blocks(inputs, columns=["meta.text", "meta.n"], **LIMITS))
    assert rows_of(blocks) == [
        {"meta.text": "a", "meta.n": 1},
        {"meta.text": None, "meta.n": None},
        {"meta.text": None, "meta.n": 2},
    ]
    blocks = list(read_blocks(inputs, columns=["meta.flat", "meta.flat"], **LIMITS))
    assert rows_of(blocks) == [{"meta.flat": text} for text in "xyz"]
    assert column_type(inputs[0], "meta.n") == pa.int64()
    assert column_type(inputs[0], "meta.nothing") is column_type(inputs[0], "nothing") is None


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
)
def test_parquet_string_types(tmp_path, kind):
    table = pa.table({"text": pa.array(["a", None, "b"]).cast(kind)})
    blocks = blocks_of(parquet(tmp_path / "a.parquet", table))
    assert rows_of(blocks) == [{"text": "a"}, {"text": None}, {"text": "b"}]
    texts = [
        t for b in blocks for t in parse(b, text_field="text", id_field=None, id_type="auto").texts
    ]
    assert [t.as_py() for t in texts] == ["a", "", "b"]


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (["nothing"], r"b\.parquet: no column 'nothing'; there are: text, n"),
        (["text.x"], r"no column 'text\.x'"),
        (["n"], "column 'n' is int64, not a string"),
        (["text", "nothing"], "no column 'nothing'"),
    ],
)
def test_parquet_columns_are_checked_first(tmp_path, columns, match):
    (tmp_path / "a.txt").write_bytes(b"hello\n")
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=match):
        read_blocks(find_inputs([str(tmp_path)]), columns=columns, **LIMITS)


@pytest.mark.parametrize("cut", [4, 12, 1000, -1])
def test_truncated_parquet_is_damage(tmp_path, cut):
    (tmp_path / "a.txt").write_bytes(b"hello\n")
    path = tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": [str(i) for i in range(1000)]}), path)
    path.write_bytes(path.read_bytes()[:cut])
    blocks, damage = until_damage(find_inputs([str(tmp_path)]))
    assert len(blocks) == 1
    assert damage.file == str(path)
    assert "\n" not in str(damage)


def test_corrupt_parquet_gives_the_groups_before(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [random.Random(i).randbytes(50).hex() for i in range(400)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, use_dictionary=False)
    meta = pq.ParquetFile(path).metadata
    start = meta.row_group(2).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(data)
    blocks, damage = until_damage(find_inputs([str(path)]), block_rows=100)
    assert [row["text"] for row in rows_of(blocks)] == texts[:200]
    assert damage.offset == start


def stored_table(path, directory=(b"", b""), **options):
    """Writes 30 rows in three row groups, with a part of the directory replaced; returns rows."""
    texts = [f"row {i} of it" for i in range(30)]
    table = pa.table({"text": texts, "id": range(30)})
    options = {"row_group_size": 10, "compression": "none", "use_dictionary": False, **options}
    pq.write_table(table, path, **options)
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    changed = re.sub(*directory, data[start:], count=1, flags=re.DOTALL)
    assert changed != data[start:] or not directory[0]
    path.write_bytes(data[:start] + changed)
    return [{"text": text, "id": i} for i, text in enumerate(texts)]


GROUP = rb"\x16..\x16\x14(?=\x26)"  # total_byte_size, num_rows: 10


@pytest.mark.parametrize("limits", [{}, {"block_bytes": 50}, {"block_rows": 7}])
@pytest.mark.parametrize(("rows", "read"), [(9, 19), (11, 20), (0, 10)])
def test_rows_that_a_row_group_lacks_are_damage(tmp_path, limits, rows, read):
    """Arrow itself says nothing."""
    path = tmp_path / "a.parquet"
    second = rb"(" + GROUP + rb".*?\x16..\x16)\x14(?=\x26)"
    table = stored_table(path, (second, rb"\1" + re.escape(bytes([2 * rows]))))
    assert [pq.read_metadata(path).row_group(i).num_rows for i in range(3)] == [10, rows, 10]
    blocks, damage = until_damage(find_inputs([str(path)]), ["text", "id"], **limits)
    assert rows_of(blocks) == table[:read]
    assert "row" in str(damage)


@pytest.mark.parametrize("total", [10, 60])
def test_rows_that_the_whole_file_lacks_are_damage(tmp_path, total):
    path = tmp_path / "a.parquet"
    table = stored_table(path, (rb"\x16<(?=\x19)", b"\x16" + bytes([2 * total])))
    assert pq.read_metadata(path).num_rows == total
    inputs = find_inputs([str(path)])
    blocks, damage = until_damage(inputs, ["text", "id"], block_rows=7)
    assert rows_of(blocks) == table
    assert all(block.bytes_done <= inputs[0].size for block in blocks)
    assert f"30 rows in all row groups, {total} in the directory" in str(damage)


@pytest.mark.parametrize("limits", [{}, {"block_bytes": 50}, {"block_rows": 5}])
def test_texts_and_ids_stay_together(tmp_path, limits):
    path = tmp_path / "a.parquet"
    table = stored_table(path)
    data = bytearray(path.read_bytes())
    page = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data[data.index(b"\x15\x14", page) + 1] = 2 * 8  # eight values in its page, not ten
    path.write_bytes(data)
    blocks, damage = until_damage(find_inputs([str(path)]), ["text", "id"], **limits)
    rows = rows_of(blocks)
    assert rows == table[: len(rows)]
    assert 10 <= len(rows) <= 18
    assert damage


@pytest.mark.parametrize("limits", [{}, {"block_bytes": 50}, {"block_rows": 7}])
def test_parquet_directory_that_contradicts_itself(tmp_path, limits):
    """A column that is never null and counts nulls: asked for it, Arrow ends the process."""
    path = tmp_path / "a.parquet"
    stored_table(path, (rb"\x15\x0c\x25\x02\x18\x04text", b"\x15\x0c\x25\x00\x18\x04text"))
    blocks, damage = until_damage(find_inputs([str(path)]), **limits)
    assert blocks == []
    assert damage.offset == 4


def test_parquet_names_that_are_not_utf8_are_damage(tmp_path):
    path = tmp_path / "a.parquet"
    stored_table(path, (b"\x02\x18\x04text", b"\x02\x18\x04te\xfft"))
    blocks, damage = until_damage(find_inputs([str(path)]))
    assert blocks == []
    assert str(damage).isprintable()


def test_parquet_names_that_nothing_hangs_on(tmp_path):
    path = tmp_path / "a.parquet"
    rows = stored_table(path, (b"\x19\x18\x04text", b"\x19\x18\x04te\xfft"))
    blocks, damage = until_damage(find_inputs([str(path)]), ["text", "id"], block_bytes=50)
    assert (rows_of(blocks), damage) == (rows, None)


def test_page_checksums_are_checked(tmp_path):
    path = tmp_path / "a.parquet"
    rows = stored_table(path, write_page_checksum=True)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"row 13 of it", b"row 13 of me", 1))
    blocks, damage = until_damage(find_inputs([str(path)]), ["text", "id"])
    assert rows_of(blocks) == rows[:10]
    assert "CRC" in str(damage)


def test_parquet_messages_are_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"te\nxt": ["a"], "\x1b[2J": ["b"]}), path)
    with pytest.raises(UsageError) as caught:
        blocks_of(find_inputs([str(path)]))
    assert str(caught.value).isprintable()


def test_parquet_blocks_of_small_row_groups_are_joined(tmp_path):
    ids = pa.array([str(i) for i in range(100)]).dictionary_encode()
    table = pa.table({"text": [str(i) for i in range(100)], "id": ids})
    inputs = parquet(tmp_path / "a.parquet", table, row_group_size=3)
    blocks = list(read_blocks(inputs, columns=["text", "id"], block_bytes=1 << 20, block_rows=30))
    assert [block.rows for block in blocks] == [30, 30, 30, 10]
    assert rows_of(blocks) == table.to_pylist()
