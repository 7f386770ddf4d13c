"""What a lone caller waits for: every setting on the real server."""

from __future__ import annotations

import json

import pytest

from headrace_bench import stalls


@pytest.mark.server
def test_every_setting_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        stalls, "SETTINGS", {each: stalls.SETTINGS[each] for each in ("plain", "priorities")}
    )
    path = tmp_path / "result.json"
    words = ["--seconds", "1", "--folder", str(tmp_path), "--json", str(path)]
    assert stalls.main(words) == 0
    seen = json.loads(path.read_text())["seen"]
    assert [each["setting"] for each in seen] == ["plain", "priorities"]
    assert all(each["answers"] > 1 for each in seen)
    assert all(0 < each["median"] <= each["most"] for each in seen)
    assert all((each["stalls"] > 0) == (each["most"] > 100) for each in seen)
    assert "priorities" in capsys.readouterr().out
