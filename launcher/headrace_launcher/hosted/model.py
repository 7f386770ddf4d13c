"""The Triton Python-backend model that hosts an engine where no native backend is installed.

A copy of this folder's files lies in each hosted model's version folder and runs in Triton's own
process for the model, so they import nothing of headrace but each other, and the settings come from
``config.pbtxt``.

Every request is answered through its response sender, from the engine's own threads, and
``execute`` returns as soon as the engine has taken the request, so that one instance keeps all of
the engine's streams busy (response senders in non-decoupled models: triton-inference-server
python_backend README, "Default Mode").

Rows of requests that Triton's dynamic batcher hands over together are computed together (see
``joining``), but for those of requests that say ``alone``.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from .capsule import Capsule
from .device import Exported, imported
from .engine import Answer, DeviceArray, Engine, Ids
from .joining import Asked, Shapes, join

# The module that has an engine; one that is not named here is called as its engine is.
_MODULES = {"openvino": "cpu", "tensorrt": "gpu", "tensorrt-rtx": "gpu"}


class Limits(NamedTuple):
    """What a request may hold: tokens a row, and ids below a number."""

    length: int
    vocabulary: int


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
        self._shapes = Shapes.of(settings)
        name = settings["engine"]
        module = importlib.import_module(f".{_MODULES.get(name, name)}", __package__)
        self._engine: Engine = module.load(folder, settings, int(args["model_instance_device_id"]))

    def execute(self, requests: list[Any]) -> None:
        """Hands every request to the engine; the answers follow through the response senders."""
        asked = []
        for request in requests:
            answer = _answer_to(request)
            try:
                ids, mask = _tokens_of(request, self._limits)
                asked.append(Asked(ids, mask, answer, alone=_is_alone(request)))
            except Exception as error:  # noqa: BLE001 -- whatever it was, the client must hear of it
                answer(None, error)
        for ids, mask, answer in join(asked, self._shapes):
            try:
                self._engine.submit(ids, mask, answer)
            except Exception as error:  # noqa: BLE001 -- as above
                answer(None, error)

    def finalize(self) -> None:
        """Waits for what is running."""
        self._engine.close()


def _is_alone(request: Any) -> bool:
    """Whether a request is to be computed as it was sent."""
    parameters = request.parameters()
    return bool(parameters) and json.loads(parameters).get("alone") is True


def _tokens_of(request: Any, limits: Limits) -> tuple[Ids, Ids]:
    """Returns the request's ids and mask, int32[rows, length] each, in the request's own memory.

    Raises:
        ValueError: they do not fit each other or the model. Ids in a GPU's memory are not read.
    """
    ids, mask = (
        _array(pb_utils.get_input_tensor_by_name(request, name))
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
    if isinstance(ids, DeviceArray):
        return ids, mask
    if ids.size and not (ids.min() >= 0 and ids.max() < limits.vocabulary):
        raise ValueError(
            f"token ids from {ids.min()} to {ids.max()}; the model knows 0 to "
            f"{limits.vocabulary - 1}"
        )
    return ids, mask


def _array(tensor: Any) -> Ids:
    if tensor.is_cpu():
        return np.asarray(np.from_dlpack(tensor), np.int32)
    return imported(tensor)


def _answer_to(request: Any) -> Answer:
    sender = request.get_response_sender()

    def answer(vectors: NDArray[np.floating] | DeviceArray | None, error: Exception | None) -> None:
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if vectors is None:
            kinds = pb_utils.TritonError
            kind = kinds.INVALID_ARG if isinstance(error, ValueError) else kinds.INTERNAL
            failure = pb_utils.TritonError(f"{type(error).__name__}: {error}", kind)
            sender.send(pb_utils.InferenceResponse(error=failure), flags=final)
            return
        if isinstance(vectors, DeviceArray):
            exported = Exported(vectors)
            tensor = pb_utils.Tensor.from_dlpack("embedding", exported)
            try:
                # Triton has copied it when this returns.
                sender.send(pb_utils.InferenceResponse([tensor]), flags=final)
            finally:
                del tensor  # before what it reads from
            return
        capsule = Capsule(np.ascontiguousarray(vectors))
        tensor = pb_utils.Tensor.from_dlpack("embedding", capsule)
        sender.send(pb_utils.InferenceResponse([tensor]), flags=final)
        capsule.settle()

    return answer
