"""The models beside an entry that take texts: ``NAME-tokenize`` and ``NAME-text``.

``NAME-text`` is a Triton ensemble: texts go through ``NAME-tokenize``, which tokenizes as the
client does and pads to the buckets' lengths, into ``NAME``, whose dynamic batcher joins what
several callers have sent. (An ensemble, and not a Python model that calls ``NAME`` itself:
docs/serving.md has the measurement.)
"""

from __future__ import annotations

import filecmp
import importlib.util
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from headrace.contract import (
    ATTENTION_MASK,
    EMBEDDING,
    INPUT_IDS,
    TEXT,
    TEXT_PARAMETER,
    TOKENIZER_FILE,
    TOKENS,
    Contract,
    text_name,
    tokenize_name,
)
from headrace.errors import MachineError
from headrace_launcher import repository as repo

_HOSTED = Path(__file__).parent / "hosted_text"
_WHY_TOKENIZE = """\
Texts -> token ids, for {text}; see docs/serving.md of headrace.
No dynamic_batching: of requests that Triton hands over together one whose strings are malformed
  would fail all. They are joined in {name}, which they reach as numbers."""
_WHY_TEXT = """\
Texts -> vectors: {tokenize}, then {name}, whose dynamic batcher joins the requests of several
callers."""


def shared_files() -> list[Path]:
    """Returns what runs in ``NAME-tokenize``; what the client has too is the client's own file."""
    client = importlib.util.find_spec("headrace")
    assert client is not None
    assert client.submodule_search_locations
    plain = Path(client.submodule_search_locations[0]) / "plaintokens.py"
    return [*sorted(_HOSTED.glob("[a-z]*.py")), Path(__file__).parent / "hosted/capsule.py", plain]


def tokenize_config(contract: Contract) -> pb.ModelConfig:
    """Returns the config of ``NAME-tokenize``."""
    config = pb.ModelConfig(
        name=tokenize_name(contract.name), backend="python", max_batch_size=contract.max_batch
    )
    config.input.add(name=TEXT, data_type=pb.TYPE_STRING, dims=[1])
    for name, dims in ((INPUT_IDS, [-1]), (ATTENTION_MASK, [-1]), (TOKENS, [1])):
        config.output.add(name=name, data_type=pb.TYPE_INT32, dims=dims)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    config.parameters[TEXT_PARAMETER].string_value = contract.to_json()
    return config


def text_config(contract: Contract) -> pb.ModelConfig:
    """Returns the config of ``NAME-text``."""
    config = pb.ModelConfig(
        name=text_name(contract.name), platform="ensemble", max_batch_size=contract.max_batch
    )
    config.input.add(name=TEXT, data_type=pb.TYPE_STRING, dims=[1])
    kind = {"float32": pb.TYPE_FP32, "float16": pb.TYPE_FP16}[contract.dtype]
    config.output.add(name=EMBEDDING, data_type=kind, dims=[contract.dimension])
    config.output.add(name=TOKENS, data_type=pb.TYPE_INT32, dims=[1])
    steps = config.ensemble_scheduling.step
    first = steps.add(model_name=tokenize_name(contract.name), model_version=-1)
    first.input_map[TEXT] = TEXT
    for name in (INPUT_IDS, ATTENTION_MASK, TOKENS):
        first.output_map[name] = name
    second = steps.add(model_name=contract.name, model_version=-1)
    for name in (INPUT_IDS, ATTENTION_MASK):
        second.input_map[name] = name
    second.output_map[EMBEDDING] = EMBEDDING
    config.parameters[TEXT_PARAMETER].string_value = contract.to_json()
    return config


def ensure_text_models(repository: Path, contract: Contract) -> bool:
    """Makes sure that an entry's text models are there and current; the repository is locked.

    Args:
        repository: the model repository.
        contract: of the entry, which is there.

    Returns:
        Whether they are: False where something else has one of their names.

    Raises:
        MachineError: the repository cannot be written.
    """
    models = _models(repository, contract)
    if any(folder.exists() and not _is_ours(folder) for folder in models):
        return False
    try:
        with tempfile.TemporaryDirectory(dir=repository, prefix=repo.SCRATCH_PREFIX) as scratch:
            for folder, files in models.items():
                if _has(folder, files):
                    continue
                fresh = Path(scratch) / folder.name
                _write(fresh, files)
                if folder.exists():
                    folder.rename(Path(scratch) / f"old-{folder.name}")
                fresh.rename(folder)
    except OSError as error:
        raise MachineError(
            f"the model repository {repository} cannot be written ({error.strerror or error}); "
            f"make room there or pass another one with --repository"
        ) from error
    return True


def are_current(repository: Path, contract: Contract) -> bool:
    """Returns whether an entry's text models are there and current."""
    return all(_has(folder, files) for folder, files in _models(repository, contract).items())


def text_models(name: str) -> tuple[str, str]:
    """Returns the names of an entry's text models, in the order in which they are made."""
    return tokenize_name(name), text_name(name)


def _models(repository: Path, contract: Contract) -> dict[Path, dict[str, Path | str]]:
    """Returns what is to lie in the folder of each: a text, or what another file has."""
    names = {
        "name": contract.name,
        "text": text_name(contract.name),
        "tokenize": tokenize_name(contract.name),
    }
    tokenize: dict[str, Path | str] = {
        f"{repo.VERSION_FOLDER}/{path.name}": path for path in shared_files()
    }
    tokenize[TOKENIZER_FILE] = repository / contract.name / TOKENIZER_FILE
    why = _WHY_TOKENIZE.format(**names)
    tokenize[repo.CONFIG_FILE] = repo.config_text(tokenize_config(contract), why)
    text = repo.config_text(text_config(contract), _WHY_TEXT.format(**names))
    return {
        repository / names["tokenize"]: tokenize,
        repository / names["text"]: {repo.CONFIG_FILE: text},
    }


def _write(folder: Path, files: Mapping[str, Path | str]) -> None:
    (folder / repo.VERSION_FOLDER).mkdir(parents=True)  # an ensemble has an empty one
    for name, content in files.items():
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_text(content)
    repo.sync_tree(folder)


def _has(folder: Path, files: Mapping[str, Path | str]) -> bool:
    """Whether a folder has these files, and no others but what Python leaves."""
    there = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    if there != files.keys() or not (folder / repo.VERSION_FOLDER).is_dir():
        return False
    return all(
        filecmp.cmp(content, folder / name, shallow=False)
        if isinstance(content, Path)
        else (folder / name).read_bytes() == content.encode()
        for name, content in files.items()
    )


def _is_ours(folder: Path) -> bool:
    config = repo.read_config(folder)
    if config is None:
        return not any(folder.iterdir())
    return TEXT_PARAMETER in config.parameters
