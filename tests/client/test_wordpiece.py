from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from client.trained import trained
from headrace.wordpiece import WordPiece

PIECES = [
    "a",
    "b",
    "ab",
    "abc",
    "##a",
    "##b",
    "##ab",
    "##bba",
    "1",
    "##1",
    "#",
    "##",
    "##abab",
    "[",
]


def tokenizer_of(pieces, **settings_):
    vocabulary = {piece: number for number, piece in enumerate(["[UNK]", *pieces])}
    return Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", **settings_))


def check(tokenizer, parts):
    data = np.frombuffer("".join(parts).encode(), np.uint8)
    edges = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    ids, lengths = WordPiece(tokenizer).tokenize(data, edges)
    assert ids.dtype == np.int32
    ends = np.cumsum([0, *lengths])
    for part, start, stop in zip(parts, ends[:-1], ends[1:], strict=True):
        expected = [] if part == " " else [token.id for token in tokenizer.model.tokenize(part)]
        assert ids[start:stop].tolist() == expected, part
    assert len(ids) == ends[-1]


@settings(deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), unique=True),
    parts=st.lists(st.one_of(st.just(" "), st.text("ab1#[", min_size=1, max_size=12)), max_size=9),
    most=st.integers(1, 12),
    prefix=st.sampled_from(["##", "", "#"]),
)
def test_ids_are_those_of_the_model(pieces, parts, most, prefix):
    options = {"max_input_chars_per_word": most, "continuing_subword_prefix": prefix}
    check(tokenizer_of(pieces, **options), parts)


def test_parts_longer_than_any_piece_and_than_is_known():
    tokenizer = tokenizer_of(["x" * 64, "##" + "x" * 60, "##x"])
    check(tokenizer, ["x" * size for size in range(55, 135)])


def test_a_trained_vocabulary():
    tokenizer = Tokenizer.from_str(trained("bert"))
    words = sorted(json.loads(trained("bert"))["model"]["vocab"])
    parts = [word for word in words if word.isascii() and word.isalnum()]
    check(tokenizer, [*parts, *(one + other for one, other in zip(parts, parts[7:], strict=False))])


def test_a_piece_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="64 bytes"):
        WordPiece(tokenizer_of(["x" * 65]))
