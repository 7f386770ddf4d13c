import gzip
import random
import subprocess
import sys
import zlib
from contextlib import suppress
from io import BytesIO

import pytest
import zstandard

from headrace.decompress import Stored, compression, decompress, one_line
from headrace.errors import DamagedInputError, InputError

LINES = [b'{"text": "line %d %s"}\n' % (i, b"x" * (i % 7)) for i in range(40)]
PARTS = [b"".join(LINES[i : i + 10]) for i in range(0, 40, 10)]
SKIPPABLE = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"


class Dribble(BytesIO):
    """Returns a few bytes a read, as pipes do."""

    def read(self, size=-1, /):
        return super().read(min(size, 3))


class Faulty(BytesIO):
    def read(self, size=-1, /):
        if self.tell() >= 10:
            raise OSError(5, "Input/output error")
        return super().read(min(size, 10))


def zstd_frames(parts, **options):
    return [zstandard.ZstdCompressor(**options).compress(part) for part in parts]


def streamed(part):
    """A frame without its content size in many small blocks, as a logger writes it."""
    frame = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    lines = part.splitlines(keepends=True)
    flushed = [frame.compress(x) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for x in lines]
    return b"".join(flushed) + frame.flush()


def delivered(data, name="a.jsonl", file=BytesIO):
    """Returns what comes out, and the damage that ended it."""
    pieces = []
    try:
        for piece in decompress(Stored(file(data), name)):
            assert piece
            pieces.append(piece)
    except DamagedInputError as damage:
        return b"".join(pieces), damage
    return b"".join(pieces), None


@pytest.mark.parametrize("file", [BytesIO, Dribble])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"".join(PARTS), id="plain"),
        pytest.param(b"".join(zstd_frames(PARTS)), id="zstd frames"),
        pytest.param(b"".join(zstd_frames(PARTS, write_checksum=True)), id="zstd checksum"),
        pytest.param(b"".join(SKIPPABLE + f for f in zstd_frames(PARTS)), id="zstd skippable"),
        pytest.param(b"".join(zstd_frames(PARTS)) + SKIPPABLE, id="zstd skippable last"),
        pytest.param(b"".join(zstd_frames([b"", *PARTS, b""])), id="zstd empty frames"),
        pytest.param(b"".join(map(streamed, PARTS)), id="zstd streamed"),
        pytest.param(b"".join(map(gzip.compress, PARTS)), id="gzip members"),
        pytest.param(b"".join(map(gzip.compress, [b"", *PARTS])), id="gzip empty member"),
        pytest.param(b"".join(map(gzip.compress, PARTS)) + b"\0" * 700, id="gzip padding"),
    ],
)
def test_content_comes_out_whole(data, file):
    assert delivered(data, file=file) == (b"".join(PARTS), None)


def test_large_window():
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    data = zstandard.ZstdCompressor(compression_params=parameters).compressobj().compress(b"")
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = frame.compress(PARTS[0]) + frame.flush()
    assert zstandard.get_frame_parameters(data).window_size == 1 << 28
    assert delivered(data) == (PARTS[0], None)


@pytest.mark.parametrize(
    ("frames", "ending"),
    [
        (zstd_frames(PARTS[:3]), ".zst"),
        (zstd_frames(PARTS[:2], write_checksum=True), ".zst"),
        ([streamed(PARTS[0]), SKIPPABLE, streamed(PARTS[1])], ".zst"),
        ([gzip.compress(part) for part in PARTS[:3]], ".gz"),
    ],
)
def test_every_truncation(frames, ending):
    whole, content = b"".join(frames), b"".join(PARTS)
    ends = [sum(map(len, frames[:i])) for i in range(len(frames) + 1)]
    for cut in range(len(whole)):
        got, damage = delivered(whole[:cut], "a.jsonl" + ending)
        complete = [i for i, end in enumerate(ends) if end <= cut][-1]
        assert content.startswith(got)
        finished = [f for f in frames[:complete] if f != SKIPPABLE]
        assert len(got) >= sum(map(len, PARTS[: len(finished)]))
        assert (damage is None) == (cut in ends)
        if damage:
            assert ends[complete] <= damage.offset <= cut
            assert damage.file == "a.jsonl" + ending
            assert f"at byte {damage.offset}" in str(damage)
            assert "\n" not in str(damage)


