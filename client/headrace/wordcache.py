"""Rows -> token ids by looking words up: equal to ``tokenizers``, in a fraction of the time.

Every row is cut before each of its spaces, the words of a block are looked up in a table, the
unknown ones are tokenized once, and their ids are put together to rows. Why that is
exact, and for which tokenizers, stands in :mod:`headrace.separable`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.cutting import cut
from headrace.idlists import IdLists, grown
from headrace.kernels.words import join_words
from headrace.newwords import NewWords
from headrace.separable import Recipe
from headrace.tokens import Tokens, WordCounts
from headrace.wordtable import UNFIT, WordTable, raw_bytes

MAX_WORDS = 7 << 16  # a little less than what a table holds before it grows
# A row of longer words than this on average gains nothing and is tokenized whole.
_MEAN_BYTES = 32
# Rows that are worked on at once, in bytes of text: all of most blocks, since to put their parts
# together costs more than what smaller arrays save.
_BYTES_AT_ONCE = 1 << 23
# The list that is no word's, and empty.
_NONE, _FIRST_WORD = 0, 1
_MAX_COLUMN_BYTES = (1 << 31) - 1


class WordCache:
    """Tokenizes rows word by word and keeps the words.

    At most ``max_words`` words of at most 64 bytes are kept (80 to 190 bytes each, ids included);
    when it is full, the quarter that was not met for longest goes. Words that do not fit are
    tokenized for their block alone. Not for several threads at once.

    Args:
        new_words: tokenizes unknown words.
        recipe: what the tokenizer does.
        max_length: tokens that a row is cut to, special tokens included.
        side: the end at which rows are cut, ``right`` or ``left``.
        prompt: text put in front of every row.
        counts: where to count.
        max_words: bound of the words kept.
    """

    def __init__(
        self,
        new_words: NewWords,
        recipe: Recipe,
        *,
        max_length: int,
        side: str,
        prompt: str,
        counts: WordCounts,
        max_words: int = MAX_WORDS,
    ) -> None:
        self._new = new_words
        self._recipe = recipe
        self._room = max_length - len(recipe.before) - len(recipe.after)
        self._left = side == "left"
        self._counts = counts
        self._max_words = max_words
        self._block = 1  # words taken over are of block 0: they have not been met
        self._table = WordTable()
        self._lists = IdLists()
        self._plain = np.zeros(256, np.bool_)
        self._fresh = np.zeros(256, np.bool_)
        self._lists.append(np.zeros(0, np.int32), np.zeros(1, np.int64))
        head, self._tail = self._split(prompt)
        self._before = np.array(recipe.before, np.int32)
        self._head = np.array(head, np.int32)
        self._after = np.array(recipe.after, np.int32)

    def encode(self, texts: pa.StringArray) -> Tokens:
        """Tokenizes a column of rows without nulls."""
        assert texts.type == pa.string()
        parts = [self._encode(part) for part in self._manageable(texts)]
        if len(parts) == 1:
            return parts[0]
        lengths = np.concatenate([np.zeros(1, np.int64), *(part.lengths for part in parts)])
        return Tokens(
            ids=np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)]),
            offsets=np.cumsum(lengths),
            truncated=np.concatenate([np.zeros(0, np.bool_), *(part.truncated for part in parts)]),
        )

    def new_words(self) -> pa.RecordBatch | None:
        """Returns the words learnt since the last call; ids are null where rows are not cached."""
        fresh = np.flatnonzero(self._fresh[: len(self._table)])
        if not len(fresh):
            return None
        self._fresh[fresh] = False
        ids, edges = self._lists.gather(fresh + _FIRST_WORD)
        lists = pa.ListArray.from_arrays(
            pa.array(edges, pa.int32()), pa.array(ids), mask=pa.array(self._plain[fresh])
        )
        return pa.record_batch({"word": self._table.words(fresh), "ids": lists})

    def adopt(self, words: pa.RecordBatch) -> None:
        """Adds words that another cache learnt."""
        known = len(self._table)
        numbers = self._table.number(*raw_bytes(words["word"]), most=self._max_words)
        highest = np.maximum.accumulate(np.append(known - 1, numbers))
        words = words.take(pa.array(np.flatnonzero(np.diff(highest))))  # the first of each new one
        lengths = pc.fill_null(pc.list_value_length(words["ids"]), 0)
        self._lists.append(words["ids"].flatten().to_numpy(), lengths.to_numpy().astype(np.int64))
        self._note(known, words["ids"].is_null().to_numpy(zero_copy_only=False), fresh=False)
        self._bound()

    def _split(self, prompt: str) -> tuple[tuple[int, ...], bytes]:
        """Returns the ids of what comes before the prompt's last word, and that word."""
        text = np.frombuffer(prompt.encode(), np.uint8)
        edges = cut(text, np.array([0, len(text)]), self._joins, _MAX_COLUMN_BYTES).edges
        words = pa.array([text[a:b].tobytes() for a, b in pairwise(edges)], pa.binary())
        # Where the prompt holds an added token all of it is glued to every row, as rules for rows
        # hold there.
        if len(words) < 2 or self._new.plain(words).any():
            return (), prompt.encode()
        tail: bytes = words[-1].as_py()
        head = prompt.encode().removesuffix(tail).decode()
        return tuple(self._new.text(head).tolist()), tail

    @property
    def _joins(self) -> bool:
        return self._recipe.kind == "byte-level BPE"

    def _manageable(self, texts: pa.StringArray) -> list[pa.StringArray]:
        """Cuts a column so that each part, with the prompt, is far below 2 GiB."""
        rows = max(1, _BYTES_AT_ONCE // (len(self._tail) + 1))
        if texts.nbytes <= _BYTES_AT_ONCE and len(texts) <= rows:
            return [texts]
        ends = np.cumsum(pc.binary_length(texts).to_numpy(), dtype=np.int64)
        parts, start = [], 0
        while start < len(texts):
            limit = (ends[start - 1] if start else 0) + _BYTES_AT_ONCE
            stop = min(int(np.searchsorted(ends, limit, "right")), start + rows)
            parts.append(texts.slice(start, max(stop - start, 1)))
            start += len(parts[-1])
        return parts

    def _encode(self, texts: pa.StringArray) -> Tokens:
        if self._tail:
            if texts.nbytes + len(self._tail) > _MAX_COLUMN_BYTES:
                return self._huge(texts)
            texts = pc.binary_join_element_wise(self._tail.decode(), texts, "")
        data, rows = raw_bytes(texts)
        pieces = cut(data, rows, self._joins, _MEAN_BYTES)
        self._counts.words += len(pieces.edges) - 1
        self._counts.plain_rows += pieces.whole
        words = self._find(data, pieces.edges)
        plain = self._plain[: len(self._lists) - _FIRST_WORD]
        if plain.any():
            self._replace(texts, words, pieces.bounds, plain[words - _FIRST_WORD])
        tokens = self._join(words, pieces.bounds)
        self._lists.cut(_FIRST_WORD + len(self._table))
        self._block += 1
        self._bound()
        return tokens

    def _find(self, data: NDArray[np.uint8], edges: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns int32[words]: the list of each word; learns unknown ones."""
        known = len(self._table)
        words = self._table.number(data, edges, self._block, self._max_words)
        long = np.flatnonzero(words == UNFIT)
        if len(self._table) > known or len(long):
            self._counts.new_words += len(self._table) - known + len(long)
            new = self._table.words(np.arange(known, len(self._table)))
            if len(long):
                places = zip(edges[long].tolist(), edges[long + 1].tolist(), strict=True)
                longer = [data[begin:end].tobytes() for begin, end in places]
                new = pa.concat_arrays([new, pa.array(longer, pa.binary())])
                words[long] = len(self._table) + np.arange(len(long))
            self._lists.append(*self._new.tokenize(new))
            self._note(known, self._new.plain(new), fresh=True)
        words += _FIRST_WORD
        return words

    def _note(self, first: int, plain: NDArray[np.bool_], *, fresh: bool) -> None:
        """Puts down what is known of the words from the ``first`` on, and of lists after them."""
        self._plain = grown(self._plain, first + len(plain))
        self._plain[first : first + len(plain)] = plain
        self._fresh = grown(self._fresh, len(self._table))
        self._fresh[first : len(self._table)] = fresh

    def _bound(self) -> None:
        """Keeps three quarters of the words that fit, the last met ones, where it is full."""
        if len(self._table) < self._max_words:
            return
        order = np.argsort(self._table.met(), kind="stable")
        keep = np.sort(order[-(self._max_words * 3 // 4) :])
        ids, edges = self._lists.gather(np.append(_NONE, keep + _FIRST_WORD))
        self._lists = IdLists()
        self._lists.append(ids, np.diff(edges))
        self._table.keep(keep)
        self._plain, self._fresh = self._plain[keep], self._fresh[keep]

    def _replace(
        self,
        texts: pa.StringArray,
        words: NDArray[np.int32],
        bounds: NDArray[np.int64],
        plain: NDArray[np.bool_],
    ) -> None:
        """Lets `tokenizers` do the rows that hold a word of ``plain``, as a whole."""
        rows = np.unique(np.searchsorted(bounds, np.flatnonzero(plain), "right") - 1)
        self._counts.plain_rows += len(rows)
        first = len(self._lists)
        self._lists.append(*self._new.whole(texts.take(pa.array(rows)).view(pa.binary())))
        for number, row in enumerate(rows.tolist(), first):
            words[bounds[row] : bounds[row + 1]] = _NONE
            words[bounds[row]] = number

    def _huge(self, texts: pa.StringArray) -> Tokens:
        """Tokenizes one row that would be too long for Arrow with the prompt in front."""
        ids = self._new.text(self._tail.decode() + texts[0].as_py())
        self._lists.append(ids, np.array([len(ids)]))
        tokens = self._join(np.array([len(self._lists) - 1], np.int32), np.array([0, 1]))
        self._lists.cut(_FIRST_WORD + len(self._table))
        self._counts.plain_rows += 1
        return tokens

    def _join(self, words: NDArray[np.int32], bounds: NDArray[np.int64]) -> Tokens:
        """Puts the rows together: special tokens, the prompt's head, words, truncation."""
        lists = self._lists
        offsets = np.empty(len(bounds), np.int64)
        truncated = np.empty(len(bounds) - 1, np.bool_)
        ids = join_words(
            words,
            bounds,
            lists.edges,
            lists.ids,
            self._before,
            self._head,
            self._after,
            self._room,
            self._left,
            offsets,
            truncated,
        )
        return Tokens(ids=ids[: offsets[-1]], offsets=offsets, truncated=truncated)
