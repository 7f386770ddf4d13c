import gzip
import io
import itertools
import random
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.blocks import checksum
from headrace.decompress import Stored
from headrace.errors import DamagedInputError, InputError, UsageError
from headrace.inputs import Input, find_inputs
from headrace.records import parse
from headrace.sources import column_type, read_blocks

BOM = b"\xef\xbb\xbf"
LIMITS = {"block_bytes": 1 << 20, "block_rows": 1000}
PIECES = [
    b"a",
    b"{}",
    b"\n",
    b"\n\n",
    b"\r\n",
    b"\r",
    b" ",
    b"\t",
    b"long line" * 5,
    b"\xc3\xa9",
    BOM,
]
CONTENT = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)


def reference(content, kind):
    """Returns (number of the line from 1, content) of every record, the slow and plain way."""
    lines = content.removeprefix(BOM).split(b"\n")
    last = lines.pop()
    lines = [line.removesuffix(b"\r") for line in lines] + ([last] if last else [])
    records = list(enumerate(lines, 1))
    if kind == "jsonl":
        records = [(number, line.strip(b" \t\r")) for number, line in records]
        return [(number, line) for number, line in records if line]
    return records


def stream(content, kind):
    """An input that is read from memory."""
    return Input(name="s", format=kind, size=None, stream=Stored(io.BytesIO(content), "s"))


def blocks_of(inputs, **limits):
    return list(read_blocks(inputs, columns=["text"], **{**LIMITS, **limits}))


def until_damage(inputs, columns=("text",), **limits):
    """Returns the blocks and the damage that ended them."""
    blocks = []
    try:
        for block in read_blocks(inputs, columns=columns, **{**LIMITS, **limits}):
            blocks.append(block)
    except DamagedInputError as damage:
        return blocks, damage
    return blocks, None


def check(blocks, content, kind, block_bytes, block_rows):
    """Checks everything that a block promises against the reference."""
    records = reference(content, kind)
    assert sum(block.rows for block in blocks) == len(records)
    taken = 0
    for index, block in enumerate(blocks):
        mine = reference(block.data, kind) if not block.data.startswith(BOM) else None
        if mine is None:  # a mark inside of the file is content
            mine = reference(b"\n" + block.data, kind)[kind == "text" :]
            mine = [(number - 1, line) for number, line in mine]
        expected = records[taken : taken + block.rows]
        assert [(number + block.first_line - 1, line) for number, line in mine] == expected
        assert (block.index, block.first_row) == (index, taken)
        assert 1 <= block.rows <= block_rows
        assert len(block.data) <= block_bytes or block.data.find(b"\n") in (-1, len(block.data) - 1)
        taken += block.rows


@given(CONTENT, st.sampled_from(["jsonl", "text"]), st.integers(1, 60), st.integers(1, 5))
@settings(deadline=None, max_examples=400)
def test_records_are_those_of_the_reference(content, kind, block_bytes, block_rows):
    blocks = blocks_of([stream(content, kind)], block_bytes=block_bytes, block_rows=block_rows)
    check(blocks, content, kind, block_bytes, block_rows)


@pytest.mark.parametrize("kind", ["jsonl", "text"])
@pytest.mark.parametrize(
    "content", [b'{"text":"\xc3\xa9"}\r\n\n \t\n{"a":1}\n{}', b"\n\n\r\n", b"", BOM]
)
def test_every_limit(content, kind):
    for block_bytes, block_rows in itertools.product(range(1, len(content) + 3), range(1, 7)):
        blocks = blocks_of([stream(content, kind)], block_bytes=block_bytes, block_rows=block_rows)
        check(blocks, content, kind, block_bytes, block_rows)


@given(st.lists(CONTENT, max_size=4), st.integers(1, 60), st.integers(1, 5), st.randoms())
@settings(deadline=None, max_examples=100)
def test_cuts_do_not_depend_on_how_it_is_stored(contents, block_bytes, block_rows, chance):
    def read(pack, size):
        class Some(io.BytesIO):
            def read(self, most=-1, /):
                return super().read(min(most, size()))

        inputs = [
            Input(name="s", format="jsonl", size=None, stream=Stored(Some(pack(content)), "s"))
            for content in contents
        ]
        blocks = blocks_of(inputs, block_bytes=block_bytes, block_rows=block_rows)
        return [(b.data, b.first_row, b.first_line, b.rows) for b in blocks]

    expected = read(bytes, lambda: 1 << 30)
    assert read(bytes, lambda: chance.randint(1, 9)) == expected
    assert read(zstandard.compress, lambda: chance.randint(1, 9)) == expected
    assert read(gzip.compress, lambda: chance.randint(1, 9)) == expected


