import gzip
import io
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from headrace.decompress import decompress
from headrace.errors import MachineError, UsageError
from headrace.inputs import find_inputs, total_bytes

JSONL = b'{"text": "a"}\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path, data=JSONL):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def put_parquet(path):
    pq.write_table(pa.table({"text": ["a"]}), path)
    return str(path)


def names(*inputs, **options):
    return [found.name for found in find_inputs(inputs, **options)]


def as_stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))


def content(item):
    stored = item.open()
    try:
        return b"".join(decompress(stored))
    finally:
        stored.close()


def test_files_keep_their_order_and_repeat(folder):
    put("b.jsonl"), put("a.txt", b"hello")
    found = find_inputs(["b.jsonl", "a.txt", "b.jsonl"])
    assert [(f.name, f.format, f.size) for f in found] == [
        ("b.jsonl", "jsonl", 14),
        ("a.txt", "text", 5),
        ("b.jsonl", "jsonl", 14),
    ]
    assert total_bytes(found) == 33
    assert total_bytes([]) == 0


def test_folder_is_read_recursively_by_path(folder):
    for name in ("d/b.jsonl", "d/a/z.jsonl", "d/c.txt.gz", "d/.hidden.jsonl", "d/_SUCCESS"):
        put(name)
    put("d/.git/x.jsonl"), put("d/_temporary/x.jsonl"), put("other.jsonl")
    expected = ["d/a/z.jsonl", "d/b.jsonl", "d/c.txt.gz"]
    assert names("d") == names("d/") == expected
    assert names(str(folder / "d")) == [str(folder / name) for name in expected]
    assert names(".")[-1].endswith("other.jsonl")


@pytest.mark.parametrize("given", [".", "*", "**/*", "*.jsonl"])
def test_files_of_the_run_itself_are_left_out_of_folders_and_globs(folder, given):
    put("a.jsonl")
    put("out.npy.partial/manifest.jsonl", b'{"headrace_manifest": 1}\n')
    put("out.npy.partial/data.npy", b"half")
    put("out.npy.errors.jsonl")
    here = folder.resolve()
    own = [here / "out.npy.errors.jsonl", here / "out.npy.partial"]
    found = find_inputs([given], own=own)
    assert [Path(item.path).name for item in found] == ["a.jsonl"]
    assert names("out.npy.errors.jsonl", own=own) == ["out.npy.errors.jsonl"]  # as it was named
    Path("a.jsonl").unlink()
    with pytest.raises(UsageError, match="holds nothing but files of this run"):
        find_inputs([given], own=own)


@pytest.mark.parametrize("choice", ["auto", "jsonl", "text"])
def test_the_manifest_of_an_output_is_no_input(folder, choice):
    put("other.npy.manifest.jsonl", b'{"headrace_manifest": 1, "job": {}}\n')
    with pytest.raises(UsageError, match="is the manifest of an output, not texts; leave it out"):
        find_inputs(["*.jsonl"], format=choice)


def test_link_back_to_a_parent_is_not_followed(folder):
    put("d/e/x.jsonl")
    Path("d/e/loop").symlink_to(folder / "d")
    Path("d/link").symlink_to("e")
    assert names("d") == ["d/e/x.jsonl", "d/link/x.jsonl"]
    assert names("d/**") == names("**/**/*.jsonl") == ["d/e/x.jsonl", "d/link/x.jsonl"]


def test_broken_link_in_a_folder(folder):
    put("d/x.jsonl")
    Path("d/y.jsonl").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"d/y\.jsonl: no such file"):
        names("d")
    with pytest.raises(UsageError, match=r"d/y\.jsonl: no such file"):
        names("d/*.jsonl")


def test_empty_folder(folder):
    put("d/.hidden")
    with pytest.raises(UsageError, match="d: the folder holds no file"):
        names("d")


