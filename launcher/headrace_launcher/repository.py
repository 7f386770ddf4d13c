"""Model folders of a Triton repository: what is in them, whether they are current, publishing.

An entry is built in a scratch folder of the repository and renamed into place whole, so a reader
sees the old entry or the new one and never half of either.
"""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from headrace.contract import (
    ATTENTION_MASK,
    EMBEDDING,
    INPUT_IDS,
    PARAMETER,
    TOKENIZER_FILE,
    Bucket,
    Contract,
    file_hash,
)
from headrace.errors import MachineError, UsageError
from headrace_launcher.engines.tensorrt import PLAN_FILE

CONFIG_FILE = "config.pbtxt"
KEY_PARAMETER = "headrace_key"
VERSION_FOLDER = "1"
SCRATCH_PREFIX = ".build-"
_ENGINE_FILES = ("model.plan", "model.xml", "model.bin")
HOSTED_FILES = tuple(sorted((Path(__file__).parent / "hosted").glob("[a-z]*.py")))
"""What Triton's Python backend runs: ``model.py`` and what it imports."""
PLAN_PARAMETER = "headrace_plan"
FILES_PARAMETER = "headrace_files"
CONFIG_VERSION = 4
"""Part of an entry's key: raise it whenever another config is written for the same entry."""
# Rows of online callers' requests that run together. Triton captures a CUDA graph of each of these
# sizes (and of the largest) at each bucket's longest row.
_TOGETHER = (1, 2, 4, 8, 16, 32)
_WARM_LENGTH = 512  # on a CPU a row of thousands of tokens takes seconds
_ONES = "ones-"
_WARM_UP_FOLDER = "warmup"  # as Triton calls it
_WHY = """\
dynamic_batching: requests that wait while the engine is busy are computed together.
max_queue_delay_microseconds is not set: no request waits for others to come. Under load they come
  by themselves; without load waiting would only make the one that is there slower.
preferred_batch_size is not set where headrace hosts the engine: every size runs alike. Triton's own
  TensorRT backend has those that a CUDA graph is kept for.
default_queue_policy and priority_levels are not set: with any of them (max_queue_size, time-outs,
  priorities) Triton 2.51 now and then forgets a request for 500 ms when there is only one caller;
  headrace's docs/serving.md has the measurement. How many may wait, and how long, the gateway says;
  runs over files make room with --share.
allow_ragged_batch: rows of all lengths are taken over at once, and sorted into buckets here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """How Triton runs an entry's engine.

    Attributes:
        backend: ``python`` (with ``hosted/model.py``) or ``tensorrt``.
        devices: numbers of the GPUs to run it on; empty for all.
        plan: what the plan was made of, as a hash; "" where there is none.
    """

    backend: str = "python"
    devices: tuple[int, ...] = ()
    plan: str = ""


def cache_key(parts: Mapping[str, object]) -> str:
    """Returns the SHA-256 (hex) of everything that an entry's content depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_entry(folder: Path) -> tuple[Contract, str] | None:
    """Returns the contract and the cache key of the entry in ``folder``, or None if it has none.

    A folder that holds something else, a half-made or an outdated entry counts as having none.
    """
    config = read_config(folder)
    if config is None:
        return None
    try:
        contract = Contract.from_json(config.parameters[PARAMETER].string_value)
    except ValueError:
        return None
    return contract, config.parameters[KEY_PARAMETER].string_value


def damage(folder: Path) -> str | None:
    """Returns what is wrong with the files of an entry, or None.

    Small ones are compared; of an engine's own only the sizes are.
    """
    try:
        return next(_damages(folder), None)
    except OSError as error:
        return f"{Path(str(error.filename)).name} cannot be read: {error.strerror}"
    except ValueError as error:
        return str(error)


def _damages(folder: Path) -> Iterator[str]:
    config = read_config(folder)
    if config is None:
        yield f"{CONFIG_FILE} cannot be read"
        return
    yield from _engine_damages(folder, config)
    contract = Contract.from_json(config.parameters[PARAMETER].string_value)
    if file_hash(folder / TOKENIZER_FILE) != contract.tokenizer_hash:
        yield f"{TOKENIZER_FILE} is another one"
    for path in HOSTED_FILES if config.backend == "python" else ():
        if not filecmp.cmp(path, folder / VERSION_FOLDER / path.name, shallow=False):
            yield f"{VERSION_FOLDER}/{path.name} is another one"


