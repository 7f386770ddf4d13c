"""Ragged tokens: which rows differ."""

from __future__ import annotations

import numpy as np

from headrace.tokens import Tokens, WordCounts, differing_rows


def test_rows_that_differ():
    def tokens(ids, offsets, truncated=(False, False)):
        return Tokens(np.array(ids, np.int32), np.array(offsets), np.array(truncated))

    one = tokens([1, 2, 3], [0, 1, 3])
    assert differing_rows(one, one).tolist() == []
    assert differing_rows(one, tokens([1, 2, 4], [0, 1, 3])).tolist() == [1]
    assert differing_rows(one, tokens([1, 2, 3], [0, 2, 3])).tolist() == [0, 1]
    assert differing_rows(one, tokens([1, 2, 3], [0, 1, 3], (True, False))).tolist() == [0]


def test_counts_add_up():
    counts = WordCounts(words=1, new_words=2, plain_rows=3, checked_rows=4)
    counts.add(WordCounts(words=10, new_words=20, plain_rows=30, checked_rows=40))
    assert counts == WordCounts(words=11, new_words=22, plain_rows=33, checked_rows=44)
