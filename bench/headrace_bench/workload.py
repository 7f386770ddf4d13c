"""Texts as a file, and as the batches that headrace makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.batcher import fill, plan_batches
from headrace.choices import block_rows, choose_prompt
from headrace.config import EmbedConfig
from headrace.contract import TOKENIZER_FILE
from headrace.inputs import find_inputs
from headrace.records import parse
from headrace.sources import read_blocks
from headrace.tokenizer import TextTokenizer
from headrace.tokens import Tokens
from headrace_bench import corpus
from headrace_bench.results import distribution
from headrace_launcher.build import Entry


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """A batch as the server gets it.

    Attributes:
        rows: int64[n]; their numbers in the input.
        ids: int32[n, length].
        mask: int32[n, length].
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int32]
    mask: NDArray[np.int32]


class Workload:
    """The texts as a file and as the batches that headrace makes of them.

    Args:
        texts: the rows.
        entry: the model.
        path: where to write the JSONL file.

    Attributes:
        texts: the rows.
        path: the JSONL file.
        contract: the model's.
        prompt: text in front of every row, "" for none.
        batches: all rows, each once.
        lengths: int64[rows]: tokens a row.
        truncated_rows: how many were cut.
    """

    def __init__(self, texts: list[str], entry: Entry, path: Path) -> None:
        self.texts = texts
        self.path = path
        self.contract = entry.contract
        corpus.write_jsonl(texts, path)
        config = EmbedConfig(
            inputs=(str(path),), output=path.with_suffix(".npy"), model=entry.contract.name
        )
        prompt = choose_prompt(config, self.contract)[0]
        tokenizer = TextTokenizer(
            entry.folder / TOKENIZER_FILE, max_length=self.contract.max_length, prompt=prompt
        )
        self.batches: list[PaddedBatch] = []
        self.truncated_rows = 0
        lengths: list[NDArray[np.int64]] = []
        blocks = read_blocks(
            find_inputs([str(path)]),
            columns=[config.text_field],
            block_bytes=config.block_bytes,
            block_rows=block_rows(config, self.contract),
        )
        for block in blocks:
            records = parse(block, text_field=config.text_field, id_field=None, id_type="string")
            tokens = tokenizer.encode(records.texts)
            lengths.append(tokens.lengths)
            self.truncated_rows += int(tokens.truncated.sum())
            self._pad(tokens, block.first_row)
        self.lengths = np.concatenate(lengths)
        self.prompt = prompt

    def describe(self) -> dict[str, Any]:
        """Returns the distributions of the rows' lengths, as :mod:`headrace_bench.results` has it.

        Tokens include special ones, after rows that are too long were cut.
        """
        return {
            "tokens": distribution(self.lengths),
            "characters": distribution(np.array([len(text) for text in self.texts])),
        }

    def _pad(self, tokens: Tokens, first_row: int) -> None:
        rows = np.arange(len(tokens.lengths))
        for batch in plan_batches(tokens.lengths, rows, self.contract):
            ids = np.empty((len(batch.rows), batch.length), np.int32)
            mask = np.empty_like(ids)
            fill(batch, tokens, self.contract.pad_id, ids, mask)
            self.batches.append(PaddedBatch(batch.rows + first_row, ids, mask))
