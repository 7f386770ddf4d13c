"""What the command line of a benchmark does around its measurement."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from headrace.errors import HeadraceError, OutputError, UsageError
from headrace_bench.machine import describe, hardware, versions
from headrace_bench.options import say, settings

_Found = TypeVar("_Found")


def add_places(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where files go."""
    parser.add_argument("--folder", type=Path, help="where the files go (default: the system's)")
    parser.add_argument("--json", type=Path, help="write all figures there")


def run(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Path], _Found],
    show: Callable[[_Found], str],
    to_json: Callable[[_Found], Mapping[str, Any]],
) -> int:
    """Measures in a folder of its own, prints the machine and a table; returns the exit code.

    Args:
        options: with those of :func:`add_places`.
        measure: does it; what it raises of ``HeadraceError``, ``OSError`` and ``RuntimeError`` is
            said in one line.
        show: makes the table.
        to_json: makes what ``--json`` writes, beside the settings and the machine.
    """
    try:
        _check_places(options)
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="headrace-") as folder:
            found = measure(options, Path(folder))
    except HeadraceError as error:
        say(f"error: {error}")
        return error.exit_code
    except (OSError, RuntimeError) as error:
        say(f"error: {error}")
        return 1
    print("\n".join(describe(hardware(), versions())))
    print(show(found))
    if options.json is not None:
        result = {"settings": settings(options), "machine": hardware(), **to_json(found)}
        try:
            write_json(options.json, result)
        except OutputError as error:
            say(f"error: {error}")
            return error.exit_code
    return 0


def check_json(path: Path | None) -> None:
    """Checks, before anything is measured, that ``--json`` can be a file.

    Raises:
        UsageError: it cannot.
    """
    if path is not None and (not path.absolute().parent.is_dir() or path.is_dir()):
        raise UsageError(f"--json {path} is not a file in a folder that exists; name another")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes what was found as JSON.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        why = error.strerror or error
        raise OutputError(f"{path} cannot be written: {why}; name another file") from error


def _check_places(options: argparse.Namespace) -> None:
    """Checks, before anything is measured, what :func:`add_places` added.

    Raises:
        UsageError: there is no such folder, or the JSON file cannot be one.
    """
    folder = options.folder
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--folder {folder} is not a folder; name one that exists")
    check_json(options.json)
