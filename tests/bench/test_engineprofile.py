"""The profile of the CPU engine: a small run, and the arithmetic."""

from __future__ import annotations

import json
import os

import pytest

from headrace_bench import engineprofile


@pytest.fixture(autouse=True)
def cores():
    """The measurement binds its process to a core."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def test_the_shares_are_of_all_the_time(tmp_path, capsys):
    path = tmp_path / "result.json"
    words = ["--rows", "20", "--precision", "fp32", "--json", str(path), "--folder", str(tmp_path)]
    code = engineprofile.main(words)
    found = json.loads(path.read_text())
    assert code == 0
    assert (found["rows"], found["precision"]) == (20, "fp32")
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["shares"]["FullyConnected"] > 0.2
    # The model's own size: 20 rows of some 10 to 256 tokens, 21 MFLOP a token and attention.
    assert 20 * 10 * 21e6 < found["flops"] < 20 * 256 * 25e6
    assert found["flops_per_second"] == pytest.approx(found["flops"] / found["seconds"])
    # Attention's are not among those of the products with the model's matrices.
    assert 0.8 * found["flops"] < found["product_flops"] < found["flops"]
    seconds = found["shares"]["FullyConnected"] * found["seconds"]
    rate = found["product_flops_per_second"]
    assert rate == pytest.approx(found["product_flops"] / seconds)
    assert found["of_numpy"] == pytest.approx(rate / found["numpy_flops_per_second"])
    assert found["if_products_alone"] == pytest.approx(1 / found["shares"]["FullyConnected"])
    assert f"{found['of_numpy']:.2f} of the" in capsys.readouterr().out


def test_products_of_another_name_are_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(engineprofile, "PRODUCT", "MatrixTimesMatrix")
    assert engineprofile.main(["--rows", "2", "--folder", str(tmp_path)]) == 1
    assert "tells of no MatrixTimesMatrix but of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--rows", "99999999"], "ask for fewer"),
        (["--rows", "2", "--json", "nowhere/x.json"], "--json nowhere/x.json is not a file"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(monkeypatch, tmp_path, capsys, words, wanted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engineprofile.corpus, "paragraphs", lambda: iter(["a paragraph"] * 10))
    assert engineprofile.main(words) == 2
    assert wanted in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys):
    assert engineprofile.main(["--model", "no-such-model-anywhere", "--rows", "10"]) == 2
    assert "no-such-model-anywhere" in capsys.readouterr().err
