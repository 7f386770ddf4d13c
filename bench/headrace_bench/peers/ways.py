"""The ways that peers are compared by: headrace, sentence-transformers, and the engine alone."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace_bench import corpus
from headrace_bench.sampling import evenly
from headrace_bench.workload import PaddedBatch, Workload
from headrace_launcher.build import Entry
from headrace_launcher.hosted.gpu import TensorRtEngine
from headrace_launcher.repository import VERSION_FOLDER

CPU_SIZES = (8, 16, 32, 64, 128)
GPU_SIZES = (32, 64, 128, 256, 512, 1024)
DEFAULT_SIZE = 32
"""What ``SentenceTransformer.encode`` takes by itself."""
SEARCH_ROWS, SEARCH_ROUNDS = 400, 2


class Peer(Protocol):
    """A way to embed the rows of a workload.

    Attributes:
        what: how it does it, in a few words.
    """

    what: str

    def first(self) -> NDArray[np.floating]:
        """Embeds the reference rows; returns float[reference rows, dimension].

        Raises:
            Exception: whatever it raises; it is not measured then.
        """

    def measure(self) -> tuple[float, NDArray[np.floating]]:
        """Embeds all rows; returns rows a second, and the vectors of the reference rows."""


class HeadraceWay:
    """``headrace embed`` as a process of its own: JSONL in, ``.npy`` out.

    Args:
        workload: what to embed.
        entry: the model, built.
        reference: int64[n]; the rows whose vectors are wanted.
        folder: for files.

    Attributes:
        what: see :class:`Peer`.
        reports: its own report of each run of all rows, with ``wall_seconds`` of the process.
    """

    def __init__(
        self, workload: Workload, entry: Entry, reference: NDArray[np.int64], folder: Path
    ) -> None:
        self._workload, self._entry, self._reference = workload, entry, reference
        self._folder = folder
        contract = entry.contract
        self.what = (
            f"{contract.engine} {contract.engine_version} in {contract.precision}, file to file"
        )
        self.reports: list[dict[str, Any]] = []

    def first(self) -> NDArray[np.floating]:
        """See :class:`Peer`; in a file of their own."""
        few = self._folder / "few.jsonl"
        corpus.write_jsonl([self._workload.texts[row] for row in self._reference], few)
        return self._embed(few)[1]

    def measure(self) -> tuple[float, NDArray[np.floating]]:
        """See :class:`Peer`; from the first byte read to the output in place."""
        report, vectors = self._embed(self._workload.path)
        self.reports.append(report)
        return report["rows"] / report["seconds"], vectors[self._reference]

    def _embed(self, source: Path) -> tuple[dict[str, Any], NDArray[np.floating]]:
        output, report = self._folder / "headrace.npy", self._folder / "headrace.json"
        contract = self._entry.contract
        command = [
            *(sys.executable, "-m", "headrace", "embed", str(source), "--output", str(output)),
            *("--model", contract.model_id, "--precision", contract.precision),
            *("--engine", contract.engine, "--repository", str(self._entry.folder.parent)),
            # Else the first repetition would learn the words that the next ones know.
            *("--word-cache", "run", "--report", str(report), "--overwrite", "--quiet"),
        ]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"headrace ended with {done.returncode}: {done.stderr.strip()}")
        found: dict[str, Any] = json.loads(report.read_text()) | {"wall_seconds": wall}
        return found, np.load(output)


class SentenceTransformers:
    """A model loaded by sentence-transformers.

    Args:
        folder: the model's, as it was saved.
        backend: ``torch``, ``onnx`` or ``openvino``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; of torch alone.
        device: ``cpu`` or ``cuda``.
        max_length: tokens a row is cut to.
        prompt: text in front of every row, "" for none.

    Attributes:
        load_seconds: importing the library, where that was to be done, and loading the model.

    Raises:
        ImportError: something that it needs is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        backend: str = "torch",
        dtype: str = "float32",
        device: str = "cpu",
        max_length: int,
        prompt: str,
    ) -> None:
        start = time.perf_counter()
        library: Any = importlib.import_module("sentence_transformers")
        self._model = library.SentenceTransformer(str(folder), device=device, backend=backend)
        if backend == "torch":
            torch: Any = importlib.import_module("torch")
            self._model.to(getattr(torch, dtype))
        self.load_seconds = time.perf_counter() - start
        self._model.max_seq_length = max_length
        self._model.default_prompt_name = None
        self._prompt = {"prompt": prompt} if prompt else {}

    def encode(self, texts: list[str], batch_size: int) -> NDArray[np.float32]:
        """Returns float32[texts, dimension]."""
        vectors = self._model.encode(
            texts, batch_size=batch_size, show_progress_bar=False, **self._prompt
        )
        return np.asarray(vectors, np.float32)


