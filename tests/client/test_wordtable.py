from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.wordtable import MAX_WORD_BYTES, UNFIT, WordTable, raw_bytes, readable

WORDS = st.lists(
    st.one_of(
        st.binary(max_size=70),
        st.text(st.sampled_from("ab\0 é"), max_size=20).map(str.encode),
        st.integers(0, 66).map(lambda size: b"x" * size),
        st.integers(0, 50).map(lambda size: b"y" * 17 + b"z" * size),
    ),
    max_size=60,
)


def number(table, words, now=0):
    return table.number(*raw_bytes(pa.array(words, pa.binary())), now).tolist()


class Naive:
    """What a table must do, by a dict."""

    def __init__(self):
        self.numbers, self.met = {}, {}

    def number(self, words, now=0):
        found = []
        for word in words:
            if len(word) > MAX_WORD_BYTES:
                found.append(UNFIT)
                continue
            found.append(self.numbers.setdefault(word, len(self.numbers)))
            self.met[word] = now
        return found

    def keep(self, numbers):
        words = list(self.numbers)
        self.numbers = {words[number]: place for place, number in enumerate(numbers)}


@settings(deadline=None)
@given(calls=st.lists(WORDS, max_size=5), keeps=st.lists(st.randoms(), max_size=2))
def test_numbers_as_a_dict_would(calls, keeps):
    table, naive = WordTable(), Naive()
    for now, words in enumerate(calls):
        assert number(table, words, now) == naive.number(words, now)
        assert len(table) == len(naive.numbers)
        assert table.met().tolist() == [naive.met[word] for word in naive.numbers]
        if now < len(keeps):
            kept = sorted(keeps[now].sample(range(len(table)), len(table) // 2))
            table.keep(np.array(kept, np.int64))
            naive.keep(kept)
    words = list(naive.numbers)
    some = np.arange(len(table))[::3]
    assert table.words(some).to_pylist() == [words[number] for number in some]


def test_many_words_and_slices():
    words = [f"word {number} {'x' * (number % 50)}".encode() for number in range(150_000)]
    table = WordTable()
    for start in range(0, len(words), 7500):
        chunk = [b"no", *words[start : start + 7500], b"none"]
        found = table.number(*raw_bytes(pa.array(chunk, pa.binary()).slice(1, 7500)), start)
        assert (found == np.arange(start, start + 7500)).all()
    assert number(table, [words[0], words[-1], b"none"]) == [0, len(words) - 1, len(words)]
    assert (table.met()[1:-2] == np.arange(1, len(words) - 1) // 7500 * 7500).all()
    table.keep(np.arange(1, len(words), 2))
    assert number(table, words[1::2]) == list(range(len(words) // 2))
    assert number(table, [words[0]]) == [len(words) // 2]


def test_words_of_one_hash_are_told_apart():
    table = WordTable()
    table.arrays.factors[:] = 0  # every word has the same hash
    words = [str(number).encode() * (number % 9 + 1) for number in range(200)]
    assert number(table, words) == list(range(200))
    assert number(table, [*reversed(words), b"no"]) == [*reversed(range(200)), 200]
    long = [b"x" * 40 + bytes([number]) for number in range(50)]
    assert number(table, long) == list(range(201, 251))
    assert number(table, long) == list(range(201, 251))


def test_two_tables_have_two_hashes():
    one, other = WordTable(), WordTable()
    assert one.arrays.factors.tolist() != other.arrays.factors.tolist()


@pytest.mark.parametrize("words", [[], [b""], [b"", b"\0", b"\0\0"]])
def test_empty_words(words):
    table = WordTable()
    assert number(table, words) == number(table, words) == list(range(len(words)))
    assert table.words(np.arange(len(words))).to_pylist() == words


def test_bytes_are_read_eight_at_a_time():
    data = np.arange(1, 12, dtype=np.uint8)
    lanes = readable(data)
    assert lanes[0] == int.from_bytes(bytes(range(1, 9)), "little")
    assert lanes[10] == 11
    assert lanes[11] == lanes[18] == 0


def test_a_full_table_knows_what_it_has_and_takes_nothing_more():
    table = WordTable()
    column = raw_bytes(pa.array([b"a", b"b", b"a", b"c", b"b", b"d"], pa.binary()))
    assert table.number(*column, most=2).tolist() == [0, 1, 0, UNFIT, 1, UNFIT]
    assert len(table) == 2
    assert table.number(*column, most=3).tolist() == [0, 1, 0, 2, 1, UNFIT]


def test_a_word_that_was_met_late_was_not_met_early():
    table = WordTable()
    number(table, [b"a", b"b"], 5)
    number(table, [b"a", b"c"], 0)
    assert table.met().tolist() == [5, 5, 0]
