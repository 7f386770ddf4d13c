"""What the GPU benchmark times: headrace file to file, sentence-transformers, a matrix product."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import EXIT_ENVIRONMENT
from headrace_bench.gpu.busy import BusySampler
from headrace_bench.library import BACKENDS, SentenceTransformers, SentenceTransformersWay
from headrace_bench.sampling import even_rows
from headrace_bench.vectors import least_cosine
from headrace_launcher.build import Entry

UNIT = 2e-3  # float16 rounds each number of a vector to a 2048th
_WARM_UP, _GROUPS, _TOGETHER = 10, 7, 10

Read = Callable[[], float] | None


class TransportError(RuntimeError):
    """``headrace embed`` ended because something on this machine is not as it must be."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """One run of ``headrace embed``.

    Attributes:
        report: its own, with ``wall_seconds`` of the process and ``gpu_busy``: mean percentage
            from the first byte read to the output in place, or None.
        vectors: float16[n, dimension]: an even sample of the rows.
        wrong: what is wrong with them, or "".
    """

    report: dict[str, Any]
    vectors: NDArray[np.float16]
    wrong: str


class HeadraceWay:
    """Runs ``headrace embed`` as a process, through a server that runs already.

    Args:
        source: the input.
        rows: how many it has.
        entry: the model.
        server: ``HOST:PORT``.
        feeders: as of ``headrace embed``.
        folder: for the output, the report and the kept words.
        kept: vectors to keep, evenly spread over the rows, at most.
        read: how busy the GPU is.
    """

    def __init__(
        self,
        source: Path,
        rows: int,
        entry: Entry,
        server: str,
        *,
        feeders: str,
        folder: Path,
        kept: int,
        read: Read,
    ) -> None:
        self._source, self._rows, self._entry, self._server = source, rows, entry, server
        self._feeders, self._folder, self._kept, self._read = feeders, folder, kept, read

    def run(self, transport: str) -> Embedded:
        """Embeds the input once.

        Raises:
            TransportError: it ended with the exit code of the machine's faults.
            RuntimeError: it ended with another.
        """
        output, report = self._folder / "out.npy", self._folder / "report.json"
        name = self._entry.contract.name
        command = [
            *(sys.executable, "-m", "headrace", "embed", str(self._source)),
            *("--output", str(output), "--overwrite", "--dtype", "float16"),
            *("--model", name, "--server", self._server, "--transport", transport),
            *("--repository", str(self._entry.folder.parent), "--feeders", self._feeders),
            *("--word-cache", "keep", "--report", str(report), "--quiet"),
        ]
        environment = os.environ | {"XDG_CACHE_HOME": str(self._folder / "cache")}
        start = time.perf_counter()
        with BusySampler(self._read) as sampler:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
        wall = time.perf_counter() - start
        if done.returncode:
            said = done.stderr.strip().removeprefix("headrace: error: ")
            kind = TransportError if done.returncode == EXIT_ENVIRONMENT else RuntimeError
            raise kind(said or f"headrace ended with {done.returncode}")
        found: dict[str, Any] = json.loads(report.read_text())
        # Linux notes when a file is renamed, which the output is at the very end.
        end = output.stat().st_ctime
        busy = sampler.mean(end - found["seconds"], end)
        vectors = np.load(output, mmap_mode="r")
        wrong = look_at(vectors, (self._rows, self._entry.contract.dimension))
        sample = np.array(vectors[even_rows(len(vectors), self._kept)])
        del vectors
        output.unlink()
        return Embedded(found | {"wall_seconds": wall, "gpu_busy": busy}, sample, wrong)


def look_at(vectors: NDArray[np.floating], shape: tuple[int, int]) -> str:
    """Returns what is wrong with vectors that must have a shape and unit length, or ""."""
    if vectors.shape != shape:
        return f"the output has the shape {list(vectors.shape)}, not {list(shape)}"
    for start in range(0, len(vectors), 1 << 14):
        norms = np.linalg.norm(vectors[start : start + (1 << 14)].astype(np.float32), axis=1)
        bad = np.flatnonzero(~(np.abs(norms - 1) <= UNIT))
        if len(bad):
            row = start + int(bad[0])
            return f"row {row:,} has the length {norms[bad[0]]:.4f}, not 1"
    return ""


class TorchWay:
    """Measures sentence-transformers in this process, with the batch size that is fastest.

    Args:
        model: the model's folder.
        texts: what to embed.
        device: ``cuda`` or ``cpu``.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        batch_sizes: which to try.
        read: how busy the GPU is.

    Attributes:
        way: what is measured, with ``batch_size`` and ``search``.
        rates: rows a second of each repetition.
        busy: GPU busy meanwhile, percent, or None.
        vectors: float32[texts, dimension] of the last repetition.

    Raises:
        ImportError: sentence-transformers, or torch, is not installed.
    """

    def __init__(
        self,
        model: Path,
        texts: list[str],
        *,
        device: str,
        precision: str,
        batch_sizes: Sequence[int],
        read: Read,
    ) -> None:
        loaded = SentenceTransformers(model, BACKENDS[f"torch {precision}"], device=device)
        self.way = SentenceTransformersWay(loaded, texts, np.arange(len(texts)), batch_sizes)
        self.way.choose_size()
        self._read = read
        self.rates: list[float] = []
        self.busy: list[float | None] = []
        self.vectors: NDArray[np.floating] = np.empty((0, 0), np.float32)

    def measure(self) -> None:
        """Embeds the texts once."""
        start = time.time()
        with BusySampler(self._read) as sampler:
            rate, self.vectors = self.way.measure()
        self.rates.append(rate)
        self.busy.append(sampler.mean(start, time.time()))


def matrix_product(device: str, precision: str, size: int) -> float:
    """Returns the FLOP/s of a square matrix product in torch: what this GPU can do at most.

    The median of some groups of products, after others that warm up; ``2 size^3`` each.

    Args:
        device: ``cuda`` or ``cpu``.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        size: rows and columns of both.

    Raises:
        ImportError: torch is not installed.
    """
    torch: Any = importlib.import_module("torch")

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        dtype = getattr(torch, BACKENDS[f"torch {precision}"].precision)
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = []
        for group in range(_GROUPS + 1):
            wait()
            start = time.perf_counter()
            for _ in range(_TOGETHER if group else _WARM_UP):
                torch.matmul(a, b, out=out)
            wait()
            seconds.append((time.perf_counter() - start) / _TOGETHER)
        del a, b, out
    if device == "cuda":
        torch.cuda.empty_cache()
    return float(2 * size**3 / median(seconds[1:]))


def compared(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> float:
    """Returns the smallest cosine of rows in the same place, each less the mean of ``theirs``.

    The vectors of random weights have much in common; without it a row in another's place shows.
    """
    if ours.shape != theirs.shape:
        return float("nan")
    if len(theirs) < 2:
        return least_cosine(ours, theirs)
    mean = theirs.astype(np.float64).mean(0)
    return least_cosine(ours.astype(np.float64) - mean, theirs.astype(np.float64) - mean)
