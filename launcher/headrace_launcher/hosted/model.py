"""The Triton Python-backend model that hosts an engine where no native backend is installed.

A copy of this file lies in each hosted model's version folder and runs in Triton's own process
for the model, so it imports nothing of headrace: its settings come from ``config.pbtxt``.

Every request is answered through its response sender, from the engine's own threads, and
``execute`` returns as soon as the engine has taken the request, so that one instance keeps all of
the engine's streams busy (response senders in non-decoupled models: triton-inference-server
python_backend README, "Default Mode").
"""

from __future__ import annotations

import ctypes
import json
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

Answer = Callable[["NDArray[np.floating] | None", "Exception | None"], None]


class Limits(NamedTuple):
    """What a request may hold: tokens a row, and ids below a number."""

    length: int
    vocabulary: int


class Engine(Protocol):
    """Computes batches in the background."""

    def submit(self, ids: NDArray[np.int32], mask: NDArray[np.int32], answer: Answer) -> None:
        """Starts ``ids`` and ``mask``, int32[rows, length]; blocks while every stream is busy.

        Both are the request's own memory, which may go as soon as ``submit`` returns.
        ``answer`` is called once, from any thread, with the vectors, [rows, dimension] in the
        type that the settings name, or an error; it has copied the vectors when it returns.
        """

    def close(self) -> None:
        """Waits for what is running."""


