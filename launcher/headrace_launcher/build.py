"""Model -> repository entry: finds the model, writes its graph, builds the engine, publishes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from headrace.contract import (
    MOST_ROWS,
    MOST_TOKENS,
    Bucket,
    Contract,
    entry_name,
    file_hash,
    is_name,
)
from headrace.errors import MachineError, UsageError
from headrace_launcher import repository as repo
from headrace_launcher.encoder import GRAPH_VERSION, build_graph, write_graph
from headrace_launcher.engines import openvino, tensorrt
from headrace_launcher.engines.target import PLANS, Target, choose
from headrace_launcher.models import Model, find_model
from headrace_launcher.place import Place
from headrace_launcher.repository import Host
from headrace_launcher.textmodels import ensure_text_models
from headrace_launcher.tokenizer import check_tokenizer, load_tokenizer
from headrace_launcher.triton import has_backend

_LONGEST_NAME = 100
LEAST_IN_FLIGHT = 4  # on a CPU
BUCKET_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How rows are cut into batches, where that is not to be what suits the engine.

    Attributes:
        buckets: the longest row of each bucket, in tokens, ascending; a row may be as long as the
            last one says. Empty: about ten, up to the model's own limit.
        max_batch: most rows of a batch, or None.
        token_budget: most padded tokens of a batch, or None.
    """

    buckets: tuple[int, ...] = ()
    max_batch: int | None = None
    token_budget: int | None = None

    def __post_init__(self) -> None:
        for option, value, most in (
            ("--buckets", min(self.buckets, default=None), MOST_TOKENS),
            ("--max-batch", self.max_batch, MOST_ROWS),
            ("--token-budget", self.token_budget, MOST_TOKENS),
        ):
            if value is not None and not 1 <= value <= most:
                raise UsageError(f"{option} must be from 1 to {most}, not {value}")
        if list(self.buckets) != sorted(set(self.buckets)):
            raise UsageError(
                f"--buckets {','.join(map(str, self.buckets))}: the lengths must ascend"
            )


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
    capability: str = "",
    backend: str = "auto",
    batching: Batching = Batching(),
    truncate_dim: int | None = None,
    normalize: bool = True,
    name: str | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
) -> Entry:
    """Makes sure that ``repository`` has a current entry for ``model`` and returns it.

    Args:
        model: a folder, an installed package that carries a model, or a Hugging Face id.
        repository: the model repository.
        revision: branch, tag or commit on the hub.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        engine: ``auto``, ``openvino``, ``tensorrt``, ``tensorrt-rtx`` or ``null``.
        capability: for ``tensorrt-rtx`` the compute capability, as ``8.9``, of a GPU that is not
            here; "" builds for the one that is.
        backend: which of Triton's backends runs a plan: ``tensorrt``, ``python`` (with
            ``hosted/model.py``), or ``auto``: ``tensorrt`` where the server has it.
        batching: how rows are cut into batches.
        truncate_dim: length that vectors are cut to before they are normalised.
        normalize: whether the engine divides vectors by their L2 norm.
        name: name of the entry; by default from the model and the settings.
        force: build even if a current entry is there.
        progress: told in a line what is being done; often.
        notice: told in a line what the user should know.

    Raises:
        UsageError: the model is not found or is not one that can be built, or a setting is wrong.
        MachineError: the repository cannot be written, a GPU or a library is missing, or TensorRT
            cannot build the plan.
    """
    if name is not None and (not is_name(name) or len(name) > _LONGEST_NAME):
        raise UsageError(
            f"--name {name[:200]!r}: a model's name has letters, digits, '.', '_' and '-' only, "
            f"begins and ends with a letter, a digit or '_', and is at most {_LONGEST_NAME} long"
        )
    found = find_model(model, revision=revision)
    if truncate_dim is not None and not 1 <= truncate_dim <= found.dimension:
        raise UsageError(
            f"--truncate-dim {truncate_dim}: vectors of {found.model_id} have 1 to "
            f"{found.dimension} dimensions"
        )
    target = choose(engine, capability, notice)
    contract = _contract(found, target, precision, batching, truncate_dim, normalize=normalize)
    backend = _backend(target, backend)
    hosted = [file_hash(path) for path in repo.HOSTED_FILES]

    def identify(contract: Contract) -> tuple[Host, str]:
        made_of = _made_of(found, contract)
        plan = repo.cache_key(made_of) if target.capability else ""
        host = Host(backend=backend, devices=target.devices, plan=plan)
        key = made_of | {
            # Neither its name, nor how many cores built it, nor the way to the model makes an
            # entry another: models/x and ./models/x are one.
            "contract": replace(contract, name="", model_id="", in_flight=0).to_json(),
            "hosted": hosted,
            "host": repr(host),
            "pbtxt": repo.CONFIG_VERSION,
        }
        return host, repo.cache_key(key)

    wanted = name or entry_name(
        model, precision=precision, truncate_dim=truncate_dim, normalize=normalize, engine=engine
    )
    place = Place(
        repository,
        wanted,
        fixed=name is not None,
        any_batching=batching == Batching() and not force,
        key_of=lambda contract: identify(contract)[1],
    )
    if not force:  # without the lock, so that a repository that can only be read will do
        folder, present = place.find(contract)
        if present is not None:
            _tell_of_limit(present, contract, notice)
            return Entry(folder=folder, contract=present, built=False)
    with repo.locked(repository):
        folder, present = place.find(contract)
        if present is not None and not force:
            _tell_of_limit(present, contract, notice)
            return Entry(folder=folder, contract=present, built=False)
        if (why := place.why_again(folder, contract)) is not None and not force:
            notice(f"the entry {folder.name} is built again: {why}")
        contract = replace(contract, name=folder.name)
        host, key = identify(contract)

        def write(version: Path) -> None:
            made = None if force or not host.plan else repo.find_plan(repository, host.plan)
            if made is not None:
                notice(f"the plan is that of {made.parent.name}, which was made of the same")
                repo.link_tree(made, version)
            elif contract.engine in PLANS:
                builder = tensorrt.PlanBuilder(
                    contract=contract,
                    elsewhere=bool(capability),
                    timing_cache=repository / f".timing-{contract.built_for}",
                    failure_log=repository / ".failed-build.log",
                    progress=progress,
                    notice=notice,
                )
                _write_engine(found, contract, version, builder.convert)
            elif contract.engine == "openvino":
                convert = partial(
                    openvino.convert,
                    dimension=contract.dimension,
                    foreign=not found.from_safetensors,
                )
                _write_engine(found, contract, version, convert)

        repo.publish(
            repository,
            repo.entry_config(contract, host, key=key),
            tokenizer=found.tokenizer,
            write_engine=write,
        )
        if not ensure_text_models(repository, contract):
            notice(
                f"{contract.name} has no model that takes texts beside it: another model has the "
                f"name of one; give this one another --name"
            )
    return Entry(folder=folder, contract=contract, built=True)


