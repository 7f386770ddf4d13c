"""Real text for benchmarks and tests: paragraphs of the docstrings of what is installed.

Nothing is downloaded and nothing is kept in the repository: the standard library and the
installed packages hold some hundred thousand paragraphs of technical English.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import re
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from headrace.errors import UsageError

LEAST_CHARACTERS = 40
FILES_HERE = 256
"""Files that this process reads itself: to start others for a few texts would not pay."""
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")


def paragraphs() -> Iterator[str]:
    """Yields distinct paragraphs, always in the same order on the same installation."""
    seen: set[int] = set()
    for docstrings in _docstrings_of_all():
        for docstring in docstrings:
            for paragraph in re.split(r"\n\s*\n", docstring):
                text = " ".join(paragraph.split())
                if len(text) >= LEAST_CHARACTERS and hash(text) not in seen:
                    seen.add(hash(text))
                    yield text


def take(rows: int) -> list[str]:
    """Returns the first ``rows`` paragraphs.

    Raises:
        UsageError: fewer are installed.
    """
    texts = list(islice(paragraphs(), rows))
    if len(texts) < rows:
        raise UsageError(
            f"only {len(texts):,} paragraphs are installed, {rows:,} were asked for; ask for fewer"
        )
    return texts


def write_jsonl(texts: list[str], path: Path) -> None:
    """Writes ``texts`` as JSONL with an ``id`` and a ``text`` each."""
    with path.open("w", encoding="utf-8") as file:
        for index, text in enumerate(texts):
            file.write(json.dumps({"id": index, "text": text}, ensure_ascii=False) + "\n")


def _files() -> Iterator[Path]:
    folders = dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    for folder in folders:
        yield from sorted(Path(folder).rglob("*.py"))


def _docstrings_of_all() -> Iterator[list[str]]:
    """Yields the docstrings of each file; parsing is slow, so all cores take part in it."""
    files = _files()
    yield from map(_docstrings, islice(files, FILES_HERE))
    # A syntax tree has no cycles for the collector to find, only a great many objects.
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), get_context("spawn"), initializer=gc.disable
    ) as pool:
        try:
            yield from pool.map(_docstrings, files, chunksize=32)
        finally:
            pool.shutdown(cancel_futures=True)


def _docstrings(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # tests of parsers hold files that are wrong on purpose
    found = []
    for node in _documented(tree):
        if text := ast.get_docstring(node, clean=False):
            try:
                text.encode()
            except UnicodeEncodeError:
                continue
            found.append(text)
    return found


def _documented(tree: ast.Module) -> Iterator[Any]:
    """Yields what can have a docstring in the order of ``ast.walk``, but enters no expression."""
    todo: deque[ast.AST] = deque([tree])
    while todo:
        node = todo.popleft()
        if isinstance(node, _DOCUMENTED):
            yield node
        for name in node._fields:
            if name in _BLOCKS:
                todo.extend(getattr(node, name))
