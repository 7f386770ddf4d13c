"""Processes below this one: found, tied to our own end, and ended."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

KILL_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1

_prctl = ctypes.CDLL(None).prctl  # bound here: nothing is loaded between fork and exec


def die_with(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends, however it ends.

    SIGKILL, as Triton does not heed SIGTERM while it starts (prctl(2), PR_SET_PDEATHSIG).
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kills a server and the models' processes, which share its session, and waits for the end."""
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            break
        process.poll()  # reaps the leader, which counts as a member until then
        time.sleep(0.01)
    process.wait()


def kill_program(name: str, wanted: Callable[[str], bool]) -> None:
    """Kills the processes of a program that have an argument of some kind.

    Args:
        name: of the program's file.
        wanted: says whether an argument is of that kind.
    """
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        with suppress(OSError):  # it is gone, or somebody else's
            handle = os.pidfd_open(int(path.name))  # stays this one, whoever gets its number next
            try:
                program, *arguments = (path / "cmdline").read_text(errors="replace").split("\0")
                if Path(program).name == name and any(map(wanted, arguments)):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def children_of(pid: int) -> list[int]:
    """Returns the ids of a process's children that live."""
    numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [number for number in numbers if parent_of(number) == pid]


def parent_of(pid: int) -> int | None:
    """Returns the parent of a process that lives; None for one that is gone or a zombie."""
    try:
        # proc(5): pid (name) state ppid; the name may hold anything, even parentheses.
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(parent) if state not in {"Z", "X"} else None
