"""How alike vectors are: against values worked out by hand, and on planted faults."""

from __future__ import annotations

import numpy as np
import pytest

from headrace_bench.vectors import agreement, cosines, histogram, least_cosine, summary


def test_the_least_cosine_finds_the_one_wrong_row():
    vectors = np.eye(4, dtype=np.float32)
    other = vectors.copy()
    assert least_cosine(vectors, 3 * other) == pytest.approx(1.0)
    other[2] = [1, 0, 1, 0]
    assert least_cosine(vectors, other) == pytest.approx(2**-0.5)
    other[1] = np.nan
    assert np.isnan(least_cosine(vectors, other))
    assert np.isnan(least_cosine(vectors, vectors[:2]))


def test_cosines_are_those_of_the_rows():
    ours = np.array([[1, 0], [1, 1], [0, 0], [np.inf, 1]], np.float16)
    theirs = np.array([[-2, 0], [0, 5], [1, 0], [1, 1]], np.float32)
    found = cosines(ours, theirs)
    assert found[:2] == pytest.approx([-1.0, 2**-0.5])
    assert np.isnan(found[2:]).all()
    with pytest.raises(ValueError, match=r"\[4, 2\] and \[3, 2\]"):
        cosines(ours, theirs[:3])


def test_a_summary_counts_each_cosine_once():
    found = summary(np.array([0.5, 0.9, 0.95, 0.9995, 0.99999, 1.0, np.nan]))
    assert found.counts == (1, 2, 0, 1, 0, 2)
    assert found.unknown == 1
    assert np.isnan(found.least)
    assert np.isnan(found.mean)
    assert sum(count for _, count in histogram(found)) == 7
    assert histogram(found)[0] == ("below 0.9", 1)
    assert summary(np.array([0.25, 0.75])).least == 0.25
    assert summary(np.array([0.25, 0.75])).mean == 0.5
    with pytest.raises(ValueError, match="no cosines"):
        summary(np.array([]))


def test_agreement_is_one_for_the_same_and_small_for_others():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(3000, 16))
    assert (agreement(vectors, 2 * vectors.astype(np.float32), 10) == 1).all()
    assert agreement(vectors, random.normal(size=(3000, 16)), 10).mean() < 0.02


def test_agreement_by_hand():
    angles = np.deg2rad([0, 10, 30, 100])
    theirs = np.stack([np.cos(angles), np.sin(angles)], 1)
    ours = theirs[[0, 1, 3, 2]]  # rows 2 and 3 swapped: 0 and 1 have each other in both
    assert agreement(ours, theirs, 1).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert agreement(ours, theirs, 50).tolist() == [1.0] * 4


def test_texts_that_are_there_twice_change_nothing():
    base = np.random.default_rng(1).normal(size=(30, 8))
    vectors = np.concatenate([base, base, base])
    assert (agreement(vectors, vectors + 1e-9, 2) == 1).all()


def test_agreement_needs_rows_that_match():
    with pytest.raises(ValueError, match="neighbours"):
        agreement(np.ones((1, 2)), np.ones((1, 2)), 1)
    with pytest.raises(ValueError, match="neighbours"):
        agreement(np.ones((3, 2)), np.ones((4, 2)), 1)