def test_unknown_ending(folder):
    put("d/x.dat")
    with pytest.raises(UsageError, match=r"d/x\.dat: unknown ending.*--format.*glob"):
        names("d")
    with pytest.raises(UsageError, match=r"d/x\.dat: unknown ending.*pass --format") as error:
        names("d/x.dat")
    assert "glob" not in str(error.value)
    assert names("d", format="jsonl") == ["d/x.dat"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("d/*.jsonl", ["d/a.jsonl", "d/b.jsonl"]),
        ("d/?.jsonl", ["d/a.jsonl", "d/b.jsonl"]),
        ("d/[bc].jsonl", ["d/b.jsonl"]),
        ("d/[!b].jsonl", ["d/a.jsonl"]),
        ("*/a.jsonl", ["d/a.jsonl"]),
        ("**/a.jsonl", ["d/a.jsonl", "d/e/a.jsonl", "d/e/f/a.jsonl"]),
        ("d/**", ["d/a.jsonl", "d/b.jsonl", "d/e/a.jsonl", "d/e/f/a.jsonl"]),
        ("d/**/e/*", ["d/e/a.jsonl"]),
        ("d/*/*.jsonl", ["d/e/a.jsonl"]),
        ("d/.h/*", ["d/.h/x.jsonl"]),
        ("d/.*/*", ["d/.h/x.jsonl"]),
    ],
)
def test_globs(folder, pattern, expected):
    for name in ("d/a.jsonl", "d/b.jsonl", "d/e/a.jsonl", "d/e/f/a.jsonl", "d/.h/x.jsonl"):
        put(name)
    assert names(pattern) == expected
    assert names(str(folder / pattern)) == [str(folder / name) for name in expected]


def test_literal_path_beats_the_glob(folder):
    put("a[1].jsonl"), put("a1.jsonl")
    assert names("a[1].jsonl") == ["a[1].jsonl"]
    assert names("a[[]1].jsonl") == ["a[1].jsonl"]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("nope.jsonl", r"nope\.jsonl: no such file"),
        ("nope/*.jsonl", r"nope/\*\.jsonl: no file matches"),
        ("foo://bar/x", "foo://bar/x: cannot be opened"),
        ("a.jsonl/x", "no such file"),
        ("bad\udcff.jsonl", "not UTF-8"),
    ],
)
def test_nothing_there(folder, given, match):
    put("a.jsonl")
    with pytest.raises(UsageError, match=match) as error:
        names(given)
    assert "\n" not in str(error.value)


def test_uris(folder):
    put("d/a.jsonl"), put("d/e/b.jsonl"), put("x y.jsonl")
    uri = f"file://{folder}"
    assert names(f"{uri}/d/a.jsonl") == [f"{uri}/d/a.jsonl"]
    assert names(f"{uri}/d") == names(f"{uri}/d/") == [f"{uri}/d/a.jsonl", f"{uri}/d/e/b.jsonl"]
    assert names(f"{uri}/*/[a].jsonl") == [f"{uri}/d/a.jsonl"]
    assert content(find_inputs([f"{uri}/d/**/b.jsonl"])[0]) == JSONL


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(folder):
    put("a.jsonl"), put("d/b.jsonl")
    Path("a.jsonl").chmod(0)
    Path("d").chmod(0)
    try:
        for given in ("a.jsonl", "d"):
            with pytest.raises(MachineError, match=f"{given}: permission denied"):
                names(given)
    finally:
        Path("d").chmod(0o700)


def test_denied_by_the_file_system(folder, monkeypatch):
    put("a.jsonl")

    def deny(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("headrace.inputs._Late.read", deny)
    with pytest.raises(MachineError, match=r"a\.jsonl: permission denied"):
        names("a.jsonl")


@pytest.mark.parametrize("ending", ["", ".zst", ".zstd", ".gz", ".GZ"])
@pytest.mark.parametrize("pack", [bytes, zstandard.compress, gzip.compress])
@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.jsonl", "jsonl"), ("a.NDJSON", "jsonl"), ("a.json", "jsonl"), ("x.txt", "text")],
)
def test_format_by_name_and_compression_by_content(folder, name, ending, pack, expected):
    (found,) = find_inputs([put(name + ending, pack(JSONL))])
    assert found.format == expected
    assert content(found) == JSONL


