"""A disk's errors in one line, and files that are gone on with."""

from __future__ import annotations

import errno
import os

import pytest

from headrace.errors import OutputError
from headrace.files import open_kept, output_errors


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free space there"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "dmesg"),
        (errno.EROFS, "read-only"),
        (errno.EBADF, "choose another output"),
    ],
)
def test_every_disk_error_is_one_line(path, code, remedy):
    with pytest.raises(OutputError) as caught, output_errors(path, size=3 << 20):
        raise OSError(code, os.strerror(code))
    message = str(caught.value)
    assert message.startswith(f"cannot write {path}: {os.strerror(code)}")
    assert remedy in message
    assert "\n" not in message
    full = code in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    assert ("the next 3.0 MiB do not fit" in message) is full
    assert ("are free on the disk" in message) is full


def test_a_library_error_without_a_number(path):
    expected = pytest.raises(OutputError, match="it went wrong; choose another output")
    with expected, output_errors(path):
        raise OSError("it went wrong\nin many lines")


def test_what_follows_the_kept_bytes_is_cut_off(path):
    path.write_bytes(b"kept and more")
    with open_kept(path, 4) as file:
        file.write(b"!")
    assert path.read_bytes() == b"kept!"


@pytest.mark.parametrize("size", [0, 3])
def test_a_file_that_is_shorter_than_it_was_is_never_padded(path, size):
    path.write_bytes(b"abc"[:size])
    with pytest.raises(OutputError, match=r"has \d bytes, and 4 were made durable"):
        open_kept(path, 4)
    assert path.read_bytes() == b"abc"[:size]


def test_a_file_that_is_gone(path):
    with pytest.raises(OutputError, match="is gone, and rows in it were made durable"):
        open_kept(path, 4)
