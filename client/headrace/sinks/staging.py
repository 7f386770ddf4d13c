"""``OUTPUT.partial/``: where the files of a job lie until they are complete."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from headrace.errors import OutputError, UsageError
from headrace.files import ELSEWHERE, output_errors, sync_folder

MANIFEST = "manifest.jsonl"
ERRORS = "errors.jsonl"
ROWS = "rows.arrows"
"""Rows of a Parquet output, as they are finished: see :mod:`headrace.sinks.parquet`."""


def _beside(output: Path, ending: str) -> Path:
    # Of a symbolic link, beside the file that it names: that one is replaced, not the link.
    real = Path(os.path.realpath(output)) if output.is_symlink() else output
    return real.with_name(f"{real.name}.{ending}")


def partial_folder(output: Path) -> Path:
    """Returns the folder in which an output's job lies until it is complete."""
    return _beside(output, "partial")


def manifest_path(output: Path) -> Path:
    """Returns where the manifest of a finished job lies."""
    return _beside(output, MANIFEST)


def errors_path(output: Path) -> Path:
    """Returns where the bad rows of a run with this output are described."""
    return _beside(output, ERRORS)


def check_unlocked(output: Path) -> None:
    """Checks that no other run is writing an output.

    Raises:
        UsageError: one is.
    """
    with output_errors(partial_folder(output)), suppress(FileNotFoundError):
        descriptor = os.open(partial_folder(output), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _lock(descriptor, output)
        finally:
            os.close(descriptor)


def _lock(folder: int, output: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"another run is writing {output}; wait for it or {ELSEWHERE}") from error
    except OSError:
        pass  # A file system without locks: two runs at once are then the user's to avoid.


class Staging:
    """The folder of one job, locked as long as this object is open.

    So two runs never write the same output; the lock ends with its process. A symbolic link is
    followed: the file it names is replaced, not the link.

    Attributes:
        output: the file to replace in the end.
        folder: where its parts lie until then.
        data: the file that becomes the output.
        made: whether the folder was not there before.
    """

    def __init__(self, output: Path) -> None:
        """Makes the folder, if it is not there.

        Raises:
            UsageError: another run is writing there.
            OutputError: the folder holds files of someone else, or the file system refused.
        """
        self.output = Path(os.path.realpath(output)) if output.is_symlink() else output
        self.folder = partial_folder(output)
        self.data = self.folder / f"data{output.suffix}"
        self.made = not self.folder.exists()
        while True:
            with output_errors(self.folder):
                if not self.folder.is_dir():
                    self.folder.mkdir(exist_ok=True)
                    sync_folder(self.folder.parent)
                self._handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                _lock(self._handle, self.output)
                if not self._is_current():  # a run that has just ended has removed it
                    os.close(self._handle)
                    continue
                self._check_strangers()
            except BaseException:
                os.close(self._handle)
                raise
            break
        self._open = True

    def path(self, name: str) -> Path:
        """Returns the path of a file in the folder."""
        return self.folder / name

    def has_data(self) -> bool:
        """Returns whether there are rows in the folder."""
        return any(path.exists() for path in (self.data, self.path(ROWS)))

    def clear(self) -> None:
        """Removes all of the folder's files: first the manifest, which tells of the others.

        Raises:
            OutputError: the file system refused.
        """
        with output_errors(self.folder):
            self.path(MANIFEST).unlink(missing_ok=True)
            for path in self.folder.iterdir():
                path.unlink()

    def discard(self) -> None:
        """Removes the files and the folder, and ends the lock; does nothing once closed."""
        if not self._open:
            return
        with suppress(OSError, OutputError):
            self.clear()
            self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Ends the lock and leaves the files; idempotent."""
        if self._open:
            self._open = False
            os.close(self._handle)

    def publish(self, *, replaces: bool) -> None:
        """Puts the files of a complete job in place: the data, the bad rows, the manifest.

        The data and the errors file are to be durable. Each step can be done again: a publication
        that was interrupted is taken up where it stopped.

        Args:
            replaces: whether an output that is there may be replaced.

        Raises:
            OutputError: the file system refused, or (without ``replaces``) the output came into
                being meanwhile; the complete files then stay in the folder.
        """
        found, final = self.path(ERRORS), errors_path(self.output)
        if self.data.exists():
            if not replaces and os.path.lexists(self.output):
                raise OutputError(
                    f"{self.output} came into being while this run wrote it; the complete file is "
                    f"{self.data}; move what is in its way and run the same command again"
                )
            if not found.exists():
                with output_errors(final):
                    final.unlink(missing_ok=True)  # an earlier job's
            self._rename(self.data, self.output)
        if found.exists():
            self._rename(found, final)
        if self.path(MANIFEST).exists():
            self._rename(self.path(MANIFEST), manifest_path(self.output))
        self.discard()
        with output_errors(self.output):
            sync_folder(self.output.parent)

    def _rename(self, path: Path, final: Path) -> None:
        with output_errors(final):
            path.replace(final)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(self.folder.stat(), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def _check_strangers(self) -> None:
        known = {self.data.name, MANIFEST, f"{MANIFEST}.new", ERRORS, ROWS}
        with output_errors(self.folder):
            strangers = sorted(
                entry.name
                for entry in os.scandir(self.folder)
                if entry.name not in known or not entry.is_file(follow_symlinks=False)
            )
        if strangers:
            raise OutputError(
                f"{self.folder} holds files that headrace did not write ({strangers[0]!r}); "
                f"move that folder away or {ELSEWHERE}"
            )
