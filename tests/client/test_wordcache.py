from __future__ import annotations

import random
import re
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from client.trained import ODD, SENTENCES, SEPARABLE, TEXTS, trained
from headrace.cutting import cut
from headrace.newwords import NewWords, cut_parts
from headrace.separable import Recipe, read_recipe
from headrace.tokens import WordCounts
from headrace.wordcache import WordCache
from headrace.wordtable import raw_bytes

PROMPTS = [
    "",
    "query: ",
    "a b\nc: ",
    "no",
    "two  ",
    " x ",
    "Instruct: grind\nQuery: it is ",
    "ends\n ",
]


def make(name, *, max_length=64, side="right", prompt="", **settings):
    tokenizer = Tokenizer.from_str(trained(name))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    recipe = read_recipe(tokenizer)
    return WordCache(
        NewWords(tokenizer, recipe),
        recipe,
        max_length=max_length,
        side=side,
        prompt=prompt,
        counts=settings.pop("counts", WordCounts()),
        **settings,
    )


REFERENCES = {}


def expected(name, texts, *, max_length=64, side="right", prompt=""):
    tokenizer = REFERENCES.setdefault(name, Tokenizer.from_str(trained(name)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction=side)
    encodings = [tokenizer.encode(prompt + text) for text in texts]
    return [(one.ids, bool(one.overflowing)) for one in encodings]


def rows_of(tokens):
    assert tokens.ids.dtype == np.int32
    assert tokens.offsets.dtype == np.int64
    edges = tokens.offsets.tolist()
    return [
        (tokens.ids[start:stop].tolist(), bool(truncated))
        for start, stop, truncated in zip(edges[:-1], edges[1:], tokens.truncated, strict=True)
    ]


CACHES = {}


@pytest.mark.parametrize("name", SEPARABLE)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=6), warm=st.booleans())
def test_ids_are_those_of_tokenizers(name, texts, warm):
    cache = CACHES.setdefault(name, make(name)) if warm else make(name)
    assert rows_of(cache.encode(pa.array(texts, pa.string()))) == expected(name, texts)


@pytest.mark.parametrize("name", ["bert", "bert template", "modernbert", "xlm-r"])
@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(TEXTS, max_size=4),
    prompt=st.one_of(st.sampled_from(PROMPTS), TEXTS),
    max_length=st.integers(7, 40),
    side=st.sampled_from(["left", "right"]),
)
def test_prompts_and_truncation(name, texts, prompt, max_length, side):
    given_ = {"max_length": max_length, "side": side, "prompt": prompt}
    cache = make(name, **given_)
    assert rows_of(cache.encode(pa.array(texts, pa.string()))) == expected(name, texts, **given_)


@pytest.mark.parametrize("name", SEPARABLE)
def test_odd_characters_beside_every_kind_of_space(name):
    cache = make(name)
    texts = [
        f"{left}{odd}{right}"
        for odd in ODD
        for left in ("", "a", "a ")
        for right in (" b", "b ", "  ")
    ]
    rng = random.Random(1)
    texts += [
        "".join(rng.choices([*ODD, " ", " ", " "], k=rng.randint(2, 20))) for _ in range(1500)
    ]
    assert rows_of(cache.encode(pa.array(texts))) == expected(name, texts)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-r"])
def test_columns_of_a_few_bytes(name):
    for text in [*ODD, *(f"{odd} " for odd in ODD), "", " ", "a"]:
        assert rows_of(make_once(name).encode(pa.array([text]))) == expected(name, [text])


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-r"])
def test_slices_are_read_from_their_own_start(name):
    texts = ["zero", "", "one two", " three ", "", "", "four  five", "six\n"]
    column = pa.array(texts)
    for start in range(len(texts) + 1):
        for size in range(len(texts) - start + 1):
            part = column.slice(start, size)
            assert rows_of(make_once(name).encode(part)) == expected(name, part.to_pylist())


def make_once(name):
    return CACHES.setdefault(name, make(name))


def test_columns_too_large_for_one_go_are_done_in_parts(monkeypatch):
    texts = SENTENCES * 4
    for prompt in ("", "query: "):
        whole = make("bert", prompt=prompt).encode(pa.array(texts))
        monkeypatch.setattr("headrace.wordcache._BYTES_AT_ONCE", 300)
        parts = make("bert", prompt=prompt).encode(pa.array(texts))
        monkeypatch.undo()
        assert rows_of(whole) == rows_of(parts)
        monkeypatch.setattr("headrace.wordcache._BYTES_AT_ONCE", 30)
        monkeypatch.setattr("headrace.wordcache._MAX_COLUMN_BYTES", 70)
        counts = WordCounts()
        assert rows_of(
            make("bert", prompt=prompt, counts=counts).encode(pa.array(texts))
        ) == rows_of(whole)
        monkeypatch.undo()
        assert (counts.plain_rows > 0) == (prompt != "")


def test_no_rows():
    tokens = make("bert").encode(pa.array([], pa.string()))
    assert tokens.offsets.tolist() == [0]
    assert len(tokens.ids) == len(tokens.truncated) == 0


