"""Whether a model's ``tokenizer.json`` is what transformers would use for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from headrace.contract import try_tokenizer
from headrace.errors import UsageError
from headrace_launcher.modelfiles import as_object, read_object, read_tokenizer
from headrace_launcher.models import Model

LARGEST_ID = (1 << 31) - 1  # ids are INT32

# transformers takes these from tokenizer_config.json, whatever tokenizer.json says.
_BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def check_tokenizer(model: Model) -> int:
    """Checks that ``tokenizer.json`` gives the ids of transformers, and that the model has them.

    Returns:
        The number that every token id is below.

    Raises:
        UsageError: the file cannot be read, ``tokenizer_config.json`` overrides it (transformers
            heeds that file, headrace only ``tokenizer.json``), or the model lacks a token.
    """
    tokenizer = load_tokenizer(model.tokenizer)
    settings = read_object(model.folder / "tokenizer_config.json")
    for key, why in _contradictions(settings, read_tokenizer(model.tokenizer)):
        raise UsageError(
            f"{model.folder}: tokenizer_config.json says {key} = {settings[key]!r}, but {why}; "
            f"make them agree, for example with transformers: AutoTokenizer.from_pretrained(...)"
            f".save_pretrained(...)"
        )
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    # A template's ids need not be the vocabulary's.
    largest = max((*ids, *tokenizer.encode("").ids), default=-1)
    vocab_size = model.config.get("vocab_size")
    if not isinstance(vocab_size, int):
        vocab_size = largest + 1
    if not 1 <= vocab_size <= LARGEST_ID:
        raise UsageError(
            f"{model.folder}: a vocabulary of {vocab_size} tokens; token ids must be below "
            f"{LARGEST_ID}: correct vocab_size in config.json, or {model.tokenizer.name}"
        )
    if largest >= vocab_size:
        raise UsageError(
            f"{model.tokenizer} gives token ids up to {largest}, but the model knows only "
            f"{vocab_size} (vocab_size in config.json); they do not belong together"
        )
    if model.pad_id >= vocab_size:
        raise UsageError(
            f"{model.folder}: rows are padded with the token {model.pad_id}, but the model knows "
            f"only {vocab_size} (vocab_size in config.json); correct pad_token_id there"
        )
    return vocab_size


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads a tokenizer that may be anybody's.

    Raises:
        UsageError: the file is none, or `tokenizers` breaks down over it.
    """
    try:
        try_tokenizer(path)
        tokenizer = Tokenizer.from_buffer(path.read_bytes())  # a path need not be UTF-8
    except Exception as error:  # `tokenizers` raises bare Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{path} is not a readable tokenizer.json ({reason}); download or export the model "
            "again"
        ) from error
    # Not used here, and a file may ask for any length.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _contradictions(
    settings: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yields the keys of ``tokenizer_config.json`` that make another tokenizer, and why."""
    normalizer = as_object(tokenizer.get("normalizer"))
    if normalizer.get("type") == "BertNormalizer":
        for key, name in _BERT_SETTINGS.items():
            if key in settings and settings[key] != normalizer.get(name):
                yield key, f"the normalizer in tokenizer.json has {name} = {normalizer.get(name)!r}"
    pre_tokenizer = as_object(tokenizer.get("pre_tokenizer"))
    if pre_tokenizer.get("type") == "ByteLevel":
        key = "add_prefix_space"
        if key in settings and settings[key] != pre_tokenizer.get(key):
            yield key, f"the pre-tokenizer in tokenizer.json has {pre_tokenizer.get(key)!r}"
    direction = str(as_object(tokenizer.get("truncation")).get("direction", "Right")).lower()
    if settings.get("truncation_side", direction) != direction:
        yield "truncation_side", f"tokenizer.json truncates on the {direction}"
