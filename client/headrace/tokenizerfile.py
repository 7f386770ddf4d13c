"""Opens a ``tokenizer.json``; what `tokenizers` raises over it becomes an error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from headrace.contract import try_tokenizer
from headrace.errors import HeadraceError, TokenizationError, UsageError


def try_file(path: Path) -> None:
    """Tries a tokenizer that may be anybody's, in a process of its own.

    Raises:
        UsageError: it is none, or one that `tokenizers` breaks down over.
        OSError: the file cannot be read.
    """
    try:
        try_tokenizer(path)
    except ValueError as error:
        raise _unreadable(path, error) from error


def read_tokenizer(path: Path, *, tried: bool = False) -> Tokenizer:
    """Loads a tokenizer that may be anybody's.

    Args:
        path: a ``tokenizer.json``.
        tried: whether another process of this run has tried it already (:func:`try_file`).

    Raises:
        UsageError: it is none, or one that `tokenizers` breaks down over.
        OSError: the file cannot be read.
    """
    if not tried:
        try_file(path)
    try:
        with tokenizer_errors():
            return Tokenizer.from_buffer(path.read_bytes())  # a path need not be UTF-8
    except TokenizationError as error:
        raise _unreadable(path, error.__cause__ or error) from error


def _unreadable(path: Path, reason: BaseException) -> UsageError:
    return UsageError(
        f"{path} is not a readable tokenizer.json ({reason}); download or export the model again"
    )


@contextmanager
def tokenizer_errors(what: str = "a row") -> Iterator[None]:
    """Turns what `tokenizers` raises into a :class:`TokenizationError`.

    It raises bare Exceptions; and a panic of its Rust code is a BaseException of a class that
    cannot be imported.

    Args:
        what: what was tokenized, for the message.

    Raises:
        TokenizationError: `tokenizers` failed.
    """
    try:
        yield
    except HeadraceError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TokenizationError(
            f"tokenizers fails on {what}; the model's tokenizer.json is at fault: {reason}"
        ) from error
