"""Options that several commands have, and what is written in them: sizes, numbers, addresses."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from headrace.config import EmbedConfig, Engine, Precision
from headrace.errors import UsageError

Backend = Literal["auto", "tensorrt", "python"]

DEFAULTS: dict[str, Any] = {each.name: each.default for each in dataclasses.fields(EmbedConfig)}


ModelArgument = Annotated[
    str, typer.Argument(help="A folder, a Hugging Face id, or an installed package with a model.")
]
RepositoryOption = Annotated[
    Path, typer.Option(envvar="HEADRACE_REPOSITORY", help="The Triton model repository.")
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(help="What the engine computes in; auto: fp16 on a GPU, bf16 on a CPU with it."),
]
EngineOption = Annotated[
    Engine,
    typer.Option(
        help="What computes; auto: TensorRT where a GPU is found, else OpenVINO; null computes "
        "nothing, to measure all the rest."
    ),
]
NormalizeOption = Annotated[bool, typer.Option(help="Whether vectors have unit length.")]
TruncateOption = Annotated[
    int | None, typer.Option(help="Cut vectors to so many dimensions, then normalise again.")
]


ListenOption = Annotated[
    str, typer.Option(help="Address to bind to; anything but loopback is open to others.")
]


def is_loopback(address: str) -> bool:
    """Returns whether nobody but this machine can reach an address."""
    with suppress(ValueError):  # a name: who knows where it leads
        return ipaddress.ip_address(address).is_loopback
    return address == "localhost"


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Returns the numbers of a list like ``32,64``.

    Raises:
        UsageError: it is none.
    """
    words = [word.strip() for word in text.split(",")] if text else []
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"{option} {text}: expected numbers with commas between, as 32,64,128")
    return tuple(map(int, words))


def size_in_bytes(option: str, text: str | None) -> int | None:
    """Returns the bytes that a size like ``4GiB`` means; None for None.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if found is None:
        raise UsageError(f"{option} {text}: expected a size such as 4GiB or 800M")
    base = 1024 if found[3] or not text.strip().lower().endswith("b") else 1000
    return int(float(found[1]) * base ** " kmgt".index(found[2] or " "))
