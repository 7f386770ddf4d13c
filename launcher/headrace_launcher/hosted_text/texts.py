"""Texts of a request -> padded token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

LONGEST_TEXT = 1 << 20
"""Bytes; a hundred times what the longest rows of any encoder hold."""
_DOCUMENT = ("document", "passage", "corpus")


class Padded(NamedTuple):
    """Rows of one request.

    Attributes:
        ids: int32[rows, length], padded to a bucket's longest row.
        mask: 1 for tokens, 0 for padding, int32[rows, length].
        tokens: of each row, special tokens included, int32[rows, 1].
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.int32]
    tokens: NDArray[np.int32]


class Texts:
    """Tokenizes as headrace's client does.

    Args:
        tokenizer: the model's.
        settings: its headrace settings.
        encode: ``headrace.plaintokens.encode_plainly``, which the client has too.
        side: on which side rows are cut, ``right`` or ``left``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: Mapping[str, Any],
        *,
        encode: Callable[..., list[Any]],
        side: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._encode = encode
        self._side = side
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._max_length = int(settings["max_length"])
        self._vocabulary = int(settings["vocab_size"])
        self._pad = int(settings["pad_id"])
        self._lengths = [int(bucket["max_length"]) for bucket in settings["buckets"]]
        self._prompts = dict(settings["prompts"])
        self._default = settings["default_prompt"]
        sample = tokenizer.encode("a")
        ids, marks = sample.ids, sample.special_tokens_mask
        self._before = ids[: marks.index(0)] if 0 in marks else ids
        self._after = ids[len(marks) - marks[::-1].index(0) :] if 0 in marks else []

    def read(self, texts: Sequence[bytes], parameters: Mapping[str, Any]) -> Padded:
        """Tokenizes the texts of a request.

        Args:
            texts: UTF-8; with ``input_type: ids`` little-endian int32 token ids, with or without
                the special tokens that the model wants around them.
            parameters: of the request. ``prompt_name``: one of the model's prompts; ``query`` and
                ``document`` stand for none where the model has no such. ``prompt``: a text to put
                in front instead. ``truncate``: false refuses what would be cut.

        Raises:
            ValueError: a text or a parameter cannot be used; the message says which and why.
        """
        truncate = parameters.get("truncate", True)
        if not isinstance(truncate, bool):
            raise ValueError(  # noqa: TRY004 -- whatever a caller sends wrong is one kind
                f"the parameter truncate is {truncate!r}; it must be true or false"
            )
        kind = parameters.get("input_type", "text")
        if kind == "ids":
            rows, whole = self._given(texts)
        elif kind == "text":
            rows, whole = self._tokenized(texts, self._prompt(parameters))
        else:
            raise ValueError(f"the parameter input_type is {kind!r}; it must be text or ids")
        if not truncate and max(whole, default=0) > self._max_length:
            row = next(row for row, count in enumerate(whole) if count > self._max_length)
            raise ValueError(
                f"text {row + 1} of {len(whole)} has {whole[row]} tokens, the model takes "
                f"{self._max_length}; shorten it, or let it be cut with truncate: true"
            )
        return self._pad_rows(rows)

    def _prompt(self, parameters: Mapping[str, Any]) -> str:
        prompt = parameters.get("prompt")
        if prompt is not None:
            if not isinstance(prompt, str) or len(prompt.encode()) > LONGEST_TEXT:
                raise ValueError("the parameter prompt must be a text, and no longer than those")
            return prompt
        name = parameters.get("prompt_name")
        if name is None:
            name = self._default
            return "" if name is None else str(self._prompts[name])
        names = _DOCUMENT if name == "document" else (name,)
        for one in names:
            if one in self._prompts:
                return str(self._prompts[one])
        if name in ("query", "document"):
            return ""  # as sentence-transformers' encode_query and encode_document
        known = ", ".join(sorted({*self._prompts, "query", "document"}))
        raise ValueError(f"the model has no prompt {str(name)[:100]!r}; there are: {known}")

    def _tokenized(self, texts: Sequence[bytes], prompt: str) -> tuple[list[Any], list[int]]:
        """Returns the rows' ids, and how many each would have if none were cut."""
        decoded = []
        for row, text in enumerate(texts):
            place = f"text {row + 1} of {len(texts)}"
            if len(text) > LONGEST_TEXT:
                raise ValueError(f"{place} has {len(text)} bytes, more than {LONGEST_TEXT}")
            try:
                decoded.append(text.decode())
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{place} is not UTF-8: byte {text[error.start]:#04x} at {error.start}"
                ) from None
        special = len(self._before) + len(self._after)
        encodings = self._encode(
            self._tokenizer, decoded, max_length=self._max_length, side=self._side, prompt=prompt
        )
        whole = [
            len(one.ids) + sum(len(more.ids) - special for more in one.overflowing)
            for one in encodings
        ]
        return [one.ids for one in encodings], whole

    def _given(self, texts: Sequence[bytes]) -> tuple[list[Any], list[int]]:
        rows, whole = [], []
        before, after = self._before, self._after
        for row, text in enumerate(texts):
            place = f"text {row + 1} of {len(texts)}"
            if len(text) > LONGEST_TEXT:
                raise ValueError(
                    f"{place} has {len(text) // 4:,} token ids, and at most {LONGEST_TEXT // 4:,} "
                    f"are taken; send fewer"
                )
            if len(text) % 4:
                raise ValueError(f"{place} has {len(text)} bytes, which are no int32 token ids")
            ids = np.frombuffer(text, "<i4")
            if len(ids) and not (ids.min() >= 0 and ids.max() < self._vocabulary):
                raise ValueError(
                    f"{place} has token ids from {ids.min()} to {ids.max()}; the model knows 0 to "
                    f"{self._vocabulary - 1}"
                )
            inner = ids.tolist()
            special = len(before) + len(after)
            begins, ends = inner[: len(before)], inner[len(inner) - len(after) :]
            if len(inner) >= special and (begins, ends) == (before, after):
                inner = inner[len(before) : len(inner) - len(after)]
            whole.append(len(inner) + special)
            room = max(0, self._max_length - special)
            kept = inner[:room] if self._side == "right" else inner[max(0, len(inner) - room) :]
            rows.append([*before, *kept, *after])
        return rows, whole

    def _pad_rows(self, rows: Sequence[Sequence[int]]) -> Padded:
        tokens = np.array([len(row) for row in rows], np.int32).reshape(-1, 1)
        longest = int(tokens.max(initial=1))
        length = next(length for length in self._lengths if length >= longest)
        ids = np.full((len(rows), length), self._pad, np.int32)
        mask = np.zeros_like(ids)
        for row, found in enumerate(rows):
            ids[row, : len(found)] = found
            mask[row, : len(found)] = 1
        return Padded(ids, mask, tokens)