@dataclass(slots=True)
class SentenceTransformersWay:
    """sentence-transformers in this process, texts and vectors in memory.

    Attributes:
        model: it.
        texts: the rows.
        reference: int64[n]; the rows whose vectors are wanted.
        sizes: batch sizes to try on a few rows; one is taken as it is.
        what: see :class:`Peer`.
        batch_size: the one that is fastest.
        search: rows a second by batch size, where several were tried.
    """

    model: SentenceTransformers
    texts: list[str]
    reference: NDArray[np.int64]
    sizes: Sequence[int]
    what: str = "in memory"
    batch_size: int = DEFAULT_SIZE
    search: dict[int, float] = field(default_factory=dict)

    def first(self) -> NDArray[np.floating]:
        """See :class:`Peer`; looks for the best batch size, too."""
        self.model.encode(evenly(self.texts, 64), DEFAULT_SIZE)  # sets up threads and buffers
        if len(self.sizes) > 1:
            few = evenly(self.texts, SEARCH_ROWS)
            seconds: dict[int, list[float]] = {size: [] for size in self.sizes}
            for _ in range(SEARCH_ROUNDS):  # one after the other: what disturbs one is met by all
                for size in self.sizes:
                    seconds[size].append(self._seconds(few, size))
            self.search = {size: len(few) / min(each) for size, each in seconds.items()}
            self.batch_size = max(self.search, key=lambda size: self.search[size])
        else:
            self.batch_size = self.sizes[0]
        self.what = f"batch size {self.batch_size}, in memory"
        return self.model.encode([self.texts[row] for row in self.reference], self.batch_size)

    def measure(self) -> tuple[float, NDArray[np.floating]]:
        """See :class:`Peer`; loading is not counted."""
        start = time.perf_counter()
        vectors = self.model.encode(self.texts, self.batch_size)
        seconds = time.perf_counter() - start
        return len(self.texts) / seconds, vectors[self.reference]

    def _seconds(self, texts: list[str], size: int) -> float:
        start = time.perf_counter()
        self.model.encode(texts, size)
        return time.perf_counter() - start


class CeilingWay:
    """The engine alone: OpenVINO or TensorRT in this process, fed with ready batches.

    The batches are those that headrace makes: tokenized, sorted and padded before the clock starts.
    OpenVINO is driven by its own queue (``openvino.AsyncInferQueue``), TensorRT as the server does.

    Args:
        workload: the batches.
        entry: the model.
        reference: int64[n]; the rows whose vectors are wanted.
        gpus: how many GPUs take part; TensorRT alone uses them.
    """

    def __init__(
        self, workload: Workload, entry: Entry, reference: NDArray[np.int64], *, gpus: int
    ) -> None:
        self._workload, self._reference, self._gpus = workload, reference, gpus
        self._contract = contract = entry.contract
        self._folder = entry.folder / VERSION_FOLDER
        self._vectors = np.empty((len(workload.texts), contract.dimension), np.float32)
        self.what = (
            f"{contract.engine} {contract.engine_version} in {contract.precision}, batches made "
            f"before"
        )

    def first(self) -> NDArray[np.floating]:
        """See :class:`Peer`; the batches that hold reference rows."""
        wanted = set(self._reference.tolist())
        self._run([each for each in self._workload.batches if not wanted.isdisjoint(each.rows)])
        return self._vectors[self._reference]

    def measure(self) -> tuple[float, NDArray[np.floating]]:
        """See :class:`Peer`; loading the engine is not counted.

        It is loaded anew each time, because headrace's server is new each time, too: what the
        engine must prepare for each shape that it meets first is then in both times.
        """
        seconds = self._run(self._workload.batches)
        return len(self._workload.texts) / seconds, self._vectors[self._reference]

    def _run(self, batches: Sequence[PaddedBatch]) -> float:
        if self._contract.engine == "openvino":
            return self._run_openvino(batches)
        return self._run_tensorrt(batches)

    def _run_openvino(self, batches: Sequence[PaddedBatch]) -> float:
        openvino: Any = importlib.import_module("openvino")
        precision = {"fp32": "f32", "bf16": "bf16"}[self._contract.precision]
        hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
        model = openvino.Core().compile_model(self._folder / "model.xml", "CPU", hints)
        infer = openvino.AsyncInferQueue(model)

        def keep(request: Any, rows: NDArray[np.int64]) -> None:
            self._vectors[rows] = request.get_output_tensor(0).data

        infer.set_callback(keep)
        start = time.perf_counter()
        for batch in batches:
            inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
            infer.start_async(inputs, batch.rows, share_inputs=True)
        infer.wait_all()
        return time.perf_counter() - start

    def _run_tensorrt(self, batches: Sequence[PaddedBatch]) -> float:
        settings: Mapping[str, Any] = json.loads(self._contract.to_json())
        engines = [
            TensorRtEngine(self._folder, dict(settings), device) for device in range(self._gpus)
        ]
        errors: list[Exception] = []

        def keep(engine: TensorRtEngine, rows: NDArray[np.int64]) -> Any:
            def answer(vectors: Any, error: Exception | None) -> None:
                if vectors is None:
                    errors.append(error or RuntimeError("the engine answered nothing"))
                    return
                found = np.empty(vectors.shape, vectors.dtype)
                engine.driver.call("cuMemcpyDtoH", found.ctypes.data, vectors.address, found.nbytes)
                self._vectors[rows] = found

            return answer

        start = time.perf_counter()
        for number, batch in enumerate(batches):
            engine = engines[number % len(engines)]
            engine.submit(batch.ids, batch.mask, keep(engine, batch.rows))
        for engine in engines:
            engine.close()
        seconds = time.perf_counter() - start
        if errors:
            raise errors[0]
        return seconds
