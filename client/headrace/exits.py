"""How the command line ends: errors and signals become one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import typer

from headrace.errors import EXIT_ENVIRONMENT, HeadraceError, MissingDependencyError, tidy
from headrace.stopping import Interrupted, Stop


@contextmanager
def exits(stop: Stop | None = None) -> Iterator[None]:
    """Turns errors and signals into one line on stderr and an exit code.

    Args:
        stop: is asked first when a signal comes.
    """
    stop = stop or Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        stop.ask(number)
        _tell(b"headrace: stopping when what is in flight is done; once more stops at once\n")

    defaults = {signal.SIG_DFL, signal.default_int_handler}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in defaults:  # nohup ignores SIGHUP: so be it
            signal.signal(number, on_signal)
    hook, sys.unraisablehook = sys.unraisablehook, _send_again
    try:
        yield
    except HeadraceError as error:
        say(_with_notes(f"headrace: error: {error}", error))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        code = error.number if isinstance(error, Interrupted) else int(signal.SIGINT)
        name = signal.Signals(code).name
        how = "interrupted" if code == signal.SIGINT else f"terminated by {name}"
        say(_with_notes(f"headrace: {how}", error))
        raise typer.Exit(128 + code) from error
    except OSError as error:
        # What the stages meet they explain themselves; this is our own standard output.
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        say(tidy(f"headrace: error: {where}{error.strerror or error}"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter would say so once more
        raise typer.Exit(EXIT_ENVIRONMENT) from error
    finally:
        sys.unraisablehook = hook


@contextmanager
def needs(extras: str = "launcher,cpu") -> Iterator[None]:
    """Says what to install where an import in its body fails.

    Args:
        extras: of the package, which have what is missing.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs {error.name}, which is not installed; pip install 'headrace[{extras}]'"
        ) from error


def _send_again(ignored: sys.UnraisableHookArgs) -> None:
    """Sends a signal again that came while a destructor ran.

    Python ignores what is raised there, and so the interruption would be lost.
    """
    error = ignored.exc_value
    if not isinstance(error, KeyboardInterrupt):
        sys.__unraisablehook__(ignored)
        return
    number = error.number if isinstance(error, Interrupted) else int(signal.SIGINT)
    again = threading.Timer(0.05, os.kill, (os.getpid(), number))  # not while this runs
    again.daemon = True
    again.start()


def _tell(line: bytes) -> None:
    """Writes to standard error from a signal handler, past what may be half written there."""
    with suppress(OSError):
        os.write(2, b"\n" + line if sys.stderr.isatty() else line)


def _with_notes(line: str, error: BaseException) -> str:
    return "; ".join([line, *getattr(error, "__notes__", [])])


def say(line: str) -> None:
    """Writes a line to standard error, if anybody can read it."""
    try:
        typer.echo(line, err=True)
    except (OSError, ValueError):
        # Nobody can read it; what was done is done. The interpreter would try again at its end,
        # and fail.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
