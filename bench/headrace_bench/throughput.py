"""How fast is headrace from file to file, against sentence-transformers and the engine alone?

Three ways to embed the same texts take turns, several times over, in one run:

``headrace``
    The command ``headrace embed`` as a process of its own: JSONL in, ``.npy`` out. Two times are
    quoted: that of its report (from the first byte read to the output in place, server running)
    and that of the whole process (Python, building the entry, starting and stopping the server).
``sentence-transformers``
    torch in fp32 on the CPU in this process, texts and vectors in memory, with the batch size that
    is fastest on a few of the texts. Loading torch and the model is not counted, as it is not in
    headrace's first time; it is measured once and quoted. It runs on an even sample of the texts
    if there are many, for it is slow.
``engine``
    The ceiling: the very engine class that the server hosts, with the same model file and the same
    batches, tokenized, sorted and padded beforehand, in this process. No files and no server.

Vectors are compared before speed: numbers of a run whose vectors are wrong are marked so, and the
exit code is 1.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.batcher import fill, plan_batches
from headrace.config import EmbedConfig
from headrace.contract import TOKENIZER_FILE
from headrace.errors import HeadraceError
from headrace.inputs import find_inputs
from headrace.pipeline import choose_prompt
from headrace.records import parse
from headrace.sources import read_blocks
from headrace.tokenizer import TextTokenizer
from headrace.tokens import Tokens
from headrace_bench import corpus, machine
from headrace_bench.stats import Spread, pairwise, spread
from headrace_launcher.build import Entry, build
from headrace_launcher.models import find_model
from headrace_launcher.repository import HOSTED_MODEL, VERSION_FOLDER
from headrace_launcher.triton import find_triton

BATCH_SIZES = (8, 16, 32, 64, 128)
SEARCH_ROWS = 500
LEAST_COSINE = {"fp32": 0.99999, "bf16": 0.9995}
"""Smallest cosine to sentence-transformers' fp32 vectors that counts as the same vector."""

HEADRACE = "headrace"
HEADRACE_WALL = "headrace, whole process"
TORCH = "sentence-transformers"
ENGINE = "engine alone"
REMEDY = "pip install 'headrace[bench]' (it needs torch, too)"


