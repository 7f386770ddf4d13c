"""Model -> repository entry whose engine is :mod:`headrace_bench.gpu.torchbert`."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.contract import Bucket, Contract, file_hash, model_slug
from headrace.errors import MachineError, MissingDependencyError, UsageError
from headrace_launcher import repository as repo
from headrace_launcher.build import Batching, Entry, default_buckets
from headrace_launcher.encoder.bert import Shape
from headrace_launcher.encoder.weights import Weights
from headrace_launcher.engines.target import cpu_target, gpu_target
from headrace_launcher.gpus import find_gpus
from headrace_launcher.models import Model
from headrace_launcher.repository import Host
from headrace_launcher.tokenizer import check_tokenizer

ENGINE = "torchbert"
ENGINE_FILE = Path(__file__).with_name("torchbert.py")
# The names that the engine reads; it is not imported here, since torch may not be installed.
WEIGHTS_FILE = "weights.npz"
GEOMETRY_FILE = "geometry.json"
_IN_FLIGHT = 2  # on a CPU: one computed, one next

Array = NDArray[np.float32]


def torch_version() -> str:
    """Returns the version of torch.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return version("torch")
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            f"the engine {ENGINE} needs torch, which is not installed; pip install torch"
        ) from error


def publish_entry(
    model: Model,
    repository: Path,
    *,
    precision: str = "fp32",
    device: str = "cpu",
    batching: Batching | None = None,
    name: str | None = None,
) -> Entry:
    """Writes a model's entry into a repository; one of that name is replaced.

    Args:
        model: one of the BERT families, with safetensors weights.
        repository: the model repository; made if it is missing.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: ``cpu``, or ``cuda`` for the GPUs here.
        batching: how rows are cut into batches, where that is not to be what suits the device.
        name: name of the entry; None makes one of the model, the engine and the precision.

    Raises:
        UsageError: the engine does not do what the model asks for.
        MissingDependencyError: torch is not installed.
        MachineError: there is no GPU, or the repository cannot be written.
    """
    if not model.from_safetensors or model.dense or model.pooling not in {"mean", "cls"}:
        raise UsageError(
            f"{model.model_id}: {ENGINE} runs the BERT families from safetensors, with mean or cls "
            f"pooling and no dense layer; choose another model"
        )
    shape = Shape.of(model.config, pad_id=model.pad_id)
    if shape.activation != "gelu":
        raise UsageError(f"{model.model_id}: {ENGINE} has only gelu, not {shape.activation}")
    target = cpu_target(ENGINE, torch_version())
    if device == "cuda":
        gpus = find_gpus()
        if not gpus:
            raise MachineError(f"{ENGINE}: no NVIDIA GPU was found; name the device cpu")
        target = gpu_target(ENGINE, torch_version(), gpus[0].capability)
    batching = batching or Batching()
    budget = batching.token_budget or target.token_budget
    most = batching.max_batch or target.max_batch
    lengths = batching.buckets or default_buckets(model.max_positions)
    contract = Contract(
        name=name or f"{model_slug(model.model_id)}-{ENGINE}-{precision}",
        model_id=model.model_id,
        revision=model.revision,
        weights_hash=model.weights_hash(),
        tokenizer_hash=file_hash(model.tokenizer),
        max_length=min(model.max_length, lengths[-1]),
        vocab_size=check_tokenizer(model),
        pad_id=model.pad_id,
        pad_multiple=target.pad_multiple,
        pooling=model.pooling,
        normalized=True,
        dimension=model.dimension,
        prompts=dict(model.prompts),
        default_prompt=model.default_prompt,
        precision=precision,
        dtype="float32" if precision == "fp32" else "float16",
        buckets=tuple(
            Bucket(max_length=n, max_batch=max(1, min(most, budget // n))) for n in lengths
        ),
        token_budget=budget,
        in_flight=target.in_flight or _IN_FLIGHT,
        engine=ENGINE,
        engine_version=target.version,
        capability=target.capability,
    )

    def write(folder: Path) -> None:
        shutil.copyfile(ENGINE_FILE, folder / ENGINE_FILE.name)
        arrays: dict[str, Any] = dict(read_weights(model, shape))
        np.savez(folder / WEIGHTS_FILE, **arrays)
        geometry = {
            "layers": shape.layers,
            "heads": shape.heads,
            "epsilon": shape.epsilon,
            "pad_offset": shape.pad_offset,
        }
        (folder / GEOMETRY_FILE).write_text(json.dumps(geometry, indent=2) + "\n")

    key = repo.cache_key({"contract": contract.to_json(), "engine": file_hash(ENGINE_FILE)})
    with repo.locked(repository):
        folder = repo.publish(
            repository,
            repo.entry_config(contract, Host(), key=key),
            tokenizer=model.tokenizer,
            write_engine=write,
        )
    return Entry(folder=folder, contract=contract, built=True)


def read_weights(model: Model, shape: Shape) -> dict[str, Array]:
    """Returns the tensors of a model by the engine's names, float32.

    ``words`` [vocabulary, hidden] (with the first token type added), ``positions``, ``norm``, and
    of each layer n: ``n.qkv``, ``n.out``, ``n.attention_norm``, ``n.up``, ``n.down``, ``n.norm``,
    each with ``.weight`` ([to, from] where it is a matrix) and ``.bias``. Query, key and value are
    one matrix [3 hidden, hidden].

    Raises:
        UsageError: a tensor is missing or misshapen.
    """
    names = shape.names
    found: dict[str, Array] = {}
    with Weights(model.weights, anchor="embeddings.word_embeddings.weight") as weights:

        def table(name: str) -> Array:
            return weights.get(f"embeddings.{name}_embeddings.weight", (None, shape.hidden))

        def take(ours: str, theirs: list[str], matrix: tuple[int | None, ...]) -> None:
            pieces = [weights.get(f"{name}.weight", matrix) for name in theirs]
            found[f"{ours}.weight"] = np.concatenate(pieces)
            biases = [
                weights.get(f"{name}.bias", (len(piece),))
                for name, piece in zip(theirs, pieces, strict=True)
            ]
            found[f"{ours}.bias"] = np.concatenate(biases)

        found["words"] = table("word")
        if shape.token_types:  # every token's type is the first
            found["words"] = found["words"] + table("token_type")[0]
        found["positions"] = table("position")
        take("norm", ["embeddings.LayerNorm"], (shape.hidden,))
        for layer in range(shape.layers):
            for ours, theirs, matrix in (
                ("qkv", [names.query, names.key, names.value], shape.square),
                ("out", [names.attention], shape.square),
                ("attention_norm", [names.attention_norm], (shape.hidden,)),
                ("up", [names.up], (None, shape.hidden)),
                ("down", [names.down], (shape.hidden, None)),
                ("norm", [names.norm], (shape.hidden,)),
            ):
                prefix = f"{names.layer}.{layer}"
                take(f"{layer}.{ours}", [f"{prefix}.{name}" for name in theirs], matrix)
    return found
