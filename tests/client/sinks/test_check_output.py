"""What is checked of an output before anything is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.errors import OutputError, UsageError
from headrace.sinks import check_output


@pytest.fixture(params=["npy", "parquet"])
def output(request, tmp_path):
    return tmp_path / f"out.{request.param}"


@pytest.mark.parametrize("name", ["out.csv", "out", "out.npy.gz", ".npy"])
def test_an_unknown_ending(tmp_path, name):
    with pytest.raises(UsageError, match=r"must end in \.npy or \.parquet"):
        check_output(tmp_path / name)


def test_a_folder_or_a_pipe_as_output(output):
    output.mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_output(output)
    output.rmdir()
    os.mkfifo(output)
    with pytest.raises(UsageError, match="not a regular file"):
        check_output(output)


def test_a_missing_folder(tmp_path):
    with pytest.raises(UsageError, match=f"mkdir -p {tmp_path}/a/b"):
        check_output(tmp_path / "a" / "b" / "out.npy")


def test_a_folder_where_no_file_can_be_made(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write /proc/out\.npy"):
        check_output(Path("/proc/out.npy"))
    if os.geteuid() != 0:
        tmp_path.chmod(0o555)
        with pytest.raises(OutputError, match="make the folder writable"):
            check_output(tmp_path / "out.npy")


def test_a_name_too_long(tmp_path):
    with pytest.raises(OutputError, match="choose a shorter name"):
        check_output(tmp_path / ("n" * 300 + ".npy"))
