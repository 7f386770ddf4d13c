"""What a run may take, by calculation, and how many feeders a limit allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.budget import Budget, feeders_within
from headrace.config import MIB, EmbedConfig
from headrace.errors import UsageError


@pytest.fixture
def budget_of(make_contract):
    def go(output="a.npy", *, rows=16384, slots=3, dimension=384, **settings):
        config = EmbedConfig(inputs=("a",), output=Path(output), model="small", **settings)
        return Budget.of(config, make_contract(dimension=dimension), rows, slots)

    return go


def test_more_of_anything_takes_more(budget_of):
    least = budget_of().total(2)
    assert budget_of().total(3) > least > budget_of().total(1) > budget_of().total(0)
    assert budget_of(rows=32768).total(2) > least
    assert budget_of(slots=30).total(2) > least
    assert budget_of(block_bytes=16 * MIB).total(2) > least
    assert budget_of(dimension=1024).total(2) > least
    assert budget_of("a.parquet").total(2) > least
    assert budget_of(on_error="skip").total(2) > least
    assert budget_of(dtype="float16").total(2) < least
    assert budget_of(truncate_dim=64).total(2) < least


def test_it_does_not_grow_with_the_input_and_is_known_for_a_hundred_million_rows(budget_of):
    assert budget_of(dtype="float16").total(2) < 2048 * MIB


def test_a_limit_says_how_many_feeders_there_are(budget_of):
    budget = budget_of()
    assert feeders_within(budget, 8, None, asked=False) == 8
    for feeders in (8, 3, 1, 0):
        assert feeders_within(budget, 8, budget.total(feeders), asked=False) == feeders
    assert feeders_within(budget, 8, budget.total(3) - 1, asked=False) == 2
    assert feeders_within(budget, 0, budget.total(0), asked=True) == 0


def test_a_limit_that_is_too_small_says_how_much_is_needed(budget_of):
    budget = budget_of()
    least = f"{budget.total(0) / MIB:,.0f} MiB"
    with pytest.raises(UsageError, match=f"these settings may take {least}, .* raise it$"):
        feeders_within(budget, 8, budget.total(0) - 1, asked=False)
    with pytest.raises(UsageError, match=r"--feeders 8 may take .* leave --feeders out"):
        feeders_within(budget, 8, budget.total(7), asked=True)