class OpenVinoEngine:
    """An OpenVINO model with a thread for each of its streams.

    Threads, and not OpenVINO's own queue: that one never calls back where an inference fails.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import openvino as ov

        hints: dict[str, Any] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[settings["precision"]],
        }
        model = ov.Core().compile_model(folder / "model.xml", "CPU", hints)
        streams = int(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._free.put(model.create_infer_request())
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="stream")

    def submit(self, ids: NDArray[np.int32], mask: NDArray[np.int32], answer: Answer) -> None:
        """See :meth:`Engine.submit`."""
        request = self._free.get()
        self._pool.submit(self._infer, request, ids.copy(), mask.copy(), answer)

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        self._pool.shutdown()

    def _infer(
        self, request: Any, ids: NDArray[np.int32], mask: NDArray[np.int32], answer: Answer
    ) -> None:
        try:
            try:
                request.infer({"input_ids": ids, "attention_mask": mask}, share_inputs=True)
                vectors = request.get_output_tensor(0).data
            except Exception as error:  # noqa: BLE001 -- whatever it was, the client must hear of it
                answer(None, error)
            else:
                answer(vectors, None)
        finally:
            self._free.put(request)


class NullEngine:
    """Answers at once, so that everything but the encoder can be measured and checked.

    A vector holds the row's token count, the sum of its ids modulo 65,521 and its first ids, so
    that a row in the wrong place or with wrong tokens shows. In float16, which has no integers
    above 2,048, each number n stands as two: n // 256 and n % 256.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._dimension = int(settings["dimension"])
        step = 2 if settings["dtype"] == "float16" else 1
        count = -(-self._dimension // step)  # numbers in a vector
        most = max(bucket["max_batch"] for bucket in settings["buckets"])
        # Kept from one request to the next: fresh memory would cost more than all the rest.
        self._vectors = np.zeros((most, count * step), settings["dtype"])
        self._numbers = self._vectors.view(np.float32)
        self._width = count  # columns of it that may hold something
        self._head = np.empty(most * (settings["buckets"][-1]["max_length"] + 2), np.int32)
        length = settings["buckets"][-1]["max_length"]
        # int32, where it fits
        self._sum = np.result_type(np.int32, np.min_scalar_type(-length * settings["vocab_size"]))
        self._pairs: NDArray[np.float32] | None = None
        if step == 2:
            every = np.arange(max(65521, settings["vocab_size"]))
            halves = np.stack([every // 256, every % 256], axis=1).astype(np.float16)
            self._pairs = halves.view(np.float32).ravel()

    def submit(self, ids: NDArray[np.int32], mask: NDArray[np.int32], answer: Answer) -> None:
        """See :meth:`Engine.submit`."""
        rows, length = ids.shape
        head = self._head[: rows * (length + 2)].reshape(rows, length + 2)
        kept = np.multiply(ids, mask, out=head[:, 2:])
        head[:, 0] = mask.sum(1, dtype=np.int32)
        head[:, 1] = kept.sum(1, dtype=self._sum) % 65521
        head = head[:, : self._numbers.shape[1]]
        width = head.shape[1]
        self._numbers[:, width : self._width] = 0
        self._width = width
        self._numbers[:rows, :width] = head if self._pairs is None else self._pairs.take(head)
        answer(self._vectors[:rows, : self._dimension], None)

    def close(self) -> None:
        """See :meth:`Engine.close`."""


class _Capsule:
    """Hands an array to Triton's stub by DLPack and ends the capsule's life as the protocol asks.

    The stub renames a capsule that it has consumed to a name that NumPy's destructor does not
    know, which fills the log with errors. Keeping the capsule and renaming it to the protocol's
    own ``used_dltensor`` once the stub is done keeps the log clean.
    """

    def __init__(self, array: NDArray[np.floating]) -> None:
        self._array = array
        self._capsule: Any = None

    def __dlpack__(self, **_: Any) -> Any:
        self._capsule = self._array.__dlpack__()
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def settle(self) -> None:
        if self._capsule is not None:
            api = ctypes.pythonapi
            api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
            api.PyCapsule_SetName(self._capsule, b"used_dltensor")


class TritonPythonModel:
    """The class that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the engine that the model's headrace settings name."""
        config = json.loads(args["model_config"])
        settings = json.loads(config["parameters"]["headrace"]["string_value"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self._limits = Limits(
            length=settings["buckets"][-1]["max_length"], vocabulary=settings["vocab_size"]
        )
        self._engine: Engine
        if settings["engine"] == "openvino":
            self._engine = OpenVinoEngine(folder, settings)
        elif settings["engine"] == "null":
            self._engine = NullEngine(settings)
        else:
            raise pb_utils.TritonModelException(f"unknown engine {settings['engine']!r}")

    def execute(self, requests: list[Any]) -> None:
        """Hands every request to the engine; the answers follow through the response senders."""
        for request in requests:
            answer = _answer_to(request)
            try:
                self._engine.submit(*_tokens_of(request, self._limits), answer)
            except Exception as error:  # noqa: BLE001 -- whatever it was, the client must hear of it
                answer(None, error)

    def finalize(self) -> None:
        """Waits for what is running."""
        self._engine.close()


def _tokens_of(request: Any, limits: Limits) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns the request's ids and mask, int32[rows, length] each, in the request's own memory.

    Raises:
        ValueError: they do not fit each other or the model.
    """
    ids, mask = (
        np.asarray(np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)), np.int32)
        for name in ("input_ids", "attention_mask")
    )
    if ids.shape != mask.shape:
        raise ValueError(
            f"input_ids has shape {list(ids.shape)} and attention_mask {list(mask.shape)}; "
            f"they must be equal"
        )
    if not 0 < ids.shape[1] <= limits.length:
        raise ValueError(
            f"rows of {ids.shape[1]} tokens; the model takes 1 to {limits.length} tokens"
        )
    if ids.size and not (ids.min() >= 0 and ids.max() < limits.vocabulary):
        raise ValueError(
            f"token ids from {ids.min()} to {ids.max()}; the model knows 0 to "
            f"{limits.vocabulary - 1}"
        )
    return ids, mask


def _answer_to(request: Any) -> Answer:
    sender = request.get_response_sender()

    def answer(vectors: NDArray[np.floating] | None, error: Exception | None) -> None:
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if vectors is None:
            failure = pb_utils.TritonError(f"{type(error).__name__}: {error}")
            sender.send(pb_utils.InferenceResponse(error=failure), flags=final)
            return
        capsule = _Capsule(np.ascontiguousarray(vectors))
        tensor = pb_utils.Tensor.from_dlpack("embedding", capsule)
        sender.send(pb_utils.InferenceResponse([tensor]), flags=final)
        capsule.settle()

    return answer
