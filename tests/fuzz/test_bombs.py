"""Small files that become large: read in bounded memory, and refused where a line has no end."""

import subprocess
import sys
import zlib

import pytest
import zstandard

LINE_MIB = 32  # in place of 512, so that it takes a second
MIB = 1 << 20

READ = """
import resource, sys
from headrace import errors, sources
from headrace.inputs import find_inputs

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

sources._LINE_MAX = int(sys.argv[2]) << 20
list(sources.read_blocks([], columns=["text"], block_bytes=1, block_rows=1))
sources.find_lines(b"", "text")
before, rows = peak(), 0
try:
    inputs = find_inputs([sys.argv[1]])
    limits = {"block_bytes": 8 << 20, "block_rows": 65536}
    for block in sources.read_blocks(inputs, columns=["text"], **limits):
        rows += block.rows
except errors.HeadraceError as error:
    print(type(error).__name__, error)
print(rows, peak() - before)
"""


def gzipped(piece, times):
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(piece) for _ in range(times)) + packer.flush()


def zstandarded(piece, times):
    packer = zstandard.ZstdCompressor().compressobj()
    return b"".join(packer.compress(piece) for _ in range(times)) + packer.flush()


def read(path, data):
    """Returns what was said, the rows, and the MiB that it took."""
    path.write_bytes(data)
    command = [sys.executable, "-c", READ, str(path), str(LINE_MIB)]
    ran = subprocess.run(command, capture_output=True, check=True, text=True)
    *said, numbers = ran.stdout.splitlines()
    rows, mib = map(int, numbers.split())
    return said, rows, mib


@pytest.mark.parametrize("pack", [gzipped, zstandarded])
def test_endless_line(pack, tmp_path):
    data = pack(bytes(MIB), 8 * LINE_MIB)
    assert len(data) < MIB
    said, rows, mib = read(tmp_path / "a.txt", data)
    assert rows == 0
    assert len(said) == 1
    assert said[0].startswith("UsageError")
    assert "line 1: longer than" in said[0]
    assert mib < 5 * LINE_MIB


def test_many_short_lines(tmp_path):
    data = zstandarded(b"a\n" * (MIB // 2), 384)
    assert len(data) < MIB
    said, rows, mib = read(tmp_path / "a.txt", data)
    assert (said, rows) == ([], 192 * MIB)
    assert mib < 256  # of each of a window's lines it is noted where it lies


def test_large_window_of_a_small_frame(tmp_path):
    frame = zstandard.FRAME_HEADER + b"\0\xa8\x11\0\0a\n"  # a window of 2 GiB
    said, rows, mib = read(tmp_path / "a.txt", frame)
    assert (said, rows) == ([], 1)
    assert mib < 64


def test_frames_and_blocks_of_nothing(tmp_path):
    nothing = b"\x50\x2a\x4d\x18\0\0\0\0" + zstandard.FRAME_HEADER + b"\x20\0\x01\0\0"
    blocks = zstandard.FRAME_HEADER + b"\0\x58" + bytes(3 * 50_000) + b"\x11\0\0a\n"
    said, rows, mib = read(tmp_path / "a.txt", nothing * 20_000 + blocks)
    assert (said, rows) == ([], 1)
    assert mib < 64
