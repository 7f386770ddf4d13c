"""Processes below this one: found, tied to our own end, and ended."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
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


def become_server(parent: int) -> None:
    """Prepares a process for a server: :func:`die_with`, then :func:`keep_files_private`."""
    die_with(parent)
    keep_files_private()


def keep_files_private() -> None:
    """Has this process, and all that it starts, give new files the mode that the umask leaves.

    Triton's Python backend opens its shared memory with shm_open(3), which heeds the umask, and
    then sets the mode to 0644 by fchmod(2) (boost/interprocess/shared_memory_object.hpp), so that
    all users of the machine could read what is embedded. From here on an fchmod that gives others
    anything succeeds and does nothing (seccomp(2)). Where the kernel does not have that, nothing
    changes.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _syscall(_SECCOMP, _SET_MODE_FILTER, _SPEC_ALLOW, ctypes.byref(_FILTER))


class _Program(ctypes.Structure):
    """``struct sock_fprog`` of <linux/filter.h>."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


_PR_SET_NO_NEW_PRIVS = 38  # a filter demands it
_SECCOMP, _SET_MODE_FILTER, _SPEC_ALLOW = 317, 1, 4  # the last: nothing else gets slower by it
_syscall = ctypes.CDLL(None).syscall
# <linux/filter.h>, <linux/seccomp.h>: each a code, where to go if so, where if not, and a number.
_CODE = b"".join(
    struct.pack("=HBBI", *step)
    for step in (
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 0, 5, 0xC000003E),  # x86-64?
        (0x20, 0, 0, 0),  # load the call's number
        (0x15, 0, 3, 91),  # fchmod?
        (0x20, 0, 0, 24),  # load its second argument, the mode
        (0x45, 0, 1, 0o077),  # anything for others?
        (0x06, 0, 0, 0x00050000),  # done, without an error
        (0x06, 0, 0, 0x7FFF0000),  # allow
    )
)
_FILTER = _Program(len(_CODE) // 8, _CODE)


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
