"""The bad rows of a run, one JSON object a line, beside the output."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path

from headrace.sinks.staging import output_errors, sync_folder


def errors_path(output: Path) -> Path:
    """Returns where the bad rows of a run with this output are described."""
    return output.with_name(f"{output.name}.errors.jsonl")


class ErrorsFile:
    """Writes ``OUTPUT.errors.jsonl``: one object with ``file``, ``line``, ``row`` and ``reason``.

    Lines gather in ``OUTPUT.errors.jsonl.partial``, which is made only when the first bad row
    comes and renamed in :meth:`commit`. A run without bad rows leaves no errors file.

    Attributes:
        path: the errors file, which exists after a commit if ``count`` is not 0.
        count: bad rows written so far.
    """

    def __init__(self, output: Path) -> None:
        """Touches nothing yet.

        Args:
            output: the run's output; the errors file gets its name with an ending more.
        """
        self.path = errors_path(output)
        self.count = 0
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._file: BufferedWriter | None = None
        self._open = True

    def write(self, file: str, line: int | None, row: int, reason: str) -> None:
        """Adds one bad row.

        Args:
            file: the input as the user named it; bytes of its name that are not UTF-8 may stand
                as lone surrogates (as in ``os.fsdecode``) and come back from ``json.loads`` so.
            line: number of the line in the file, or None where there are no lines.
            row: number of the row in the run.
            reason: what is wrong with it, in one line.

        Raises:
            OutputError: the errors file cannot be written; what was written so far is removed.
            ValueError: the errors file is closed.
        """
        self._check_open()
        record = {"file": file, "line": line, "row": row, "reason": reason}
        try:
            data = json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # UTF-8 has no lone surrogates, JSON has: as \udcXX.
            data = json.dumps(record).encode()
        try:
            with output_errors(self._partial, size=len(data) + 1):
                if self._file is None:
                    self._file = self._partial.open("wb")
                self._file.write(data + b"\n")
        except BaseException:
            # Half a line must never be committed.
            self.abort()
            raise
        self.count += 1

    def commit(self) -> None:
        """Makes the errors file durable, or removes an earlier run's where no row was bad.

        Raises:
            OutputError: the file system refused; what was written so far is removed.
            ValueError: the errors file is closed.
        """
        self._check_open()
        try:
            with output_errors(self.path):
                if self._file is None:
                    self.path.unlink(missing_ok=True)
                    self._partial.unlink(missing_ok=True)
                else:
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._file.close()
                    self._partial.replace(self.path)
                sync_folder(self.path.parent)
        except BaseException:
            self.abort()
            raise
        self._open = False

    def abort(self) -> None:
        """Removes what this run wrote; an earlier errors file stays; does nothing once closed."""
        if self._open and self._file is not None:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._partial.unlink(missing_ok=True)
        self._open = False

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError(f"{self.path} is closed: committed or aborted")