@dataclass(slots=True)
class Comparison:
    """What was measured; rows a second are lists, one number a repetition.

    Attributes:
        settings: what was asked for.
        precision: what headrace and the engine computed in.
        texts: number of rows, and tokens a row: mean, 5th, 50th and 95th percentile.
        rates: rows a second by way, see :data:`HEADRACE` and the names beside it.
        reports: headrace's own report of each repetition, with ``wall_seconds``.
        batch_search: rows a second of sentence-transformers by batch size.
        torch_rows: rows that sentence-transformers embedded, or 0.
        torch_batch: its batch size, or 0.
        torch_load_seconds: importing it and loading the model, or 0.
        torch_missing: why it was not measured, or "".
        cosines: smallest cosine on the common rows, by pair of ways.
        wrong: what is wrong with the vectors, one sentence each.
        hardware: see :func:`headrace_bench.machine.hardware`.
        versions: see :func:`headrace_bench.machine.versions`.
    """

    settings: dict[str, Any]
    precision: str
    texts: dict[str, float]
    rates: dict[str, list[float]] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    batch_search: dict[int, float] = field(default_factory=dict)
    torch_rows: int = 0
    torch_batch: int = 0
    torch_load_seconds: float = 0.0
    torch_missing: str = ""
    cosines: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    hardware: dict[str, object] = field(default_factory=machine.hardware)
    versions: dict[str, str] = field(default_factory=machine.versions)

    @property
    def spreads(self) -> dict[str, Spread]:
        """Median and extremes of ``rates``."""
        return {way: spread(rates) for way, rates in self.rates.items()}

    def ratio(self, ours: str, theirs: str) -> Spread:
        """Returns how many times as fast ``ours`` is as ``theirs``, pair by pair."""
        return spread(pairwise(self.rates[ours], self.rates[theirs]))

    def to_json(self) -> str:
        """Returns everything as indented JSON, the ratios included."""
        ratios = {
            f"{ours} / {theirs}": asdict(self.ratio(ours, theirs))
            for ours in self.rates
            for theirs in (TORCH, ENGINE)
            if theirs in self.rates and ours != theirs
        }
        spreads = {way: asdict(each) for way, each in self.spreads.items()}
        return json.dumps(
            asdict(self) | {"spreads": spreads, "ratios": ratios}, indent=2, ensure_ascii=False
        )


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
            block_rows=config.block_rows,
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
        self._hosted = hosted_model(self._version / HOSTED_MODEL.name)
        self.rates: list[float] = []
        self.vectors = np.empty((len(workload.texts), entry.contract.dimension), np.float32)

    def measure(self) -> None:
        """Computes all batches once, with a newly loaded engine; loading it is not counted.

        New, because headrace's server is new each time, too: what the engine must prepare for
        each shape that it meets first is then in both times.

        Raises:
            Exception: whatever the engine raised.
        """
        engine = self._hosted.OpenVinoEngine(
            self._version, {"precision": self._workload.contract.precision}
        )
        errors: list[Exception] = []
        start = time.perf_counter()
        for batch in self._workload.batches:
            engine.submit(batch.ids, batch.mask, self._answer_to(batch, errors))
        engine.close()
        seconds = time.perf_counter() - start
        if errors:
            raise errors[0]
        self.rates.append(len(self._workload.texts) / seconds)

    def _answer_to(
        self, batch: PaddedBatch, errors: list[Exception]
    ) -> Callable[[NDArray[np.float32] | None, Exception | None], None]:
        def answer(vectors: NDArray[np.float32] | None, error: Exception | None) -> None:
            if vectors is None:
                errors.append(error or RuntimeError("the engine answered nothing"))
            else:
                self.vectors[batch.rows] = vectors

        return answer


def hosted_model(path: Path) -> Any:
    """Imports the file that Triton runs, so that its engine class is measured and not a copy.

    The file imports ``triton_python_backend_utils``, which exists only inside Triton; an empty
    module stands in for it here, for the engine classes do not use it.

    Args:
        path: the entry's ``model.py``.
    """
    stand_in = "triton_python_backend_utils"
    spec = importlib.util.spec_from_file_location("headrace_bench_hosted", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    kept = sys.modules.get(stand_in)
    sys.modules[stand_in] = types.ModuleType(stand_in)
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[stand_in]
        if kept is not None:
            sys.modules[stand_in] = kept
    return module


def evenly(texts: list[str], rows: int) -> list[str]:
    """Returns at most ``rows`` of ``texts``, spread evenly over them."""
    return [texts[index] for index in even_rows(len(texts), rows)]


def even_rows(total: int, rows: int) -> NDArray[np.int64]:
    """Returns int64[min(rows, total)]: row numbers below ``total``, evenly spread, ascending."""
    count = min(rows, total)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)


