"""The format that benchmarks share, and what is made of it: table, page, chart, cost."""

from __future__ import annotations

import argparse
import errno
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import MissingDependencyError, OutputError, UsageError
from headrace_bench import page, writing
from headrace_bench.chart import draw
from headrace_bench.cost import cost
from headrace_bench.results import (
    Outcome,
    Way,
    add_outputs,
    command_line,
    distribution,
    outputs,
    show_lengths,
)
from headrace_bench.vectors import Cosines

RIGHT = Cosines(least=0.9991, mean=0.9995, counts=(0, 0, 0, 3, 0, 0), unknown=0)
BAD = Cosines(least=float("nan"), mean=float("nan"), counts=(1, 1, 0, 0, 0, 0), unknown=1)


@pytest.fixture
def outcome():
    ways = {
        "headrace": Way(rates=[300.0, 100.0, 200.0], cosines=RIGHT, what="file to file"),
        "engine": Way(rates=[400.0, 200.0, 160.0], cosines=RIGHT),
        "library": Way(rates=[100.0, 50.0, 40.0], cosines=RIGHT),
        "fast and wrong": Way(rates=[9e9, 9e9, 9e9], cosines=BAD, wrong="all of it"),
        "other": Way(missing="not installed"),
    }
    return Outcome(
        benchmark="peers",
        title="Benchmarks",
        command="headrace bench peers",
        settings={"rows": 3},
        texts={"source": "a file", "rows": 3, "tokens": distribution(np.array([1, 2, 6]))},
        ways=ways,
        ours=["headrace"],
        against=["library", "engine", "fast and wrong", "other"],
        cost=cost({"headrace": 200.0}, 3.0, price_per_hour=36.0, api_price_per_million_tokens=0.5),
        notes=["A note."],
    )


def test_ratios_are_taken_within_a_repetition(outcome):
    told = outcome.to_dict()
    ways = told["ways"]
    assert ways["headrace"]["rows_per_second"] == {"median": 200, "least": 100, "most": 300}
    # 3, 2 and 5 times: the median is not that of the medians, which is 4.
    assert ways["headrace"]["times"]["library"] == {"median": 3, "least": 2, "most": 5}
    assert ways["headrace"]["times"]["engine"] == {"median": 0.75, "least": 0.5, "most": 1.25}
    assert "library" not in ways["library"]["times"]
    assert told["losses"] == ["headrace loses to engine: 0.75 [0.50..1.25] of its speed"]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_what_is_wrong_has_no_speed(outcome, tmp_path):
    told = outcome.to_dict()
    wrong = told["ways"]["fast and wrong"]
    assert (wrong["rows_per_second"], wrong["times"]) == (None, {})
    assert wrong["cosines"]["least"] is None
    assert not outcome.wrong
    assert "9,000,000,000" not in page.table(told) + page.page(told)
    assert "fast and wrong" not in told["ways"]["headrace"]["times"]
    line = next(each for each in page.table(told).splitlines() if each.startswith("fast and"))
    assert "WRONG VECTORS" in line
    assert "not a number" in line
    assert "- **wrong**: fast and wrong: all of it" in page.page(told)
    outcome.ways["headrace"].wrong = "these, too"
    assert outcome.wrong
    assert outcome.losses() == []


def test_the_table_says_everything(outcome):
    shown = page.table(outcome.to_dict())
    assert "texts     3 rows: a file" in shown
    assert "tokens a row: mean 3.0, 5 % up to 1, half up to 2, 95 % up to 6, the longest 6" in shown
    assert "200 [100..300]" in shown
    assert "3.00 [2.00..5.00]" in shown
    assert "not measured: not installed" in shown
    assert "0.999100" in shown
    assert "headrace loses to engine" in shown
    assert "A note." in shown
    uncompared = Way(rates=[1.0, 1.0, 1.0])
    outcome.ways["library"] = uncompared
    assert page.UNCOMPARED in page.table(outcome.to_dict())


