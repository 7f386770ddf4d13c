"""Which models of a repository a server is to load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.errors import MachineError, UsageError
from headrace_launcher.build import build
from headrace_launcher.engines.target import misfit
from headrace_launcher.repository import read_entry

_REMEDY = "build it on this machine: headrace build MODEL"


def entry_names(
    models: Sequence[str], repository: Path, notice: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Returns the names of the entries to serve, building what is missing.

    Args:
        models: names of entries, or models as :func:`headrace_launcher.build.build` takes them;
            none stands for every entry of the repository that this machine can run.
        repository: the model repository.
        notice: told in a line which entries are left out, and why.

    Raises:
        UsageError: the repository has no entry, or a model is not found.
        MachineError: an entry cannot be built, or one that was named cannot be run here.
    """
    if models:
        return list(dict.fromkeys(_entry_name(model, repository, notice) for model in models))
    folders = sorted(repository.iterdir()) if repository.is_dir() else []
    names, left_out = [], []
    for folder in folders:
        entry = read_entry(folder)
        if entry is None:
            continue
        if (why := misfit(entry[0])) is None:
            names.append(folder.name)
        else:
            left_out.append(f"{folder.name} is left out: {why}")
    if not names and left_out:
        raise MachineError(f"nothing can be served: {'; '.join(left_out)}; {_REMEDY}")
    if not names:
        raise UsageError(
            f"the model repository {repository} has no model; build one first: headrace build MODEL"
        )
    for line in left_out:
        notice(line)
    return names


def _entry_name(model: str, repository: Path, notice: Callable[[str], None]) -> str:
    entry = read_entry(repository / model) if "/" not in model else None
    if entry is None:
        return build(model, repository=repository, notice=notice).contract.name
    if (why := misfit(entry[0])) is not None:
        raise MachineError(f"the entry {model} cannot be served: {why}; {_REMEDY}")
    return model
