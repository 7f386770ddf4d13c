"""Loops over lines: where they lie, and the texts of JSON objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compiled import LANE, compiled, inlined

_NEWLINE, _RETURN = 0x0A, 0x0D
_IS_BLANK = np.isin(np.arange(256), [*b" \t\r"])
_NONE, _ONE, _LAST_BYTE = np.uint64(0), np.uint64(1), np.uint64(56)
_ONES, _HIGHEST = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_NEWLINES = np.uint64(_NEWLINE) * _ONES
_QUOTES, _BACKSLASHES, _CONTROLS = (np.uint64(ord(one)) * _ONES for one in '"\\ ')
_QUOTE, _BACKSLASH, _OPEN, _CLOSE, _COLON, _COMMA, _MINUS, _ZERO = b'"\\{}:,-0'
# What a backslash and this character stand for; 0 for all that is not read here.
_ESCAPED = np.zeros(256, np.uint8)
_ESCAPED[[*b'"\\/bfnrt']] = [*b'"\\/\b\f\n\r\t']
_HEX_VALUE = np.full(256, -1)
_HEX_VALUE[[*b"0123456789abcdef"]] = _HEX_VALUE[[*b"0123456789ABCDEF"]] = np.arange(16)
_IS_DIGIT = np.isin(np.arange(256), [*b"0123456789"])
_WORDS = (b"true", b"false", b"null")


@compiled
def place_lines(
    data: NDArray[np.uint8],
    at_byte: NDArray[np.uint64],
    text: bool,
    stops: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    numbers: NDArray[np.int64],
) -> tuple[int, int]:
    """See :func:`headrace.blocks.find_lines`; the last four are filled.

    Returns:
        How many lines there are, and how many records.
    """
    place = lines = rows = 0
    while place < len(data):
        begin = place
        found = _NONE
        while not found and place + LANE < len(data):
            other = at_byte[place] ^ _NEWLINES
            found = (other - _ONES) & ~other & _HIGHEST
            place += _bytes_before(found)
        while not found and place < len(data) and data[place] != _NEWLINE:
            place += 1
        end = place
        place = min(place + 1, len(data))
        if text:  # one '\\r' belongs to the line end, if there is one
            end -= begin < end < len(data) and data[end - 1] == _RETURN
        else:
            while end > begin and _IS_BLANK[data[end - 1]]:
                end -= 1
            while begin < end and _IS_BLANK[data[begin]]:
                begin += 1
        stops[lines] = place
        if text or end > begin:
            starts[rows] = begin
            ends[rows] = end
            numbers[rows] = lines
            rows += 1
        lines += 1
    return lines, rows


@inlined
def _bytes_before(found: Any) -> Any:
    """Returns how many of eight bytes come before the first whose highest bit is set, or 8."""
    if not found:
        return LANE
    # The ones below that bit, one of each byte, are added up in the highest byte.
    return np.int64((((found & -found) - _ONE & _ONES) * _ONES) >> _LAST_BYTE) - 1


@compiled
def read_texts(
    data: NDArray[np.uint8],
    at_byte: NDArray[np.uint64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    key: NDArray[np.uint8],
    out: NDArray[np.uint8],
    out_at_byte: NDArray[np.uint64],
    offsets: NDArray[np.int32],
) -> int:
    """Reads the string at one key of JSON objects without objects or arrays in them.

    What is read here is valid JSON (RFC 8259); what it does not know it leaves to others.

    Args:
        data: uint8[bytes], valid UTF-8.
        at_byte: uint64[bytes - 7], the eight bytes from each on.
        starts: int64[lines]; where each object begins.
        ends: int64[lines]; where it ends.
        key: uint8; the key, neither with a quote nor a backslash in it.
        out: uint8[bytes]; to be filled with the strings, one after the other.
        out_at_byte: the same memory, eight bytes from each on.
        offsets: int32[lines + 1], to be filled: where each string begins and the last one ends.

    Returns:
        How many could be read before one that could not, if there is one: where the key is missing
        or there twice, or its value no string, where a surrogate has no partner, and where it
        is no valid JSON.
    """
    written = 0
    offsets[0] = 0
    for line in range(len(starts)):
        place, end, found = starts[line], ends[line], False
        if data[place] != _OPEN:
            return line
        while True:
            place = _past_blanks(data, place + 1, end)
            if place == end or data[place] != _QUOTE:
                return line
            begin = place + 1
            place = begin
            while place < end and data[place] != _QUOTE:
                if data[place] == _BACKSLASH or data[place] < 0x20:
                    return line
                place += 1
            is_text = place - begin == len(key)
            for index in range(len(key)):
                is_text = is_text and data[begin + index] == key[index]
            place = _past_blanks(data, place + 1, end)
            if place >= end or data[place] != _COLON:
                return line
            place = _past_blanks(data, place + 1, end)
            if place >= end:
                return line
            if data[place] == _QUOTE:
                if is_text and found:
                    return line
                place, last = _string(data, at_byte, place + 1, end, out, out_at_byte, written)
                if is_text:
                    written, found = last, True
            else:
                place = end if is_text else _past_scalar(data, place, end)
            place = _past_blanks(data, place, end)
            if place >= end:
                return line
            if data[place] == _CLOSE:
                break
            if data[place] != _COMMA:
                return line
        if not found or place + 1 != end:
            return line
        offsets[line + 1] = written
    return len(starts)


@inlined
def _past_blanks(data: NDArray[np.uint8], place: int, end: int) -> int:
    while place < end and (data[place] == 0x20 or data[place] == 0x09 or data[place] == 0x0D):
        place += 1
    return place


@inlined
def _string(
    data: NDArray[np.uint8],
    at_byte: NDArray[np.uint64],
    place: int,
    end: int,
    out: NDArray[np.uint8],
    out_at_byte: NDArray[np.uint64],
    written: int,
) -> tuple[int, int]:
    """Writes what a string stands for, from after its quote on.

    Returns:
        The place after it, or ``end`` where it cannot be read, and the end of what is written.
    """
    while True:
        while place + LANE < end:
            lane = at_byte[place]
            quotes, escapes = lane ^ _QUOTES, lane ^ _BACKSLASHES
            if (
                ((quotes - _ONES) & ~quotes)
                | ((escapes - _ONES) & ~escapes)
                | ((lane - _CONTROLS) & ~lane)
            ) & _HIGHEST:
                break
            out_at_byte[written] = lane
            place += LANE
            written += LANE
        # The bytes up to the next that is not itself, and that one.
        while place < end and data[place] >= 0x20 and data[place] != _BACKSLASH:
            if data[place] == _QUOTE:
                return place + 1, written
            out[written] = data[place]
            written += 1
            place += 1
        if place + 1 >= end or data[place] != _BACKSLASH:
            return end, written
        if _ESCAPED[data[place + 1]]:
            out[written] = _ESCAPED[data[place + 1]]
            written += 1
            place += 2
            continue
        point = _number_escaped(data, place, end)
        place += 6
        if 0xD800 <= point < 0xDC00:
            low = _number_escaped(data, place, end)
            place += 6
            point = (point << 10) + low - 0x35FDC00 if 0xDC00 <= low < 0xE000 else -1
        if point < 0 or 0xDC00 <= point < 0xE000:
            return end, written
        # UTF-8 (RFC 3629)
        if point < 0x80:
            out[written] = point
            written += 1
            continue
        more = 1 + (point >= 0x800) + (point >= 0x10000)
        out[written] = (0xFF00 >> more + 1 & 0xFF) | point >> 6 * more
        for index in range(1, more + 1):
            out[written + index] = 0x80 | point >> 6 * (more - index) & 0x3F
        written += more + 1


@inlined
def _number_escaped(data: NDArray[np.uint8], place: int, end: int) -> int:
    r"""Returns the number of an escape like ``\u00e9``, -1 where there is none."""
    if place + 6 >= end or data[place] != _BACKSLASH or data[place + 1] != 0x75:
        return -1
    number = 0
    for index in range(place + 2, place + 6):
        if _HEX_VALUE[data[index]] < 0:
            return -1
        number = number << 4 | _HEX_VALUE[data[index]]
    return number


@inlined
def _past_scalar(data: NDArray[np.uint8], place: int, end: int) -> int:
    """Returns the place after a number or a literal, or ``end`` where there is none."""
    for word in _WORDS:
        if place + len(word) < end:
            same = True
            for index in range(len(word)):
                same = same and data[place + index] == word[index]
            if same:
                return place + len(word)
    if data[place] == _MINUS:
        place += 1
    first = place
    while place < end and _IS_DIGIT[data[place]]:
        place += 1
    if place == first or (data[first] == _ZERO and place > first + 1):
        return end
    if place < end and data[place] == 0x2E:  # a point
        first = place + 1
        place = first
        while place < end and _IS_DIGIT[data[place]]:
            place += 1
        if place == first:
            return end
    if place < end and (data[place] == 0x65 or data[place] == 0x45):  # e or E
        place += 1
        if place < end and (data[place] == _MINUS or data[place] == 0x2B):
            place += 1
        first = place
        while place < end and _IS_DIGIT[data[place]]:
            place += 1
        if place == first:
            return end
    return place