def _engine_damages(folder: Path, config: pb.ModelConfig) -> Iterator[str]:
    sizes = json.loads(config.parameters[FILES_PARAMETER].string_value or "{}")
    if not isinstance(sizes, dict):
        raise ValueError(f"{CONFIG_FILE} lists no files")  # noqa: TRY004 -- as from_json's
    for name, size in sizes.items():
        if (found := (folder / name).stat().st_size) != size:
            yield f"{name} has {found} bytes, not {size}"


def _sizes(folder: Path) -> dict[str, int]:
    files = [folder / VERSION_FOLDER / name for name in _ENGINE_FILES]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files if path.is_file()}


def _is_ours(folder: Path) -> bool:
    """Whether a folder, which may be damaged, is an entry and not somebody else's model."""
    with suppress(OSError):
        if PARAMETER in (folder / CONFIG_FILE).read_text(errors="replace"):
            return True
    return (folder / TOKENIZER_FILE).exists() or not any(folder.iterdir())


def devices_of(folder: Path) -> tuple[int, ...]:
    """Returns the numbers of the GPUs that an entry's config names; empty for all."""
    config = read_config(folder)
    return tuple(config.instance_group[0].gpus) if config and config.instance_group else ()


def read_config(folder: Path) -> pb.ModelConfig | None:
    """Returns the config of the entry in ``folder``, or None where it cannot be read."""
    config = pb.ModelConfig()
    try:
        text_format.Parse((folder / CONFIG_FILE).read_text(), config)
    except (OSError, ValueError, RecursionError, text_format.ParseError):
        return None
    return config


def entry_config(contract: Contract, host: Host, *, key: str) -> pb.ModelConfig:
    """Returns the ``config.pbtxt`` message of an entry.

    Args:
        contract: the model's settings.
        host: how Triton runs it.
        key: hash of everything that the entry depends on.
    """
    config = pb.ModelConfig(
        name=contract.name, backend=host.backend, max_batch_size=contract.max_batch
    )
    for name in (INPUT_IDS, ATTENTION_MASK):
        config.input.add(name=name, data_type=pb.TYPE_INT32, dims=[-1])
    kind = {"float32": pb.TYPE_FP32, "float16": pb.TYPE_FP16}[contract.dtype]
    config.output.add(name=EMBEDDING, data_type=kind, dims=[contract.dimension])
    config.version_policy.specific.versions.append(int(VERSION_FOLDER))
    config.parameters[PARAMETER].string_value = contract.to_json()
    config.parameters[KEY_PARAMETER].string_value = key
    config.dynamic_batching.SetInParent()
    for bucket in contract.buckets:
        if contract.capability or bucket.max_length <= _WARM_LENGTH:
            _warm_up(config, bucket)
    if host.backend == "python":
        for tensor in config.input:
            tensor.allow_ragged_batch = True
    if not contract.capability:
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
        return config
    config.parameters[PLAN_PARAMETER].string_value = host.plan
    group = config.instance_group.add(
        kind=pb.ModelInstanceGroup.KIND_GPU, count=1, gpus=host.devices
    )
    if host.backend == "python":
        # Batches that lie in a GPU's memory are to stay there (python_backend README, "Input
        # Tensor Device Placement").
        config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"
    else:
        config.platform = "tensorrt_plan"
        config.default_model_filename = PLAN_FILE
        group.profile.extend(str(index) for index in range(len(contract.buckets)))
        _tune(config, contract)
    return config


def _tune(config: pb.ModelConfig, contract: Contract) -> None:
    """Sets how Triton's TensorRT backend runs a plan.

    Source: triton-inference-server/tensorrt_backend README and common's ``model_config.proto``.
    """
    # Memory for the profile that is used, and not for the largest one each.
    config.parameters["execution_context_allocation_strategy"].string_value = "ON_PROFILE_CHANGE"
    # Requests of one length that wait for the GPU run together; none waits for others. What is
    # larger than the last size, batches of a file, is left alone, but now and then two are joined,
    # which each profile admits (core, dynamic_batch_scheduler.cc, GetDynamicBatch).
    batching = config.dynamic_batching
    batching.preferred_batch_size.extend(n for n in _TOGETHER if n <= contract.max_batch)
    # The next batch's inputs are gathered while one is computed.
    config.optimization.eager_batching = True
    # Small batches are over before their kernels could be launched one by one.
    config.optimization.cuda.graphs = True
    config.optimization.cuda.output_copy_stream = True


def config_text(config: pb.ModelConfig, why: str) -> str:
    """Returns a ``config.pbtxt``, with the reasons for what is set in comments at its beginning."""
    comments = "".join(f"# {line}\n" for line in why.splitlines())
    return comments + str(text_format.MessageToString(config, as_utf8=True))