def least_cosine(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> float:
    """Returns the smallest cosine of two vectors in the same row of float[rows, dimension].

    It is NaN where a row has a NaN and where the shapes differ.
    """
    if ours.shape != theirs.shape:
        return float("nan")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    products = (a * b).sum(1)
    return float((products / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def compare(options: argparse.Namespace, folder: Path) -> Comparison:
    """Measures everything.

    Args:
        options: see :func:`parse_arguments`.
        folder: an empty folder for files.

    Raises:
        RuntimeError: the headrace command failed.
        HeadraceError: the model cannot be built, or the texts cannot be read.
    """
    texts = _texts(options)
    find_triton()  # a download, should there be one, is no part of what is measured
    repository = options.repository or folder / "models"
    entry = build(options.model, repository=repository, precision=options.precision)
    work = Workload(texts, entry, folder / "texts.jsonl")
    result = Comparison(_settings(options), entry.contract.precision, work.describe())
    ours = HeadraceWay(work, options.model, options.precision, options.repository, folder)
    engine = EngineWay(work, entry)
    torch: TorchWay | None = None
    sample = even_rows(len(texts), options.st_rows)
    try:
        _say(f"{TORCH}: loading, trying batch sizes {', '.join(map(str, BATCH_SIZES))}")
        torch = TorchWay(options.model, evenly(texts, options.st_rows), BATCH_SIZES)
    except ImportError as error:
        result.torch_missing = f"not installed ({error}); install it with: {REMEDY}"
        _say(f"{TORCH}: {result.torch_missing}")
    ways: list[tuple[str, Callable[[], None]]] = [(HEADRACE, ours.measure)]
    if torch is not None:
        ways.append((TORCH, torch.measure))
    ways.append((ENGINE, engine.measure))
    for repetition in range(options.repetitions):
        # Nobody is always first or always after the same neighbour.
        turn = repetition % len(ways)
        for name, measure in ways[turn:] + ways[:turn]:
            _say(f"repetition {repetition + 1} of {options.repetitions}: {name}")
            measure()
    result.reports = ours.reports
    result.rates[HEADRACE] = ours.rates("seconds")
    result.rates[HEADRACE_WALL] = ours.rates("wall_seconds")
    result.cosines[f"{HEADRACE} : {ENGINE}"] = least_cosine(ours.vectors, engine.vectors)
    if torch is not None:
        result.rates[TORCH] = torch.rates
        result.batch_search = torch.search
        result.torch_rows, result.torch_batch = len(sample), torch.batch_size
        result.torch_load_seconds = torch.load_seconds
        result.cosines[f"{HEADRACE} : {TORCH}"] = least_cosine(ours.vectors[sample], torch.vectors)
    result.rates[ENGINE] = engine.rates
    least = LEAST_COSINE[result.precision]
    for pair, cosine in result.cosines.items():
        if not cosine >= least:
            result.wrong.append(f"the smallest cosine of {pair} is {cosine:.6f}, below {least}")
    return result


def show(result: Comparison) -> str:
    """Returns the table and everything that a reader needs to judge it."""
    texts, settings = result.texts, result.settings
    lines = [
        *machine.describe(result.hardware, result.versions),
        f"model     {settings['model']} · headrace and the engine compute in {result.precision}"
        + (f", {TORCH} in fp32" if result.torch_rows else ""),
        f"texts     {texts['rows']:,} rows from {settings['input'] or 'installed docstrings'} · "
        f"tokens a row: mean {texts['tokens_mean']:.1f}, p5 {texts['tokens_p5']:.0f}, "
        f"p50 {texts['tokens_p50']:.0f}, p95 {texts['tokens_p95']:.0f}",
        *_show_vectors(result),
        "",
        f"rows/s, median [least..most] of {settings['repetitions']}, ratios pair by pair",
        f"{'':26}{'rows/s':>24}{'times torch':>22}{'times engine':>22}",
    ]
    for way, rate in result.spreads.items():
        ratios = [
            result.ratio(way, other).show(2) if other in result.rates and other != way else "-"
            for other in (TORCH, ENGINE)
        ]
        mark = "  VECTORS WRONG" if result.wrong and way.startswith(HEADRACE) else ""
        lines.append(f"{way:26}{rate.show():>24}{ratios[0]:>22}{ratios[1]:>22}{mark}")
    if result.torch_missing:
        lines.append(f"{TORCH:26}{'not measured':>24}  {result.torch_missing}")
    return "\n".join([*lines, "", *_show_times(result), *_show_losses(result)])


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace_bench.throughput",
        description="headrace from file to file, sentence-transformers, and the engine alone.",
    )
    parser.add_argument("--rows", type=_positive, default=20_000, help="texts to embed")
    parser.add_argument("--st-rows", type=_positive, default=2_000, help="texts for torch, at most")
    parser.add_argument("--repetitions", type=_positive, default=3)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument(
        "--repository", type=Path, help="use it; without, headrace builds anew each time"
    )
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--input", type=Path, help="JSONL with 'text'; without, docstrings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns 0, 1 for wrong vectors, 2 for what cannot be measured."""
    options = parse_arguments(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-throughput-") as folder:
            result = compare(options, Path(folder))
    except (HeadraceError, OSError, RuntimeError, ValueError) as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 2
    print(show(result))
    if options.json:
        options.json.write_text(result.to_json() + "\n", encoding="utf-8")
    return 1 if result.wrong else 0


def _texts(options: argparse.Namespace) -> list[str]:
    rows: int = options.rows
    if options.input is None:
        return corpus.take(rows)
    texts: list[str] = []
    with options.input.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if len(texts) == rows:
                break
            try:
                texts.append(str(json.loads(line)["text"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{options.input}, line {number}: no text in 'text'") from error
    if not texts:
        raise ValueError(f"{options.input} has no rows")
    return texts


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(options).items()
    }


def _show_vectors(result: Comparison) -> list[str]:
    pairs = " · ".join(f"{pair} {cosine:.6f}" for pair, cosine in result.cosines.items())
    lines = [f"vectors   smallest cosine: {pairs}"]
    lines += [f"WRONG     {sentence}" for sentence in result.wrong]
    if result.torch_missing:
        lines.append("          not compared with sentence-transformers, so not known to be right")
    return lines


def _show_times(result: Comparison) -> list[str]:
    reports = result.reports
    stages = {
        stage: spread([report["stage_seconds"][stage] for report in reports]).median
        for stage in reports[0]["stage_seconds"]
    }
    wall = spread([report["wall_seconds"] for report in reports])
    inside = spread([report["seconds"] for report in reports])
    building = "reused" if result.settings["repository"] else "built anew each time"
    lines = [
        f"{HEADRACE}: {inside.show(1)} s from the first byte to the output in place; "
        f"{wall.show(1)} s as a process,",
        f"  with the entry {building} ({stages['build']:.1f} s) and the server started "
        f"({stages['start']:.1f} s); padding {reports[0]['padding']:.1%}",
        "  seconds by stage (read, parse and tokenize run beside the others): "
        + ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items()),
    ]
    if result.torch_rows:
        search = ", ".join(f"{size}: {rate:.0f}" for size, rate in result.batch_search.items())
        lines += [
            f"{TORCH}: on {result.torch_rows:,} of the rows, evenly spread; loading it "
            f"({result.torch_load_seconds:.1f} s) is not in its rows/s",
            f"  batch size {result.torch_batch}, the best of (rows/s) {search}",
        ]
    lines.append(
        f"{ENGINE}: loading it, tokenizing, padding, files and server are not in its rows/s"
    )
    return lines


def _show_losses(result: Comparison) -> list[str]:
    """Returns where headrace is the slower one, and below which number of rows it must be."""
    lines = [
        f"  {way} loses to {other}: {ratio.show(2)} of its speed"
        for way in (HEADRACE, HEADRACE_WALL)
        for other in (TORCH, ENGINE)
        if other in result.rates and (ratio := result.ratio(way, other)).median < 1
    ]
    if result.torch_rows:
        rows = break_even(result)
        below = "at any number of rows" if math.isinf(rows) else f"below about {rows:,.0f} rows"
        lines.append(
            f"  from nothing to the last vector, loading and building and starting included: "
            f"{below if rows else 'never'} (computed from the medians)"
        )
    return ["where headrace loses:", *(lines or ["  nowhere"])]


def break_even(result: Comparison) -> float:
    """Returns the rows below which sentence-transformers finishes first, loading included.

    From the medians: ``load + rows / their rate = overhead + rows / our rate``. Infinite where
    headrace has the lower rate and the longer start, 0 where it is ahead from the first row.
    """
    overhead = spread([r["wall_seconds"] - r["seconds"] for r in result.reports]).median
    ours, theirs = result.spreads[HEADRACE].median, result.spreads[TORCH].median
    late = overhead - result.torch_load_seconds
    if late <= 0:
        return 0.0
    return late / (1 / theirs - 1 / ours) if ours > theirs else float("inf")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
