"""Vectors come before speed, and nobody is always first."""

from __future__ import annotations

import numpy as np
import pytest

from headrace_bench.page import page
from headrace_bench.peers.comparison import Comparison
from headrace_bench.peers.run import HEADRACE
from headrace_bench.results import Outcome


class Planned:
    """A peer whose vectors and faults are planned."""

    what = "planned"

    def __init__(self, *vectors):
        self._vectors = list(vectors)

    def first(self):
        return self._next()

    def measure(self):
        return 5.0, self._next()

    def _next(self):
        found = self._vectors.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def planned():
    found = Comparison(rows=np.arange(3), least_cosine=0.99, seed=0)
    found.reference = np.eye(3)
    return found


def test_vectors_are_compared_before_speed_and_after_it(planned):
    right = np.eye(3)
    swapped = right[[1, 0, 2]]
    planned.add("right", lambda: Planned(right, 2 * right, right))
    planned.add("wrong", lambda: Planned(swapped))
    planned.add("wrong later", lambda: Planned(right, swapped))
    planned.add("narrow", lambda: Planned(right[:, :2]))
    planned.add("no number", lambda: Planned(np.full((3, 3), np.nan)))
    planned.add("breaks", lambda: Planned(RuntimeError("out of memory\nand more")))
    planned.add("breaks later", lambda: Planned(right, right, ValueError("gone")))
    planned.measure(2, must="right")
    ways = planned.ways
    assert ways["right"].rates == [5.0, 5.0]
    assert ways["right"].counts
    assert ways["right"].cosines.least == 1
    assert "the least cosine to sentence-transformers (torch, fp32) is 0.000000" in (
        ways["wrong"].wrong
    )
    assert ways["wrong"].rates == []
    assert ways["wrong later"].wrong
    assert not ways["wrong later"].counts
    assert ways["narrow"].wrong == "its vectors have 2 dimensions"
    assert "nan" in ways["no number"].wrong
    assert ways["breaks"].missing == "RuntimeError: out of memory"
    assert ways["breaks later"].missing == "ValueError: gone"
    assert ways["breaks later"].rates == [5.0]
    assert not ways["breaks later"].counts
    told = Outcome(
        benchmark="peers",
        title="t",
        command="c",
        settings={},
        texts={"rows": 3, "source": "s"},
        ways=ways,
        ours=["right"],
        against=["breaks later", "wrong later", "right"],
    ).to_dict()
    assert told["ways"]["right"]["times"] == {}
    assert told["ways"]["breaks later"]["rows_per_second"] is None
    assert "not measured: ValueError: gone" in page(told)


def test_headrace_itself_must_not_break(planned):
    with pytest.raises(RuntimeError, match="no server"):
        planned.add(HEADRACE, lambda: Planned(RuntimeError("no server")), must=True)
    planned.add(HEADRACE, lambda: Planned(np.eye(3), RuntimeError("gone")), must=True)
    with pytest.raises(RuntimeError, match="gone"):
        planned.measure(1, must=HEADRACE)


def test_the_order_is_drawn_anew_for_each_repetition(planned):
    names = list("abcdefgh")
    for name in names:
        planned.add(name, lambda: Planned(*[np.eye(3)] * 5))
    planned.measure(4, must="a")
    assert all(sorted(order) == names for order in planned.order)
    assert len({tuple(order) for order in planned.order}) == 4
    before = [order[order.index("a") - 1] for order in planned.order if order[0] != "a"]
    assert len(set(before)) > 1
    again = Comparison(rows=np.arange(3), least_cosine=0.99, seed=0)
    for name in names:
        again.add(name, lambda: Planned(*[np.eye(3)] * 5))
    again.measure(4, must="a")
    assert again.order == planned.order
