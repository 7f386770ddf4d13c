"""Decides whether a tokenizer's ids are the ids of its text's words, one after the other.

A text is cut before every space (U+0020); for byte-level BPE, before every space that follows no
other white space. For the tokenizers that :func:`read_recipe` lets pass
``ids(text) == before + ids(word 0) + ids(word 1) + ... + after``, apart from the rows that hold
an added token, which are for ``tokenizers`` itself. Everything that is not proven is refused: a
component, a parameter or a key that is not named here.

Why a cut before a space changes nothing, by component of ``tokenizers``:

* ``BertNormalizer``, ``NFC``, ``NFKC`` work on single characters and on a character with the marks
  after it; a space joins nothing before it. ``Precompiled`` works on grapheme clusters; one that
  holds a space after its first character begins with a character of the class Prepend.
* ``BertPreTokenizer`` and ``WhitespaceSplit`` drop the space and end a word there.
* ``ByteLevel`` (the pattern of GPT-2) takes a space as the first character of a match, except in
  a run of white characters, and looks ahead only to see whether such a run goes on.
* ``WordPiece``, ``BPE`` and ``Unigram`` see one word at a time.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Kind = Literal["BERT WordPiece", "Unigram", "byte-level BPE"]

# Grapheme_Cluster_Break=Prepend of Unicode 16: they form one cluster with what follows them.
_PREPEND = (
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\U000110bd\U000110cd"
    "\U000111c2\U000111c3\U000113d1\U0001193f\U00011941\U00011a3a\U00011a84\U00011a85\U00011a86"
    "\U00011a87\U00011a88\U00011a89\U00011d46\U00011f02"
)
_TOP = {
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
}
_ADDED = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}


class NotSeparableError(ValueError):
    """The tokenizer is not proven to work word by word; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the cache needs to know of a separable tokenizer.

    Attributes:
        kind: what it is, as shown to the user.
        before: special tokens in front of every row.
        after: special tokens behind every row.
        lowercase: whether ``A`` and ``a`` are the same to it.
        literals: texts of added tokens, found in the text as it is.
        normalized_literals: texts of added tokens, normalized, found in the normalized text.
    """

    kind: Kind
    before: tuple[int, ...]
    after: tuple[int, ...]
    lowercase: bool
    literals: tuple[str, ...]
    normalized_literals: tuple[str, ...]


def read_recipe(tokenizer: Tokenizer) -> Recipe:
    """Returns how to tokenize word by word.

    Raises:
        NotSeparableError: that is not proven to be exact for this tokenizer.
    """
    # As `tokenizers` writes it: with every default spelt out, and nothing that it did not read.
    state = json.loads(tokenizer.to_str())
    _no_more_than(state, _TOP, "the file")
    if getattr(tokenizer, "encode_special_tokens", False):
        raise NotSeparableError("it encodes special tokens as text")
    kind = _kind(state)
    literals, normalized = _literals(tokenizer, state, kind)
    before, after = _special_ids(state["post_processor"])
    normalizer = state["normalizer"] or {}
    return Recipe(
        kind=kind,
        before=before,
        after=after,
        lowercase=kind == "BERT WordPiece" and normalizer["lowercase"],
        literals=literals,
        normalized_literals=normalized,
    )


def _kind(state: Mapping[str, Any]) -> Kind:
    normalizer, before, model = state["normalizer"], state["pre_tokenizer"], state["model"]
    match (model.get("type"), (before or {}).get("type")):
        case ("WordPiece", "BertPreTokenizer"):
            _exactly(before, "pre-tokenizer", type="BertPreTokenizer")
            _exactly(
                normalizer,
                "normalizer",
                type="BertNormalizer",
                clean_text=(True, False),
                handle_chinese_chars=(True, False),
                strip_accents=(None, True, False),
                lowercase=(True, False),
            )
            _exactly(
                model,
                "model",
                type="WordPiece",
                unk_token=...,
                continuing_subword_prefix=...,
                max_input_chars_per_word=...,
                vocab=...,
            )
            _check_unknown(model["unk_token"] in model["vocab"])
            return "BERT WordPiece"
        case ("Unigram", "Sequence"):
            _check_words_with_marks(before)
            _check_unicode(normalizer, ("NFC", "NFKC", "Precompiled"))
            _exactly(
                model, "model", type="Unigram", unk_id=..., vocab=..., byte_fallback=(True, False)
            )
            _check_unknown(model["unk_id"] is not None)
            return "Unigram"
        case ("BPE", "ByteLevel"):
            _exactly(
                before,
                "pre-tokenizer",
                type="ByteLevel",
                add_prefix_space=False,
                trim_offsets=(True, False),
                use_regex=True,
            )
            _check_unicode(normalizer, ("NFC",))
            _exactly(
                model,
                "model",
                type="BPE",
                dropout=None,
                unk_token=...,
                continuing_subword_prefix=(None, ""),
                end_of_word_suffix=(None, ""),
                fuse_unk=False,
                byte_fallback=False,
                ignore_merges=(True, False),
                vocab=...,
                merges=...,
            )
            _check_unknown(model["unk_token"] is None or model["unk_token"] in model["vocab"])
            return "byte-level BPE"
    raise NotSeparableError(
        f"a {model.get('type')} model after a {(before or {}).get('type')} pre-tokenizer"
    )


def _check_unknown(known: bool) -> None:
    """Refuses a model for which an unknown word is an error."""
    if not known:
        raise NotSeparableError("its vocabulary lacks the token for unknown words")


def _check_words_with_marks(before: Mapping[str, Any]) -> None:
    _no_more_than(before, {"type", "pretokenizers"}, "the pre-tokenizer")
    parts = before["pretokenizers"]
    if [part.get("type") for part in parts] != ["WhitespaceSplit", "Metaspace"]:
        raise NotSeparableError("a pre-tokenizer other than WhitespaceSplit, then Metaspace")
    _exactly(parts[0], "pre-tokenizer", type="WhitespaceSplit")
    _exactly(
        parts[1],
        "pre-tokenizer",
        type="Metaspace",
        replacement="▁",
        prepend_scheme="always",
        split=(True, False),
    )


def _check_unicode(normalizer: Mapping[str, Any] | None, known: tuple[str, ...]) -> None:
    if normalizer is None:
        return
    if normalizer.get("type") not in known:
        raise NotSeparableError(f"the normalizer is {normalizer.get('type')}")
    if normalizer["type"] == "Precompiled":
        _exactly(normalizer, "normalizer", type="Precompiled", precompiled_charsmap=...)
        _check_rules(base64.b64decode(normalizer["precompiled_charsmap"]))
    else:
        _exactly(normalizer, "normalizer", type=normalizer["type"])


def _check_rules(blob: bytes) -> None:
    """Refuses a SentencePiece character map with a rule that could reach over a space.

    The map is ``uint32 size`` and a double array of that many bytes (the layout of darts-clone),
    then the replacements. The rules are tried on grapheme clusters from their first byte on.
    """
    size = int.from_bytes(blob[:4], "little") // 4
    units = np.frombuffer(blob, "<u4", size, 4)
    for first in (" ", *_PREPEND):
        if _has_rule(units, first.encode()):
            raise NotSeparableError(f"a rule of its normalizer begins with U+{ord(first):04X}")


def _has_rule(units: NDArray[np.uint32], start: bytes) -> bool:
    position = _offset(int(units[0]))
    for byte in start:
        position ^= byte
        if position >= len(units) or int(units[position]) & 0x800000FF != byte:
            return False
        position ^= _offset(int(units[position]))
    return True


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _literals(
    tokenizer: Tokenizer, state: Mapping[str, Any], kind: Kind
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    plain: list[str] = []
    normalized: list[str] = []
    for token in state["added_tokens"]:
        _no_more_than(token, _ADDED, "an added token")
        content = token["content"]
        if token["normalized"] and tokenizer.normalizer is not None:
            content = tokenizer.normalizer.normalize_str(content)
        # Of byte-level BPE a run of spaces is never cut, so that such a token is in one word.
        if kind == "byte-level BPE" and len(content) > 1 and not content.strip(" "):
            if token["single_word"] or token["lstrip"] or token["rstrip"]:
                raise NotSeparableError("an added token of spaces that depends on its neighbours")
            continue
        if not content or " " in content:
            raise NotSeparableError(f"the added token {token['content']!r} is not a single word")
        (normalized if token["normalized"] else plain).append(content)
    return tuple(plain), tuple(normalized)


def _special_ids(processor: Mapping[str, Any] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    if processor is None:
        return before, after
    match processor.get("type"):
        case "Sequence":
            _no_more_than(processor, {"type", "processors"}, "the post-processor")
            for one in processor["processors"]:
                first, last = _special_ids(one)
                before, after = first + before, after + last
        case "ByteLevel":
            flags = (True, False)
            _exactly(
                processor,
                "post-processor",
                type="ByteLevel",
                add_prefix_space=flags,
                trim_offsets=flags,
                use_regex=flags,
            )
        case "BertProcessing":
            _exactly(processor, "post-processor", type="BertProcessing", sep=..., cls=...)
            before, after = (processor["cls"][1],), (processor["sep"][1],)
        case "RobertaProcessing":
            flags = (True, False)
            _exactly(
                processor,
                "post-processor",
                type="RobertaProcessing",
                sep=...,
                cls=...,
                add_prefix_space=flags,
                trim_offsets=flags,
            )
            before, after = (processor["cls"][1],), (processor["sep"][1],)
        case "TemplateProcessing":
            keys = {"type", "single", "pair", "special_tokens"}
            _no_more_than(processor, keys, "the post-processor")
            before, after = _template_ids(processor)
        case other:
            raise NotSeparableError(f"the post-processor is {other}")
    return before, after


def _template_ids(processor: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sides: list[list[int]] = [[]]
    for piece in processor["single"]:
        match piece:
            case {"Sequence": {"id": "A"}}:
                sides.append([])
            case {"SpecialToken": {"id": name}}:
                sides[-1] += processor["special_tokens"][name]["ids"]
            case _:
                raise NotSeparableError("a template with another piece than a token or the text")
    if len(sides) != 2:
        raise NotSeparableError("a template that does not hold the text once")
    return tuple(sides[0]), tuple(sides[1])


def _exactly(component: Mapping[str, Any] | None, role: str, **known: Any) -> None:
    """Refuses a component with other keys or values; a tuple lists values, ``...`` is any."""
    component = component or {"type": None}
    name = component.get("type")
    if name != known["type"]:
        raise NotSeparableError(f"the {role} is {name}")
    for key, values in known.items():
        if values is ... or key not in component:
            continue
        value = component[key]
        allowed = values if isinstance(values, tuple) else (values,)
        if not any(value is one or (value == one and type(value) is type(one)) for one in allowed):
            raise NotSeparableError(f"{key}={value!r} of the {role} {name}")
    _no_more_than(component, set(known), f"the {role} {name}")
    if missing := sorted(set(known) - set(component)):
        raise NotSeparableError(f"the {role} {name} without {missing[0]!r}")


def _no_more_than(component: Mapping[str, Any], known: set[str], role: str) -> None:
    if unknown := sorted(set(component) - known):
        raise NotSeparableError(f"the unknown setting {unknown[0]!r} of {role}")