def test_the_cache_is_bounded_and_drops_what_was_not_met_for_longest():
    counts = WordCounts()
    cache = make("bert", max_words=100, counts=counts)
    rng = random.Random(2)
    for _ in range(60):
        texts = [f"common {rng.randint(0, 4000)} wheel {rng.randint(0, 4000)}" for _ in range(20)]
        assert rows_of(cache.encode(pa.array(texts))) == expected("bert", texts)
        assert len(cache._table) <= 100
        assert len(cache._lists) == len(cache._table) + 1
        assert len(cache._plain) >= len(cache._table)
    before = counts.new_words
    cache.encode(pa.array(["common wheel"]))
    assert counts.new_words - before == 0


def test_words_longer_than_64_bytes_are_not_kept():
    counts = WordCounts()
    cache = make("bert", counts=counts)
    for _ in range(2):
        cache.encode(pa.array(["a b c d e f " + "é" * 40]))
    assert counts.new_words == 7 + 1
    assert len(cache._table) == 6


def test_rows_without_spaces_stay_whole():
    counts = WordCounts()
    texts = ["水車は川のほとりで回る。風車は丘の上。水車は川のほとりで回る。", "a b"]
    assert rows_of(make("bert", counts=counts).encode(pa.array(texts))) == expected("bert", texts)
    assert counts.plain_rows == 1


def test_another_cache_adopts_what_one_has_learnt():
    texts = ["the wheel turns", "a [SEP] b wheel", "été " * 3, "x" * 80]
    one, counts = make("bert"), WordCounts()
    first = one.encode(pa.array(texts))
    words = one.new_words()
    assert one.new_words() is None
    assert words.schema == pa.schema([("word", pa.binary()), ("ids", pa.list_(pa.int32()))])
    assert None in words["ids"].to_pylist()
    other = make("bert", counts=counts)
    other.adopt(words)
    other.adopt(words.slice(1))
    assert other.new_words() is None
    assert rows_of(other.encode(pa.array(texts))) == rows_of(first) == expected("bert", texts)
    assert counts.new_words == 1
    assert counts.plain_rows == 2
    other.encode(pa.array(["something new"]))
    assert other.new_words()["word"].to_pylist() == [b"something", b" new"]
    small = make("bert", max_words=3)
    small.adopt(words)
    assert len(small._table) <= 3
    assert rows_of(small.encode(pa.array(texts))) == rows_of(first)


def test_counts():
    counts = WordCounts()
    cache = make("bert", counts=counts)
    cache.encode(pa.array(["a b a", "", "b"]))
    assert (counts.words, counts.new_words, counts.plain_rows) == (4, 4, 0)
    cache.encode(pa.array(["a b a", "b [SEP]"]))
    assert (counts.words, counts.new_words, counts.plain_rows) == (9, 5, 1)


@given(texts=st.lists(TEXTS, max_size=5))
def test_cuts_lose_nothing(texts):
    for joins in (False, True):
        data, edges = raw_bytes(pa.array(["skipped", *texts], pa.string()).slice(1))
        pieces = cut(data, edges, joins, 32)
        words = [data[start:stop].tobytes() for start, stop in pairwise(pieces.edges)]
        rows = [words[start:stop] for start, stop in pairwise(pieces.bounds)]
        assert [b"".join(row).decode() for row in rows] == texts
        assert all(word.rfind(b" ") <= 0 or len(row) == 1 or joins for row in rows for word in row)


PARTS = {
    "BERT WordPiece": re.compile(r"[a-zA-Z0-9]+|[^a-zA-Z0-9]"),
    "byte-level BPE": re.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?[a-zA-Z]+| ?[0-9]+| ?[^\sa-zA-Z0-9]+|\s+(?!\S)|\s+"
    ),
}


@given(
    words=st.lists(
        st.one_of(
            st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12),
            st.text("'sStmdrevl1.", min_size=1, max_size=12),
        ),
        max_size=12,
    ),
    spaces=st.integers(0, 4095),
    kind=st.sampled_from(sorted(PARTS)),
)
def test_parts_are_those_of_the_pattern(words, spaces, kind):
    words = [" " * (spaces >> index & 1) + word for index, word in enumerate(words)]
    recipe = Recipe(
        kind=kind, before=(), after=(), lowercase=False, literals=(), normalized_literals=()
    )
    data, places, first = cut_parts(pa.array(words, pa.binary()), recipe)
    parts = [data[start:stop].tobytes().decode() for start, stop in pairwise(places)]
    expected_parts = [PARTS[kind].findall(word) for word in words]
    edges = first.tolist()
    assert [parts[start:stop] for start, stop in pairwise(edges)] == expected_parts


def test_one_block_does_not_hold_more_words_than_the_cache():
    cache = make("bert", max_words=50)
    texts = [" ".join(f"w{row}x{word}" for word in range(40)) for row in range(30)]
    assert rows_of(cache.encode(pa.array(texts))) == expected("bert", texts)
    assert len(cache._table) <= 50
    assert len(cache._table.arrays.slots) == 1 << 16
    assert rows_of(cache.encode(pa.array(texts))) == expected("bert", texts)


def test_words_in_use_stay_where_the_same_ones_are_taken_over():
    one, other = make("bert", max_words=8), make("bert")
    hot = ["hot words here"]
    one.encode(pa.array(["cold a b"]))
    one.encode(pa.array(hot))
    other.encode(pa.array(hot))
    one.adopt(other.new_words())
    one.encode(pa.array(["c d"]))
    kept = {word.decode() for word in one._table.words(np.arange(len(one._table))).to_pylist()}
    assert {"hot", " words", " here"} <= kept
    assert "cold" not in kept
