"""Bytes as stored -> bytes as meant: zstd, gzip or plain, told apart by content.

Everything that can be decoded before a damage is handed out before the error is raised. That is
why zstd frames are fed to the decoder block by block (https://www.rfc-editor.org/rfc/rfc8878,
section 3.1.1): a decoder that is given more drops what it had decoded when it meets the damage.
It also bounds a step's output to 128 KiB, whatever the ratio.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Literal, NoReturn, Protocol

import zstandard

from headrace.errors import DamagedInputError, InputError

ENDINGS = (".zst", ".zstd", ".gz", ".gzip")
_ZSTD = zstandard.FRAME_HEADER
_GZIP = b"\x1f\x8b"
_SKIPPABLE = b"\x2a\x4d\x18"  # after a first byte of 0x50 to 0x5f
_ZSTD_HEADER_MAX = 18
_ZSTD_BLOCK_MAX = 128 << 10
_ZSTD_WINDOW_MAX = 1 << 31  # what `zstd --ultra --long=31` writes
_RESERVED, _RUN = 3, 1
_CHUNK = 1 << 20
_GZIP_CHUNK = 64 << 10
_READ = 256 << 10


class Readable(Protocol):
    """What :class:`Stored` reads from: a file of Python's or of ``pyarrow.fs``."""

    def read(self, size: int, /) -> bytes | None:
        """Returns up to ``size`` bytes, and none only at the end."""

    def close(self) -> None:
        """Closes the file."""


