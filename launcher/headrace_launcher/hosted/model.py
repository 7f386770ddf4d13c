"""The Triton Python-backend model that hosts an engine where no native backend is installed.

A copy of this folder's files lies in each hosted model's version folder and runs in Triton's own
process for the model, so they import nothing of headrace but each other, and the settings come from
``config.pbtxt``.

Every request is answered through its response sender, from the engine's own threads, and
``execute`` returns as soon as the engine has taken the request, so that one instance keeps all of
the engine's streams busy (response senders in non-decoupled models: triton-inference-server
python_backend README, "Default Mode").
"""

from __future__ import annotations

import ctypes
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from .device import Exported, imported
from .engine import Answer, DeviceArray, Engine, Ids

# The module that has an engine; one that is not named here is called as its engine is.
_MODULES = {"openvino": "cpu", "tensorrt": "gpu", "tensorrt-rtx": "gpu"}


class Limits(NamedTuple):
    """What a request may hold: tokens a row, and ids below a number."""

    length: int
    vocabulary: int


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
        name = settings["engine"]
        module = importlib.import_module(f".{_MODULES.get(name, name)}", __package__)
        self._engine: Engine = module.load(folder, settings, int(args["model_instance_device_id"]))

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
            failure = pb_utils.TritonError(f"{type(error).__name__}: {error}")
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
        capsule = _Capsule(np.ascontiguousarray(vectors))
        tensor = pb_utils.Tensor.from_dlpack("embedding", capsule)
        sender.send(pb_utils.InferenceResponse([tensor]), flags=final)
        capsule.settle()

    return answer
