"""The bad rows of a run, one JSON object a line, beside the output."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from headrace.files import open_kept, output_errors


class ErrorsFile:
    """Writes bad rows: one object with ``file``, ``line``, ``row`` and ``reason`` each.

    The file is made when the first bad row comes. A run without bad rows has none.

    Attributes:
        path: the file, in the folder of the job.
        size: bytes of it that were written.
    """

    def __init__(self, path: Path, *, size: int = 0) -> None:
        """Opens what an earlier run of the job has written, if it has.

        Args:
            path: the file.
            size: bytes of it to keep.

        Raises:
            OutputError: the file is not there, is shorter, or cannot be written.
        """
        self.path = path
        self.size = size
        self._file: BinaryIO | None = None
        self._flushed = self._synced = size
        if size:
            self._file = open_kept(path, size)
            return
        with output_errors(path):
            path.unlink(missing_ok=True)

    def write(self, file: str, line: int | None, row: int, reason: str) -> None:
        """Adds one bad row.

        Args:
            file: the input as the user named it; bytes of its name that are not UTF-8 may stand
                as lone surrogates (as in ``os.fsdecode``) and come back from ``json.loads`` so.
            line: number of the line in the file, or None where there are no lines.
            row: number of the row in the run.
            reason: what is wrong with it, in one line.

        Raises:
            OutputError: the errors file cannot be written.
        """
        record = {"file": file, "line": line, "row": row, "reason": reason}
        try:
            data = json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # UTF-8 has no lone surrogates, JSON has: as \udcXX.
            data = json.dumps(record).encode()
        with output_errors(self.path, size=len(data) + 1):
            if self._file is None:
                self._file = self.path.open("wb")
            self._file.write(data + b"\n")
        self.size += len(data) + 1

    def flush(self) -> None:
        """Hands what was written to the system, for :meth:`sync` to be called from elsewhere.

        Raises:
            OutputError: the disk is full, or another error of the file system.
        """
        if self._file is not None:
            with output_errors(self.path):
                self._file.flush()
        self._flushed = self.size

    def sync(self) -> None:
        """Makes durable what was flushed.

        Raises:
            OutputError: the file system refused.
        """
        size = self._flushed
        if self._file is not None and size != self._synced:
            with output_errors(self.path):
                os.fsync(self._file.fileno())
            self._synced = size

    def close(self) -> None:
        """Closes the file; idempotent."""
        if self._file is not None:
            with suppress(OSError):  # on a full disk what waits cannot be written now either
                self._file.close()
