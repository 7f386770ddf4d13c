"""What is said of the figures."""

from __future__ import annotations

import pytest

from headrace_bench.peers.notes import done_first, fastest_of
from headrace_bench.results import Way


def test_the_fastest_is_the_fastest_of_the_right():
    ways = {
        "slow": Way(rates=[1.0, 2.0, 3.0]),
        "fast": Way(rates=[2.0, 9.0, 5.0]),
        "wrong": Way(rates=[99.0], wrong="yes"),
        "missing": Way(missing="yes"),
    }
    assert fastest_of(ways, list(ways)) == "fast"
    assert fastest_of(ways, ["wrong", "missing"]) == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        # 5 s + rows / 200 and 2 s + rows / 100 are equal at 600 rows.
        ((5.0, 2.0, 200.0, 100.0), "sentence-transformers as it comes is done first with fewer "),
        ((2.0, 5.0, 100.0, 200.0), "headrace is done first with fewer "),
        ((1.0, 2.0, 200.0, 100.0), "headrace is done first with any number"),
        ((2.0, 2.0, 100.0, 100.0), "headrace is done first with any number"),
        ((5.0, 2.0, 50.0, 100.0), "sentence-transformers as it comes is done first with any "),
        ((5.0, 2.0, 100.0, 100.0), "sentence-transformers as it comes is done first with any "),
    ],
)
def test_who_is_done_first(given, said):
    told = done_first(*given)
    assert told.startswith(said)
    assert ("than 600 rows" in told) == ("fewer" in said)
