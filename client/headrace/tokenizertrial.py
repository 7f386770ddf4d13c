"""Loads a ``tokenizer.json`` and tokenizes some words; run as a script, in a process of its own.

What is wrong with the file is said in one line on standard output, and the exit status is 1. What
ends this process says as much: see :func:`headrace.contract.try_tokenizer`.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

TEXTS = ("", "a b", "Hello, world! 3.14 (it's)", "naïve 日本語 😀\u200d😀 e\u0301 \t\n ﬁ")
MEMORY = 4 << 30  # bytes: the largest tokenizers in use take a third of it
CPU_SECONDS = 90
ROOM = 8  # tokens of text that a row is cut to
LARGEST_ID = (1 << 31) - 1
MOST_GROWTH = 1 << 10


def main(path: str) -> int:
    """Tries the file; returns 0, or 1 where it cannot be used."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return 0  # whoever wants to use the file will say so
    try:
        tokenizer = Tokenizer.from_buffer(Path(path).read_bytes())
        fault = _fault(tokenizer)
    except BaseException as error:  # noqa: BLE001 -- a Rust panic is not an Exception
        said = str(error).splitlines() or [type(error).__name__]
        fault = said[0][:500]
        if type(error).__name__ == "PanicException":
            fault = f"tokenizers breaks down over it: {fault}"
    if fault is None:
        return 0
    sys.stdout.write(fault.encode(errors="backslashreplace").decode())
    return 1


def _fault(tokenizer: Any) -> str | None:
    """Returns what is wrong with a tokenizer that could be loaded, or None."""
    import json

    grown = _growth(json.loads(tokenizer.to_str()).get("normalizer"))
    if grown > MOST_GROWTH:
        return f"its normalizer makes up to {grown:.0f} characters of one"
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        if max(ids, default=0) > LARGEST_ID:
            return f"it gives the token id {max(ids)}, which is too large"
    most = special + ROOM
    tokenizer.enable_truncation(most)
    found = len(tokenizer.encode(4 * ROOM * "a b ").ids)
    if found > most:
        return f"it gives {found} tokens where it is to cut them to {most}"
    return None


def _growth(normalizer: Any) -> float:
    """Returns the most characters that one character can become, at worst."""
    if not isinstance(normalizer, dict):
        return 1
    grown = 1.0
    for one in normalizer.get("normalizers") or ():
        grown *= _growth(one)
    if normalizer.get("type") == "Replace":
        literal = normalizer["pattern"].get("String")
        content = len(normalizer["content"])
        # A regular expression may match between any two characters.
        grown *= max(1.0, content / len(literal)) if literal else content + 1
    if normalizer.get("type") == "Prepend":
        grown *= 1 + len(normalizer["prepend"])
    return grown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
