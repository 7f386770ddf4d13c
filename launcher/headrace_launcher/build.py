"""Model -> repository entry: finds the model, writes its graph, builds the engine, publishes."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from headrace.contract import Bucket, Contract, entry_name, file_hash, model_slug
from headrace.errors import UsageError
from headrace_launcher import repository as repo
from headrace_launcher.encoder import GRAPH_VERSION, build_graph, write_graph
from headrace_launcher.engines import openvino
from headrace_launcher.models import Model, find_model
from headrace_launcher.tokenizer import check_tokenizer

# On the CPU larger batches were not faster, and small ones pad less (docs/benchmarks.md).
TOKEN_BUDGET = 2048
MOST_ROWS = 64
LEAST_IN_FLIGHT = 4
# As large as a GPU's: nothing is computed, so a request costs more than its rows.
NULL_TOKEN_BUDGET = 1 << 16
NULL_MOST_ROWS = 1024
BUCKET_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry of a repository.

    Attributes:
        folder: where it lies.
        contract: what it promises.
        built: whether it was built now (False: it was there already).
    """

    folder: Path
    contract: Contract
    built: bool


def build(
    model: str,
    *,
    repository: Path,
    revision: str | None = None,
    precision: str = "auto",
    engine: str = "auto",
    truncate_dim: int | None = None,
    normalize: bool = True,
    name: str | None = None,
    force: bool = False,
) -> Entry:
    """Makes sure that ``repository`` has a current entry for ``model`` and returns it.

    Args:
        model: a folder, an installed package that carries a model, or a Hugging Face id.
        repository: the model repository.
        revision: branch, tag or commit on the hub.
        precision: ``auto``, ``fp32``, ``bf16``, or for the null engine ``fp16``.
        engine: ``auto``, ``openvino`` or ``null``.
        truncate_dim: length that vectors are cut to before they are normalised.
        normalize: whether the engine divides vectors by their L2 norm.
        name: name of the entry; by default from the model and the settings.
        force: build even if a current entry is there.

    Raises:
        UsageError: the model is not found or is not one that can be built, or a setting is wrong.
        MachineError: the repository cannot be written, or a library is missing.
    """
    if name is not None and model_slug(name) != name.lower():
        raise UsageError(
            f"--name {name!r}: a model's name has letters, digits, '.', '_' and '-' only, "
            f"and begins and ends with a letter, a digit or '_'"
        )
    found = find_model(model, revision=revision)
    if truncate_dim is not None and truncate_dim > found.dimension:
        raise UsageError(
            f"--truncate-dim {truncate_dim}: vectors of {found.model_id} have only "
            f"{found.dimension} dimensions"
        )
    contract = _contract(found, precision, engine, truncate_dim, normalize=normalize)
    key = repo.cache_key(
        {
            # Neither its name, nor how many cores built it, nor the way to the model makes an
            # entry another: models/x and ./models/x are one.
            "contract": replace(contract, name="", model_id="", in_flight=0).to_json(),
            "config": dict(found.config),
            "dense": [
                (layer.activation, layer.in_features, layer.out_features, layer.bias)
                for layer in found.dense
            ],
            "graph": GRAPH_VERSION,
            "hosted": file_hash(repo.HOSTED_MODEL),
        }
    )
    wanted = name or entry_name(
        model, precision=precision, truncate_dim=truncate_dim, normalize=normalize, engine=engine
    )
    keep_name = name is not None
    if not force:  # without the lock, so that a repository that can only be read will do
        folder, present = _place(repository, wanted, contract, key, keep_name=keep_name)
        if present is not None:
            return Entry(folder=folder, contract=present, built=False)
    with repo.locked(repository):
        folder, present = _place(repository, wanted, contract, key, keep_name=keep_name)
        if present is not None and not force:
            return Entry(folder=folder, contract=present, built=False)
        contract = replace(contract, name=folder.name)
        repo.publish(
            repository,
            repo.hosted_config(contract, key=key),
            tokenizer=found.tokenizer,
            write_engine=lambda version: _write_engine(found, contract, version),
        )
    return Entry(folder=folder, contract=contract, built=True)


def _contract(
    model: Model, precision: str, engine: str, truncate_dim: int | None, *, normalize: bool
) -> Contract:
    null = engine == "null"
    if null:
        resolved = "fp16" if precision == "fp16" else "fp32"
    else:
        resolved = openvino.resolve_precision(precision)
    vocab_size = check_tokenizer(model)
    return Contract(
        name="",
        model_id=model.model_id,
        revision=model.revision,
        weights_hash=model.weights_hash(),
        tokenizer_hash=file_hash(model.tokenizer),
        max_length=model.max_length,
        vocab_size=vocab_size,
        pad_id=model.pad_id,
        pad_multiple=1,
        pooling=model.pooling,
        normalized=normalize,
        dimension=truncate_dim or model.dimension,
        prompts=dict(model.prompts),
        default_prompt=model.default_prompt,
        precision=resolved,
        dtype="float16" if resolved == "fp16" else "float32",
        buckets=_buckets(model.max_positions, NULL_MOST_ROWS if null else MOST_ROWS),
        token_budget=NULL_TOKEN_BUDGET if null else TOKEN_BUDGET,
        in_flight=max(LEAST_IN_FLIGHT, len(os.sched_getaffinity(0))),
        engine="null" if null else "openvino",
        engine_version="1" if null else openvino.version(),
    )


def _buckets(limit: int, most_rows: int) -> tuple[Bucket, ...]:
    """Returns disjoint ranges of lengths up to ``limit`` tokens, each step about a third longer."""
    steps = [length for length in BUCKET_LENGTHS if length < limit] + [limit]
    return tuple(Bucket(max_length=length, max_batch=most_rows) for length in steps)


def _place(
    repository: Path, name: str, contract: Contract, key: str, *, keep_name: bool
) -> tuple[Path, Contract | None]:
    """Returns the entry's folder, and its contract if it is current.

    A name that another model has taken already is left to it: ours gets its hash as a suffix.
    """
    folder = repository / name
    for folder in (repository / name, repository / f"{name}-{contract.weights_hash[:8]}"):
        entry = repo.read_entry(folder)
        if entry is not None and entry[1] == key:
            return folder, entry[0]
        if keep_name or entry is None or entry[0].weights_hash == contract.weights_hash:
            break
    return folder, None


def _write_engine(model: Model, contract: Contract, folder: Path) -> None:
    if contract.engine == "null":
        return
    truncate_dim = contract.dimension if contract.dimension < model.dimension else None
    graph = build_graph(model, normalize=contract.normalized, truncate_dim=truncate_dim)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="graph-") as scratch:
        path = Path(scratch) / "model.onnx"
        write_graph(graph, path)
        openvino.convert(path, folder, dimension=contract.dimension)
