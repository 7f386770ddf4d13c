"""The ways that are headrace's: itself, from file to file, and its engine alone."""

from __future__ import annotations

import importlib
import json
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace_bench import corpus
from headrace_bench.workload import PaddedBatch, Workload
from headrace_launcher.build import Entry
from headrace_launcher.hosted.cpu import PRECISIONS
from headrace_launcher.hosted.engine import Answer
from headrace_launcher.hosted.gpu import TensorRtEngine
from headrace_launcher.repository import VERSION_FOLDER

# Temporary files and ports, which say nothing to whoever reads a result.
_OF_THE_RUN = {"output", "errors_file", "inputs", "server"}


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
            said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
            raise RuntimeError(f"headrace ended with {done.returncode}: {said}")
        found: dict[str, Any] = json.loads(report.read_text()) | {"wall_seconds": wall}
        told = {key: value for key, value in found.items() if key not in _OF_THE_RUN}
        return told, np.load(output)


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
            f"{contract.engine} {contract.engine_version} in {contract.precision}"
            f"{f' on {gpus} GPUs' if gpus > 1 else ''}, batches made before"
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
        self._vectors.fill(np.nan)  # what is not answered now is not to look right
        if self._contract.engine == "openvino":
            return self._run_openvino(batches)
        return self._run_tensorrt(batches)

    def _run_openvino(self, batches: Sequence[PaddedBatch]) -> float:
        openvino: Any = importlib.import_module("openvino")
        precision = PRECISIONS[self._contract.precision]
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
        settings: dict[str, Any] = json.loads(self._contract.to_json())
        left: queue.SimpleQueue[PaddedBatch] = queue.SimpleQueue()
        for batch in batches:
            left.put(batch)
        with ExitStack() as stack:
            engines = []
            for device in range(self._gpus):
                engines.append(TensorRtEngine(self._folder, settings, device))
                stack.callback(engines[-1].close)
            with ThreadPoolExecutor(len(engines)) as pool:
                start = time.perf_counter()
                done = [pool.submit(self._feed, engine, left) for engine in engines]
                for each in done:
                    each.result()
                return time.perf_counter() - start

    def _feed(self, engine: TensorRtEngine, left: queue.SimpleQueue[PaddedBatch]) -> None:
        """Has one GPU compute batches until none is left, and waits for the last answer."""
        answered: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def keep(rows: NDArray[np.int64]) -> Answer:
            def answer(vectors: Any, error: Exception | None) -> None:
                if vectors is None:
                    answered.put(error or RuntimeError("the engine answered nothing"))
                    return
                found = np.empty(vectors.shape, vectors.dtype)
                engine.driver.call("cuMemcpyDtoH", found.ctypes.data, vectors.address, found.nbytes)
                self._vectors[rows] = found
                answered.put(None)

            return answer

        asked = 0
        with suppress(queue.Empty):
            while True:
                batch = left.get_nowait()
                engine.submit(batch.ids, batch.mask, keep(batch.rows))
                asked += 1
        for _ in range(asked):
            if (error := answered.get()) is not None:
                raise error
