"""What vectors should be: those of sentence-transformers, in fp32, on the model's own weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.decompress import one_line
from headrace.errors import MachineError, MissingDependencyError, UsageError
from headrace_bench.library import BACKENDS, REMEDY, SentenceTransformers
from headrace_launcher.locate import locate
from headrace_launcher.models import Model, find_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which reference is wanted.

    Attributes:
        model: a folder, an installed package or a Hugging Face id, as of ``headrace embed``.
        revision: commit on the hub, or "" for none.
        weights: SHA-256 (hex) that the weights must have, or None where that is not known.
        prompt: text in front of every row; None takes the model's default.
        max_length: tokens a row is cut to; None takes the model's own.
        device: where torch computes; None takes a GPU where torch sees one.
        batch_size: texts computed at once.
    """

    model: str
    revision: str = ""
    weights: str | None = None
    prompt: str | None = None
    max_length: int | None = None
    device: str | None = None
    batch_size: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Something that embeds texts rightly.

    Attributes:
        described: what computes, for a person.
        model: the model, as a person would name it.
        dimension: length of a vector.
        prompt: text that it puts in front of every row, "" for none.
        max_length: tokens that it cuts a row to.
        encode: gives float32[texts, dimension] for texts, as the model pools them: where its last
            step makes all lengths 1, without that step.
    """

    described: str
    model: str
    dimension: int
    prompt: str
    max_length: int
    encode: Callable[[list[str]], NDArray[np.float32]]


Opener = Callable[[Asked], Reference]
"""What gives a reference, as :func:`open_reference` does."""


def open_reference(asked: Asked) -> Reference:
    """Loads a model with sentence-transformers, from the folder that headrace itself reads.

    Raises:
        UsageError: there is no such model, or its weights are others than asked for.
        MissingDependencyError: sentence-transformers is not installed.
        MachineError: it cannot load the model.
    """
    located = locate(asked.model, revision=asked.revision or None)
    model = find_model(str(located.folder))
    _check(asked, model)
    prompt = asked.prompt
    if prompt is None:
        prompt = "" if model.default_prompt is None else model.prompts[model.default_prompt]
    try:
        torch: Any = importlib.import_module("torch")
        library: Any = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise MissingDependencyError(
            f"the reference needs {error.name or 'sentence-transformers'}, which is not installed; "
            f"{REMEDY}"
        ) from error
    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    max_length = asked.max_length or model.max_length
    try:
        loaded = SentenceTransformers(
            located.folder,
            BACKENDS["torch fp32"],
            device=device,
            max_length=max_length,
            prompt=prompt,
            normalize=False,
        )
    # torch without CUDA asserts that it has some.
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise MachineError(
            f"sentence-transformers cannot load {located.folder} on {device}: {one_line(error)}; "
            f"see whether it loads that folder by itself, or name another --device"
        ) from error

    def encode(texts: list[str]) -> NDArray[np.float32]:
        try:
            return loaded.encode(texts, asked.batch_size).reshape(len(texts), model.dimension)
        except RuntimeError as error:
            raise MachineError(
                f"sentence-transformers failed on {device}: {one_line(error)}; try a smaller "
                f"--batch-size, or another --device"
            ) from error

    return Reference(
        described=f"sentence-transformers {library.__version__}, torch {torch.__version__}, fp32, "
        f"on {device}",
        model=located.model_id,
        dimension=model.dimension,
        prompt=prompt,
        max_length=max_length,
        encode=encode,
    )


def _check(asked: Asked, model: Model) -> None:
    if asked.weights is not None and (found := model.weights_hash()) != asked.weights:
        raise UsageError(
            f"the reference would be another model: the weights in {model.folder} have the SHA-256 "
            f"{found[:12]}..., those that made the output {asked.weights[:12]}...; name with "
            f"--model where these lie"
        )
    if asked.max_length is not None and asked.max_length > model.max_positions:
        raise UsageError(
            f"--max-length {asked.max_length}: the model in {model.folder} takes at most "
            f"{model.max_positions} tokens"
        )
