"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

REMEDY = "pip install 'headrace[bench]' (it needs torch, too)"
"""For whoever lacks sentence-transformers."""


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


def price(text: str) -> float:
    """Reads an amount of money above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def fraction(text: str) -> float:
    """Reads a number from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
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
