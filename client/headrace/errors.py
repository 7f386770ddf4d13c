"""Every error that headrace raises on purpose, as one tree, each with its exit code.

    HeadraceError
    ├── UsageError          2   what was asked for cannot be done as asked
    ├── BadRowError         3   a bad row met with ``--on-error fail``
    └── MachineError        4   the machine, a file or a server is not as it must be
        ├── DamagedInputError   a compressed or columnar input breaks off; rows before it are kept
        ├── OutputError         the output cannot be written
        ├── ServerError         the server cannot be found, started, reached, or failed
        ├── TokenizationError   the word cache and `tokenizers` disagree
        └── MissingDependencyError  a package or library that this path needs is not installed

The message of an error is one line: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_BAD_ROWS = 3
EXIT_ENVIRONMENT = 4


class HeadraceError(Exception):
    """The root of the tree; ``exit_code`` is what the command line returns."""

    exit_code: ClassVar[int] = EXIT_INTERNAL


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


class OutputError(MachineError):
    """The output, the errors file or the report cannot be written."""


class ServerError(MachineError):
    """The Triton server cannot be found, started or reached, or it failed a request."""


class TokenizationError(MachineError):
    """The word cache and ``tokenizers`` disagree on the tokens of a row."""


class MissingDependencyError(MachineError):
    """A package or a shared library that this path needs is not installed."""
