"""The Triton Python-backend model that tokenizes texts for an encoder.

A copy of this folder's files lies in each ``NAME-tokenize``, runs in Triton's own process for the
model, and imports nothing of headrace. The ensemble ``NAME-text`` hands its answers to ``NAME``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .numpyabi import mend

MENDED = mend()  # before the first array

import triton_python_backend_utils as pb_utils  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from .capsule import Capsule  # noqa: E402
from .plaintokens import encode_plainly, truncation_side  # noqa: E402
from .texts import Texts  # noqa: E402

_WARM_UP = "A text, so that the first request finds all that is made once."


class TritonPythonModel:
    """The class that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the tokenizer, and uses it once."""
        config = json.loads(args["model_config"])
        settings = json.loads(config["parameters"]["headrace_text"]["string_value"])
        folder = Path(args["model_repository"])
        tokenizer = Tokenizer.from_buffer((folder / "tokenizer.json").read_bytes())
        side = truncation_side(tokenizer)
        self._texts = Texts(tokenizer, settings, encode=encode_plainly, side=side)
        self._texts.read([_WARM_UP.encode()] * 8, {})

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request with padded ids, or why it cannot be answered."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
            parameters = json.loads(request.parameters() or "{}")
            padded = self._texts.read(texts.ravel().tolist(), parameters)
        except ValueError as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            )
        except BaseException as error:  # noqa: BLE001 -- a panic of tokenizers is no Exception
            text = f"tokenizers fails: {type(error).__name__}: {error}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
        names = ("input_ids", "attention_mask", "tokens")
        capsules = [Capsule(array) for array in padded]
        tensors = [
            pb_utils.Tensor.from_dlpack(name, capsule)
            for name, capsule in zip(names, capsules, strict=True)
        ]
        response = pb_utils.InferenceResponse(tensors)
        for capsule in capsules:
            capsule.settle()
        return response
