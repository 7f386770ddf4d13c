"""Text -> token ids by `tokenizers` alone: the client's plain path, and the server's.

A copy of this file lies in each text model of a repository (``headrace_launcher.textmodels``),
where headrace need not be installed: it imports `tokenizers` and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer


def truncation_side(tokenizer: Tokenizer) -> str:
    """Returns on which side a tokenizer's own settings cut: ``right`` or ``left``."""
    return str((tokenizer.truncation or {}).get("direction", "right"))


def encode_plainly(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    max_length: int,
    side: str,
    prompt: str = "",
) -> list[Encoding]:
    """Tokenizes as ``transformers`` does for a single text: special tokens, cut, no padding.

    Args:
        tokenizer: left without truncation and padding. Not for several threads at once.
        texts: the texts.
        max_length: tokens that a row is cut to, special tokens included.
        side: where it is cut: see :func:`truncation_side`.
        prompt: text put in front of each.

    Returns:
        One encoding for each; what was cut off is in its ``overflowing``.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction=side)
    try:
        rows = [prompt + text for text in texts] if prompt else list(texts)
        return list(tokenizer.encode_batch_fast(rows))
    finally:
        tokenizer.no_truncation()
