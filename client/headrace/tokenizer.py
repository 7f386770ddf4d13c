"""Text column -> ragged token ids, equal to those of Hugging Face ``tokenizers``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from headrace.contract import file_hash
from headrace.errors import MachineError, UsageError
from headrace.tokens import Tokens

# Rows handed to `tokenizers` at once: bounds the memory of its per-token records.
_ROWS_AT_ONCE = 256


class TextTokenizer:
    """Tokenizes as ``transformers`` does for a single text: special tokens, truncation, no padding.

    Args:
        path: a ``tokenizer.json``.
        max_length: tokens that a row is cut to, special tokens included.
        prompt: text put in front of every row.
        expected_hash: SHA-256 (hex) that the file must have, or None.

    Raises:
        UsageError: the file is not the model's tokenizer, or ``max_length`` leaves no room.
        MachineError: the file cannot be read.
    """

    def __init__(
        self, path: Path, *, max_length: int, prompt: str = "", expected_hash: str | None = None
    ) -> None:
        try:
            digest = file_hash(path)
        except OSError as error:
            raise MachineError(
                f"the tokenizer {path} cannot be read ({error.strerror}); "
                f"pass the model's tokenizer.json with --tokenizer"
            ) from error
        if expected_hash is not None and digest != expected_hash:
            raise UsageError(
                f"{path} is not the tokenizer that the model was built with (SHA-256 "
                f"{digest[:12]}…, the model's is {expected_hash[:12]}…); pass the right "
                f"tokenizer.json with --tokenizer"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # `tokenizers` raises bare Exception
            raise UsageError(f"{path} is not a readable tokenizer.json ({error})") from error
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if max_length <= special:
            raise UsageError(
                f"--max-length {max_length} leaves no room for text beside the {special} special "
                f"tokens; give at least {special + 1}"
            )
        side = (self._tokenizer.truncation or {}).get("direction", "right")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, direction=side)
        self._prompt = prompt

    def encode(self, texts: pa.StringArray) -> Tokens:
        """Tokenizes ``texts``, a column of rows without nulls."""
        ids: list[NDArray[np.int32]] = []
        lengths = np.zeros(len(texts) + 1, np.int64)
        truncated = np.zeros(len(texts), np.bool_)
        for start in range(0, len(texts), _ROWS_AT_ONCE):
            rows = texts.slice(start, _ROWS_AT_ONCE).to_pylist()
            if self._prompt:
                rows = [self._prompt + text for text in rows]
            for row, encoding in enumerate(self._tokenizer.encode_batch_fast(rows), start):
                ids.append(np.array(encoding.ids, np.int32))
                lengths[row + 1] = len(ids[-1])
                truncated[row] = bool(encoding.overflowing)
        return Tokens(
            ids=np.concatenate(ids) if ids else np.zeros(0, np.int32),
            offsets=np.cumsum(lengths),
            truncated=truncated,
        )
