"""Where vectors go: one sink for each kind of output file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pyarrow as pa

from headrace.config import Dtype
from headrace.errors import UsageError
from headrace.sinks.base import Sink
from headrace.sinks.errorsfile import ErrorsFile, errors_path
from headrace.sinks.npy import NpyRows, NpySink, PageAlignedRows
from headrace.sinks.parquet import ParquetSink
from headrace.sinks.staging import output_errors

__all__ = [
    "ErrorsFile",
    "NpyRows",
    "NpySink",
    "PageAlignedRows",
    "ParquetSink",
    "Sink",
    "check_output",
    "errors_path",
    "open_sink",
]


def check_output(output: Path, *, overwrite: bool) -> None:
    """Checks, before anything is started, that the output can be written as asked.

    Args:
        output: the file to write; its ending says the format.
        overwrite: whether an existing output may be replaced.

    Raises:
        UsageError: the ending is unknown, the output exists, or its folder does not.
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
        if output.exists() and not overwrite:
            raise UsageError(f"the output {output} exists; pass --overwrite to replace it")
        if not folder.is_dir():
            raise UsageError(
                f"the folder {folder} does not exist; make it first: mkdir -p {folder}"
            )
        # Permission bits do not tell (root, read-only mounts, odd file systems): try it.
        tempfile.TemporaryFile(dir=folder).close()


def open_sink(
    output: Path,
    *,
    dimension: int,
    dtype: Dtype,
    id_type: pa.DataType | None,
    overwrite: bool,
) -> Sink:
    """Opens the sink that the output's ending asks for.

    Args:
        output: the file to write, ``.npy`` or ``.parquet``.
        dimension: length of a vector.
        dtype: type of the written values.
        id_type: type of the ids (Parquet); None numbers the rows in int64.
        overwrite: whether an existing output may be replaced.

    Raises:
        UsageError: as :func:`check_output`.
        OutputError: the output cannot be written.
    """
    check_output(output, overwrite=overwrite)
    if output.suffix == ".npy":
        return NpySink(output, dimension=dimension, dtype=dtype, overwrite=overwrite)
    return ParquetSink(
        output, dimension=dimension, dtype=dtype, id_type=id_type, overwrite=overwrite
    )