def test_limits_are_filled(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"123456789\n" * 100)
    blocks = blocks_of(find_inputs([str(path)]), block_bytes=99)
    assert [block.rows for block in blocks] == [9] * 11 + [1]
    blocks = blocks_of(find_inputs([str(path)]), block_bytes=100)
    assert [block.rows for block in blocks] == [10] * 10
    blocks = blocks_of(find_inputs([str(path)]), block_rows=30)
    assert [block.rows for block in blocks] == [30, 30, 30, 10]
    assert [block.bytes_done for block in blocks] == [300, 600, 900, 1000]


def test_numbers_run_over_all_inputs(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"1\n2\n3")
    (tmp_path / "b.jsonl").write_bytes(b"\n{}\n")
    (tmp_path / "c.txt").write_bytes(b"")
    pq.write_table(pa.table({"text": ["x", "y"]}), tmp_path / "d.parquet")
    (tmp_path / "e.txt.zst").write_bytes(zstandard.compress(b"4\n5\n"))
    inputs = find_inputs([str(tmp_path)])
    blocks = blocks_of(inputs, block_rows=2)
    assert [(b.file[-9:], b.first_row, b.first_line, b.rows) for b in blocks] == [
        (str(tmp_path / "a.txt")[-9:], 0, 1, 2),
        (str(tmp_path / "a.txt")[-9:], 2, 3, 1),
        (str(tmp_path / "b.jsonl")[-9:], 3, 1, 1),
        (str(tmp_path / "d.parquet")[-9:], 4, 0, 2),
        (str(tmp_path / "e.txt.zst")[-9:], 6, 1, 2),
    ]
    assert [b.index for b in blocks] == list(range(5))
    assert blocks[-1].bytes_done == sum(item.size for item in inputs)
    done = [b.bytes_done for b in blocks]
    assert done == sorted(done)


def test_long_line_is_a_block_of_its_own(tmp_path):
    path = tmp_path / "a.txt.gz"
    long = random.Random(1).randbytes(5_000_000).hex().encode()
    path.write_bytes(gzip.compress(b"a\n" + long + b"\r\nb\n", 1))
    blocks = blocks_of(find_inputs([str(path)]), block_bytes=1000)
    assert [b.data for b in blocks] == [b"a\n", long + b"\r\n", b"b\n"]


def test_endless_line_is_refused(monkeypatch):
    monkeypatch.setattr("headrace.sources._LINE_MAX", 1000)
    with pytest.raises(UsageError, match="s, line 3: longer than"):
        blocks_of([stream(b"a\nb\n" + b"x" * 5_000_000, "text")], block_bytes=100)


def test_nul_bytes_are_content():
    (block,) = blocks_of([stream(b"a\0b\n\0\n", "text")])
    assert (block.data, block.rows) == (b"a\0b\n\0\n", 2)


def test_stdin(monkeypatch):
    content = b"".join(b'{"text": "%d"}\n' % i for i in range(1000))
    packed = zstandard.compress(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(packed))))
    blocks = blocks_of(find_inputs(["-"]), block_rows=300)
    assert b"".join(block.data for block in blocks) == content
    assert {block.file for block in blocks} == {"<stdin>"}
    assert blocks[-1].bytes_done == len(packed)


LINES = [b'{"text": "line %d %s"}\n' % (i, b"x" * (i % 5)) for i in range(30)]


