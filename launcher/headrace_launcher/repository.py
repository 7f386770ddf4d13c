"""Model folders of a Triton repository: what is in them, whether they are current, publishing.

An entry is built in a scratch folder of the repository and renamed into place whole, so a reader
sees the old entry or the new one and never half of either.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from headrace.contract import (
    ATTENTION_MASK,
    EMBEDDING,
    INPUT_IDS,
    PARAMETER,
    TOKENIZER_FILE,
    Contract,
)
from headrace.errors import MachineError

CONFIG_FILE = "config.pbtxt"
KEY_PARAMETER = "headrace_key"
VERSION_FOLDER = "1"
HOSTED_MODEL = Path(__file__).parent / "hosted" / "model.py"


def cache_key(parts: Mapping[str, object]) -> str:
    """Returns the SHA-256 (hex) of everything that an entry's content depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_entry(folder: Path) -> tuple[Contract, str] | None:
    """Returns the contract and the cache key of the entry in ``folder``, or None if it has none.

    A folder that holds something else, a half-made or an outdated entry counts as having none.
    """
    config = pb.ModelConfig()
    try:
        text_format.Parse((folder / CONFIG_FILE).read_text(), config)
        contract = Contract.from_json(config.parameters[PARAMETER].string_value)
    except (OSError, ValueError, text_format.ParseError):
        return None
    return contract, config.parameters[KEY_PARAMETER].string_value


def hosted_config(contract: Contract, *, key: str) -> pb.ModelConfig:
    """Returns the ``config.pbtxt`` message of a model hosted by ``hosted/model.py`` on the CPU."""
    config = pb.ModelConfig(
        name=contract.name,
        backend="python",
        max_batch_size=max(bucket.max_batch for bucket in contract.buckets),
    )
    for name in (INPUT_IDS, ATTENTION_MASK):
        config.input.add(name=name, data_type=pb.TYPE_INT32, dims=[-1])
    kind = {"float32": pb.TYPE_FP32, "float16": pb.TYPE_FP16}[contract.dtype]
    config.output.add(name=EMBEDDING, data_type=kind, dims=[contract.dimension])
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    config.version_policy.specific.versions.append(int(VERSION_FOLDER))
    config.parameters[PARAMETER].string_value = contract.to_json()
    config.parameters[KEY_PARAMETER].string_value = key
    return config


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
        config: the entry's ``config.pbtxt``.
        tokenizer: the model's ``tokenizer.json``, copied beside the config.
        write_engine: writes the engine's files into the version folder that it is given.

    Returns:
        The entry's folder.

    Raises:
        MachineError: the repository cannot be written.
    """
    final: Path = repository / config.name
    try:
        with tempfile.TemporaryDirectory(dir=repository, prefix=".build-") as scratch:
            fresh = Path(scratch) / "new"
            version = fresh / VERSION_FOLDER
            version.mkdir(parents=True)
            write_engine(version)
            shutil.copyfile(HOSTED_MODEL, version / "model.py")
            shutil.copyfile(tokenizer, fresh / TOKENIZER_FILE)
            (fresh / CONFIG_FILE).write_text(text_format.MessageToString(config, as_utf8=True))
            _sync_tree(fresh)
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
        yield


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
