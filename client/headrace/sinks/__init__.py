"""Where vectors go: one sink for each kind of output file, and the folder that a job lies in."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from headrace.errors import UsageError
from headrace.files import output_errors
from headrace.sinks.base import Sink
from headrace.sinks.errorsfile import ErrorsFile
from headrace.sinks.npy import NpyRows, NpySink, PageAlignedRows, check_npy
from headrace.sinks.parquet import ParquetSink, stage_again
from headrace.sinks.staging import (
    Staging,
    check_unlocked,
    errors_path,
    manifest_path,
    partial_folder,
)

__all__ = [
    "ErrorsFile",
    "NpyRows",
    "NpySink",
    "PageAlignedRows",
    "ParquetSink",
    "Sink",
    "Staging",
    "check_npy",
    "check_output",
    "check_unlocked",
    "errors_path",
    "manifest_path",
    "partial_folder",
    "stage_again",
]


def check_output(output: Path) -> None:
    """Checks, before anything is started, that the output can be written.

    Args:
        output: the file to write; its ending says the format.

    Raises:
        UsageError: the ending is unknown, or its folder does not exist.
        OutputError: no file can be made in the folder.
    """
    if output.suffix not in {".npy", ".parquet"}:
        raise UsageError(f"the output {output} must end in .npy or .parquet")
    with output_errors(output):
        folder = Path(os.path.realpath(output)).parent
        if output.is_dir():
            raise UsageError(f"the output {output} is a folder; name a file in it")
        if output.exists() and not output.is_file():
            raise UsageError(f"the output {output} is not a regular file; name another")
        if not folder.is_dir():
            raise UsageError(
                f"the folder {folder} does not exist; make it first: mkdir -p {folder}"
            )
        # Permission bits do not tell (root, read-only mounts, odd file systems): try it.
        tempfile.TemporaryFile(dir=folder).close()
