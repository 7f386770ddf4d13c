# ruff: noqa: RUF001
"""Small tokenizers of each kind, trained on a few sentences, and the texts that test them."""

from __future__ import annotations

import base64
import functools
import json
import struct

from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors

from headrace_bench.exactness import bert, byte_level, unigram

SENTENCES = [
    "The water runs down the race to the wheel, and the wheel turns the stone.",
    "It's the miller's daughter who'll say: don't, we're closed; they've gone, I'm alone, he'd go.",
    "def mill(stones: int = 2) -> float:\n    return stones * 3.14159  # \t not exact",
    "Größere Mühlen mahlen schneller, çà et là l’été à Orléans. Ёлка стоит у воды.",
    "水車は川のほとりで回る。風車 は 丘の上。 한국어 문장도 있다. ΟΔΟΣ ὁδός.",
    "http://mill.example/a_b?c=d&e=f (see [1], {2}, <3>) @100% ~ $5 + #tag ^ `code` \\ | !",
    "1234 5678.90 abc123 x86_64 v2.0.1 __init__ CamelCase HTTPServer",
] * 3


def charsmap(rules: dict[str, str]) -> str:
    """A SentencePiece character map with these rules, as it stands in a tokenizer.json."""
    replacements, tree = b"", {}
    for source, target in rules.items():
        node = tree
        for byte in source.encode():
            node = node.setdefault(byte, {})
        node[None] = len(replacements)
        replacements += target.encode() + b"\0"
    units, used = [0] * 4096, [True] + [False] * 4095

    def place(node, index):
        labels = [0 if label is None else label for label in node]
        base = next(
            base
            for base in range(1, 2048)
            if not any(used[index ^ base ^ label] for label in labels)
        )
        units[index] |= base << 10
        for label in node:
            used[index ^ base ^ (label or 0)] = True
        for label, child in node.items():
            at = index ^ base ^ (label or 0)
            if label is None:
                units[index] |= 1 << 8
                units[at] = child | 1 << 31
            else:
                units[at] = label
                place(child, at)

    place(tree, 0)
    blob = struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + replacements
    return base64.b64encode(blob).decode()


RULES = {
    "ｆ": "f",
    "\u3000": " ",
    "\u200b": " ",
    "é": "e",
    "ﬁ": "fi",
    "\x01": "",
    "e\u0301": "é",
    "㍿": "株式会社",
}


def precompiled(rules: dict[str, str]) -> normalizers.Normalizer:
    state = {"type": "Precompiled", "precompiled_charsmap": charsmap(rules)}
    return normalizers.Precompiled(base64.b64decode(state["precompiled_charsmap"]))


def changed(tokenizer: Tokenizer, **changes: object) -> Tokenizer:
    """A copy with other values at paths like ``model.dropout``."""
    state = json.loads(tokenizer.to_str())
    for path, value in changes.items():
        *parents, last = path.split("__")
        functools.reduce(dict.__getitem__, parents, state)[last] = value
    return Tokenizer.from_str(json.dumps(state))


def with_tokens(tokenizer: Tokenizer, *tokens: AddedToken) -> Tokenizer:
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def _metaspace_unsplit() -> Tokenizer:
    tokenizer = unigram(SENTENCES, size=300)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(split=False)]
    )
    return tokenizer


def _bert(**settings) -> Tokenizer:
    tokenizer = bert(SENTENCES, lowercase=True, size=500)
    tokenizer.normalizer = normalizers.BertNormalizer(**settings)
    return tokenizer


def _long_template() -> Tokenizer:
    tokenizer = bert(SENTENCES, lowercase=True, size=500)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] [MASK] $A [SEP] [SEP] [PAD]",
        special_tokens=[("[CLS]", 2), ("[MASK]", 4), ("[SEP]", 3), ("[PAD]", 0)],
    )
    return tokenizer


