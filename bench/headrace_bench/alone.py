"""`tokenizers` by itself, in a process of its own: texts in memory, ids out as int32 arrays.

Runs as ``python -m headrace_bench.alone``, started by :mod:`headrace_bench.feed`; prints rows a
second by chunk size as JSON. What it can use, it may: whether `tokenizers` takes all cores is for
``TOKENIZERS_PARALLELISM`` to say, and for the cores that the process is bound to.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer


def load_tokenizer(path: Path, max_length: int) -> Tokenizer:
    """Returns the tokenizer of ``path``; it cuts rows to ``max_length`` tokens and pads nothing."""
    tokenizer = Tokenizer.from_file(str(path))
    side = (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction=side)
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str], chunk: int) -> list[NDArray[np.int32]]:
    """Tokenizes so many texts at a time; returns the ids of each chunk, one row after the other."""
    return [
        np.fromiter(
            chain.from_iterable(
                encoding.ids for encoding in tokenizer.encode_batch_fast(texts[at : at + chunk])
            ),
            np.int32,
        )
        for at in range(0, len(texts), chunk)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints ``{chunk: rows a second}``."""
    parser = argparse.ArgumentParser(prog="python -m headrace_bench.alone")
    parser.add_argument("texts", type=Path, help="an Arrow file with one column of text")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("max_length", type=int)
    parser.add_argument("--chunks", type=int, nargs="+", required=True)
    parser.add_argument("--rows", type=int, help="only the first ones")
    parser.add_argument("--one-core", action="store_true")
    options = parser.parse_args(arguments)
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with pa.OSFile(str(options.texts)) as file:
        texts = pa.ipc.open_file(file).read_all().column(0)[: options.rows].to_pylist()
    tokenizer = load_tokenizer(options.tokenizer, options.max_length)
    tokenize(tokenizer, texts[:1000], 1000)  # the first call starts threads
    rates: dict[int, float] = {}
    for size in options.chunks:
        start = time.perf_counter()
        tokenize(tokenizer, texts, size)
        rates[size] = len(texts) / (time.perf_counter() - start)
    print(json.dumps(rates))
    return 0


if __name__ == "__main__":
    sys.exit(main())
