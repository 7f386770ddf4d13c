from __future__ import annotations

import numpy as np

from headrace.tokens import Tokens
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
    monkeypatch.setattr(exactness, "differing", lambda one, other: [1])
    assert exactness.main(["--input", str(file)]) == 1
    assert "'three'" in capsys.readouterr().out


def test_rows_that_differ():
    def tokens(ids, offsets, truncated=(False, False)):
        return Tokens(np.array(ids, np.int32), np.array(offsets), np.array(truncated))

    one = tokens([1, 2, 3], [0, 1, 3])
    assert exactness.differing(one, one) == []
    assert exactness.differing(one, tokens([1, 2, 4], [0, 1, 3])) == [1]
    assert exactness.differing(one, tokens([1, 2, 3], [0, 2, 3])) == [0, 1]
    assert exactness.differing(one, tokens([1, 2, 3], [0, 1, 3], (True, False))) == [0]


def test_installed_rows_come_as_they_stand_there():
    rows = exactness.rows()
    some = [next(rows) for _ in range(3000)]
    assert any(row.startswith("    ") for row in some)
    assert "" in some
