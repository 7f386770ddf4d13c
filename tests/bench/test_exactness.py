from __future__ import annotations

import numpy as np

from headrace_bench import exactness


def test_a_few_rows_of_every_kind_are_exact(tmp_path, capsys):
    file = tmp_path / "rows.txt"
    file.write_text("def f(a,  b):\n    return a[0] + 'it''s'\n\n<s> été\t日本語 x\n" * 30)
    assert exactness.main(["--input", str(file), "--rows", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all("100 rows, 0 differ" in line for line in lines)


def test_differences_are_found_and_shown(monkeypatch, tmp_path, capsys):
    file = tmp_path / "rows.txt"
    file.write_text("one two\nthree\n")
    monkeypatch.setattr(exactness, "TRAINED", {})
    monkeypatch.setattr(exactness, "differing_rows", lambda one, other: np.array([1]))
    assert exactness.main(["--input", str(file)]) == 1
    assert "'three'" in capsys.readouterr().out


def test_installed_rows_come_as_they_stand_there():
    rows = exactness.rows()
    some = [next(rows) for _ in range(3000)]
    assert any(row.startswith("    ") for row in some)
    assert "" in some
