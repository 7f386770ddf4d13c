from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from headrace.contract import file_hash
from headrace.errors import MachineError, UsageError
from headrace.tokenizer import TextTokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@pytest.fixture(scope="session")
def path(model_folder):
    return model_folder / "tokenizer.json"


@pytest.fixture(scope="session")
def reference(path):
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def check(tokens, texts, reference, max_length, prompt=""):
    assert tokens.offsets.dtype == np.int64
    assert tokens.ids.dtype == np.int32
    assert len(tokens.offsets) == len(texts) + 1
    for row, text in enumerate(texts):
        whole = reference.encode(prompt + text).ids
        got = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()
        if len(whole) <= max_length:
            assert got == whole
        else:
            assert got == [*whole[: max_length - 1], whole[-1]]
        assert tokens.truncated[row] == (len(whole) > max_length)


@given(texts=st.lists(TEXT, max_size=8), max_length=st.integers(3, 40), prompt=TEXT)
def test_ids_equal_those_of_tokenizers(path, reference, texts, max_length, prompt):
    tokenizer = TextTokenizer(path, max_length=max_length, prompt=prompt)
    tokens = tokenizer.encode(pa.array(texts, pa.string()))
    check(tokens, texts, reference, max_length, prompt)


def test_more_rows_than_are_handed_over_at_once(path, reference):
    texts = [f"row {row} of many " * (row % 7) for row in range(2500)]
    tokens = TextTokenizer(path, max_length=20).encode(pa.array(texts))
    check(tokens, texts, reference, 20)
    assert tokens.lengths.sum() == tokens.offsets[-1] == len(tokens.ids)


def test_a_slice_of_a_column_is_read_from_its_own_start(path, reference):
    texts = ["zero", "one two", "three", "four"]
    tokens = TextTokenizer(path, max_length=20).encode(pa.array(texts).slice(1, 2))
    check(tokens, texts[1:3], reference, 20)


def test_awkward_texts(path, reference):
    texts = [
        "",
        " ",
        "\0",
        "a\0b",
        "\ufeffx",
        "é e\u0301",
        "日本語",
        "👩‍👩‍👧",
        "[SEP] x[MASK]",
        "x" * 300,
    ]
    tokens = TextTokenizer(path, max_length=64).encode(pa.array(texts))
    check(tokens, texts, reference, 64)


def test_another_tokenizer_than_the_models_is_refused(path):
    with pytest.raises(UsageError, match="--tokenizer"):
        TextTokenizer(path, max_length=8, expected_hash="0" * 64)
    TextTokenizer(path, max_length=8, expected_hash=file_hash(path))


def test_a_missing_or_broken_file_says_what_to_do(tmp_path):
    with pytest.raises(MachineError, match="--tokenizer"):
        TextTokenizer(tmp_path / "none.json", max_length=8)
    broken = tmp_path / "tokenizer.json"
    for content in ("", "{}", "[", '{"version": "1.0", "model": {"type": "Telepathy"}}'):
        broken.write_text(content)
        with pytest.raises(UsageError, match=r"tokenizer\.json"):
            TextTokenizer(broken, max_length=8)


def test_no_room_for_text_is_refused(path):
    with pytest.raises(UsageError, match="at least 3"):
        TextTokenizer(path, max_length=2)
