"""Which models of a repository a server is to load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headrace.errors import UsageError
from headrace_launcher.build import build
from headrace_launcher.repository import read_entry


def entry_names(models: Sequence[str], repository: Path) -> list[str]:
    """Returns the names of the entries to serve, building what is missing.

    Args:
        models: names of entries, or models as :func:`headrace_launcher.build.build` takes them;
            none stands for every entry of the repository.
        repository: the model repository.

    Raises:
        UsageError: the repository has no entry, or a model is not found.
        MachineError: an entry cannot be built.
    """
    if models:
        return list(dict.fromkeys(_entry_name(model, repository) for model in models))
    folders = sorted(repository.iterdir()) if repository.is_dir() else []
    names = [folder.name for folder in folders if read_entry(folder) is not None]
    if not names:
        raise UsageError(
            f"the model repository {repository} has no model; build one first: headrace build MODEL"
        )
    return names


def _entry_name(model: str, repository: Path) -> str:
    folder = repository / model
    if "/" not in model and read_entry(folder) is not None:
        return model
    return build(model, repository=repository).contract.name
