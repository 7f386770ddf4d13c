"""sentence-transformers, with each of its backends: what is right, and what to be faster than."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace_bench.sampling import evenly

CPU_SIZES = (8, 16, 32, 64, 128)
GPU_SIZES = (32, 64, 128, 256, 512, 1024)
DEFAULT_SIZE = 32
"""What ``SentenceTransformer.encode`` takes by itself."""
SEARCH_ROWS, SEARCH_BATCHES, SEARCH_ROUNDS = 400, 4, 2
REMEDY = "pip install 'headrace[bench]' (it needs torch, too)"
"""For whoever lacks sentence-transformers."""
BACKENDS_REMEDY = "pip install 'headrace[peers]'"
"""For whoever lacks what its other backends need."""
_CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to load a model.

    Attributes:
        backend: what sentence-transformers calls it.
        precision: what it computes in; "" where the backend decides.
        devices: where it can.
        packages: to be imported by it.
    """

    backend: str
    precision: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    packages: tuple[str, ...] = ()


BACKENDS = {
    "torch fp32": Backend("torch", "float32"),
    "torch bf16": Backend("torch", "bfloat16"),
    "torch fp16": Backend("torch", "float16", ("cuda",)),
    "ONNX": Backend("onnx", "", packages=("onnxruntime", "optimum.onnxruntime")),
    "OpenVINO": Backend("openvino", "", ("cpu",), ("optimum.intel",)),
}


class SentenceTransformers:
    """A model loaded by sentence-transformers.

    Args:
        folder: the model's, as it was saved.
        how: the backend.
        device: where torch computes: ``cpu``, ``cuda`` or one of several, as ``cuda:1``.
        gpus: of several, on how many all rows are computed.
        max_length: tokens a row is cut to; None takes the model's own.
        prompt: text in front of every row, "" for none.
        normalize: whether vectors have length 1 where that is the model's last step.

    Attributes:
        load_seconds: importing the library, where that was to be done, and loading the model.
        where: what it computes in, and on what.

    Raises:
        ImportError: something that it needs is not installed.
        Exception: whatever sentence-transformers and what lies below raise where they cannot load
            a model.
    """

    def __init__(
        self,
        folder: Path,
        how: Backend,
        *,
        device: str = "cpu",
        gpus: int = 1,
        max_length: int | None = None,
        prompt: str = "",
        normalize: bool = True,
    ) -> None:
        start = time.perf_counter()
        on_gpu, options = device != "cpu", {}
        for package in how.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ImportError(f"{error}; {BACKENDS_REMEDY}") from error
        if how.backend == "onnx":
            # By itself it takes the first provider, which may be the CPU's on a machine with GPUs.
            provider = _CUDA if on_gpu else "CPUExecutionProvider"
            if provider not in importlib.import_module("onnxruntime").get_available_providers():
                raise ImportError(f"onnxruntime has no {provider}; pip install onnxruntime-gpu")
            options["provider"] = provider
        library: Any = importlib.import_module("sentence_transformers")
        torch: Any = importlib.import_module("torch")
        self._model = library.SentenceTransformer(
            str(folder),
            device=device,
            backend=how.backend,
            model_kwargs=options,
            local_files_only=True,
        )
        if not normalize and type(self._model[-1]).__name__ == "Normalize":
            del self._model[-1]
        if how.backend == "torch":
            self._model.to(getattr(torch, how.precision))
        self._on_gpu = on_gpu
        self._pool = None
        if gpus > 1 and how.backend == "torch":
            devices = [f"cuda:{number}" for number in range(gpus)]
            self._pool = self._model.start_multi_process_pool(devices)
        self.load_seconds = time.perf_counter() - start
        if max_length is not None:
            self._model.max_seq_length = max_length
        self._model.default_prompt_name = None
        self._prompt = {"prompt": prompt} if prompt else {}
        on = device if gpus < 2 else f"{gpus if self._pool else 1} of {gpus} GPUs"
        self.where = f"{how.precision or self._precision()} on {on}"

    def encode(self, texts: list[str], batch_size: int) -> NDArray[np.float32]:
        """Returns float32[texts, dimension]."""
        vectors = self._model.encode(
            texts,
            batch_size=batch_size,
            show_progress_bar=False,
            pool=self._pool,
            **self._prompt,
        )
        return np.asarray(vectors, np.float32)

    def empty_cache(self) -> None:
        """Gives back memory of the GPU that only lies ready; others measure there, too."""
        if self._on_gpu:
            torch: Any = importlib.import_module("torch")
            torch.cuda.empty_cache()

    def _precision(self) -> str:
        """Returns what a backend that decides by itself computes in, as far as it tells."""
        with suppress(AttributeError, RuntimeError, TypeError):
            compiled = self._model[0].auto_model.compiled_model
            return (
                str(compiled.get_property("INFERENCE_PRECISION_HINT")).strip("<>'\" ").split()[-1]
            )
        return "the model's precision"


@dataclass(slots=True)
class SentenceTransformersWay:
    """sentence-transformers in this process, texts and vectors in memory.

    Attributes:
        model: it.
        texts: the rows.
        reference: int64[n]; the rows whose vectors are wanted.
        sizes: batch sizes to try on a few rows; one is taken as it is.
        what: see :class:`headrace_bench.peers.ways.Peer`.
        batch_size: the one that is fastest.
        search: rows a second by batch size, where several were tried.
    """

    model: SentenceTransformers
    texts: list[str]
    reference: NDArray[np.int64]
    sizes: Sequence[int]
    what: str = ""
    batch_size: int = DEFAULT_SIZE
    search: dict[int, float] = field(default_factory=dict)

    def first(self) -> NDArray[np.floating]:
        """See :class:`headrace_bench.peers.ways.Peer`; looks for the best batch size, too."""
        self.choose_size()
        self.what = f"{self.model.where}, batch size {self.batch_size}, in memory"
        vectors = self.model.encode([self.texts[row] for row in self.reference], self.batch_size)
        self.model.empty_cache()
        return vectors

    def measure(self) -> tuple[float, NDArray[np.floating]]:
        """See :class:`headrace_bench.peers.ways.Peer`; loading is not counted."""
        start = time.perf_counter()
        vectors = self.model.encode(self.texts, self.batch_size)
        seconds = time.perf_counter() - start
        self.model.empty_cache()
        return len(self.texts) / seconds, vectors[self.reference]

    def choose_size(self) -> None:
        """Takes the one size that there is, or the one that is fastest on a few rows.

        Raises:
            RuntimeError: not even the first one fits into the memory.
        """
        self.model.encode(evenly(self.texts, 64), DEFAULT_SIZE)  # sets up threads and buffers
        self.batch_size = self.sizes[0]
        if len(self.sizes) == 1:
            return
        few = evenly(self.texts, max(SEARCH_ROWS, SEARCH_BATCHES * max(self.sizes)))
        seconds: dict[int, list[float]] = {}
        for _ in range(SEARCH_ROUNDS):  # what disturbs the machine is not one size's alone
            for size in self.sizes:
                start = time.perf_counter()
                try:
                    self.model.encode(few, size)
                except RuntimeError as error:
                    if "out of memory" not in str(error).lower() or not seconds:
                        raise
                    break  # the larger ones need more
                seconds.setdefault(size, []).append(time.perf_counter() - start)
        self.search = {size: len(few) / min(each) for size, each in seconds.items()}
        self.batch_size = max(self.search, key=lambda size: self.search[size])
