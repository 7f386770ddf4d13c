"""Every error that headrace raises on purpose, as one tree, each with its exit code.

    HeadraceError
    ├── UsageError          2   what was asked for cannot be done as asked
    ├── BadRowError         3   a bad row met with ``--on-error fail``
    └── MachineError        4   the machine, a file or a server is not as it must be
        ├── DamagedInputError   a compressed or columnar input breaks off; rows before it are kept
        ├── InputError          an input cannot be read any more
        │   └── ChangedInputError   it has changed meanwhile, so that the job is another one
        ├── OutputError         the output cannot be written
        ├── ServerError         the server cannot be found, started, reached, or failed
        │   └── ServerLostError     it is gone, hangs, or failed a batch: another may do it
        ├── TokenizationError   the word cache and `tokenizers` disagree
        └── MissingDependencyError  a package or library that this path needs is not installed

The message of an error is one line: what is wrong, where, and what to do about it. What it quotes
may come from anywhere, so that :func:`tidy` goes over every message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_BAD_ROWS = 3
EXIT_ENVIRONMENT = 4

LONGEST = 4000  # characters of a message
# Control characters, line separators, and what turns the direction of a terminal's text.
_UNSHOWN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]")
_MASK = "***"
_SECRETS = (
    (re.compile(r"://[^\s/@]+@"), f"://{_MASK}@"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), _MASK),
    (
        re.compile(r"(?i)([?&](?:[a-z0-9_.-]*(?:key|token|secret|password|signature))=)[^&\s'\"]+"),
        rf"\1{_MASK}",
    ),
    (re.compile(r"(?i)(\bbearer )[a-z0-9._~+/=-]{8,}"), rf"\1{_MASK}"),
)


def tidy(message: str) -> str:
    """Returns a message as one line, without secrets and of at most :data:`LONGEST` characters.

    Control characters are shown as Python escapes them. Masked are the user's part and the keys
    of a URI, bearer tokens, and tokens of the Hugging Face hub: whoever quotes such leaves them
    out first; this is the net below.
    """
    for pattern, instead in _SECRETS:
        message = pattern.sub(instead, message)
    message = _UNSHOWN.sub(lambda found: repr(found[0])[1:-1], message)
    if len(message) > LONGEST:
        half = LONGEST // 2 - 1
        message = f"{message[:half]}…{message[-half:]}"
    return message


class HeadraceError(Exception):
    """The root of the tree; ``exit_code`` is what the command line returns."""

    exit_code: ClassVar[int] = EXIT_INTERNAL

    def __init__(self, message: str = "") -> None:
        super().__init__(tidy(message))


class UsageError(HeadraceError):
    """What was asked for cannot be done as asked: a wrong option, path, name or value."""

    exit_code = EXIT_USAGE


class BadRowError(HeadraceError):
    """A bad row was met while ``on_error`` is ``fail``."""

    exit_code = EXIT_BAD_ROWS


class MachineError(HeadraceError):
    """The machine, a file or a server is not as it must be."""

    exit_code = EXIT_ENVIRONMENT


class DamagedInputError(MachineError):
    """An input breaks off or is corrupt; the rows before the damage are kept.

    Attributes:
        file: the input as the user named it.
        offset: position of the damage, in bytes from the start of the file as stored.
    """

    def __init__(self, message: str, *, file: str, offset: int) -> None:
        super().__init__(message)
        self.file = file
        self.offset = offset


class InputError(MachineError):
    """An input cannot be read any more."""


class ChangedInputError(InputError):
    """An input has changed since the run began, so that the job is another one by now."""


class OutputError(MachineError):
    """The output, the errors file or the report cannot be written."""


class ServerError(MachineError):
    """The Triton server cannot be found, started or reached, or it failed a request."""


class ServerLostError(ServerError):
    """The server is gone, does not answer, or failed a batch; the batches can be sent again.

    Attributes:
        block: number of the block whose batch was at the server alone, or None.
        rows: the batch's rows, by their numbers in the block; () where others were there too.
    """

    def __init__(self, message: str, *, block: int | None = None, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.block = block
        self.rows = tuple(rows)


class TokenizationError(MachineError):
    """The word cache and ``tokenizers`` disagree on the tokens of a row."""


class MissingDependencyError(MachineError):
    """A package or a shared library that this path needs is not installed."""
