"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from headrace.paths import shown


def whole(least: int) -> Callable[[str], int]:
    """Returns what reads a whole number of at least ``least`` for argparse."""

    def read(text: str) -> int:
        with suppress(ValueError):
            value = int(text)
            if value >= least:
                return value
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, not {text!r}")

    return read


positive = whole(1)


def number(low: float, high: float, *, above: bool = False) -> Callable[[str], float]:
    """Returns what reads a number from ``low`` to ``high`` for argparse.

    Args:
        low: the least, or with ``above`` what it must be above.
        high: the most.
        above: see ``low``.
    """

    def read(text: str) -> float:
        with suppress(ValueError):
            value = float(text)
            if (low < value if above else low <= value) and value <= high:
                return value
        words = f"{'above' if above else 'from'} {low:g} to {high:g}"
        raise argparse.ArgumentTypeError(f"must be a number {words}, not {text!r}")

    return read


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the options as JSON takes them; ``command_line`` tells the arguments themselves.

    URIs are without user, keys and options.
    """
    return {
        key: _harmless(value)
        for key, value in vars(options).items()
        if key not in {"arguments", "name"}
    }


def _harmless(value: Any) -> Any:
    if isinstance(value, list):
        return [_harmless(each) for each in value]
    return shown(str(value)) if isinstance(value, str | Path) else value


def say(text: str) -> None:
    """Tells on standard error what is being done."""
    print(text, file=sys.stderr, flush=True)
