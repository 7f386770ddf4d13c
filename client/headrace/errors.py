"""Every error that headrace raises on purpose, as one tree, each with its exit code.

    HeadraceError
    ├── UsageError          2   what was asked for cannot be done as asked
    ├── BadRowError         3   a bad row met with ``--on-error fail``
    └── MachineError        4   the machine, a file or a server is not as it must be
        ├── DamagedInputError   a compressed or columnar input breaks off; rows before it are kept
        ├── InputError          an input cannot be read any more, or has changed meanwhile
        ├── OutputError         the output cannot be written
        ├── ServerError         the server cannot be found, started, reached, or failed
        │   └── ServerLostError     it is gone, hangs, or failed a batch: another may do it
        ├── TokenizationError   the word cache and `tokenizers` disagree
        └── MissingDependencyError  a package or library that this path needs is not installed

The message of an error is one line: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class InputError(MachineError):
    """An input cannot be read any more, or has changed since the run began."""


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
