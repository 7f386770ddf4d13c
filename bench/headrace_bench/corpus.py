"""Real text for benchmarks and tests: paragraphs of the docstrings of what is installed.

Nothing is downloaded and nothing is kept in the repository: the standard library and the
installed packages hold some hundred thousand paragraphs of technical English.
"""

from __future__ import annotations

import ast
import json
import re
import sysconfig
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

LEAST_CHARACTERS = 40
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def paragraphs() -> Iterator[str]:
    """Yields distinct paragraphs, always in the same order on the same installation."""
    seen: set[int] = set()
    for path in _files():
        for docstring in _docstrings(path):
            for paragraph in re.split(r"\n\s*\n", docstring):
                text = " ".join(paragraph.split())
                if len(text) >= LEAST_CHARACTERS and hash(text) not in seen:
                    seen.add(hash(text))
                    yield text


def take(rows: int) -> list[str]:
    """Returns the first ``rows`` paragraphs.

    Raises:
        ValueError: fewer are installed.
    """
    texts = list(islice(paragraphs(), rows))
    if len(texts) < rows:
        raise ValueError(f"only {len(texts):,} paragraphs are installed, {rows:,} were asked for")
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


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return  # tests of parsers hold files that are wrong on purpose
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            try:
                text.encode()
            except UnicodeEncodeError:
                continue
            yield text