def test_parquet_by_content(folder):
    for name in ("a.parquet", "b.pq", "c.dat", "d.jsonl"):
        put_parquet(name)
        assert find_inputs([name])[0].format == "parquet"
    with pytest.raises(UsageError, match="is a Parquet file"):
        find_inputs(["a.parquet"], format="jsonl")
    put("e.parquet")
    for choice in ("auto", "parquet"):
        with pytest.raises(UsageError, match=r"e\.parquet: is not a Parquet file"):
            find_inputs(["e.parquet"], format=choice)
    assert find_inputs(["e.parquet"], format="jsonl")[0].format == "jsonl"


@pytest.mark.parametrize("pack", [zstandard.compress, gzip.compress])
def test_compressed_parquet(folder, pack):
    put_parquet("a.parquet")
    put("b.parquet.x", pack(Path("a.parquet").read_bytes()))
    with pytest.raises(UsageError, match="compressed Parquet file; decompress it"):
        find_inputs(["b.parquet.x"])


@pytest.mark.parametrize("pack", [bytes, zstandard.compress, gzip.compress])
@pytest.mark.parametrize(
    "data", [b'[{"text": "a"}]', b'\xef\xbb\xbf\n \r\n\t[\n{"text": "a"}\n]\n']
)
def test_json_array(folder, data, pack):
    with pytest.raises(UsageError, match=r"a\.json: holds a JSON array.*jq -c"):
        find_inputs([put("a.json", pack(data))])
    assert find_inputs([put("a.txt", pack(data))])[0].format == "text"


@pytest.mark.parametrize("pack", [bytes, zstandard.compress, gzip.compress])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (JSONL, "jsonl"),
        (b"\xef\xbb\xbf \n" + JSONL, "jsonl"),
        (b"hello\n", "text"),
        (b"", "text"),
        (b"\n" * 100_000 + JSONL, "jsonl"),
    ],
)
def test_stdin(monkeypatch, data, expected, pack):
    as_stdin(monkeypatch, pack(data))
    (found,) = find_inputs(["-"])
    assert (found.name, found.format, found.size) == ("<stdin>", expected, None)
    assert total_bytes([found]) is None
    assert content(found) == data


def test_stdin_refused(monkeypatch, folder):
    put_parquet("a.parquet")
    as_stdin(monkeypatch, Path("a.parquet").read_bytes())
    with pytest.raises(UsageError, match="<stdin>: Parquet cannot be read from a stream"):
        find_inputs(["-"])
    as_stdin(monkeypatch, b'[{"text": "a"}]')
    with pytest.raises(UsageError, match=r"<stdin>: holds a JSON array.*--format text"):
        find_inputs(["-"])
    as_stdin(monkeypatch, b"[1] first\n")
    assert find_inputs(["-"], format="text")[0].format == "text"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        find_inputs(["-"])


def test_slow_stdin_is_sniffed_by_its_first_bytes(monkeypatch):
    read, write = os.pipe()
    os.write(write, JSONL)
    with os.fdopen(read, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
        (found,) = find_inputs(["-"])
        assert found.format == "jsonl"
        os.write(write, JSONL)
        os.close(write)
        assert content(found) == JSONL * 2


@pytest.mark.parametrize(("name", "expected"), [("pipe", "jsonl"), ("pipe.txt", "text")])
def test_fifo(folder, name, expected):
    os.mkfifo(name)
    writer = threading.Thread(target=Path(name).write_bytes, args=(JSONL * 50_000,))
    writer.start()
    (found,) = find_inputs([name])
    assert (found.name, found.format, found.size) == (name, expected, None)
    assert content(found) == JSONL * 50_000
    writer.join()


def test_fifo_in_a_folder(folder):
    put("d/x.jsonl")
    os.mkfifo("d/pipe")
    with pytest.raises(UsageError, match="d/pipe: is not a regular file"):
        find_inputs(["d"])
