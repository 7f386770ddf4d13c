"""Text column -> ragged token ids, equal to those of Hugging Face ``tokenizers``."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import keptwords
from headrace.awkward import awkward_texts
from headrace.config import WordCacheChoice
from headrace.contract import file_hash
from headrace.errors import MachineError, TokenizationError, UsageError
from headrace.newwords import NewWords
from headrace.plaintokens import encode_plainly, truncation_side
from headrace.separable import NotSeparableError, Recipe, read_recipe
from headrace.tokenizerfile import read_tokenizer, tokenizer_errors
from headrace.tokens import Tokens, WordCounts, differing_rows
from headrace.wordcache import WordCache

# Rows handed to `tokenizers` at once: bounds the memory of its per-token records.
_ROWS_AT_ONCE = 256
# 2**64 divided by the golden ratio: multiples of it are spread evenly (Knuth, TAOCP 3, 6.4).
_SPREAD = 0x9E3779B97F4A7C15


class TextTokenizer:
    """Tokenizes as ``transformers`` does for a single text: special tokens, truncation, no padding.

    Where the tokenizer is known to work word by word, words are looked up in a cache and one row
    in ``check_every`` is tokenized by ``tokenizers`` too and compared. Not for several threads at
    once.

    Args:
        path: a ``tokenizer.json``.
        max_length: tokens that a row is cut to, special tokens included.
        prompt: text put in front of every row.
        expected_hash: SHA-256 (hex) that the file must have, or None.
        word_cache: ``keep`` begins with the words kept from earlier runs, ``run`` with none,
            ``off`` leaves all to ``tokenizers``.
        check_every: rows in which one is checked.
        tried: whether another process has tried the file already.

    Attributes:
        hash: SHA-256 (hex) of the file.
        cache_note: what is cached, or why nothing is, in a few words.
        dear_words: whether tokenizing a new word costs so much that it is better taken over from
            another process than tokenized again.
        counts: what the cache has done so far.

    Raises:
        UsageError: the file is not the model's tokenizer, or ``max_length`` leaves no room.
        MachineError: the file cannot be read.
        TokenizationError: `tokenizers` fails on a text that the cache is compared on.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_length: int,
        prompt: str = "",
        expected_hash: str | None = None,
        word_cache: WordCacheChoice = "run",
        check_every: int = 1024,
        tried: bool = False,
    ) -> None:
        try:
            self.hash = file_hash(path)
        except OSError as error:
            raise MachineError(
                f"the tokenizer {path} cannot be read ({error.strerror}); "
                f"pass the model's tokenizer.json with --tokenizer"
            ) from error
        if expected_hash is not None and self.hash != expected_hash:
            raise UsageError(
                f"{path} is not the tokenizer that the model was built with (SHA-256 "
                f"{self.hash[:12]}…, the model's is {expected_hash[:12]}…); pass the right "
                f"tokenizer.json with --tokenizer"
            )
        self._tokenizer = read_tokenizer(path, tried=tried)
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if max_length <= special:
            raise UsageError(
                f"--max-length {max_length} leaves no room for text beside the {special} special "
                f"tokens; give at least {special + 1}"
            )
        self._side = truncation_side(self._tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._max_length = max_length
        self._prompt = prompt
        self._check_every = check_every
        self._rows = 0
        self.counts = WordCounts()
        self._cache: WordCache | None = None
        self.cache_note = "off: --word-cache off"
        self.dear_words = False
        if word_cache != "off":
            self._begin(word_cache)

    def encode(self, texts: pa.StringArray) -> Tokens:
        """Tokenizes ``texts``, a column of rows without nulls.

        Raises:
            TokenizationError: the cache gives other ids than ``tokenizers`` for a row, or
            ``tokenizers`` fails on one.
        """
        if self._cache is None:
            self.counts.plain_rows += len(texts)
            return self._by_tokenizers(texts)
        tokens = self._cache.encode(texts)
        self._check(texts, tokens)
        return tokens

    def new_words(self) -> pa.RecordBatch | None:
        """Returns the words learnt since the last call, for :meth:`adopt` and to be kept.

        The columns are those of :data:`headrace.keptwords.SCHEMA`.
        """
        return None if self._cache is None else self._cache.new_words()

    def adopt(self, words: pa.RecordBatch) -> None:
        """Takes over words that another process learnt; :meth:`new_words` does not give them."""
        if self._cache is not None:
            self._cache.adopt(words)

    def _begin(self, word_cache: WordCacheChoice) -> None:
        """Sets up the cache, if it can be exact and is so for a list of awkward texts."""
        with tokenizer_errors("its added tokens"):
            try:
                recipe = read_recipe(self._tokenizer)
            except NotSeparableError as error:
                self.cache_note = f"off: {error}"
                return
            new_words = NewWords(self._tokenizer, recipe)
        texts = pa.array(awkward_texts(recipe), pa.string())
        trial = self._cache_of(new_words, recipe, WordCounts())
        differ = differing_rows(trial.encode(texts), self._by_tokenizers(texts))
        if len(differ):
            self.cache_note = "off: not exact for this tokenizer"
            text = texts[int(differ[0])].as_py()
            warnings.warn(
                f"the word cache is off: it differs from tokenizers for {text!r}; "
                f"please report this with the tokenizer's name",
                stacklevel=4,
            )
            return
        self.cache_note = recipe.kind
        # By parts a word is tokenized almost as soon as it is taken over, and not every one is met
        # again by another feeder; by `tokenizers`, as all of Unigram's, it takes many times that.
        self.dear_words = recipe.kind == "Unigram"
        self._cache = self._cache_of(new_words, recipe, self.counts)
        if word_cache == "keep" and (kept := keptwords.load(self.hash)) is not None:
            self._cache.adopt(kept)

    def _cache_of(self, new_words: NewWords, recipe: Recipe, counts: WordCounts) -> WordCache:
        return WordCache(
            new_words,
            recipe,
            max_length=self._max_length,
            side=self._side,
            prompt=self._prompt,
            counts=counts,
        )

    def _check(self, texts: pa.StringArray, tokens: Tokens) -> None:
        """Compares one row of every ``check_every``, at a place that differs from time to time."""
        every = self._check_every
        windows = np.arange(self._rows // every, (self._rows + len(texts)) // every + 1)
        spread = (windows.astype(np.uint64) * np.uint64(_SPREAD)) >> np.uint64(32)
        rows = windows * every + (spread % np.uint64(every)).astype(np.int64) - self._rows
        rows = rows[(rows >= 0) & (rows < len(texts))]
        self._rows += len(texts)
        self.counts.checked_rows += len(rows)
        sample = texts.take(pa.array(rows))
        differ = differing_rows(_take(tokens, rows), self._by_tokenizers(sample))
        if not len(differ):
            return
        keptwords.forget(self.hash)
        text = repr(sample[int(differ[0])].as_py())
        raise TokenizationError(
            f"the word cache and tokenizers disagree on the text "
            f"{text if len(text) <= 200 else text[:200] + '…'}; the kept words were removed: run "
            f"again, and if this comes back pass --word-cache off and report it"
        )

    def _by_tokenizers(self, texts: pa.StringArray) -> Tokens:
        ids: list[NDArray[np.int32]] = []
        lengths = np.zeros(len(texts) + 1, np.int64)
        truncated = np.zeros(len(texts), np.bool_)
        for start in range(0, len(texts), _ROWS_AT_ONCE):
            with tokenizer_errors():
                encodings = encode_plainly(
                    self._tokenizer,
                    texts.slice(start, _ROWS_AT_ONCE).to_pylist(),
                    max_length=self._max_length,
                    side=self._side,
                    prompt=self._prompt,
                )
            for row, encoding in enumerate(encodings, start):
                ids.append(np.array(encoding.ids, np.int32))
                lengths[row + 1] = len(ids[-1])
                truncated[row] = bool(encoding.overflowing)
        return Tokens(
            ids=np.concatenate(ids) if ids else np.zeros(0, np.int32),
            offsets=np.cumsum(lengths),
            truncated=truncated,
        )


def _take(tokens: Tokens, rows: NDArray[np.int64]) -> Tokens:
    ids = [tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]] for row in rows.tolist()]
    return Tokens(
        ids=np.concatenate([np.zeros(0, np.int32), *ids]),
        offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        truncated=tokens.truncated[rows],
    )
