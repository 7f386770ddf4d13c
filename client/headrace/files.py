"""A disk's errors in one line, and names that are durable."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from headrace.errors import OutputError

_MIB = 1 << 20
ELSEWHERE = "choose another output"
_REMEDIES = {
    errno.ENOSPC: f"free space there or {ELSEWHERE}",
    errno.EDQUOT: f"free space in your quota or {ELSEWHERE}",
    errno.EFBIG: f"raise the limit (ulimit -f), or {ELSEWHERE} on a disk that takes larger files",
    errno.EIO: f"check the disk (dmesg) or {ELSEWHERE}",
    errno.EROFS: f"the file system is mounted read-only; {ELSEWHERE}",
    errno.EACCES: f"make the folder writable or {ELSEWHERE}",
    errno.EPERM: f"make the folder writable or {ELSEWHERE}",
    errno.EEXIST: f"move away what lies there or {ELSEWHERE}",
    errno.ENOTDIR: f"move away what lies there or {ELSEWHERE}",
    errno.EISDIR: f"move away what lies there or {ELSEWHERE}",
    errno.ENOENT: "see that its folder exists and is left alone while the run lasts",
    errno.ENAMETOOLONG: "choose a shorter name for the output",
}


@contextmanager
def output_errors(path: Path, *, size: int = 0) -> Iterator[None]:
    """Translates an ``OSError`` of its body into one line: what, where, what to do.

    Args:
        path: the file or folder that the body writes.
        size: bytes that the body is about to write, where it knows.

    Raises:
        OutputError: the body raised ``OSError``.
    """
    try:
        yield
    except OSError as error:
        what = (os.strerror(error.errno) if error.errno else str(error)).split("\n")[0]
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            what += _room(path, size)
        remedy = _REMEDIES.get(error.errno or 0, ELSEWHERE)
        raise OutputError(f"cannot write {path}: {what}; {remedy}") from error


def _room(path: Path, size: int) -> str:
    facts = [f"the next {_human(size)} do not fit"] if size else []
    with suppress(OSError):
        facts.append(f"{_human(shutil.disk_usage(path.parent).free)} are free on the disk")
    return f" ({', '.join(facts)})" if facts else ""


def _human(size: int) -> str:
    return f"{size / _MIB:,.1f} MiB" if size >= _MIB else f"{size:,} bytes"


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, where its file system can.

    Raises:
        OSError: the folder cannot be opened or synced.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and FUSE file systems know no fsync of a folder.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


def not_as_written(path: Path) -> OutputError:
    """Returns the error for a file that is not what was made durable."""
    return OutputError(
        f"{path} is not the file that was written: something else has changed it; pass "
        f"--overwrite to start anew"
    )


def check_kept(path: Path, size: int) -> None:
    """Checks that a file has the bytes that were made durable.

    Raises:
        OutputError: it is not there, or shorter.
    """
    try:
        with output_errors(path):
            found = path.stat().st_size
    except OutputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise OutputError(
                f"{path} is gone, and rows in it were made durable: something else has removed it; "
                f"pass --overwrite to start anew"
            ) from error
        raise
    if found < size:
        raise OutputError(
            f"{path} has {found:,} bytes, and {size:,} were made durable: something else has cut "
            f"it; pass --overwrite to start anew"
        )


def open_kept(path: Path, size: int) -> BinaryIO:
    """Opens a file to go on writing after its first ``size`` bytes; what follows them is cut off.

    Raises:
        OutputError: it is not there, or shorter.
    """
    check_kept(path, size)
    with output_errors(path):
        file = path.open("r+b")
        file.truncate(size)
        file.seek(size)
    return file
