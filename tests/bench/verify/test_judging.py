"""Vectors are compared with what they should be."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.verify.jobs import BAD, NAMES, TEXTS, WIDE, unit, vector_of
from headrace.manifest import line_of
from headrace.sinks import manifest_path
from headrace_bench.verify import written
from headrace_bench.verify.sampled import draw


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on_error", ["null", "skip"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_right_output_is_right(job, capsys, monkeypatch, name, on_error, dtype):
    monkeypatch.setattr(written, "_CHUNK_VALUES", 7 * WIDE)  # several chunks
    code, found = job(BAD, name, on_error=on_error, dtype=dtype).write().check()
    assert (code, found["wrong"]) == (0, [])
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "verify: right"
    assert any("in bf16 by null 1, written as " + dtype in line for line in out)
    assert (found["compared"], found["records"]) == (30, 32)
    assert found["rows"] == found["expected_rows"] == (30 if on_error == "skip" else 32)
    assert found["cosines"]["least"] > 0.99999
    assert found["histogram"]["0.99999 and more"] == 30
    assert found["neighbours"]["mean"] == 1
    assert found["max_length"] == 32
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert found["settings"]["sample"] == 1000
    assert len(found["worst"]) == 5
    assert found["below"] == []


@pytest.mark.parametrize("name", NAMES)
def test_two_rows_swapped_are_named(job, capsys, name):
    one = job(BAD, name)
    one.vectors[[2, 9]] = one.vectors[[9, 2]]
    code, found = one.write().check()
    assert code == 1
    held = {each["row"]: each["holds"] for each in found["below"]}
    assert held == {2: 9, 9: 2}
    last = {each["row"]: each for each in found["worst"]}
    assert last[2]["place"].endswith("in.jsonl, line 4")
    assert last[9]["text"] == "text 8"
    assert found["neighbours"]["mean"] < 1
    out = capsys.readouterr().out
    assert "<- holds the vector of row 9" in out
    verdict = out.splitlines()[-1]
    assert verdict.startswith("verify: WRONG: the least cosine is ")
    assert verdict.endswith("2 rows of 30 are below 0.99; 2 of them hold another's vector")


def test_rows_left_out_are_found_by_place(job):
    one = job(BAD, on_error="skip")
    one.vectors[[2, 9]] = one.vectors[[9, 2]]
    code, found = one.write().check()
    assert code == 1
    places = {each["row"]: (each["place"][-7:], each["text"]) for each in found["below"]}
    assert places == {2: (" line 4", "text 2"), 9: ("line 12", "text 9")}


def test_a_shift_is_told_from_noise(job):
    one = job(TEXTS)
    one.vectors = np.roll(one.vectors, 1, axis=0)
    code, found = one.write().check()
    assert code == 1
    assert [each["holds"] == (each["row"] - 1) % 30 for each in found["below"]] == [True] * 30


@pytest.mark.parametrize("wrong", [vector_of("something else"), np.zeros(WIDE)])
def test_one_wrong_row_is_enough(job, capsys, wrong):
    one = job(TEXTS)
    one.vectors[7] = wrong
    code, found = one.write().check("--worst", 2)
    assert code == 1
    (below,) = found["below"]
    assert (below["row"], below["holds"]) == (7, None)
    assert len(found["worst"]) == 2
    assert found["worst"][0] == below
    if not wrong.any():
        assert below["cosine"] is None
        assert "the least cosine is no number, and 1 row of 30 is below" in capsys.readouterr().out


@pytest.mark.parametrize(("precision", "code"), [("fp32", 1), ("fp16", 1), ("bf16", 0), (None, 0)])
def test_the_least_cosine_goes_by_the_precision(job, capsys, precision, code):
    one = job(TEXTS)
    one.vectors += np.random.default_rng(0).normal(size=one.vectors.shape) * 0.012
    one.vectors = unit(one.vectors)
    one.write()
    path = one.output.with_name(one.output.name + ".manifest.jsonl")
    head, *rest = path.read_text().splitlines(keepends=True)
    made = json.loads(head)
    del made["crc"]
    if precision is None:
        del made["job"]["precision"]
    else:
        made["job"]["precision"] = precision
    path.write_text(line_of(made) + "\n" + "".join(rest))
    found_code, found = one.check()
    assert 0.99 < found["cosines"]["least"] < 0.999
    assert found_code == code
    least = 0.999 if code else 0.99
    assert f"a cosine below {least} is wrong" in capsys.readouterr().out


def test_the_least_cosine_can_be_chosen(job):
    one = job(TEXTS)
    one.vectors += np.random.default_rng(0).normal(size=one.vectors.shape) * 0.03
    one.vectors = unit(one.vectors)
    code, found = one.write().check()
    assert code == 1
    assert 0.9 < found["cosines"]["least"] < 0.999
    assert 0.9 < found["neighbours"]["mean"] < 1
    assert one.check("--min-cosine", 0.9)[0] == 0


def test_cut_vectors_are_compared_with_cut_ones(job):
    one = job(TEXTS, truncate_dim=5)
    one.vectors /= np.linalg.norm(one.vectors, axis=1, keepdims=True)
    code, found = one.write().check()
    assert (code, found["dimension"], found["cosines"]["unknown"]) == (0, 5, 0)
    one = job(TEXTS, truncate_dim=5, manifest=False).write()
    manifest_path(one.output).unlink()
    assert one.check("--model", "m")[0] == 1
    assert one.check("--model", "m", "--truncate-dim", 5)[0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_dimension_and_a_wrong_type(job, name):
    one = job(TEXTS, name)
    one.vectors = unit(one.vectors[:, :-1])
    code, found = one.write().check()
    assert (code, found["cosines"]) == (1, None)
    assert found["wrong"] == ["vectors have 15 dimensions, and should have 16"]
    one = job(TEXTS, name)
    one.write().output.unlink()
    job(TEXTS, name, dtype="float16", manifest=False).write()
    code, found = one.check()
    assert (code, found["wrong"]) == (1, ["values are float16, and should be float32"])


def test_no_row_and_one_row(job, capsys):
    one = job([]).write()
    code, found = one.check()
    assert (code, found["compared"], found["cosines"], found["neighbours"]) == (0, 0, None, None)
    assert "verify: right, but there was no vector to compare" in capsys.readouterr().out
    one = job(["alone"]).write()
    code, found = one.check()
    assert (code, found["compared"], found["neighbours"]) == (0, 1, None)
    out = capsys.readouterr().out
    assert "neighbours  not measured" in out
    assert out.endswith("verify: right\n")
    one = job([None]).write()
    assert one.check()[0] == 0
    assert job(TEXTS[:12]).write().check()[1]["neighbours"] is not None
    assert job(TEXTS[:11]).write().check()[1]["neighbours"] is None


def test_the_sample_is_drawn_by_its_seed_and_leaves_bad_rows_out():
    bad = np.array([0, 3, 4, 9, 50])
    every = draw(10, 100, 0, bad)
    assert every.tolist() == [1, 2, 5, 6, 7, 8]
    some = [draw(10, 3, seed, bad) for seed in range(40)]
    assert {len(set(one.tolist())) for one in some} == {3}
    assert all((np.diff(one) > 0).all() for one in some)
    assert set(np.concatenate(some).tolist()) == set(every.tolist())
    assert (draw(1 << 40, 5, 7, bad) == draw(1 << 40, 5, 7, bad)).all()
    assert (draw(1 << 40, 5, 7, bad) != draw(1 << 40, 5, 8, bad)).any()
    assert len(draw(3, 5, 0, np.arange(3))) == 0


def test_a_sample_misses_what_it_does_not_hold(job):
    one = job(TEXTS)
    one.vectors[3] = 0.25
    one.write()
    found = [one.check("--sample", 10, "--seed", seed) for seed in range(12)]
    assert {code for code, _ in found} == {0, 1}
    assert {result["compared"] for _, result in found} == {10}


def test_texts_are_shown_in_one_line(job, capsys):
    texts = ["a\nb\x1b[31m\u202e\t" + "x" * 100, "short"]
    code, found = job(texts).write().check()
    assert code == 0
    text = next(each["text"] for each in found["worst"] if each["row"] == 0)
    assert text.startswith("a\\nb\\x1b[31m\\u202e\\txxx")
    assert text.endswith("x…")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert text in out