SEPARABLE = {
    "bert": lambda: bert(SENTENCES, lowercase=True, size=500),
    "bert cased": lambda: bert(SENTENCES, lowercase=False, size=500),
    "bert dirty": lambda: _bert(clean_text=False, strip_accents=False),
    "bert bare": lambda: _bert(handle_chinese_chars=False, lowercase=False, strip_accents=True),
    "bert template": _long_template,
    "bert tokens": lambda: with_tokens(
        bert(SENTENCES, lowercase=True, size=500),
        AddedToken("<S>", normalized=True),
        AddedToken("mill_X", normalized=True, single_word=True),
        AddedToken("\\d+|a", normalized=False, lstrip=True),
    ),
    "roberta": lambda: byte_level(SENTENCES, size=600),
    "modernbert": lambda: byte_level(
        SENTENCES, normalizer=normalizers.NFC(), spaces=True, size=600
    ),
    "bpe tokens": lambda: with_tokens(
        byte_level(SENTENCES, normalizer=normalizers.NFC(), size=600),
        AddedToken("é!", normalized=True),
        AddedToken("\n\n", normalized=False),
        AddedToken("<m>", normalized=False, lstrip=True, rstrip=True),
    ),
    "bpe merges": lambda: changed(byte_level(SENTENCES, size=600), model__ignore_merges=True),
    "xlm-r": lambda: unigram(SENTENCES, normalizer=precompiled(RULES), size=300),
    "xlm-r nfkc": lambda: unigram(SENTENCES, normalizer=normalizers.NFKC(), size=300),
    "xlm-r nfc": lambda: unigram(SENTENCES, normalizer=normalizers.NFC(), size=300),
    "xlm-r plain": lambda: unigram(SENTENCES, size=300),
    "xlm-r unsplit": _metaspace_unsplit,
    "xlm-r tokens": lambda: with_tokens(
        unigram(SENTENCES, normalizer=precompiled(RULES), size=300),
        AddedToken("<f>", normalized=True),
        AddedToken("<mask2>", normalized=False, lstrip=True),
    ),
}

LITERALS = [
    *("[SEP]", "[MASK]", "[mask]", "<s>", "<S>", "</s>", "<mask>", "<mask2>", "<m>", "<f>", "<ｆ>"),
    *("mill_X", "MILL_x", "é!", "e\u0301!", "\\d+|a", "\n\n", "<s\0>", "<s\u0301>"),
]
ODD = [
    *("\t", "\n", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1f", "\x85", "\xa0", "\u1680", "\u180e"),
    *("\u2000", "\u2009", "\u200b", "\u200c", "\u200d", "\u2028", "\u2029", "\u202f", "\u205f"),
    *("\u2060", "\u3000", "\ufeff", "\0", "\x01", "\x7f", "\x80", "\xad", "\u202e", "\ufffd"),
    *("\u0301", "\u0308", "\u0323", "\u0338", "\u0345", "\u064b", "\u093c", "\u094d", "\u0e33"),
    *("\u20e3", "\u3099", "\u1161", "\u11a8", "\ufe0f", "\U0001f3fb", "\U0001f1e6", "\u0600"),
    *("\u06dd", "\u0d4e", "\U000110bd", "\ue000", "\U000e0041", "\U0010ffff", "Σ", "ς", "σ", "İ"),
    *(
        "ı",
        "ß",
        "ẞ",
        "ﬁ",
        "Ǆ",
        "Å",
        "é",
        "e\u0301",
        "ö\u0323",
        "①",
        "½",
        "ｆ",
        "中",
        "日本",
        "한",
        "𠀀",
    ),
    *(
        "ไทย",
        "हि",
        "ע",
        "ع",
        "👩\u200d👩\u200d👧",
        "“",
        "”",
        "—",
        "’s",
        "'s",
        "'ll",
        "''",
        "'",
        '"',
        "▁",
        "Ġ",
        "##",
    ),
    *("_", "-", ".", ",", "(", ")", "a", "B", "7", "wheel", "x" * 101, "q" * 60, "é" * 33),
]
ALPHABET = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(LITERALS),
    st.sampled_from(["a", "I", "the", "wheel's", "3.1", "don't", "mill", "été", "x_y", "''s'"]),
    st.characters(exclude_categories=["Cs"]),
    st.text("abcXYZ019'\"-_.,:;!?()[]{}#&*@", min_size=1, max_size=9),
)
TEXTS = st.lists(st.one_of(ALPHABET, st.just(" "), st.just(" "), st.just("  ")), max_size=24).map(
    "".join
)


@functools.cache
def trained(name: str) -> str:
    """The ``tokenizer.json`` of :data:`SEPARABLE`'s ``name``."""
    return SEPARABLE[name]().to_str()
