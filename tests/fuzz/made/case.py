"""A case: a file, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

Kind = Literal["jsonl", "text", "parquet"]


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the valid file that can be read by itself, and what it holds.

    Attributes:
        start: its first byte.
        stop: the byte after its last.
        content: its bytes, decompressed; or its rows.
    """

    start: int
    stop: int
    content: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A file to read.

    Attributes:
        name: its name without folder; the ending tells the format.
        kind: what it holds.
        data: its bytes, damaged or not.
        parts: the parts of the valid file that are whole in ``data``, in front of all damage.
        whole: all of the valid file's content or rows; None where the case has no valid file.
        sound: whether ``data`` is the valid file.
        noticed: whether checksums are sure to notice the damage.
        flipped: whether nothing but a few bits of ``data`` is wrong.
    """

    name: str
    kind: Kind
    data: bytes
    parts: tuple[Part, ...] = ()
    whole: Any = None
    sound: bool = False
    noticed: bool = False
    flipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Valid:
    """A valid file.

    Attributes:
        name: see :class:`Case`.
        kind: see :class:`Case`.
        data: its bytes.
        parts: all of its parts, ascending.
        tokens: bytes that mean something in this format.
        places: offsets that are worth damaging, beside all others.
        bodies: stretches over whose bytes a checksum goes.
        whole: see :class:`Case`; None: the content of all parts.
    """

    name: str
    kind: Kind
    data: bytes
    parts: tuple[Part, ...]
    tokens: tuple[bytes, ...]
    places: tuple[int, ...] = ()
    bodies: tuple[tuple[int, int], ...] = ()
    whole: Any = None


Maker = Callable[[Random], Valid]


@dataclass(slots=True)
class Damaged:
    """Bytes that are being damaged.

    Attributes:
        data: as they are by now.
        first: the first offset of the original that has been touched.
        touched: every offset written to, while the length is the original's.
        bits: how many bits were flipped in place.
        other: whether anything else was done.
    """

    data: bytearray
    first: int
    touched: list[int] = field(default_factory=list)
    bits: int = 0
    other: bool = False
