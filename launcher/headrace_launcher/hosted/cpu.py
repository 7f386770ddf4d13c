"""OpenVINO, on the CPU."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Answer

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's names of ours."""


def load(folder: Path, settings: dict[str, Any], device: int) -> OpenVinoEngine:
    """Returns the engine of the model in ``folder``."""
    del device
    return OpenVinoEngine(folder, settings)


class OpenVinoEngine:
    """An OpenVINO model with a thread for each of its streams.

    Threads, and not OpenVINO's own queue: that one never calls back where an inference fails.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import openvino as ov

        hints: dict[str, Any] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": PRECISIONS[settings["precision"]],
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