def _warm_up(config: pb.ModelConfig, bucket: Bucket) -> None:
    """Has Triton run a batch of one row of a bucket before the model is ready.

    Its ids are 0, which every vocabulary has, and not random numbers, which none may have. All of
    the row is tokens, since padding would be cut off.
    """
    sample = config.model_warmup.add(name=f"length {bucket.max_length}", batch_size=1)
    for name in (INPUT_IDS, ATTENTION_MASK):
        data = sample.inputs[name]
        data.data_type = pb.TYPE_INT32
        data.dims.append(bucket.max_length)
    sample.inputs[INPUT_IDS].zero_data = True
    sample.inputs[ATTENTION_MASK].input_data_file = f"{_ONES}{bucket.max_length}"


def _write_warm_up(config: pb.ModelConfig, folder: Path) -> None:
    """Writes the files that the samples of a config name into an entry's folder."""
    (folder / _WARM_UP_FOLDER).mkdir()
    for sample in config.model_warmup:
        data = sample.inputs[ATTENTION_MASK]
        ones = b"\1\0\0\0" * data.dims[0]
        (folder / _WARM_UP_FOLDER / data.input_data_file).write_bytes(ones)


def find_plan(repository: Path, plan: str) -> Path | None:
    """Returns the version folder of an entry whose plan was made of the same, or None.

    Args:
        repository: the model repository.
        plan: see :class:`Host`.
    """
    for folder in sorted(repository.iterdir()):
        config = read_config(folder)
        if config is None or config.parameters[PLAN_PARAMETER].string_value != plan:
            continue
        with suppress(OSError, ValueError):  # what hosts it may be another version's
            if next(_engine_damages(folder, config), None) is None:
                return folder / VERSION_FOLDER
    return None


def link_tree(source: Path, folder: Path) -> None:
    """Links, or where that cannot be copies, the files of an engine into another folder.

    Args:
        source: an entry's version folder.
        folder: an empty one.
    """
    ours = {path.name for path in HOSTED_FILES}
    for path in source.iterdir():
        if path.is_file() and path.name not in ours:
            try:
                (folder / path.name).hardlink_to(path)
            except OSError:
                shutil.copyfile(path, folder / path.name)


def publish(
    repository: Path,
    config: pb.ModelConfig,
    *,
    tokenizer: Path,
    write_engine: Callable[[Path], None],
) -> Path:
    """Builds the entry that ``config`` describes and puts it into the repository, atomically.

    Args:
        repository: the model repository; made if it is missing.
        config: the entry's ``config.pbtxt``; gets the sizes of the entry's files.
        tokenizer: the model's ``tokenizer.json``, copied beside the config.
        write_engine: writes the engine's files into the version folder that it is given.

    Returns:
        The entry's folder.

    Raises:
        UsageError: a model that is not headrace's has that name.
        MachineError: the repository cannot be written.
    """
    final: Path = repository / config.name
    if final.is_dir() and not _is_ours(final):
        raise UsageError(
            f"{final} is a model that headrace has not built; give this one another --name, or "
            f"pass another --repository"
        )
    try:
        with tempfile.TemporaryDirectory(dir=repository, prefix=SCRATCH_PREFIX) as scratch:
            fresh = Path(scratch) / "new"
            version = fresh / VERSION_FOLDER
            version.mkdir(parents=True)
            write_engine(version)
            for path in HOSTED_FILES if config.backend == "python" else ():
                shutil.copyfile(path, version / path.name)
            shutil.copyfile(tokenizer, fresh / TOKENIZER_FILE)
            _write_warm_up(config, fresh)
            config.parameters[FILES_PARAMETER].string_value = json.dumps(_sizes(fresh))
            (fresh / CONFIG_FILE).write_text(config_text(config, _WHY))
            sync_tree(fresh)
            if final.exists():
                final.rename(Path(scratch) / "old")
            fresh.rename(final)
    except OSError as error:
        raise MachineError(
            f"the model repository {repository} cannot be written ({error.strerror or error}); "
            f"make room there or pass another one with --repository"
        ) from error
    return final


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Makes the repository if it is missing and lets one builder at a time work in it.

    Raises:
        MachineError: the repository cannot be written.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        file = (repository / ".lock").open("w")
    except OSError as error:
        raise MachineError(
            f"the model repository {repository} cannot be written ({error.strerror or error}); "
            f"pass another one with --repository"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in repository.glob(f"{SCRATCH_PREFIX}*"):  # by a builder that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


def sync_tree(folder: Path) -> None:
    """Makes all files of a folder durable."""
    for path in sorted(folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
