from __future__ import annotations

import io

from headrace.progress import Counters, ProgressLine, describe


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_line_says_rows_rates_padding_and_when_it_ends():
    counters = Counters(rows=2000, tokens=90_000, padded_tokens=100_000, bytes_done=25, bad_rows=3)
    line = describe(counters, 10.0, 100)
    assert line == (
        "2,000 rows · 200 rows/s · 9,000 tokens/s · padding 10.0% · 3 bad · 25% · ETA 0:30"
    )


def test_without_a_known_size_there_is_no_eta():
    assert "ETA" not in describe(Counters(rows=1, bytes_done=5), 1.0, None)
    assert "ETA" not in describe(Counters(), 0.0, 100)


def test_long_times_show_hours():
    assert describe(Counters(bytes_done=1), 3.0, 3601).endswith("ETA 3:00:00")


def test_a_terminal_is_rewritten_in_place_and_cleared(monkeypatch):
    clock = iter([0.0, 0.1, 1.0, 2.0])
    monkeypatch.setattr("headrace.progress.time.monotonic", lambda: next(clock))
    terminal = Terminal()
    line = ProgressLine(None, stream=terminal)
    for rows in (1, 20, 300):
        line.update(Counters(rows=rows))
    line.close()
    shown = terminal.getvalue()
    assert "\n" not in shown
    assert shown.count("\r") == 4
    assert "1 rows" not in shown  # too soon after the start
    assert "300 rows" in shown
    assert shown.endswith("\r")


def test_quiet_shows_nothing(monkeypatch):
    clock = iter([0.0, 100.0])
    monkeypatch.setattr("headrace.progress.time.monotonic", lambda: next(clock))
    terminal = Terminal()
    line = ProgressLine(None, quiet=True, stream=terminal)
    line.update(Counters(rows=5))
    line.close()
    assert terminal.getvalue() == ""