def _contract(
    model: Model,
    target: Target,
    precision: str,
    batching: Batching,
    truncate_dim: int | None,
    *,
    normalize: bool,
) -> Contract:
    resolved = target.precision(precision)
    vocab_size = check_tokenizer(model)
    lengths = batching.buckets or default_buckets(model.max_positions)
    if lengths[-1] > model.max_positions:
        raise UsageError(
            f"--buckets end at {lengths[-1]}: {model.model_id} takes at most "
            f"{model.max_positions} tokens"
        )
    if batching.buckets:
        tokenizer = load_tokenizer(model.tokenizer)
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if lengths[-1] <= special:
            raise UsageError(
                f"--buckets end at {lengths[-1]}: {special} special tokens leave no room for text"
            )
    budget = batching.token_budget or target.token_budget
    most = batching.max_batch or target.most_rows(lengths[-1])
    return Contract(
        name="",
        model_id=model.model_id,
        revision=model.revision,
        weights_hash=model.weights_hash(),
        tokenizer_hash=file_hash(model.tokenizer),
        max_length=min(model.max_length, lengths[-1]),
        vocab_size=vocab_size,
        pad_id=model.pad_id,
        pad_multiple=target.pad_multiple,
        pooling=model.pooling,
        normalized=normalize,
        dimension=truncate_dim or model.dimension,
        prompts=dict(model.prompts),
        default_prompt=model.default_prompt,
        precision=resolved,
        dtype=target.dtype(resolved, normalized=normalize),
        buckets=tuple(
            # Of a plan's profile this is the shape that its kernels are chosen for.
            Bucket(max_length=n, max_batch=max(1, min(most, budget // n)))
            if target.engine in PLANS
            else Bucket(max_length=n, max_batch=most)
            for n in lengths
        ),
        token_budget=budget,
        in_flight=target.in_flight or max(LEAST_IN_FLIGHT, len(os.sched_getaffinity(0))),
        engine=target.engine,
        engine_version=target.version,
        capability=target.capability,
    )


def _tell_of_limit(entry: Contract, contract: Contract, notice: Callable[[str], None]) -> None:
    """Says that an entry cuts rows that the model does not, where it does."""
    if entry.max_length < contract.max_length:
        notice(
            f"the entry {entry.name} was built for rows of up to {entry.max_length} tokens and "
            f"cuts longer ones; the model's own limit is {contract.max_length}: headrace build "
            f"MODEL --force"
        )


def default_buckets(limit: int) -> tuple[int, ...]:
    """Returns lengths up to ``limit`` tokens, each step about a third longer than the last."""
    return (*(length for length in BUCKET_LENGTHS if length < limit), limit)


def _made_of(model: Model, contract: Contract) -> dict[str, object]:
    """Everything that an engine's files depend on."""
    return {
        "weights": contract.weights_hash,
        "config": dict(model.config),
        "dense": [
            (layer.activation, layer.in_features, layer.out_features, layer.bias)
            for layer in model.dense
        ],
        "graph": GRAPH_VERSION,
        "pooling": contract.pooling,
        "normalized": contract.normalized,
        "dimension": contract.dimension,
        "precision": contract.precision,
        "dtype": contract.dtype,
        "engine": contract.built_for,
        "profiles": tensorrt.profiles(contract),
        "plan": tensorrt.PLAN_VERSION,
    }


def _backend(target: Target, wanted: str) -> str:
    if target.engine != "tensorrt":
        if wanted == "tensorrt":
            raise UsageError(
                f"--backend tensorrt: Triton's TensorRT backend runs the plans of --engine "
                f"tensorrt, not {target.engine}"
            )
        return "python"
    if wanted == "auto":
        wanted = "tensorrt" if has_backend("tensorrt") else "python"
    server = os.environ.get("TRT_VERSION", "").partition("+")[0]  # set in NVIDIA's containers
    if wanted == "tensorrt" and server and server != target.version:
        raise MachineError(
            f"the plan would be built by TensorRT {target.version}, and Triton's backend here has "
            f"{server}; pip install tensorrt-cu13-bindings=={server}"
        )
    return wanted


def _write_engine(
    model: Model, contract: Contract, folder: Path, convert: Callable[[Path, Path], object]
) -> None:
    graph = build_graph(
        model,
        normalize=contract.normalized,
        truncate_dim=contract.dimension if contract.dimension < model.dimension else None,
        # OpenVINO chooses the precision when it loads the model.
        precision=contract.precision if contract.engine in PLANS else "fp32",
        half_output=contract.dtype == "float16",
    )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="graph-") as scratch:
        path = Path(scratch) / "model.onnx"
        write_graph(graph, path)
        convert(path, folder)
