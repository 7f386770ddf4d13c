"""Words that the cache does not know -> their token ids.

Most new words are known parts put together: ``(foo),`` is ``(``, ``foo``, ``)``, ``,``. Words of
printable ASCII are cut into the parts that the pre-tokenizer makes of them, and each distinct
part is tokenized once. All others go to ``tokenizers``, many in one call.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer

from headrace.idlists import IdLists
from headrace.separable import Recipe
from headrace.tokenizerfile import tokenizer_errors
from headrace.wordpiece import WordPiece
from headrace.wordtable import UNFIT, WordTable, raw_bytes

# What each core of `tokenizers` is handed at once: its records then stay in the core's cache.
_WORDS_AT_ONCE = 256
_BYTES_AT_ONCE = 1 << 19
_MAX_PARTS = 1 << 18
_SWITCHED_OFF = {"off", "false", "f", "no", "n", "0"}  # as `tokenizers` reads its own variable
_MAX_CUT_BYTES = 1 << 14

_SPACE, _QUOTE = b" '"
_OTHER, _LETTER, _DIGIT = range(3)
_CLASS = np.zeros(256, np.uint8)
_CLASS[[*b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]] = _LETTER
_CLASS[[*b"0123456789"]] = _DIGIT
_LOWER = np.frombuffer(bytes(range(256)).lower(), np.uint8)


class NewWords:
    """Tokenizes words without special tokens and without truncation.

    Args:
        tokenizer: with neither truncation nor padding.
        recipe: what it does.
    """

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self._tokenizer = tokenizer
        self._model = tokenizer.model
        self._recipe = recipe
        self._pieces: WordPiece | None = None
        if recipe.kind == "BERT WordPiece":
            with suppress(ValueError):
                self._pieces = WordPiece(tokenizer)
        self._words_at_once = _WORDS_AT_ONCE * _cores()
        self._literals = _alternatives(recipe.literals)
        self._normalized_literals = _alternatives(recipe.normalized_literals)
        self._reset()

    def _reset(self) -> None:
        self._parts = WordTable()
        self._lists = IdLists()
        # To BERT a space is a part without tokens.
        if self._recipe.kind == "BERT WordPiece":
            self._parts.number(np.frombuffer(b" ", np.uint8), np.array([0, 1]))
            self._lists.append(np.zeros(0, np.int32), np.zeros(1, np.int64))

    def tokenize(self, words: pa.BinaryArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Returns the ids of all words, one after the other, and how many each word has."""
        if self._recipe.kind == "Unigram":
            return self.whole(words)
        by_parts = pc.and_(
            pc.match_substring_regex(words, "^ ?[!-~]*$"),
            pc.less_equal(pc.binary_length(words), _MAX_CUT_BYTES),
        ).to_numpy(zero_copy_only=False)
        if by_parts.all():
            return self._by_parts(words)
        easy, hard = np.flatnonzero(by_parts), np.flatnonzero(~by_parts)
        lists = IdLists()
        lists.append(*self._by_parts(words.take(pa.array(easy))))
        lists.append(*self.whole(words.take(pa.array(hard))))
        order = np.empty(len(words), np.int64)
        order[easy] = np.arange(len(easy))
        order[hard] = np.arange(len(easy), len(words))
        ids, ends = lists.gather(order)
        return ids, np.diff(ends)

    def whole(self, texts: pa.BinaryArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Does what :meth:`tokenize` does, by ``tokenizers`` alone."""
        ends = np.cumsum(pc.binary_length(texts).to_numpy(), dtype=np.int64)
        ids: list[list[int]] = []
        while len(ids) < len(texts):
            start = len(ids)
            done = ends[start - 1] if start else 0
            stop = int(np.searchsorted(ends, done + _BYTES_AT_ONCE, "right"))
            part = texts.slice(start, min(max(stop - start, 1), self._words_at_once))
            ids += self._encode(part.cast(pa.string()).to_pylist())
        return _joined(ids)

    def text(self, text: str) -> NDArray[np.int32]:
        """Returns the ids of one text, of any length, by ``tokenizers`` alone."""
        return np.array(self._encode([text])[0], np.int32)

    def plain(self, words: pa.BinaryArray) -> NDArray[np.bool_]:
        """Returns bool[words]: which hold an added token, so that their rows are not cached."""
        recipe = self._recipe
        found = np.zeros(len(words), np.bool_)
        if self._literals:
            found |= _matches(words, self._literals)
        if self._normalized_literals:
            easy = ~_matches(words, "[^ -~]") & (recipe.kind != "Unigram")
            found |= easy & _matches(words, self._normalized_literals, recipe.lowercase)
            for index in np.flatnonzero(~easy).tolist():
                found[index] |= self._holds_normalized(words[index].as_py().decode())
        return found

    def _holds_normalized(self, word: str) -> bool:
        if self._tokenizer.normalizer is not None:
            with tokenizer_errors("a word"):
                word = self._tokenizer.normalizer.normalize_str(word)
        return any(literal in word for literal in self._recipe.normalized_literals)

    def _by_parts(self, words: pa.BinaryArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        if len(self._parts) >= _MAX_PARTS:
            self._reset()
        data, edges, first = cut_parts(words, self._recipe)
        known = len(self._parts)
        numbers = self._parts.number(data, edges, most=_MAX_PARTS)
        new = self._parts.words(np.arange(known, len(self._parts)))
        long = np.flatnonzero(numbers == UNFIT)
        if len(long):
            numbers[long] = len(self._parts) + np.arange(len(long))
            longer = [data[edges[index] : edges[index + 1]].tobytes() for index in long.tolist()]
            new = pa.concat_arrays([new, pa.array(longer, pa.binary())])
        self._lists.append(*self._part_ids(new))
        ids, ends = self._lists.gather(numbers)
        self._lists.cut(len(self._parts))
        return ids, np.diff(ends[first])

    def _part_ids(self, parts: pa.BinaryArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        if self._pieces is not None:
            return self._pieces.tokenize(*raw_bytes(parts))
        # "Ġ" stands for the space in a byte-level vocabulary; other printable ASCII is itself.
        texts = (part.decode("ascii").replace(" ", "Ġ") for part in parts.to_pylist())
        with tokenizer_errors("a word"):
            return _joined([[token.id for token in self._model.tokenize(text)] for text in texts])

    def _encode(self, texts: list[str]) -> list[list[int]]:
        with tokenizer_errors("a word"):
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def cut_parts(
    words: pa.BinaryArray, recipe: Recipe
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Does what BertPreTokenizer, or the pattern of GPT-2, does to printable ASCII.

    Args:
        words: at most one space at the start, then characters from ``!`` to ``~``; none is empty.
        recipe: of which kind, and whether letters are lowered.

    Returns:
        The bytes, with letters lowered where the recipe says so; int64[parts + 1]: where each part
        begins (of BERT a space, which is no token, is one too); int64[words + 1]: the first part
        of each word.
    """
    data, edges = raw_bytes(words)
    if recipe.lowercase:
        data = _LOWER[data]
    kinds = _CLASS[data]
    starts = np.ones(len(data) + 1, np.bool_)
    if recipe.kind == "BERT WordPiece":
        starts[1:-1] = (kinds[1:] == _OTHER) | (kinds[:-1] == _OTHER)
    else:
        starts[1:-1] = (kinds[1:] != kinds[:-1]) & (data[:-1] != _SPACE)
    starts[edges] = True
    if recipe.kind == "byte-level BPE":
        _join_contractions(data, edges, starts)
    places = np.flatnonzero(starts)
    return data, places, np.searchsorted(places, edges)


def _join_contractions(
    data: NDArray[np.uint8], edges: NDArray[np.int64], starts: NDArray[np.bool_]
) -> None:
    """Makes parts of ``'s 't 'm 'd 're 've 'll`` where a part begins with the quote."""
    quotes = np.flatnonzero((data == _QUOTE) & starts[:-1])
    after = edges[np.searchsorted(edges, quotes, "right")]
    padded = np.concatenate([data, np.zeros(2, np.uint8)]).astype(np.int64)
    one, two = padded[quotes + 1], padded[quotes + 1] << 8 | padded[quotes + 2]
    longer = [int.from_bytes(pair, "big") for pair in (b"re", b"ve", b"ll")]
    size = np.where(np.isin(one, [*b"stmd"]), 2, np.where(np.isin(two, longer), 3, 0))
    real = (size > 0) & (quotes + size <= after)
    starts[quotes[real] + 1] = False
    starts[(quotes + size)[real]] = True


def _cores() -> int:
    """Returns how many cores `tokenizers` works on."""
    alone = os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in _SWITCHED_OFF
    return 1 if alone else len(os.sched_getaffinity(0))


def _alternatives(literals: Sequence[str]) -> str:
    return "|".join(re.sub(r"[!-/:-@\[-^`{-~]", r"\\\g<0>", one) for one in literals)


def _matches(words: pa.BinaryArray, pattern: str, ignore_case: bool = False) -> NDArray[np.bool_]:
    found = pc.match_substring_regex(words, pattern, ignore_case=ignore_case)
    flags: NDArray[np.bool_] = found.to_numpy(zero_copy_only=False)
    return flags


def _joined(ids: list[list[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
    return flat, lengths
