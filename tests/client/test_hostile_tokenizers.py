"""Tokenizers whose files were written to do harm: an error in one line, always."""

from __future__ import annotations

import base64
import json
import os

import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from headrace import contract
from headrace.errors import HeadraceError, TokenizationError, UsageError
from headrace.tokenizer import TextTokenizer
from headrace.tokenizerfile import tokenizer_errors
from headrace_launcher.tokenizer import load_tokenizer

TEXTS = pa.array(["", "a b", "hello b\u00e9 \U0001f600"])
REGEX = {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 10_000}
TEN = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
A, Q = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "Q", "type_id": 0}}


def template(*single: object, **special: object) -> dict[str, object]:
    pair = [A, {"Sequence": {"id": "B", "type_id": 0}}]
    kind = {"type": "TemplateProcessing", "single": list(single), "pair": pair}
    return {"post_processor": kind | {"special_tokens": special}}


def charsmap(data: bytes) -> dict[str, object]:
    text = base64.b64encode(data).decode()
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": text}}


# What each does to `tokenizers` 0.23 is said where it is worse than an exception.
REFUSED = {
    "no model": {"model": None},
    "ids of 40 bits": {"model": {"type": "WordPiece", "vocab": {"a": 2**40}}},
    "negative ids": {"model": {"type": "WordPiece", "vocab": {"a": -1}}},
    "ids that are no int32": {"model": {"type": "WordLevel", "vocab": {"a": 2**32 - 1}}},
    "no unknown token": {"model": {"type": "WordPiece", "vocab": {}, "unk_token": "x"}},
    "Unigram without words": {"model": {"type": "Unigram", "vocab": [], "unk_id": 0}},
    "Unigram without unknown": {"model": {"type": "Unigram", "vocab": [["a", 0]], "unk_id": None}},
    "a merge of nothing": {"model": MODEL | {"merges": ["a c"]}},
    "panics at loading": {"model": MODEL | {"continuing_subword_prefix": "###"}},
    "an empty map (panics)": charsmap(b""),
    "a map that leads out (panics)": charsmap((256).to_bytes(4, "little") + b"\xff" * 256 + b"a"),
    "a map of 8 GiB (aborts)": charsmap(base64.b64decode("//////////8AAAA=")),
    "a text of 10^12 letters (aborts)": {
        "normalizer": {"type": "Sequence", "normalizers": [TEN] * 12}
    },
    "a regular expression that matches all": {"normalizer": REGEX},
    "a regular expression that is none": {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "("}}},
    "parentheses without end": {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(" * 10**5}}},
    "pieces of length 0 (panics)": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a template without its token (panics)": template(Q, A),
    "a template of B (panics)": template({"Sequence": {"id": "B", "type_id": 0}}),
    "a template of A, twice": template(A, A),
    "a template of large ids": template(Q, A, Q={"id": "Q", "ids": [2**32 - 1], "tokens": ["Q"]}),
    "special tokens of large ids": {
        "post_processor": {"type": "BertProcessing", "sep": ["x", 2**32 - 1], "cls": ["y", 0]}
    },
    "tokens without end": {"added_tokens": None},
}


@pytest.fixture
def sound():
    words = {"[UNK]": 0, "[CLS]": 1, "a": 2, "b": 3, "##b": 4}
    made = Tokenizer(WordPiece(words, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    return json.loads(made.to_str())


def use(path, **options):
    return TextTokenizer(path, max_length=20, **options).encode(TEXTS)


@pytest.mark.parametrize("word_cache", ["run", "off"])
def test_padding_to_a_length_that_takes_all_memory_is_not_done(sound, tmp_path, word_cache):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(sound))
    want = use(path, word_cache=word_cache)
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]"}
    path.write_text(json.dumps(sound | {"padding": padding}))
    assert use(path, word_cache=word_cache).ids.tolist() == want.ids.tolist()
    assert len(load_tokenizer(path).encode("a").ids) == 1


@pytest.mark.parametrize("word_cache", ["run", "off"])
@pytest.mark.parametrize("kind", REFUSED)
def test_hostile_tokenizers_are_refused(sound, tmp_path, capfd, kind, word_cache):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(sound))
    use(path, word_cache=word_cache)
    path.write_text(json.dumps(sound | REFUSED[kind]))
    with pytest.raises(UsageError) as caught:
        use(path, word_cache=word_cache)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert not capfd.readouterr().err  # a panic tells of itself there


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**5, b'{"model":' * 10**5],
)
def test_what_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a readable tokenizer"):
        use(path)


def test_a_file_that_is_none_or_too_large(tmp_path):
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as stream:
        stream.truncate(5 << 30)
    with pytest.raises(UsageError, match="more than any tokenizer"):
        contract_use(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="no regular file"):
        contract_use(path)


def contract_use(path):
    from headrace.tokenizerfile import try_file

    return try_file(path)


def test_a_tokenizer_that_takes_too_long_is_given_up(sound, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(sound | {"version": "1.0", "truncation": None}))
    monkeypatch.setattr(contract, "_TRIAL_SECONDS", 0)
    monkeypatch.setattr(contract, "_TRIED", set())
    with pytest.raises(UsageError, match="did not tokenize"):
        use(path)


class PanicException(BaseException):
    """Stands in for pyo3's, which cannot be imported."""


@pytest.mark.parametrize("kind", [PanicException, Exception, OverflowError, RecursionError])
def test_what_tokenizers_raises_is_ours(kind):
    with (
        pytest.raises(TokenizationError, match="index 5 out of range") as caught,
        tokenizer_errors(),
    ):
        raise kind("index 5 out of range\nmore")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, UsageError])
def test_what_is_not_of_tokenizers_passes(kind):
    with pytest.raises(kind), tokenizer_errors():
        raise kind


def test_a_row_that_tokenizers_fails_on_ends_in_an_error(sound, tmp_path):
    """A map that breaks down over one character only, so that no trial meets it."""
    path = tmp_path / "tokenizer.json"
    model = {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0, "b": 1, ",": 2}}
    path.write_text(json.dumps(sound | {"model": model}))
    with pytest.raises(HeadraceError):
        TextTokenizer(path, max_length=20, tried=True, word_cache="off").encode(pa.array(["q"]))