@pytest.mark.parametrize("pack", [zstandard.compress, gzip.compress])
def test_every_truncation_gives_a_prefix_of_whole_records(tmp_path, pack):
    members = [pack(b"".join(LINES[i : i + 10])) for i in (0, 10, 20)]
    whole = b"".join(members)
    ends = list(itertools.accumulate(map(len, members), initial=0))
    path = tmp_path / ("a.jsonl.zst" if pack is zstandard.compress else "a.jsonl.gz")
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        blocks, damage = until_damage(find_inputs([str(path)]), block_rows=4)
        got = b"".join(block.data for block in blocks)
        assert got.endswith(b"\n") or not got
        assert b"".join(LINES).startswith(got)
        assert got.count(b"\n") >= 10 * [i for i, end in enumerate(ends) if end <= cut][-1]
        assert (damage is None) == (cut in ends)
        if damage:
            assert damage.file == str(path)


def test_line_cut_off_by_damage_is_no_record(tmp_path):
    frame = zstandard.ZstdCompressor().compressobj()
    data = frame.compress(b"first\nsecond\nthi") + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    blocks, damage = until_damage(find_inputs([str(path)]))
    assert [block.data for block in blocks] == [b"first\nsecond\n"]
    assert damage.offset == len(data)


@pytest.mark.parametrize("name", ["b.txt", "b.txt.gz", "b.parquet"])
def test_a_file_that_is_gone_by_its_turn(tmp_path, name):
    (tmp_path / "a.txt").write_bytes(b"x\n")
    if name == "b.parquet":
        pq.write_table(pa.table({"text": ["b"]}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(gzip.compress(b"x\n") if name.endswith("gz") else b"x\n")
    inputs = find_inputs([str(tmp_path)])
    blocks = read_blocks(inputs, columns=["text"], **LIMITS)
    (tmp_path / name).unlink()
    assert next(blocks).rows == 1
    with pytest.raises(InputError, match=name):
        next(blocks)


@pytest.mark.parametrize("change", ["grows", "shrinks", "is another", "is gone"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.parquet"])
def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, name, change):
    path = tmp_path / name
    texts = [f"line {number} {number**9}" for number in range(2000)]
    if name == "a.parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
    else:
        data = "\n".join(texts).encode()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    blocks = read_blocks(find_inputs([str(path)]), columns=["text"], block_bytes=99, block_rows=9)
    next(blocks)
    content = path.read_bytes()
    if change == "grows":
        path.write_bytes(content + b"\n")
    elif change == "shrinks":
        path.write_bytes(content[:-500])
    else:
        path.unlink()
        if change == "is another":
            path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: has (changed|disappeared)"):
        list(blocks)


def test_the_checksum_is_the_contents_whatever_lies_around_it(tmp_path):
    texts = pa.array(["ab", None, "", "déf", "g"] * 20)
    one = pa.record_batch({"text": texts})
    for kind in (pa.string(), pa.large_string()):
        cut = pa.record_batch({"text": texts.cast(kind)})
        assert checksum(cut.slice(15, 30)) == checksum(one.slice(5, 30))
    assert checksum(one.slice(0, 5)) != checksum(one.slice(1, 5))
    assert checksum(pa.record_batch({"text": ["ab", "c"]})) != checksum(
        pa.record_batch({"text": ["a", "bc"]})
    )
    assert checksum(one.slice(3, 0)) == 0
    assert checksum(b"ab") != checksum(b"ba")


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


def test_progress_never_goes_back(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"line\n" * 5) + b"garbage that is read with it")
    blocks, damage = until_damage(find_inputs([str(path)]), block_rows=3)
    done = [block.bytes_done for block in blocks]
    assert [block.rows for block in blocks] == [3, 2]
    assert done == sorted(done)
    assert damage


@given(
    content=st.lists(st.sampled_from([b"", b"a", b"b" * 40]), max_size=60).map(b"\n".join),
    first_rows=st.integers(1, 5),
    most_rows=st.integers(1, 20),
    chunk=st.integers(1, 30),
)
def test_blocks_grow_by_content_and_limits_alone(content, first_rows, most_rows, chunk):
    limits = {"block_bytes": 1 << 20, "block_rows": most_rows, "first_rows": first_rows}
    blocks = blocks_of([stream(content, "text")], **limits)
    rows, want = content.count(b"\n") + (not content.endswith(b"\n") and bool(content)), []
    limit = min(first_rows, most_rows)
    while sum(want) < rows:
        want.append(min(limit, rows - sum(want)))
        limit = min(2 * limit, most_rows)
    assert [block.rows for block in blocks] == want
    assert b"".join(block.data for block in blocks) == content
