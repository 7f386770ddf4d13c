"""Which models of a repository a server is to load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from headrace.contract import Contract, is_name
from headrace.errors import MachineError, UsageError
from headrace_launcher.build import Entry, build
from headrace_launcher.engines.target import misfit
from headrace_launcher.repository import damage, devices_of, locked, read_entry
from headrace_launcher.textmodels import are_current, ensure_text_models, text_models

_REMEDY = "build it again on this machine: headrace build MODEL"


def entry_names(
    models: Sequence[str],
    repository: Path,
    *,
    progress: Callable[[str], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Returns the names of the entries to serve, building what is missing.

    Args:
        models: names of entries, or models as :func:`headrace_launcher.build.build` takes them;
            none stands for every entry of the repository that this machine can run.
        repository: the model repository.
        progress: told in a line what is being done; often.
        notice: told in a line which entries are left out and why, and the like.

    Raises:
        UsageError: the repository has no entry, or a model is not found.
        MachineError: an entry cannot be built, or one that was named cannot be run here.
    """
    if models:
        built = partial(build, repository=repository, progress=progress, notice=notice)
        return list(dict.fromkeys(_entry_name(model, repository, built) for model in models))
    folders = sorted(repository.iterdir()) if repository.is_dir() else []
    names, left_out = [], []
    for folder in folders:
        entry = read_entry(folder) if is_name(folder.name) else None
        if entry is None:
            continue
        if (why := _fault(folder, entry[0])) is None:
            names.append(folder.name)
        else:
            left_out.append(f"{folder.name} is left out: {why}")
    if not names and left_out:
        more = f"; and {len(left_out) - 2} more" if len(left_out) > 2 else ""
        raise MachineError(f"nothing can be served: {'; '.join(left_out[:2])}{more}; {_REMEDY}")
    if not names:
        raise UsageError(
            f"the model repository {repository} has no model; build one first: headrace build MODEL"
        )
    for line in left_out:
        notice(line)
    return names


def with_text_models(
    names: Sequence[str], repository: Path, *, notice: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Returns the names of entries and of the models beside them that take texts.

    Args:
        names: of entries.
        repository: the model repository; what is missing in it is made.
        notice: told in a line which entry has no such model, and why.
    """
    found = list(names)
    for name in names:
        entry = read_entry(repository / name)
        assert entry is not None  # it was looked at just now
        try:
            there = are_current(repository, entry[0])
            if not there:
                with locked(repository):
                    there = ensure_text_models(repository, entry[0])
            why = "another model has the name of one"
        except MachineError as error:
            there, why = False, str(error)
        if there:
            found.extend(text_models(name))
        else:
            notice(f"{name} takes no texts: {why}")
    return found


def _entry_name(model: str, repository: Path, built: Callable[[str], Entry]) -> str:
    entry = read_entry(repository / model) if is_name(model) else None
    if entry is None:
        return built(model).contract.name
    why = _fault(repository / model, entry[0])
    if why is None:
        return model
    try:
        return built(model).contract.name  # the name of a model, too, and not of an entry alone
    except UsageError:
        raise MachineError(f"the entry {model} cannot be served: {why}; {_REMEDY}") from None


def _fault(folder: Path, contract: Contract) -> str | None:
    """Returns why an entry cannot be served here, or None."""
    if (why := misfit(contract, devices_of(folder))) is not None:
        return why
    harm = damage(folder)
    return None if harm is None else f"it is damaged ({harm})"
