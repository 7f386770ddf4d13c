"""Medians, extremes, ratios pair by pair."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_bench.stats import Spread, pairwise, spread


def test_the_median_and_the_extremes_of_unsorted_values():
    assert spread([5.0, 1.0, 9.0]) == Spread(median=5.0, least=1.0, most=9.0)


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    assert spread([1.0, 2.0, 4.0, 100.0]).median == 3.0


def test_one_value_is_its_own_spread():
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_nothing_has_no_median():
    with pytest.raises(ValueError, match="no measurements"):
        spread([])


@given(st.lists(st.floats(min_value=1e-3, max_value=1e9), min_size=1, max_size=20))
def test_the_median_lies_between_the_extremes(values):
    found = spread(values)
    assert found.least <= found.median <= found.most
    assert {found.least, found.most} <= set(values)


def test_ratios_pair_up_repetitions():
    # A machine half as fast in the second repetition changes both rates and no ratio.
    assert pairwise([300.0, 150.0], [100.0, 50.0]) == [3.0, 3.0]


def test_every_repetition_needs_its_partner():
    with pytest.raises(ValueError, match="shorter"):
        pairwise([1.0, 2.0], [1.0])


def test_a_spread_is_shown_with_thousands_and_digits():
    assert Spread(1234.5, 1000.0, 2000.0).show() == "1,234 [1,000..2,000]"
    assert Spread(1.234, 1.0, 2.0).show(2) == "1.23 [1.00..2.00]"
