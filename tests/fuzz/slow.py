"""What a file must give, found the slow and plain way, with nothing of headrace in it.

Every function goes by the rules in README.md ("Inputs", "What happens on bad input").
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from typing import Any

import zstandard

BOM = b"\xef\xbb\xbf"
ANY = object()  # the row's text is one of two things, both allowed
_LENIENT = re.compile(rb"-NaN|Inf(?!inity)")  # Arrow takes these for numbers, Python does not


@dataclass(frozen=True, slots=True)
class Row:
    """A record.

    Attributes:
        line: number of its line, from 1; of its row for Parquet, from 0.
        text: its text; None where it is a bad row; :data:`ANY` where it may be either.
    """

    line: int
    text: Any


def rows_of(content: bytes, kind: str) -> list[Row]:
    """Returns the records of JSONL or plain text."""
    lines = content.removeprefix(BOM).split(b"\n")
    last = lines.pop()
    lines = [line.removesuffix(b"\r") for line in lines] + ([last] if last else [])
    numbered = list(enumerate(lines, 1))
    if kind == "text":
        return [Row(number, _decoded(line)) for number, line in numbered]
    stripped = [(number, line.strip(b" \t\r")) for number, line in numbered]
    return [Row(number, _text(line)) for number, line in stripped if line]


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def _text(line: bytes) -> Any:
    try:
        text = json.loads(line.decode(), parse_int=float)["text"]
    except RecursionError:
        return ANY
    except (ValueError, KeyError, TypeError):
        return ANY if _LENIENT.search(line) else None
    if not isinstance(text, str):
        return None
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def unpacked(data: bytes) -> tuple[bytes, bool]:
    """Returns what can be decoded of some bytes, and whether they are whole."""
    if _is_frame(data[:4]):
        return _unzstd(data)
    return _gunzip(data) if is_packed(data) else (data, True)


def is_packed(data: bytes) -> bool:
    """Returns whether these bytes are compressed."""
    return _is_frame(data[:4]) or data[:2] == b"\x1f\x8b"


def is_stub(data: bytes) -> bool:
    """Returns whether these few bytes begin a compressed file, and are too few to tell."""
    magics = (zstandard.FRAME_HEADER, b"\x1f\x8b")
    return bool(data) and any(m != data and m.startswith(data) for m in magics)


def _is_frame(head: bytes) -> bool:
    return head == zstandard.FRAME_HEADER or _is_skippable(head)


def _is_skippable(head: bytes) -> bool:
    return head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


def _unzstd(data: bytes) -> tuple[bytes, bool]:
    out, at = [], 0
    while at < len(data):
        head = data[at : at + 4]
        if _is_skippable(head):
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            if at + 8 + size > len(data):
                return b"".join(out), False
            at += 8 + size
            continue
        if head != zstandard.FRAME_HEADER:
            return b"".join(out), False
        got, at, whole = _unzstd_frame(data, at)
        out.append(got)
        if not whole:
            return b"".join(out), False
    return b"".join(out), True


def _unzstd_frame(data: bytes, at: int) -> tuple[bytes, int, bool]:
    """Decodes a frame a byte at a time; of a block with a fault, also one in its size, nothing."""
    frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    done, block = b"", b""
    try:
        end = at + zstandard.frame_header_size(data[at:])  # of the frame's header, then of a block
    except zstandard.ZstdError:
        return b"", at, False
    while not frame.eof:
        if at == len(data):
            return done + block, at, False
        if at == end:
            header = int.from_bytes(data[at : at + 3], "little")
            size = 1 if header >> 1 & 3 == 1 else header >> 3
            done, block, end = done + block, b"", at + 3 + size
        try:
            block += frame.decompress(data[at : at + 1])
        except zstandard.ZstdError:
            return done, at, False
        at += 1
    return done + block, at, True


def _gunzip(data: bytes) -> tuple[bytes, bool]:
    out, at = [], 0
    while at < len(data):
        if data[at] == 0 and at:
            at += 1
            continue
        if data[at : at + 2] != b"\x1f\x8b":
            return b"".join(out), False
        member = zlib.decompressobj(31)
        while not member.eof:
            if at == len(data):
                return b"".join(out), False
            try:
                out.append(member.decompress(data[at : at + 1]))
            except zlib.error:
                return b"".join(out), False
            at += 1
    return b"".join(out), True
