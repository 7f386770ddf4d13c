"""The ways to embed the same texts that a comparison times, and the batches they share."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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
from headrace_launcher.build import Entry
from headrace_launcher.hosted.cpu import OpenVinoEngine
from headrace_launcher.hosted.engine import Answer
from headrace_launcher.models import find_model
from headrace_launcher.repository import VERSION_FOLDER

BATCH_SIZES = (8, 16, 32, 64, 128)
SEARCH_ROWS = 500
REMEDY = "pip install 'headrace[bench]' (it needs torch, too)"


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
    """

    def __init__(self, texts: list[str], entry: Entry, path: Path) -> None:
        self.texts = texts
        self.path = path
        self.contract = entry.contract
        corpus.write_jsonl(texts, path)
        config = EmbedConfig(
            inputs=(str(path),), output=path.with_suffix(".npy"), model=entry.contract.name
        )
        tokenizer = TextTokenizer(
            entry.folder / TOKENIZER_FILE,
            max_length=self.contract.max_length,
            prompt=choose_prompt(config, self.contract)[0],
        )
        self.batches: list[PaddedBatch] = []
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
            self._pad(tokens, block.first_row)
        self.lengths = np.concatenate(lengths)

    def describe(self) -> dict[str, float]:
        """Returns the number of rows and the distribution of their lengths in tokens."""
        low, middle, high = np.percentile(self.lengths, [5, 50, 95])
        return {
            "rows": len(self.lengths),
            "tokens_mean": float(self.lengths.mean()),
            "tokens_p5": float(low),
            "tokens_p50": float(middle),
            "tokens_p95": float(high),
        }

    def _pad(self, tokens: Tokens, first_row: int) -> None:
        rows = np.arange(len(tokens.lengths))
        for batch in plan_batches(tokens.lengths, rows, self.contract):
            ids = np.empty((len(batch.rows), batch.length), np.int32)
            mask = np.empty_like(ids)
            fill(batch, tokens, self.contract.pad_id, ids, mask)
            self.batches.append(PaddedBatch(batch.rows + first_row, ids, mask))


class HeadraceWay:
    """Measures ``headrace embed`` as a process.

    Args:
        workload: what to embed.
        model: the model, as the command line takes it.
        precision: ``auto``, ``fp32`` or ``bf16``.
        repository: an existing repository, or None for a new one, built anew, each time.
        folder: for the output, the report and new repositories.
    """

    def __init__(
        self, workload: Workload, model: str, precision: str, repository: Path | None, folder: Path
    ) -> None:
        self._workload, self._model, self._precision = workload, model, precision
        self._repository, self._folder = repository, folder
        self.reports: list[dict[str, Any]] = []
        self.vectors: NDArray[np.float32] = np.empty((0, 0), np.float32)

    def measure(self) -> None:
        """Runs the command once and keeps its report, its wall seconds and its vectors.

        Raises:
            RuntimeError: the command failed.
        """
        output, report = self._folder / "headrace.npy", self._folder / "headrace.json"
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="models-") as fresh:
            repository = self._repository or Path(fresh)
            command = [
                *(sys.executable, "-m", "headrace", "embed", str(self._workload.path)),
                *("--output", str(output), "--model", self._model, "--precision", self._precision),
                *("--repository", str(repository), "--report", str(report)),
                *("--overwrite", "--quiet"),
            ]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            wall = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"headrace ended with {done.returncode}: {done.stderr.strip()}")
        self.reports.append(json.loads(report.read_text()) | {"wall_seconds": wall})
        self.vectors = np.load(output)

    def rates(self, seconds: str) -> list[float]:
        """Returns rows a second of each repetition by ``seconds`` or ``wall_seconds``."""
        return [report["rows"] / report[seconds] for report in self.reports]


class TorchWay:
    """Measures sentence-transformers in this process, in fp32 and on the CPU.

    Args:
        model: the model, as headrace takes it.
        texts: what to embed.
        batch_sizes: which to try.

    Raises:
        ImportError: sentence-transformers, or torch, is not installed.
    """

    def __init__(self, model: str, texts: list[str], batch_sizes: Sequence[int]) -> None:
        start = time.perf_counter()
        library: Any = importlib.import_module("sentence_transformers")
        self._model = library.SentenceTransformer(str(find_model(model).folder), device="cpu")
        self._model.float()
        self.load_seconds = time.perf_counter() - start
        self._texts = texts
        self._encode(evenly(texts, 64), 32)  # the first call sets up threads and buffers
        few = evenly(texts, SEARCH_ROWS)
        self.search = {size: len(few) / self._encode(few, size) for size in batch_sizes}
        self.batch_size = max(self.search, key=lambda size: self.search[size])
        self.rates: list[float] = []
        self.vectors: NDArray[np.float32] = np.empty((0, 0), np.float32)

    def measure(self) -> None:
        """Embeds the texts once with the best batch size."""
        self.rates.append(len(self._texts) / self._encode(self._texts, self.batch_size))

    def _encode(self, texts: list[str], batch_size: int) -> float:
        start = time.perf_counter()
        self.vectors = self._model.encode(
            texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return time.perf_counter() - start


class EngineWay:
    """Measures the server's own engine class in this process, fed with ready batches.

    Args:
        workload: the batches.
        entry: the model.
    """

    def __init__(self, workload: Workload, entry: Entry) -> None:
        self._workload = workload
        self._version = entry.folder / VERSION_FOLDER
        self.rates: list[float] = []
        self.vectors = np.empty((len(workload.texts), entry.contract.dimension), np.float32)

    def measure(self) -> None:
        """Computes all batches once, with a newly loaded engine; loading it is not counted.

        New, because headrace's server is new each time, too: what the engine must prepare for
        each shape that it meets first is then in both times.

        Raises:
            Exception: whatever the engine raised.
        """
        engine = OpenVinoEngine(self._version, {"precision": self._workload.contract.precision})
        errors: list[Exception] = []
        start = time.perf_counter()
        for batch in self._workload.batches:
            engine.submit(batch.ids, batch.mask, self._answer_to(batch, errors))
        engine.close()
        seconds = time.perf_counter() - start
        if errors:
            raise errors[0]
        self.rates.append(len(self._workload.texts) / seconds)

    def _answer_to(self, batch: PaddedBatch, errors: list[Exception]) -> Answer:
        def answer(vectors: Any, error: Exception | None) -> None:
            if vectors is None:
                errors.append(error or RuntimeError("the engine answered nothing"))
            else:
                self.vectors[batch.rows] = vectors

        return answer


def evenly(texts: list[str], rows: int) -> list[str]:
    """Returns at most ``rows`` of ``texts``, spread evenly over them."""
    return [texts[index] for index in even_rows(len(texts), rows)]


def even_rows(total: int, rows: int) -> NDArray[np.int64]:
    """Returns int64[min(rows, total)]: row numbers below ``total``, evenly spread, ascending."""
    count = min(rows, total)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)
