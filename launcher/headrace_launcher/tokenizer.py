"""Whether a model's ``tokenizer.json`` is what transformers would use for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

from headrace.errors import UsageError
from headrace_launcher.models import Model
from headrace_launcher.modules import read_object

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
    try:
        tokenizer = Tokenizer.from_file(str(model.tokenizer))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise UsageError(f"{model.tokenizer} is not a readable tokenizer.json ({error})") from error
    settings = read_object(model.folder / "tokenizer_config.json")
    for key, why in _contradictions(settings, read_object(model.tokenizer)):
        raise UsageError(
            f"{model.folder}: tokenizer_config.json says {key} = {settings[key]!r}, but {why}; "
            f"make them agree, for example with transformers: AutoTokenizer.from_pretrained(...)"
            f".save_pretrained(...)"
        )
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    vocab_size = model.config.get("vocab_size")
    if not isinstance(vocab_size, int):
        return largest + 1
    if largest >= vocab_size:
        raise UsageError(
            f"{model.tokenizer} gives token ids up to {largest}, but the model knows only "
            f"{vocab_size} (vocab_size in config.json); they do not belong together"
        )
    return vocab_size


def _contradictions(
    settings: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yields the keys of ``tokenizer_config.json`` that make another tokenizer, and why."""
    normalizer = tokenizer.get("normalizer") or {}
    if normalizer.get("type") == "BertNormalizer":
        for key, name in _BERT_SETTINGS.items():
            if key in settings and settings[key] != normalizer.get(name):
                yield key, f"the normalizer in tokenizer.json has {name} = {normalizer.get(name)!r}"
    pre_tokenizer = tokenizer.get("pre_tokenizer") or {}
    if pre_tokenizer.get("type") == "ByteLevel":
        key = "add_prefix_space"
        if key in settings and settings[key] != pre_tokenizer.get(key):
            yield key, f"the pre-tokenizer in tokenizer.json has {pre_tokenizer.get(key)!r}"
    direction = (tokenizer.get("truncation") or {}).get("direction", "Right").lower()
    if settings.get("truncation_side", direction) != direction:
        yield "truncation_side", f"tokenizer.json truncates on the {direction}"
