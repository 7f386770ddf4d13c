"""What commits cost: both ways on the real server, and the arithmetic."""

from __future__ import annotations

import json

import pytest

from headrace_bench import commits
from headrace_bench.commits import WITH, WITHOUT

pytestmark = pytest.mark.server


def test_both_ways_are_measured_and_only_one_makes_blocks_durable(monkeypatch, tmp_path, capsys):
    blocks: dict[str, set[int]] = {WITH: set(), WITHOUT: set()}
    embed = commits.embed

    def watched(way, source, output, **options):
        report = embed(way, source, output, **options)
        manifest = output.with_name(f"{output.name}.manifest.jsonl").read_bytes()
        blocks[way].add(manifest.count(b'"block"'))
        return report

    monkeypatch.setattr(commits, "embed", watched)
    path = tmp_path / "result.json"
    words = ["--rows", "3000", "--repetitions", "1", "--folder", str(tmp_path)]
    assert commits.main([*words, "--json", str(path)]) == 0
    assert min(blocks[WITH]) > 0
    assert blocks[WITHOUT] == {0}
    reports = json.loads(path.read_text())["reports"]
    assert [len(reports[way]) for way in (WITH, WITHOUT)] == [1, 1]
    assert all(reports[way][0]["rows"] == 3000 for way in (WITH, WITHOUT))
    assert "a commit for each block takes" in capsys.readouterr().out
    assert [left.name for left in tmp_path.iterdir()] == ["result.json"]


def test_the_ratios_are_those_of_each_pair():
    def report(rate, cost):
        return {"rows_per_second": rate, "cpu_seconds": cost, "rows": 1_000_000}

    table = commits.show(
        {
            WITH: [report(100, 2.2), report(50, 4.4)],
            WITHOUT: [report(110, 2.0), report(55, 4.0)],
        }
    )
    assert "takes 10.0 [10.0..10.0] % of the time" in table
    assert "and 10.0 [10.0..10.0] % of the processor time" in table


def test_a_model_that_is_not_there(tmp_path, capsys):
    words = ["--model", "no-such-model-anywhere", "--rows", "10", "--folder", str(tmp_path)]
    assert commits.main(words) == 2
    assert "no-such-model-anywhere" in capsys.readouterr().err
