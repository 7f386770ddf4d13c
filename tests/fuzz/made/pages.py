"""Where the pages of a Parquet file lie: as much of Thrift's compact protocol as that takes.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 7, 8, 12
_INTEGERS = (4, 5, 6)
_LISTS = (9, 10)
_COMPRESSED_SIZE = 3  # field of PageHeader


def chunk_span(chunk: Any) -> tuple[int, int]:
    """Returns where a column's pages lie."""
    # Without rows Arrow gives 0 for the place of the data pages.
    start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)), default=4)
    return start, start + chunk.total_compressed_size


def page_bodies(data: bytes, meta: Any) -> Iterator[tuple[int, int]]:
    """Yields where the bytes lie over which pages have checksums."""
    for group in (meta.row_group(i) for i in range(meta.num_row_groups)):
        for chunk in (group.column(i) for i in range(group.num_columns)):
            at, stop = chunk_span(chunk)
            while at < stop:
                fields: dict[int, int] = {}
                body = _struct(data, at, fields)
                at = body + fields[_COMPRESSED_SIZE]
                yield body, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return value, at


def _struct(data: bytes, at: int, fields: dict[int, int] | None = None) -> int:
    """Skips a struct; notes its own integers."""
    number = 0
    while head := data[at]:
        at += 1
        kind, delta = head & 15, head >> 4
        if delta:
            number += delta
        else:
            zigzag, at = _varint(data, at)
            number = (zigzag >> 1) ^ -(zigzag & 1)
        if kind in _INTEGERS and fields is not None:
            zigzag, at = _varint(data, at)
            fields[number] = (zigzag >> 1) ^ -(zigzag & 1)
        elif kind not in (_TRUE, _FALSE):
            at = _skip(data, at, kind)
    return at + 1


def _skip(data: bytes, at: int, kind: int) -> int:
    if kind in (_TRUE, _FALSE, _BYTE):
        return at + 1
    if kind in _INTEGERS:
        return _varint(data, at)[1]
    if kind == _DOUBLE:
        return at + 8
    if kind == _BINARY:
        size, at = _varint(data, at)
        return at + size
    if kind == _STRUCT:
        return _struct(data, at)
    if kind in _LISTS:
        head, at = data[at], at + 1
        size = head >> 4
        if size == 15:
            size, at = _varint(data, at)
        for _ in range(size):
            at = _skip(data, at, head & 15)
        return at
    raise ValueError(f"a type that page headers do not have: {kind}")
