"""A file that becomes the output only when it is complete; a disk's errors in one line."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headrace.errors import OutputError

_MIB = 1 << 20
_ELSEWHERE = "choose another output"
_REMEDIES = {
    errno.ENOSPC: f"free space there or {_ELSEWHERE}",
    errno.EDQUOT: f"free space in your quota or {_ELSEWHERE}",
    errno.EFBIG: f"raise the limit (ulimit -f), or {_ELSEWHERE} on a disk that takes larger files",
    errno.EIO: f"check the disk (dmesg) or {_ELSEWHERE}",
    errno.EROFS: f"the file system is mounted read-only; {_ELSEWHERE}",
    errno.EACCES: f"make the folder writable or {_ELSEWHERE}",
    errno.EPERM: f"make the folder writable or {_ELSEWHERE}",
    errno.EEXIST: f"move away what lies there or {_ELSEWHERE}",
    errno.ENOTDIR: f"move away what lies there or {_ELSEWHERE}",
    errno.EISDIR: f"move away what lies there or {_ELSEWHERE}",
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
        remedy = _REMEDIES.get(error.errno or 0, _ELSEWHERE)
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


class Staging:
    """A file in ``OUTPUT.partial/`` that becomes the output only when it is complete.

    The folder is locked as long as this object is open, so that two runs never write the same
    output; the lock ends with its process. A symbolic link is followed: the file it names is
    replaced, not the link.

    Attributes:
        output: the file to replace in the end.
        path: the file in the folder beside it.
        file: ``path``, open for writing.
    """

    def __init__(self, output: Path, *, overwrite: bool) -> None:
        """Creates the folder and the file, in place of those that a crashed run left.

        Raises:
            OutputError: another run is writing there, the folder holds files of someone else, or
                the file system refused.
        """
        self.output = Path(os.path.realpath(output)) if output.is_symlink() else output
        self._folder = self.output.with_name(f"{self.output.name}.partial")
        self.path = self._folder / f"data{output.suffix}"
        self._overwrite = overwrite
        self._open = True
        with output_errors(self._folder):
            self._folder.mkdir(exist_ok=True)
            self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self._claim()
            with output_errors(self.path):
                self.path.unlink(missing_ok=True)
                self.file = self.path.open("wb")
        except BaseException:
            os.close(self._lock)
            raise

    def _claim(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another run is writing {self.output}; wait for it or {_ELSEWHERE}"
            ) from error
        except OSError:
            pass  # A file system without locks: two runs at once are then the user's to avoid.
        with output_errors(self._folder):
            strangers = sorted({entry.name for entry in self._folder.iterdir()} - {self.path.name})
        if strangers:
            raise OutputError(
                f"{self._folder} holds files that headrace did not write ({strangers[0]!r}); "
                f"move that folder away or {_ELSEWHERE}"
            )

    @contextmanager
    def writing(self, size: int = 0) -> Iterator[None]:
        """Guards every use of ``file``: whatever goes wrong in the body, the file is given up.

        A file that lacks some bytes in the middle can thus never be committed.

        Args:
            size: bytes that the body is about to write, where it knows.

        Raises:
            OutputError: the body raised ``OSError``.
            ValueError: the file is closed.
        """
        self.check_open()
        try:
            with output_errors(self.path, size=size):
                yield
        except BaseException:
            self.abort()
            raise

    def check_open(self) -> None:
        """Checks that rows can still be written.

        Raises:
            ValueError: committed, aborted, or a write failed.
        """
        if not self._open:
            raise ValueError(f"{self.output} is closed: committed, aborted, or a write failed")

    def commit(self) -> None:
        """Makes the file durable and renames it onto the output, then removes the folder.

        Raises:
            OutputError: the file system refused, or (without ``overwrite``) the output came into
                being meanwhile; in the latter case the complete file stays in the folder.
            ValueError: the file is closed.
        """
        with self.writing():
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
        if not self._overwrite and os.path.lexists(self.output):
            self._close()
            raise OutputError(
                f"{self.output} came into being while this run wrote it; the complete file is "
                f"{self.path}; move it where you want it before the next run"
            )
        with self.writing():
            self.path.replace(self.output)
        self._close()
        with suppress(OSError):
            self._folder.rmdir()
        with output_errors(self.output):
            sync_folder(self.output.parent)

    def abort(self) -> None:
        """Removes the file and the folder; does nothing once closed."""
        if not self._open:
            return
        with suppress(OSError):
            # On a full disk closing fails too: the last buffer cannot be flushed.
            self.file.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()
        self._close()

    def _close(self) -> None:
        self._open = False
        os.close(self._lock)
