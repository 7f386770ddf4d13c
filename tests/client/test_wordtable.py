from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import wordtable
from headrace.wordtable import MAX_WORD_BYTES, UNFIT, UNKNOWN, WordTable

WORDS = st.lists(
    st.one_of(
        st.binary(max_size=70),
        st.text(st.sampled_from("ab\0 é"), max_size=20).map(str.encode),
        st.integers(0, 66).map(lambda size: b"x" * size),
    ),
    unique=True,
    max_size=60,
)


def column(words):
    return pa.array(words, pa.binary())


@settings(deadline=None)
@given(known=WORDS, asked=WORDS)
def test_finds_what_was_added_and_nothing_else(known, asked):
    table, numbers = WordTable(), {}
    for half in (known[::2], known[1::2]):
        short = [word for word in half if len(word) <= MAX_WORD_BYTES]
        table.add(column(short))
        numbers |= {word: len(numbers) + index for index, word in enumerate(short)}
    expected = [
        numbers.get(word, UNKNOWN if len(word) <= MAX_WORD_BYTES else UNFIT)
        for word in [*known, *asked]
    ]
    assert table.find(column([*known, *asked])).tolist() == expected
    some = np.arange(len(table))[::3]
    words = list(numbers)
    assert table.words(some).to_pylist() == [words[number] for number in some]
    table.keep(some)
    assert len(table) == len(some)
    kept = [words[number] for number in some]
    assert table.find(column(kept)).tolist() == list(range(len(kept)))
    gone = [word for word in words if word not in kept]
    assert (table.find(column(gone)) == UNKNOWN).all()


def test_many_words_and_slices():
    words = [f"word {number}".encode() for number in range(50_000)]
    table = WordTable()
    for start in range(0, len(words), 7000):
        table.add(column(words[start : start + 7000]))
    found = table.find(column([b"no", *words, b"none"]).slice(1, len(words)))
    assert (found == np.arange(len(words))).all()


def test_words_of_one_hash_are_never_confused():
    table = WordTable()
    table._factors[:-1] = 0  # every word of one length has the same hash
    table.add(column([b"one"]))
    assert table.find(column([b"one", b"two", b"four"])).tolist() == [0, UNFIT, UNKNOWN]
    table.add(column([b"four", b"five"]))
    found = table.find(column([b"one", b"four", b"five"])).tolist()
    assert found in ([0, 1, UNFIT], [0, UNFIT, 2])


def test_words_that_fall_on_one_place_are_told_apart(monkeypatch):
    monkeypatch.setattr(
        wordtable.WordTable, "_place", lambda self, hashes: np.full(len(hashes), 1023) % 1024
    )
    words = [str(number).encode() for number in range(200)]
    table = WordTable()
    table.add(column(words))
    assert table.find(column([*words, b"no"])).tolist() == [*range(200), UNKNOWN]


@pytest.mark.parametrize("words", [[], [b""], [b"", b"\0", b"\0\0"]])
def test_empty_words(words):
    table = WordTable()
    table.add(column(words))
    assert table.find(column(words)).tolist() == list(range(len(words)))