def test_columns_of_the_table_stay_apart(outcome):
    outcome.ways["headrace"].rates = [3e8, 1e8, 2e8]
    outcome.ways["other"].missing = "not installed " * 9
    lines = page.table(outcome.to_dict()).splitlines()
    row = next(line for line in lines if line.startswith("headrace  "))
    assert re.split(r"  +", row) == [
        "headrace",
        "200,000,000 [100,000,000..300,000,000]",
        "3,000,000.00 [2,000,000.00..5,000,000.00]",
        "750,000.00 [500,000.00..1,250,000.00]",
        "0.999100",
    ]
    head = next(line for line in lines if line.endswith("least cosine"))
    assert [head.index(each) + len(each) for each in ("rows/s", "x1", "x2")] == [
        row.index(each) + len(each) for each in ("300,000,000]", "5,000,000.00]", "1,250,000.00]")
    ]
    assert len(head) < 200


def test_the_page_says_the_same(outcome):
    made = page.page(outcome.to_dict(), chart="x.svg", more="## More\n\nThe end.\n")
    assert made.startswith("# Benchmarks\n")
    assert "```console\nheadrace bench peers\n```" in made
    assert "![rows a second by way](x.svg)" in made
    assert "| headrace (file to file) | 200 [100..300] | 3.00 [2.00..5.00] | 0.75" in made
    assert "| other | not measured: not installed |" in made
    assert "- headrace loses to engine" in made
    assert "| headrace | 0.999100 | 0.999500 | 0 | 0 | 0 | 3 | 0 | 0 |" in made
    assert "| headrace | 50.00 | 16,666.67 |" in made
    assert "| API | 1.50 | 500.00 |" in made
    assert made.endswith("## More\n\nThe end.\n")
    outcome.ways = {"headrace": outcome.ways["headrace"]}
    outcome.against, outcome.cost = (), None
    made = page.page(outcome.to_dict())
    assert "nowhere, of what was measured" in made
    assert "## Cost" not in made


def test_names_are_cells_of_every_table(outcome):
    outcome.ways["a | b"] = Way(rates=[1.0, 2.0, 3.0], cosines=RIGHT)
    outcome.against = ["a | b"]
    outcome.cost = cost({"a | b": 2.0}, 3.0, price_per_hour=36.0, api_price_per_million_tokens=None)
    made = page.page(outcome.to_dict())
    assert "| times a \\| b |" in made
    assert made.count("\n| a \\| b |") == 3
    assert "\n| a | b |" not in made


def test_the_cost_by_hand():
    # 36 an hour are 0.01 a second, in which 2 rows are done: 0.005 a row, of 4 tokens.
    found = cost({"w": 2.0}, 4.0, price_per_hour=36.0, api_price_per_million_tokens=0.02)
    assert found["ways"]["w"] == {"per_million_rows": 5000.0, "per_billion_tokens": 1_250_000.0}
    assert found["api"] == {"per_million_rows": pytest.approx(0.08), "per_billion_tokens": 20.0}
    assert found["arithmetic"] == [
        "w: 36 / 3,600 s / 2.0 rows/s x 1,000,000 rows = 5,000.00; / 4.00 tokens a row x 1,000 = "
        "1,250,000.00 for 10^9 tokens",
        "API: 0.02 for 10^6 tokens x 4.00 tokens a row = 0.08 for 10^6 rows; x 1,000 = 20.00 for "
        "10^9 tokens (tokens of this model, special ones included and rows cut to its limit; an "
        "API counts its own, of the whole text)",
    ]
    assert cost({"w": 2.0}, 4.0, price_per_hour=None, api_price_per_million_tokens=None) is None
    api = cost({"w": 2.0}, 4.0, price_per_hour=None, api_price_per_million_tokens=1.0)
    assert (api["ways"], api["api"]["per_million_rows"]) == ({}, 4.0)


def test_lengths_in_words():
    lengths = distribution(np.arange(1, 101))
    assert (lengths["mean"], lengths["p50"], lengths["most"]) == (50.5, 50.5, 100)
    assert show_lengths({"mean": 4.25}) == "mean 4.2"


