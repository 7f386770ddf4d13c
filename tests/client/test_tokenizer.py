from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers

from client.trained import SENTENCES, SEPARABLE, TEXTS, trained
from headrace import keptwords
from headrace.awkward import awkward_texts
from headrace.contract import file_hash
from headrace.errors import MachineError, TokenizationError, UsageError
from headrace.newwords import NewWords
from headrace.separable import read_recipe
from headrace.tokenizer import TextTokenizer
from headrace.wordcache import WordCache

TEXT = st.one_of(TEXTS, st.text(st.characters(exclude_categories=["Cs"]), max_size=80))


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def path(model_folder):
    return model_folder / "tokenizer.json"


@pytest.fixture(scope="session")
def reference(path):
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")

    def file(name):
        path = folder / f"{name}.json"
        if not path.exists():
            path.write_text(trained(name))
        return path

    return file


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


@settings(deadline=None, max_examples=40)
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


@pytest.mark.parametrize("name", SEPARABLE)
@pytest.mark.parametrize("prompt", ["", "query: ", "a  "])
@pytest.mark.filterwarnings("error")
def test_every_separable_kind_is_cached(files, name, prompt):
    tokenizer = TextTokenizer(files(name), max_length=32, prompt=prompt)
    assert tokenizer.cache_note in {"BERT WordPiece", "Unigram", "byte-level BPE"}
    assert tokenizer.counts.words == 0
    assert tokenizer.new_words() is None


def test_another_kind_is_tokenized_as_before(tmp_path):
    other = Tokenizer.from_str(trained("xlm-r"))
    other.pre_tokenizer = pre_tokenizers.Metaspace()
    other.decoder = decoders.Metaspace()
    other.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json", max_length=16)
    assert tokenizer.cache_note == "off: a Unigram model after a Metaspace pre-tokenizer"
    tokens = tokenizer.encode(pa.array(SENTENCES))
    assert tokens.ids[: tokens.offsets[1]].tolist()[1:-1] == other.encode(SENTENCES[0]).ids[1:15]
    assert tokenizer.counts.plain_rows == len(SENTENCES)
    assert tokenizer.new_words() is None
    tokenizer.adopt(pa.record_batch([[b"a"], [[1]]], ["word", "ids"]))


def test_the_cache_can_be_turned_off(path, reference):
    tokenizer = TextTokenizer(path, max_length=16, word_cache="off")
    assert tokenizer.cache_note == "off: --word-cache off"
    check(tokenizer.encode(pa.array(SENTENCES)), SENTENCES, reference, 16)
    assert tokenizer.counts.words == 0


def test_one_row_in_so_many_is_checked(path):
    tokenizer = TextTokenizer(path, max_length=16, check_every=10)
    for rows in (25, 0, 75, 3, 97, 800):
        tokenizer.encode(pa.array(["a row"] * rows, pa.string()))
    assert tokenizer.counts.checked_rows == 100


def test_the_checked_rows_are_spread(path, monkeypatch):
    tokenizer = TextTokenizer(path, max_length=16, check_every=16)
    checked = []
    by_tokenizers = tokenizer._by_tokenizers
    monkeypatch.setattr(
        tokenizer,
        "_by_tokenizers",
        lambda texts: checked.extend(texts.to_pylist()) or by_tokenizers(texts),
    )
    for block in range(40):
        tokenizer.encode(pa.array([str(row) for row in range(64 * block, 64 * block + 64)]))
    numbers = [int(text) for text in checked]
    assert [number // 16 for number in numbers] == list(range(160))
    assert len({number % 16 for number in numbers}) == 16


def wrong_words():
    return pa.record_batch(
        [pa.array([b" wheel"]), pa.array([[5, 6]], pa.list_(pa.int32()))], schema=keptwords.SCHEMA
    )


def test_a_wrong_word_is_found_and_the_kept_words_go(path):
    first = TextTokenizer(path, max_length=16, check_every=1)
    first.encode(pa.array(["the wheel"]))
    keptwords.save(first.hash, [wrong_words()])
    tokenizer = TextTokenizer(path, max_length=16, check_every=8, word_cache="keep")
    with pytest.raises(TokenizationError, match=r"the wheel.*--word-cache off") as caught:
        tokenizer.encode(pa.array(["the wheel " + "of a mill " * 100] * 8))
    assert len(str(caught.value)) < 500
    assert keptwords.load(tokenizer.hash) is None
    again = TextTokenizer(path, max_length=16, check_every=1, word_cache="keep")
    again.encode(pa.array(["the wheel"] * 8))


def test_kept_words_are_not_new(path, reference):
    first = TextTokenizer(path, max_length=16, word_cache="keep")
    first.encode(pa.array(SENTENCES))
    keptwords.save(first.hash, [first.new_words()])
    second = TextTokenizer(path, max_length=16, word_cache="keep", check_every=1)
    check(second.encode(pa.array(SENTENCES)), SENTENCES, reference, 16)
    assert second.counts.new_words < first.counts.new_words / 10
    assert second.new_words() is None
    assert TextTokenizer(path, max_length=16).counts.new_words == 0
    forgetful = TextTokenizer(path, max_length=16, word_cache="run")
    forgetful.encode(pa.array(SENTENCES))
    assert forgetful.counts.new_words == first.counts.new_words


def test_a_cache_that_is_not_exact_is_not_used(path, reference, monkeypatch):
    tokenize = NewWords._part_ids

    def wrong(self, parts):
        ids, lengths = tokenize(self, parts)
        return np.where(ids == 1056, 1057, ids), lengths

    monkeypatch.setattr(NewWords, "_part_ids", wrong)
    with pytest.warns(UserWarning, match="word cache is off"):
        tokenizer = TextTokenizer(path, max_length=16)
    assert tokenizer.cache_note == "off: not exact for this tokenizer"
    check(tokenizer.encode(pa.array(SENTENCES)), SENTENCES, reference, 16)


def test_truncation_at_the_left_is_kept(tmp_path):
    left = Tokenizer.from_str(trained("bert"))
    left.enable_truncation(512, direction="left")
    left.save(str(tmp_path / "tokenizer.json"))
    left.enable_truncation(9, direction="left")
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json", max_length=9, check_every=1)
    tokens = tokenizer.encode(pa.array(SENTENCES))
    for row, text in enumerate(SENTENCES):
        ids = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
        assert ids.tolist() == left.encode(text).ids


def test_the_awkward_texts_are_some_hundred_and_name_the_added_tokens(reference):
    texts = awkward_texts(read_recipe(reference))
    assert 300 < len(texts) < 600
    assert any("[SEP]" in text for text in texts)


def test_words_of_one_process_serve_another(path, reference):
    one, other = (TextTokenizer(path, max_length=32, check_every=1) for _ in range(2))
    one.encode(pa.array(SENTENCES))
    other.adopt(one.new_words())
    check(other.encode(pa.array(SENTENCES)), SENTENCES, reference, 32)
    assert other.new_words() is None
    assert isinstance(other._cache, WordCache)
