"""Compressed lines: gzip members and zstd frames, by libraries and by hand."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from random import Random

import zstandard

from fuzz.made.case import Kind, Part, Valid
from fuzz.made.lines import text

_MAGIC = zstandard.FRAME_HEADER
_SKIPPABLE = b"\x2a\x4d\x18"
_GZIP_TOKENS = (
    b"\x1f\x8b",
    b"\x1f\x8b\x08\0",
    b"\x1f\x8b\x08\xff",
    b"\x1f",
    b"\0",
    b"\0" * 300,
    b"\x01\0\0\xff\xff",
    b"\0\0\0\xff\xff",
    b"\x03\0",
    b"\x06",
    b"\x07",
    b"\xff" * 8,
    b"\n",
    b"PAR1",
)
_ZSTD_TOKENS = (
    _MAGIC,
    _MAGIC[:3],
    b"\x50" + _SKIPPABLE,
    b"\x5f" + _SKIPPABLE + b"\xff\xff\xff\xff",
    _SKIPPABLE,
    b"\x50" + _SKIPPABLE + bytes(4),
    b"\x01\0\0",
    b"\0\0\0",
    b"\x07\0\0",
    b"\xff\xff\x0f",
    b"\x02\0\x10a",
    b"\x03\xff\x7fa",
    b"\x1f\x8b",
    b"\xff" * 8,
    bytes(8),
    b"\n",
    _MAGIC + b"\0\xa8",
    _MAGIC + b"\x20\0\x01\0\0",
)


def gzip_lines(chance: Random) -> Valid:
    """Makes a gzip file of one or several members."""
    return _packed(chance, _member, ".gz", _GZIP_TOKENS)


def zstd_lines(chance: Random) -> Valid:
    """Makes a zstd file of one or several frames, some of them skippable."""
    return _packed(chance, _frame, ".zst", _ZSTD_TOKENS)


def _packed(
    chance: Random,
    pack: Callable[[Random, bytes], tuple[bytes, bool]],
    ending: str,
    tokens: tuple[bytes, ...],
) -> Valid:
    kind: Kind = "jsonl" if chance.random() < 0.5 else "text"
    content = text(chance, kind) * chance.choice((1, 1, 1, 8))
    pieces = _pieces(chance, content)
    data, parts, places, bodies = b"", [], [], []
    for piece in pieces:
        packed, checked = pack(chance, piece)
        start, stop = len(data), len(data) + len(packed)
        parts.append(Part(start, stop, piece))
        places += [start, start + 4, stop, stop - 8]
        if checked:
            bodies.append((start + 4, stop))
        data += packed
        if chance.random() < 0.1:
            data += _between(chance, ending)
    name = ("a.jsonl" if kind == "jsonl" else "a.txt") + chance.choice((ending, ending, ""))
    return Valid(
        name=name,
        kind=kind,
        data=data,
        parts=tuple(parts),
        tokens=tokens,
        places=tuple(places),
        bodies=tuple(bodies),
    )


def _pieces(chance: Random, content: bytes) -> list[bytes]:
    """Cuts content anywhere, lines included, now and then with nothing between."""
    cuts = sorted(chance.randint(0, len(content)) for _ in range(chance.choice((0, 1, 2, 6))))
    edges = [0, *cuts, len(content)]
    return [content[a:b] for a, b in pairwise(edges)]


def _between(chance: Random, ending: str) -> bytes:
    if ending == ".gz":
        return bytes(chance.choice((1, 2, 512)))
    body = chance.randbytes(chance.choice((0, 1, 30)))
    return bytes([0x50 + chance.randrange(16)]) + _SKIPPABLE + struct.pack("<I", len(body)) + body


def _member(chance: Random, content: bytes) -> tuple[bytes, bool]:
    flags = chance.choice((0, 0, 0, 1, 2, 4, 8, 16, 31))
    header = b"\x1f\x8b\x08" + bytes([flags]) + chance.randbytes(6)
    if flags & 4:
        header += b"\x03\0abc"
    if flags & 8:
        header += b"name\0"
    if flags & 16:
        header += b"comment\0"
    if flags & 2:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    strategy = chance.choice(
        (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)
    )
    deflate = zlib.compressobj(chance.choice((0, 1, 6, 9)), zlib.DEFLATED, -15, 8, strategy)
    body = b""
    for piece in _pieces(chance, content):
        body += deflate.compress(piece)
        if chance.random() < 0.3:
            body += deflate.flush(chance.choice((zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH)))
    trailer = struct.pack("<2I", zlib.crc32(content), len(content) & 0xFFFF_FFFF)
    return header + body + deflate.flush() + trailer, True


def _frame(chance: Random, content: bytes) -> tuple[bytes, bool]:
    if chance.random() < 0.3:
        return _frame_by_hand(chance, content), False
    checksum = chance.random() < 0.5
    parameters = zstandard.ZstdCompressionParameters.from_level(
        chance.choice((-5, 1, 3, 9)),
        window_log=chance.choice((10, 17, 20)),
        write_checksum=checksum,
        write_content_size=chance.random() < 0.5,
        enable_ldm=chance.random() < 0.2,
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    if chance.random() < 0.3:
        return compressor.compress(content), checksum
    frame, data = compressor.compressobj(), b""
    for piece in _pieces(chance, content):
        data += frame.compress(piece)
        if chance.random() < 0.5:
            data += frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return data + frame.flush(), checksum


def _frame_by_hand(chance: Random, content: bytes) -> bytes:
    """A frame of raw and run-length blocks, with a window that may be large."""
    window = chance.choice((0, 0x38, 0x58, 0x88, 0xA8))  # 1 KiB to 2 GiB
    most = min(1 << 10 + (window >> 3), 128 << 10)
    data = _MAGIC + b"\0" + bytes([window])
    for piece in _pieces(chance, content):
        for start in range(0, len(piece), most):
            part = piece[start : start + most]
            run = len(set(part)) == 1
            header = len(part) << 3 | (2 if run else 0)
            data += header.to_bytes(3, "little") + (part[:1] if run else part)
        if chance.random() < 0.2:
            data += bytes(3)
    return data + b"\x01\0\0"
