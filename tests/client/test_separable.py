from __future__ import annotations

import base64

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from client.trained import (
    RULES,
    SENTENCES,
    SEPARABLE,
    changed,
    charsmap,
    precompiled,
    trained,
    with_tokens,
)
from headrace.separable import NotSeparableError, read_recipe
from headrace_bench.exactness import byte_level, unigram


@pytest.mark.parametrize("name", SEPARABLE)
def test_the_special_tokens_are_those_that_tokenizers_adds(name):
    tokenizer = Tokenizer.from_str(trained(name))
    recipe = read_recipe(tokenizer)
    for text in ("", "wheel", "the wheel turns"):
        inner = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).ids == [*recipe.before, *inner, *recipe.after]


def test_the_demo_models_tokenizer(model_folder):
    recipe = read_recipe(Tokenizer.from_file(str(model_folder / "tokenizer.json")))
    assert (recipe.kind, recipe.before, recipe.after) == ("BERT WordPiece", (101,), (102,))
    assert recipe.lowercase
    assert recipe.literals == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def put(tokenizer, **parts):
    for part, value in parts.items():
        setattr(tokenizer, part, value)
    return tokenizer


def make(name):
    return Tokenizer.from_str(trained(name))


def template(single, *names):
    return processors.TemplateProcessing(single=single, special_tokens=[(n, 2) for n in names])


REFUSED = {
    "Metaspace alone": lambda: put(make("xlm-r"), pre_tokenizer=pre_tokenizers.Metaspace()),
    "first": lambda: put(
        make("xlm-r"),
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")]
        ),
    ),
    "never": lambda: put(
        make("xlm-r"),
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="never")]
        ),
    ),
    "replacement": lambda: put(
        make("xlm-r"),
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="_")]
        ),
    ),
    "other order": lambda: put(
        make("xlm-r"),
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(), pre_tokenizers.WhitespaceSplit()]
        ),
    ),
    "a third": lambda: put(
        make("xlm-r"),
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Metaspace(),
                pre_tokenizers.Digits(),
            ]
        ),
    ),
    "dropout": lambda: changed(make("roberta"), model__dropout=0.1),
    "dropout 0": lambda: changed(make("roberta"), model__dropout=0.0),
    "suffix": lambda: changed(make("roberta"), model__end_of_word_suffix="</w>"),
    "continuing": lambda: put(
        Tokenizer(models.BPE(continuing_subword_prefix="##")),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    ),
    "byte fallback": lambda: changed(make("roberta"), model__byte_fallback=True),
    "fuse": lambda: changed(make("roberta"), model__fuse_unk=True),
    "prefix space": lambda: put(
        make("roberta"), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)
    ),
    "no pattern": lambda: put(
        make("roberta"),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ),
    "NFKC before bytes": lambda: put(make("roberta"), normalizer=normalizers.NFKC()),
    "Lowercase": lambda: put(make("roberta"), normalizer=normalizers.Lowercase()),
    "Sequence": lambda: put(make("xlm-r"), normalizer=normalizers.Sequence([normalizers.NFC()])),
    "Replace": lambda: put(make("xlm-r"), normalizer=normalizers.Replace(" ", "x")),
    "a rule for spaces": lambda: put(make("xlm-r"), normalizer=precompiled({" a": "b"})),
    "a rule for a space": lambda: put(make("xlm-r"), normalizer=precompiled({" ": ""})),
    "a rule for a prepended sign": lambda: put(
        make("xlm-r"), normalizer=precompiled(RULES | {"\u0600": ""})
    ),
    "no normalizer": lambda: put(make("bert"), normalizer=None),
    "other normalizer": lambda: put(make("bert"), normalizer=normalizers.NFC()),
    "other words": lambda: put(make("bert"), pre_tokenizer=pre_tokenizers.Whitespace()),
    "no words": lambda: changed(make("bert"), pre_tokenizer=None),
    "no unknown": lambda: changed(make("bert"), model__unk_token="[NONE]"),
    "no unknown piece": lambda: changed(make("xlm-r"), model__unk_id=None),
    "unknown to BPE": lambda: changed(make("roberta"), model__unk_token="[NONE]"),
    "WordLevel": lambda: Tokenizer(models.WordLevel({"a": 0}, "a")),
    "text twice": lambda: put(make("bert"), post_processor=template("[CLS] $A $A", "[CLS]")),
    "pair": lambda: put(make("bert"), post_processor=template("[CLS] $B", "[CLS]")),
    "two words": lambda: with_tokens(make("bert"), AddedToken("two words")),
    "space before": lambda: with_tokens(make("roberta"), AddedToken(" x", normalized=False)),
    "one space": lambda: with_tokens(make("roberta"), AddedToken(" ", normalized=False)),
    "spaces": lambda: with_tokens(make("bert"), AddedToken("  ", normalized=False)),
    "lone spaces": lambda: with_tokens(make("modernbert"), AddedToken(" " * 30, single_word=True)),
    "spaced Chinese": lambda: with_tokens(make("bert"), AddedToken("中", normalized=True)),
    "nothing left": lambda: with_tokens(make("bert"), AddedToken("\u200d", normalized=True)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_proven_is_refused_with_a_reason(name):
    with pytest.raises(NotSeparableError, match=r"\w \w"):
        read_recipe(REFUSED[name]())


@pytest.mark.parametrize("path", ["model", "normalizer", "pre_tokenizer", "post_processor"])
@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-r"])
def test_an_unknown_setting_is_refused(monkeypatch, name, path):
    import json

    from headrace import separable

    state = json.loads(trained(name))
    if state[path] is None:
        return
    state[path]["new_setting"] = True

    class Newer:
        encode_special_tokens = False
        normalizer = None

        def to_str(self):
            return json.dumps(state)

    with pytest.raises(NotSeparableError, match="new_setting"):
        separable.read_recipe(Newer())


def test_a_sequence_of_post_processors():
    tokenizer = make("roberta")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            template("<s> <mask> $A </s>", "<s>", "<mask>", "</s>"),
        ]
    )
    recipe = read_recipe(tokenizer)
    assert (recipe.before, recipe.after) == ((2, 2), (2,))
    assert tokenizer.encode("the wheel").ids[:2] == [2, 2]


def test_the_character_map_is_read_as_tokenizers_reads_it():
    tokenizer = unigram(SENTENCES, normalizer=precompiled(RULES), size=300)
    for source, target in RULES.items():
        assert tokenizer.normalizer.normalize_str(source) == target
    assert base64.b64decode(charsmap({"a": "b"}))


def test_no_post_processor():
    tokenizer = changed(byte_level(SENTENCES, size=600), post_processor=None)
    recipe = read_recipe(tokenizer)
    assert recipe.before == recipe.after == ()