def test_truncated_stream_gives_every_flushed_line():
    data = streamed(PARTS[0])
    got, damage = delivered(data[: len(data) * 3 // 4])
    assert damage
    assert 5 <= got.count(b"\n") < 10


@pytest.mark.parametrize("pack", [streamed, gzip.compress])
def test_every_corrupt_byte(pack):
    frames = [pack(part) for part in PARTS[:3]]
    whole = b"".join(frames)
    for at in range(len(frames[0]), len(frames[0]) + len(frames[1])):
        broken = bytearray(whole)
        broken[at] ^= 0x55
        got, damage = delivered(bytes(broken))
        assert got.startswith(PARTS[0])
        if damage:
            assert len(frames[0]) <= damage.offset <= len(whole)


def test_corrupt_zstd_gives_all_blocks_before():
    content = random.Random(1).randbytes(1 << 20).hex().encode()
    data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(content))
    data[len(data) // 2] ^= 0xFF
    data[len(data) // 2 + 1 : len(data) // 2 + 4000] = b"\xff" * 3999
    got, damage = delivered(bytes(data))
    assert damage
    assert 0.4 < len(got) / len(content) < 0.6 or got[: 1 << 19] == content[: 1 << 19]


def test_corrupt_gzip_gives_all_before_the_bad_byte():
    content = b"".join(b"%d %d\n" % (i, i * i) for i in range(30_000))
    data = bytearray(gzip.compress(content))
    half = len(data) // 2
    data[half:] = random.Random(2).randbytes(len(data) - half)
    reader, expected = zlib.decompressobj(31), b""
    offset = 0
    with suppress(zlib.error):
        for offset in range(len(data)):
            expected += reader.decompress(data[offset : offset + 1])
    assert offset < len(data) - 1
    got, damage = delivered(bytes(data))
    assert (got, damage.offset) == (expected, offset)
    assert len(got) > len(content) // 3


def test_window_that_there_is_no_memory_for():
    code = """
import io, resource
from headrace.decompress import Stored, decompress
frame = b"(\\xb5/\\xfd\\0\\xa8\\x11\\0\\0a\\n"  # a window of 2 GiB, though it holds two bytes
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
list(decompress(Stored(io.BytesIO(frame), "a.zst")))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DamagedInputError: a.zst: the zstd frame at byte 0 needs 2048 MiB" in ran.stderr


def test_messages_of_others_are_made_printable():
    assert one_line(OSError("a type: \x0f\x1b\nmore")) == "a type: \ufffd\ufffd"
    assert one_line(OSError()) == "OSError"


def test_pieces_stay_small_whatever_the_ratio():
    zeros = bytes(50_000_000)
    for data in (zstandard.compress(zeros, 19), gzip.compress(zeros)):
        sizes = [len(piece) for piece in decompress(Stored(BytesIO(data), "bomb"))]
        assert sum(sizes) == len(zeros)
        assert max(sizes) <= 1 << 20


@pytest.mark.parametrize("pack", [zstandard.compress, gzip.compress])
def test_garbage_behind_is_damage(pack):
    data = pack(PARTS[0])
    got, damage = delivered(data + b"garbage")
    assert got == PARTS[0]
    assert damage.offset == len(data)


def test_a_read_that_fails_is_no_damage_but_may_be_tried_again():
    got = []
    with pytest.raises(InputError, match=r"x: reading fails at byte 10: .*Input/output error"):
        got.extend(decompress(Stored(Faulty(b"0123456789abc"), "x")))
    assert b"".join(got) == b"0123456789"


def test_stored_looks_ahead_and_takes_back():
    stored = Stored(Dribble(b"0123456789"), "x")
    assert stored.peek(4) == b"0123"
    assert stored.offset == 0
    assert stored.take(6) == b"012345"
    stored.unread(b"45")
    assert stored.offset == 4
    assert stored.take(100) == b"456789"
    assert stored.read(1) == b""


def test_compression_by_magic():
    assert compression(b"(\xb5/\xfd") == compression(b"\x5f*M\x18") == "zstd"
    assert compression(b"\x1f\x8b\x08\0") == "gzip"
    assert compression(b"") is compression(b"{") is compression(b"\x60*M\x18") is None
