"""Callers of a text model: all ways on the real server, and the table."""

from __future__ import annotations

import json

import pytest

from headrace_bench import serving
from headrace_bench.serving import Seen


@pytest.mark.server
def test_all_ways_are_measured(tmp_path, capsys):
    path = tmp_path / "result.json"
    words = ["--engine", "openvino", "--connections", "8", "--seconds", "2", "--repetitions", "1"]
    words += ["--shares", "0.8", "--file-rows", "3000", "--folder", str(tmp_path)]
    assert serving.main([*words, "--json", str(path)]) == 0
    seen = {
        each["way"]: each for each in json.loads(path.read_text())["seen"] if each["connections"]
    }
    assert set(seen) == {"dynamic batching", "without", "beside a run, --share 0.8"}
    assert all(each["answers"] > 0 and each["errors"] == 0 for each in seen.values())
    assert all(0 < each["p50"] <= each["p99"] for each in seen.values())
    assert seen["without"]["batch"] == 1
    assert seen["dynamic batching"]["batch"] > 1
    assert seen["beside a run, --share 0.8"]["file_rows"] > 0
    assert "dynamic batching" in capsys.readouterr().out
    assert [left.name for left in tmp_path.iterdir()] == ["result.json"]


def test_of_several_repetitions_the_median_stands_there():
    def seen(rate, errors=0):
        return Seen(
            way="w", connections=4, answers=1, errors=errors, per_second=rate, p50=1, p99=2, batch=3
        )

    line = serving.show([seen(1, 1), seen(50), seen(3, 2)]).splitlines()[1]
    assert line.split() == ["w", "4", "3.0", "1.0", "2.0", "3.00", "3", "0.0"]


def test_a_model_that_is_not_there(tmp_path, capsys):
    words = ["--model", "no-such-model-anywhere", "--file-rows", "10", "--folder", str(tmp_path)]
    assert serving.main(words) == 2
    assert "no-such-model-anywhere" in capsys.readouterr().err
