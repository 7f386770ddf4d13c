"""Texts of a wanted length for the GPU benchmark, and the batches that headrace makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from headrace.batcher import plan_batches
from headrace.choices import block_rows
from headrace.config import EmbedConfig
from headrace.contract import TOKENIZER_FILE
from headrace.inputs import find_inputs
from headrace.records import parse
from headrace.sources import read_blocks
from headrace.tokenizer import TextTokenizer
from headrace_launcher.build import Entry

SPECIAL = 2  # [CLS] and [SEP]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """How long the rows are, and how the batches are padded.

    Attributes:
        rows: their number.
        tokens: of all rows, special tokens included.
        padded: tokens of all batches, padding included.
        squares: sum over all rows of their padded length squared.
        percentiles: tokens a row: 5th, 50th and 95th.
    """

    rows: int
    tokens: int
    padded: int
    squares: int
    percentiles: tuple[float, float, float]


def resized(texts: Sequence[str], rows: int, mean: int | None, tokenizer: Tokenizer) -> list[str]:
    """Returns ``rows`` texts made of the words of ``texts``, one after the other.

    Their lengths are spread as those of ``texts`` are, stretched so that the mean is ``mean``
    tokens, special tokens included, before any row is cut to what the model takes.

    Args:
        texts: words with one space between them.
        rows: how many to make; the words are used again, from another one on, where they run out.
        mean: tokens a row, or None for the mean of ``texts``.
        tokenizer: one whose tokens of a text are those of its words.
    """
    parts = [text.split(" ") for text in texts]
    words = [word for part in parts for word in part]
    distinct = list(dict.fromkeys(words))
    encoded = tokenizer.encode_batch_fast(distinct, add_special_tokens=False)
    size = {word: len(found.ids) for word, found in zip(distinct, encoded, strict=True)}
    ends = np.cumsum([size[word] for word in words])
    own = np.array([sum(size[word] for word in part) + SPECIAL for part in parts])
    wanted = np.maximum(1, np.rint(own * (mean or own.mean()) / own.mean()) - SPECIAL)
    made: list[str] = []
    start = turns = 0
    for row in range(rows):
        target = wanted[row % len(wanted)]
        if start >= len(words) or ends[-1] - (ends[start] - size[words[start]]) < target:
            turns += 1
            start = turns % len(words)
        first = ends[start] - size[words[start]]
        end = int(np.searchsorted(ends, first + target)) + 1
        made.append(" ".join(words[start:end]))
        start = end
    return made


def shapes_of(config: EmbedConfig, entry: Entry) -> Shapes:
    """Returns the rows and batches of a run: read, tokenized and cut as headrace does.

    Args:
        config: the run's input, output type and limits.
        entry: the model.
    """
    contract = entry.contract
    tokenizer = TextTokenizer(
        entry.folder / TOKENIZER_FILE, max_length=contract.max_length, word_cache="run"
    )
    lengths, padded, squares = [], 0, 0
    for block in read_blocks(
        find_inputs(config.inputs),
        columns=[config.text_field],
        block_bytes=config.block_bytes,
        block_rows=block_rows(config, contract),
    ):
        found = parse(block, text_field=config.text_field, id_field=None, id_type="string")
        tokens = tokenizer.encode(found.texts)
        lengths.append(tokens.lengths)
        for batch in plan_batches(tokens.lengths, np.arange(len(tokens.lengths)), contract):
            padded += len(batch.rows) * batch.length
            squares += len(batch.rows) * batch.length**2
    every = np.concatenate(lengths)
    low, middle, high = (float(value) for value in np.percentile(every, [5, 50, 95]))
    return Shapes(
        rows=len(every),
        tokens=int(every.sum()),
        padded=padded,
        squares=squares,
        percentiles=(low, middle, high),
    )
