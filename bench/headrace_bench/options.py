"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def positive(text: str) -> int:
    """Reads a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def not_negative(text: str) -> int:
    """Reads a whole number of at least 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {value}")
    return value


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the options as JSON takes them."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(options).items()
    }


def say(text: str) -> None:
    """Tells on standard error what is being done."""
    print(text, file=sys.stderr, flush=True)