class Stored:
    """An input as it is stored, read from front to back, with room to look ahead.

    Attributes:
        name: the input as shown to the user.
        offset: bytes handed out so far.
    """

    __slots__ = ("_at", "_buffer", "_file", "name", "offset")

    def __init__(self, file: Readable, name: str) -> None:
        self._file = file
        self._buffer, self._at = b"", 0
        self.name = name
        self.offset = 0

    def peek(self, size: int) -> bytes:
        """Returns the next ``size`` bytes, fewer only at the end, without handing them out."""
        while len(self._buffer) - self._at < size and (more := self._more(_READ)):
            self._buffer, self._at = self._buffer[self._at :] + more, 0
        return self._buffer[self._at : self._at + size]

    def read(self, size: int) -> bytes:
        """Returns up to ``size`` bytes, and none only at the end."""
        if self._at == len(self._buffer):
            self._buffer, self._at = self._more(max(size, _READ)), 0
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        self.offset += len(data)
        return data

    def take(self, size: int) -> bytes:
        """Returns ``size`` bytes, fewer only at the end."""
        data = self.read(size)
        while len(data) < size and (more := self.read(size - len(data))):
            data += more
        return data

    def unread(self, data: bytes) -> None:
        """Takes back the bytes handed out last."""
        self._buffer, self._at = data + self._buffer[self._at :], 0
        self.offset -= len(data)

    def damaged(self, what: str, offset: int | None = None) -> NoReturn:
        """Raises the error for a damage at ``offset``, by default at the present one."""
        at = self.offset if offset is None else offset
        message = f"{self.name}: {what} at byte {at}; restore the file and run again"
        raise DamagedInputError(message, file=self.name, offset=at)

    def close(self) -> None:
        """Closes the file beneath."""
        self._file.close()

    def _more(self, size: int) -> bytes:
        try:
            return self._file.read(size) or b""
        except OSError as error:
            at = self.offset + len(self._buffer) - self._at
            raise InputError(
                f"{self.name}: reading fails at byte {at}: {one_line(error)}; see that it is there "
                f"and can be read"
            ) from error


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, without what cannot be printed."""
    return printable((str(error).splitlines() or [type(error).__name__])[0])


def printable(text: str) -> str:
    """Returns a text from a file as it may stand in a message: in one line, without controls."""
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


def compression(head: bytes) -> Literal["zstd", "gzip"] | None:
    """Returns how an input is compressed that begins with these (four or more) bytes."""
    if head[:4] == _ZSTD or _is_skippable(head):
        return "zstd"
    return "gzip" if head[:2] == _GZIP else None


def decompress(stored: Stored) -> Iterator[bytes]:
    """Yields an input's content in pieces of at most some MiB.

    Args:
        stored: the input, at its start.

    Yields:
        Non-empty pieces.

    Raises:
        DamagedInputError: after all that could be decoded.
    """
    head = stored.peek(4)
    kind = compression(head)
    if kind == "zstd":
        yield from _zstd(stored)
    elif kind == "gzip":
        yield from _gzip(stored)
    else:
        # Fewer bytes than a magic number has: only the name can tell that there should be more.
        broken = any(len(head) < len(m) and m.startswith(head) for m in (_ZSTD, _GZIP))
        if head and broken and stored.name.lower().endswith(ENDINGS):
            stored.damaged("compressed data breaks off")
        while chunk := stored.read(_CHUNK):
            yield chunk


def _is_skippable(head: bytes) -> bool:
    return head[1:4] == _SKIPPABLE and head[0] >> 4 == 5


def _zstd(stored: Stored) -> Iterator[bytes]:
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
    while head := stored.peek(_ZSTD_HEADER_MAX):
        if _is_skippable(head):
            header = stored.take(8)
            left = int.from_bytes(header[4:], "little")
            while left and (skipped := stored.read(min(left, _CHUNK))):
                left -= len(skipped)
            if left or len(header) < 8:
                stored.damaged("zstd data breaks off")
        elif head[:4] == _ZSTD:
            yield from _zstd_frame(stored, head, decoder)
        elif len(head) < 4:
            stored.damaged("zstd data breaks off")
        else:
            stored.damaged("something that is not zstd follows zstd data")


def _zstd_frame(
    stored: Stored, head: bytes, decoder: zstandard.ZstdDecompressor
) -> Iterator[bytes]:
    start = at = stored.offset
    try:
        checksum = zstandard.get_frame_parameters(head).has_checksum
        frame = decoder.decompressobj()
        frame.decompress(stored.take(zstandard.frame_header_size(head)))
        last = False
        while not last:
            at = stored.offset
            header = stored.take(3)
            fields = int.from_bytes(header, "little")
            last, kind, size = bool(fields & 1), fields >> 1 & 3, fields >> 3
            if len(header) == 3 and (kind == _RESERVED or size > _ZSTD_BLOCK_MAX):
                stored.damaged("zstd data is corrupt", at)
            size = 1 if kind == _RUN else size
            body = stored.take(size)
            if data := frame.decompress(header + body):
                yield data
            if len(header) < 3 or len(body) < size:
                stored.damaged("zstd data breaks off")
        at = stored.offset
        if checksum:
            frame.decompress(stored.take(4))
    except zstandard.ZstdError as error:
        if "not enough memory" in str(error):
            size = zstandard.get_frame_parameters(head).window_size >> 20
            message = (
                f"{stored.name}: the zstd frame at byte {start} needs {size} MiB of memory, which "
                f"cannot be had; raise the limit, or compress it with a smaller window (--long)"
            )
            raise DamagedInputError(message, file=stored.name, offset=start) from error
        stored.damaged(f"zstd data is corrupt ({one_line(error)})", at)
    if not frame.eof:
        stored.damaged("zstd data breaks off")


def _gzip(stored: Stored) -> Iterator[bytes]:
    while head := stored.peek(2):
        if head == _GZIP:
            yield from _gzip_member(stored)
        elif head[0] == 0 and stored.offset:
            stored.unread(stored.read(_GZIP_CHUNK).lstrip(b"\0"))  # padding, as tapes have it
        elif len(head) < 2 and _GZIP.startswith(head):
            stored.damaged("gzip data breaks off")
        else:
            stored.damaged("something that is not gzip follows gzip data")


def _gzip_member(stored: Stored) -> Iterator[bytes]:
    member = zlib.decompressobj(wbits=31)
    data = b""
    while not member.eof:
        data = data or stored.read(_GZIP_CHUNK)
        if not data:
            if rest := member.flush():
                yield rest
            break
        before = member.copy()
        try:
            out = member.decompress(data, _CHUNK)
        except zlib.error as error:
            # The call's output is lost with the error: decode again, a byte at a time, up to it.
            start = stored.offset - len(data)
            for at in range(len(data)):
                try:
                    rescued = before.decompress(data[at : at + 1])
                except zlib.error:
                    stored.damaged(f"gzip data is corrupt ({one_line(error)})", start + at)
                if rescued:
                    yield rescued
            stored.damaged(f"gzip data is corrupt ({one_line(error)})", start)
        data = member.unconsumed_tail
        if out:
            yield out
    if not member.eof:
        stored.damaged("gzip data breaks off")
    stored.unread(member.unused_data)