def test_the_chart_has_a_bar_for_each_way_that_has_a_speed(outcome, tmp_path):
    told = outcome.to_dict()
    draw(told, tmp_path / "x.svg")
    drawn = (tmp_path / "x.svg").read_text()
    for said in (*told["ways"], "wrong vectors", "not measured", ">200<", "rows/s, 3 rows"):
        assert said in drawn
    assert "9,000,000,000" not in drawn
    draw(told, tmp_path / "y.svg")
    assert (tmp_path / "y.svg").read_text() == drawn
    draw(told, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_outputs(parser, "peers")
    return parser.parse_args([str(word) for word in words])


def test_everything_is_written_where_it_was_asked_for(outcome, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(writing, "draw", lambda result, path: drawn.append(path))
    folder = tmp_path / "a" / "b"
    files = outputs(parsed("--output", folder, "--markdown", tmp_path / "page.md"))
    assert not folder.exists()
    writing.write(outcome.to_dict(), files)
    assert json.loads((folder / "peers.json").read_text()) == outcome.to_dict()
    assert drawn == [folder / "peers.svg", folder / "peers.png"]
    assert "(a/b/peers.svg)" in (tmp_path / "page.md").read_text()
    said = capsys.readouterr()
    assert "where headrace loses:" in said.out
    assert f"written: {folder / 'peers.json'}, {tmp_path / 'page.md'}, {drawn[0]}" in said.err


def test_a_file_that_cannot_be_written_is_named_and_the_others_are_written(
    outcome, tmp_path, capsys, monkeypatch
):
    def full(result, path):
        if path.suffix == ".svg":
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_text("")

    monkeypatch.setattr(writing, "draw", full)
    files = outputs(parsed("--output", tmp_path, "--json", "/dev/full"))
    with pytest.raises(OutputError) as failed:
        writing.write(outcome.to_dict(), files)
    assert str(failed.value) == (
        "/dev/full cannot be written: No space left on device; "
        f"{tmp_path / 'peers.svg'} cannot be written: No space left on device; name another file"
    )
    assert failed.value.exit_code == 4
    said = capsys.readouterr()
    assert "where headrace loses:" in said.out
    assert f"written: {tmp_path / 'peers.md'}, {tmp_path / 'peers.png'}\n" in said.err
    assert "(peers.png)" in (tmp_path / "peers.md").read_text()


def test_without_matplotlib_the_rest_is_written(outcome, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"headrace\[bench\]"):
        draw(outcome.to_dict(), tmp_path / "x.svg")
    writing.write(outcome.to_dict(), outputs(parsed("--output", tmp_path)), shown="as it is")
    said = capsys.readouterr()
    assert said.out == "as it is\n"
    assert "no chart: a chart needs matplotlib" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peers.json", "peers.md"]
    assert "![" not in (tmp_path / "peers.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--chart", "x.pdf"], "must end in .svg or .png"),
        (["--json", "{folder}/no/x.json"], "is not a file in a folder that exists"),
        (["--markdown", "{folder}"], "is not a file"),
        (["--output", "{folder}/file/x"], "file is a file; name another"),
        (["--json", "{folder}/x", "--markdown", "{folder}/x"], "cannot be one file"),
    ],
)
def test_results_that_have_no_place_are_refused(tmp_path, words, said):
    Path(tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=said):
        outputs(parsed(*(word.format(folder=tmp_path) for word in words)))


def test_the_command_has_no_secrets():
    words = ["--input", "s3://KEY:SECRET@b/x", "--input=s3://KEY:SECRET@b/y?secret_key=SECRET"]
    words += ["--tei", "http://user:SECRET@h:1", "--text-field=a=b", "x=s3://b", "a?b"]
    assert command_line("headrace bench peers", words) == (
        "headrace bench peers --input s3://b/x --input=s3://b/y --tei http://h:1 --text-field=a=b "
        "x=s3://b 'a?b'"
    )


def test_the_command_can_be_pasted():
    assert command_line("headrace bench peers", ["--input", "a b.txt"]) == (
        "headrace bench peers --input 'a b.txt'"
    )
