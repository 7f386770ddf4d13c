"""What happens to files: staging, commit, abort, and a disk's errors, with either sink."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import OutputError
from headrace.sinks import check_output, open_sink
from headrace.sinks.staging import output_errors


def make_rows(count, dimension):
    return np.ones((count, dimension), np.float32), np.ones(count, np.bool_)


@pytest.fixture(params=["npy", "parquet"])
def output(request, tmp_path):
    return tmp_path / f"out.{request.param}"


def open_on(output, *, overwrite=False):
    return open_sink(output, dimension=4, dtype="float32", id_type=None, overwrite=overwrite)


def test_an_existing_output_stays_until_commit(output):
    output.write_bytes(b"old")
    sink = open_on(output, overwrite=True)
    sink.write(*make_rows(5, 4), None, 0)
    assert output.read_bytes() == b"old"
    sink.commit()
    assert output.read_bytes() != b"old"
    assert list(output.parent.iterdir()) == [output]


def test_abort_leaves_an_existing_output(output):
    output.write_bytes(b"old")
    sink = open_on(output, overwrite=True)
    sink.write(*make_rows(5, 4), None, 0)
    sink.abort()
    sink.abort()
    assert output.read_bytes() == b"old"
    assert list(output.parent.iterdir()) == [output]
    with pytest.raises(ValueError, match="closed"):
        sink.write(*make_rows(5, 4), None, 5)
    with pytest.raises(ValueError, match="closed"):
        sink.commit()


def test_abort_after_commit_does_nothing_and_a_second_commit_is_refused(output):
    sink = open_on(output)
    sink.write(*make_rows(5, 4), None, 0)
    sink.commit()
    written = output.read_bytes()
    sink.abort()
    with pytest.raises(ValueError, match="closed"):
        sink.commit()
    assert output.read_bytes() == written


def test_a_crashed_runs_leftover_is_replaced(output):
    leftover = output.with_name(output.name + ".partial")
    leftover.mkdir()
    (leftover / f"data{output.suffix}").write_bytes(b"half a file" * 1000)
    sink = open_on(output)
    sink.commit()
    assert list(output.parent.iterdir()) == [output]
    assert b"half" not in output.read_bytes()


@pytest.mark.parametrize("kind", ["file", "link", "foreign file inside"])
def test_what_is_not_ours_is_never_removed(output, kind):
    partial = output.with_name(output.name + ".partial")
    if kind == "file":
        partial.write_text("mine")
    else:
        folder = output.parent / "folder"
        folder.mkdir()
        (folder / "thesis.tex").write_text("mine")
        partial.symlink_to(folder) if kind == "link" else folder.rename(partial)
    with pytest.raises(OutputError, match="move"):
        open_on(output)
    assert (partial if kind == "file" else partial / "thesis.tex").read_text() == "mine"


def test_two_runs_on_one_output(output):
    first = open_on(output)
    first.write(*make_rows(5, 4), None, 0)
    with pytest.raises(OutputError, match="another run is writing"):
        open_on(output)
    first.commit()
    open_on(output, overwrite=True).abort()


def test_a_file_system_without_locks(output, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    open_on(output).commit()
    assert output.exists()


def test_an_output_that_came_meanwhile_is_not_replaced_and_no_row_is_lost(output):
    sink = open_on(output)
    sink.write(*make_rows(5, 4), None, 0)
    output.write_bytes(b"someone else's")
    with pytest.raises(OutputError, match="came into being"):
        sink.commit()
    sink.abort()
    assert output.read_bytes() == b"someone else's"
    assert (output.parent / f"{output.name}.partial" / f"data{output.suffix}").stat().st_size > 80


def test_a_link_is_followed(output):
    real = output.parent / "elsewhere" / f"real{output.suffix}"
    real.parent.mkdir()
    output.symlink_to(real)
    check_output(output, overwrite=False)
    open_on(output).commit()
    assert output.is_symlink()
    assert real.stat().st_size > 0
    assert list(real.parent.iterdir()) == [real]


def test_a_relative_output(output, monkeypatch):
    monkeypatch.chdir(output.parent)
    open_on(Path(output.name)).commit()
    assert output.exists()


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
def test_every_disk_error_is_one_line(output, code, remedy):
    with pytest.raises(OutputError) as caught, output_errors(output, size=3 << 20):
        raise OSError(code, os.strerror(code))
    message = str(caught.value)
    assert message.startswith(f"cannot write {output}: {os.strerror(code)}")
    assert remedy in message
    assert "\n" not in message
    full = code in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    assert ("the next 3.0 MiB do not fit" in message) is full
    assert ("are free on the disk" in message) is full


def test_a_library_error_without_a_number(output):
    expected = pytest.raises(OutputError, match="it went wrong; choose another output")
    with expected, output_errors(output):
        raise OSError("it went wrong\nin many lines")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_commit_leaves_the_old_output(output, monkeypatch, step):
    def fail(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    output.write_bytes(b"old")
    sink = open_on(output, overwrite=True)
    sink.write(*make_rows(5, 4), None, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, fail)
        with pytest.raises(OutputError, match=r"\.partial/data\..*Input/output error"):
            sink.commit()
    sink.abort()
    assert output.read_bytes() == b"old"
    assert list(output.parent.iterdir()) == [output]


LIMITED = """
import json, resource, sys
import numpy as np
from pathlib import Path
from headrace.errors import OutputError
from headrace.sinks import open_sink
output = Path(sys.argv[1])
sink = open_sink(output, dimension=64, dtype="float32", id_type=None, overwrite=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
vectors = np.zeros((1000, 64), np.float32)
try:
    for block in range(200):
        sink.write(vectors, np.ones(1000, bool), None, block * 1000)
    sink.commit()
except OutputError as error:
    sink.abort()
    print(json.dumps(str(error)))
"""


def test_a_file_that_may_not_grow(output):
    """A true refusal of the kernel in the middle of a write, and a clean end of the process."""
    output.write_bytes(b"old")
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(output)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stderr == ""
    assert "File too large" in json.loads(run.stdout)
    assert "do not fit" in json.loads(run.stdout)
    assert output.read_bytes() == b"old"
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("blocks", [0, 1, 40])
def test_a_full_disk(output, blocks):
    """``/dev/full`` refuses every byte, so also those that are written when a file is closed."""
    sink = open_on(output)
    fill_disk(sink._staging.file)

    def run():
        for block in range(blocks):
            sink.write(*make_rows(2000, 4), None, block * 2000)
        sink.commit()

    with pytest.raises(OutputError, match="No space left on device"):
        run()
    with pytest.raises(ValueError, match="closed"):
        sink.write(*make_rows(1, 4), None, 0)
    with pytest.raises(ValueError, match="closed"):
        sink.commit()
    assert list(output.parent.iterdir()) == []


def fill_disk(file):
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file.fileno())
    os.close(full)
