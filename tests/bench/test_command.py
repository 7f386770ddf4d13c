"""What the command line of a benchmark does around its measurement."""

from __future__ import annotations

import argparse

import pytest

from headrace_bench import command


@pytest.mark.parametrize("path", ["/dev/full", "/proc/x.json"])
def test_figures_that_cannot_be_written_are_one_line_after_the_table(path, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_places(parser)
    options = parser.parse_args(["--folder", str(tmp_path), "--json", path])
    assert command.run(options, lambda *_: 3, lambda found: f"{found} rows", lambda _: {}) == 4
    said = capsys.readouterr()
    assert "3 rows\n" in said.out
    assert said.err.startswith(f"error: {path} cannot be written: ")
    assert said.err.endswith("; name another file\n")
    assert said.err.count("\n") == 1
