import gzip
import io
import itertools
import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from client.blocks import LIMITS, blocks_of, until_damage
from headrace.blocks import checksum
from headrace.decompress import Stored
from headrace.errors import InputError, UsageError
from headrace.inputs import Input, find_inputs
from headrace.sources import read_blocks

BOM = b"\xef\xbb\xbf"
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
