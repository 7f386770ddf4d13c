"""Rows -> token ids by looking words up: equal to ``tokenizers``, in a fraction of the time.

Every row is cut before each of its spaces, the distinct words of a block are looked up in a
table, the unknown ones are tokenized once, and their ids are put together to rows. Why that is
exact, and for which tokenizers, stands in :mod:`headrace.separable`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.idlists import IdLists, grown, take
from headrace.newwords import NewWords
from headrace.separable import Recipe
from headrace.tokens import Tokens, WordCounts
from headrace.wordtable import UNKNOWN, WordTable, raw_bytes

MAX_WORDS = 1 << 19
# A row of longer words than this on average gains nothing and is tokenized whole.
_MEAN_BYTES = 32
# Rows that are worked on at once, in bytes of text: the arrays then stay in the processor's cache
# and on pages that are there, and still share most of their words.
_BYTES_AT_ONCE = 1 << 21
_SPACE = 0x20
# Lists that are no words: nothing, the special tokens, and what the prompt begins with.
_NONE, _BEFORE, _AFTER, _HEAD, _FIRST_WORD = range(5)
_MAX_COLUMN_BYTES = (1 << 31) - 1
# What some engine's \s may take, and its like: control characters and, by their last bytes in
# UTF-8, U+0085, U+00A0, U+1680, U+180E, U+2000-200F, U+2028, U+2029, U+202F, U+205F, U+2060,
# U+3000, U+FEFF.
_IS_WHITE = np.isin(np.arange(256), [*range(0x09, 0x0E), *range(0x1C, 0x21)])
_WHITE_PAIRS = np.array([0xC285, 0xC2A0])
_WHITE_TRIPLES = np.array(
    [
        *(0xE19A80, 0xE1A08E, *range(0xE28080, 0xE28090), 0xE280A8, 0xE280A9, 0xE280AF),
        *(0xE2819F, 0xE281A0, 0xE38080, 0xEFBBBF),
    ]
)


@dataclass(frozen=True, slots=True)
class Pieces:
    """Rows cut into words.

    Attributes:
        words: binary[words], each with the space before it.
        bounds: int64[rows + 1]; row ``i`` has the words ``bounds[i]`` to ``bounds[i + 1]``.
        whole: rows that were not cut.
    """

    words: pa.BinaryArray
    bounds: NDArray[np.int64]
    whole: int


class WordCache:
    """Tokenizes rows word by word and keeps the words.

    At most ``max_words`` words of at most 64 bytes are kept (60 to 140 bytes each, ids included);
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
        self._met = np.zeros(256, np.int64)
        head, self._tail = self._split(prompt)
        for ids in ((), recipe.before, recipe.after, head):
            self._lists.append(np.array(ids, np.int32), np.array([len(ids)]))
        self._has_head = len(head) > 0

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
        """Adds words that another cache learnt, as long as there is room."""
        new = np.flatnonzero(self._table.find(words["word"]) == UNKNOWN)
        new = new[: self._max_words - len(self._table)]
        words = words.take(pa.array(new))
        lengths = pc.fill_null(pc.list_value_length(words["ids"]), 0)
        self._lists.append(words["ids"].flatten().to_numpy(), lengths.to_numpy().astype(np.int64))
        self._add(words["word"], words["ids"].is_null().to_numpy(zero_copy_only=False), fresh=False)

    def _split(self, prompt: str) -> tuple[tuple[int, ...], bytes]:
        """Returns the ids of what comes before the prompt's last word, and that word."""
        words = cut(pa.array([prompt]), self._joins, _MAX_COLUMN_BYTES).words
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
        pieces = cut(texts, self._joins, _MEAN_BYTES)
        coded = pieces.words.dictionary_encode()
        slots = self._find(coded.dictionary)
        words = slots.take(coded.indices.to_numpy())
        self._counts.words += len(words)
        self._counts.plain_rows += pieces.whole
        plain = self._plain[slots - _FIRST_WORD]
        if plain.any():
            self._replace(texts, words, pieces.bounds, plain.take(coded.indices.to_numpy()))
        tokens = self._join(words, pieces.bounds)
        self._lists.cut(_FIRST_WORD + len(self._table))
        self._block += 1
        if len(self._table) >= self._max_words:
            self._drop_oldest()
        return tokens

    def _find(self, words: pa.BinaryArray) -> NDArray[np.int64]:
        """Returns int64[words]: the list of each of these distinct words; learns unknown ones."""
        numbers = self._table.find(words)
        unknown, unfit = np.flatnonzero(numbers == UNKNOWN), np.flatnonzero(numbers < UNKNOWN)
        self._counts.new_words += len(unknown) + len(unfit)
        if len(unknown) + len(unfit):
            missing = np.concatenate([unknown, unfit])
            new = words.take(pa.array(missing))
            first = len(self._table)
            numbers[missing] = np.arange(first, first + len(new))
            self._lists.append(*self._new.tokenize(new))
            kept = min(len(unknown), self._max_words - first)
            self._add(new.slice(0, kept), self._new.plain(new), fresh=True)
        self._met[numbers[numbers < len(self._table)]] = self._block
        return numbers + _FIRST_WORD

    def _add(self, words: pa.BinaryArray, plain: NDArray[np.bool_], *, fresh: bool) -> None:
        """Keeps the lists after the last word's for ``words``; ``plain`` is of all lists there."""
        first, last = len(self._table), len(self._table) + len(words)
        self._table.add(words)
        self._plain = grown(self._plain, first + len(plain))
        self._fresh, self._met = grown(self._fresh, last), grown(self._met, last)
        self._plain[first : first + len(plain)] = plain
        self._fresh[first:last] = fresh
        self._met[first:last] = self._block if fresh else 0

    def _drop_oldest(self) -> None:
        """Keeps the three quarters of the words that were met last."""
        order = np.argsort(self._met[: len(self._table)], kind="stable")
        keep = np.sort(order[len(order) // 4 + 1 :])
        lists = np.concatenate([np.arange(_FIRST_WORD), keep + _FIRST_WORD])
        ids, edges = self._lists.gather(lists)
        self._lists = IdLists()
        self._lists.append(ids, np.diff(edges))
        self._table.keep(keep)
        self._plain, self._fresh, self._met = self._plain[keep], self._fresh[keep], self._met[keep]

    def _replace(
        self,
        texts: pa.StringArray,
        words: NDArray[np.int64],
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
        tokens = self._join(np.array([len(self._lists) - 1]), np.array([0, 1]))
        self._lists.cut(_FIRST_WORD + len(self._table))
        self._counts.plain_rows += 1
        return tokens

    def _join(self, words: NDArray[np.int64], bounds: NDArray[np.int64]) -> Tokens:
        """Puts the rows together: special tokens, the prompt's head, words, truncation."""
        rows = len(bounds) - 1
        lead = 1 + self._has_head
        bounds = bounds + (lead + 1) * np.arange(rows + 1)
        first, last = bounds[:-1], bounds[1:] - 1
        framed = np.empty(bounds[-1], np.int64)
        inside = np.ones(len(framed), np.bool_)
        for place, number in ((first, _BEFORE), (first + lead - 1, _HEAD), (last, _AFTER)):
            framed[place] = number
            inside[place] = False
        framed[first] = _BEFORE
        framed[inside] = words
        ids, edges = self._lists.gather(framed)
        return self._truncated(ids, edges[bounds])

    def _truncated(self, ids: NDArray[np.int32], edges: NDArray[np.int64]) -> Tokens:
        """Cuts what is too long out of the rows that lie between ``edges``."""
        before, after = len(self._recipe.before), len(self._recipe.after)
        content = np.diff(edges) - before - after
        truncated = content > self._room
        if truncated.any():
            content = np.minimum(content, self._room)
            first = before + (0 if self._left else content)
            last = after + (content if self._left else 0)
            parts = np.stack([edges[:-1], edges[:-1] + first, edges[1:] - last], axis=1)
            kept = np.arange(parts.size).reshape(parts.shape)[:, ::2]
            ids, ends = take(ids, np.append(parts.ravel(), edges[-1]), kept.ravel())
            edges = ends[::2]
        return Tokens(ids=ids, offsets=edges, truncated=truncated)


def cut(texts: pa.StringArray, joins: bool, mean_bytes: int) -> Pieces:
    """Cuts every row before each of its spaces, without copying the text.

    Args:
        texts: rows without nulls; may be a slice.
        joins: whether a space that follows other white space stays with it.
        mean_bytes: rows whose words have more bytes than this on average stay whole.

    Returns:
        The words and which row has which.
    """
    data, offsets = raw_bytes(texts)
    marks = data == _SPACE
    marks[offsets[offsets < len(data)]] = True
    cuts = np.flatnonzero(marks)
    if joins:
        joined = np.flatnonzero(_after_white(data, cuts))
        rows = np.searchsorted(offsets, cuts[joined], "right") - 1
        cuts = np.delete(cuts, joined[cuts[joined] > offsets[rows]])
    bounds = np.searchsorted(cuts, offsets)
    counts = np.diff(bounds)
    whole = np.diff(offsets) > mean_bytes * np.maximum(counts, 1)
    if (whole & (counts > 1)).any():
        keep = ~np.repeat(whole, counts)
        keep[bounds[:-1][counts > 0]] = True
        cuts = cuts[keep]
        bounds = np.append(0, np.cumsum(np.where(whole, 1, counts)))
    edges = np.append(cuts, len(data)).astype(np.int32)
    buffers = [None, pa.py_buffer(edges), pa.py_buffer(data)]
    words = pa.Array.from_buffers(pa.binary(), len(cuts), buffers)
    return Pieces(words, bounds, int(whole.sum()))


def _after_white(data: NDArray[np.uint8], cuts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns bool[cuts]: whether there is a space, and a white character before it."""
    before = data[cuts - 1]
    white: NDArray[np.bool_] = _IS_WHITE[before]
    index = np.flatnonzero(before >= 0x80)
    pairs = data[np.maximum(cuts[index] - 2, 0)].astype(np.int64) << 8 | before[index]
    triples = data[np.maximum(cuts[index] - 3, 0)].astype(np.int64) << 16 | pairs
    white[index] = np.isin(pairs, _WHITE_PAIRS) | np.isin(triples, _WHITE_TRIPLES)
    after: NDArray[np.bool_] = white & (data[cuts] == _SPACE)
    return after
