"""Loops over words: cuts rows, numbers words, puts pieces and rows together.

How words lie in a table stands in :class:`Words`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compiled import LANE, compiled, inlined

MAX_WORD_BYTES = 64
UNFIT = -1
SPARE = 4  # ids that can be read and written after the last ones

_SPACE = 0x20
# What some engine's \s may take, and its like: control characters and, by their last bytes in
# UTF-8, U+0085, U+00A0, U+1680, U+180E, U+2000-200F, U+2028, U+2029, U+202F, U+205F, U+2060,
# U+3000, U+FEFF.
_IS_WHITE = np.isin(np.arange(256), [*range(0x09, 0x0E), *range(0x1C, 0x21)])
_WHITE_PAIRS = (0xC285, 0xC2A0)
_WHITE_TRIPLES = (
    *(0xE19A80, 0xE1A08E, *range(0xE28080, 0xE28090), 0xE280A8, 0xE280A9, 0xE280AF),
    *(0xE2819F, 0xE281A0, 0xE38080, 0xEFBBBF),
)
_BYTE, _HALF = np.uint64(8), np.uint64(32)
# What keeps the bytes of a word of so many bytes in its first lane, and in its second.
_MASKS = np.array([(1 << 8 * min(size, 8)) - 1 for size in range(MAX_WORD_BYTES + 1)], np.uint64)
_MASKS_OF_SECOND = np.append(np.zeros(LANE, np.uint64), _MASKS)


class Words(NamedTuple):
    """The arrays of a table of words; see :class:`headrace.wordtable.WordTable`.

    Attributes:
        factors: uint64[2], odd and random: what the hash multiplies with.
        slots: uint64[a power of two, 4]: a word's first sixteen bytes in two lanes, so that few
            words need more memory than that to be found; (number + 1) << 8 | bytes, zero where
            the slot is empty; and the ``now`` of the last call that met the word.
        edges: int64[at least words + 1].
        lengths: uint8[at least words]: bytes of each word.
        lanes: uint64; word ``i`` is ``lanes[edges[i]:edges[i + 1]]``, eight bytes in each, zeros
            after the last.
    """

    factors: NDArray[np.uint64]
    slots: NDArray[np.uint64]
    edges: NDArray[np.int64]
    lengths: NDArray[np.uint8]
    lanes: NDArray[np.uint64]


@compiled
def cut_rows(
    data: NDArray[np.uint8],
    rows: NDArray[np.int64],
    joins: bool,
    mean_bytes: int,
    edges: NDArray[np.int32],
    bounds: NDArray[np.int64],
) -> tuple[int, int]:
    """See :func:`headrace.cutting.cut`; ``edges`` and ``bounds`` are filled.

    Returns:
        How many words there are, and how many rows were not cut.
    """
    words = whole = 0
    for row in range(len(rows) - 1):
        begin, end = rows[row], rows[row + 1]
        bounds[row] = first = words
        if begin == end:
            continue
        edges[words] = begin
        words += 1
        for place in range(begin + 1, end):
            # Written wherever it is and kept where it is a space: no branch to be foreseen.
            edges[words] = place
            words += data[place] == _SPACE
        if joins:
            kept = first + 1
            for word in range(first + 1, words):
                edges[kept] = edges[word]
                kept += not _after_white(data, edges[word])
            words = kept
        if end - begin > mean_bytes * (words - first):
            words = first + 1
            whole += 1
    bounds[len(rows) - 1] = words
    edges[words] = len(data)
    return words, whole


@inlined
def _after_white(data: NDArray[np.uint8], place: int) -> bool:
    """Says whether the character that ends before ``place``, in UTF-8, is white."""
    last = data[place - 1]
    if last < 0x80:
        return bool(_IS_WHITE[last])
    pair = np.int64(data[place - 2]) << 8 | last
    if pair in _WHITE_PAIRS:
        return True
    return place > 2 and (np.int64(data[place - 3]) << 16 | pair) in _WHITE_TRIPLES


@compiled
def number_words(
    at_byte: NDArray[np.uint64],
    edges: NDArray[np.int32],
    numbers: NDArray[np.int32],
    done: int,
    count: int,
    now: np.uint64,
    most: int,
    words: Words,
) -> tuple[int, int]:
    """Numbers words from the ``done``-th on and adds unknown ones, as long as there is room.

    Args:
        at_byte: uint64[bytes and some]; the eight bytes from each on, zeros after the last.
        edges: int32[n + 1]; where each begins and the last one ends.
        numbers: int32[n], to be filled; :data:`UNFIT` for what is too long, and for unknown words
            once there are ``most``.
        done: where to begin.
        count: words that the table has.
        now: to be put down for each word that is met, unless a higher number stands there.
        most: words that the table may have.
        words: the table.

    Returns:
        How many are done, and how many words the table has.
    """
    factors, slots, lane_edges, lengths, lanes = words
    for index in range(done, len(numbers)):
        begin = edges[index]
        length = edges[index + 1] - begin
        if length > MAX_WORD_BYTES:
            numbers[index] = UNFIT
            continue
        slot = _slot_of(at_byte, begin, length, factors, slots, lane_edges, lanes)
        if slots[slot, 2]:
            number = np.int64(slots[slot, 2] >> _BYTE) - 1
        elif count >= most:
            numbers[index] = UNFIT
            continue
        else:
            lane = lane_edges[count]
            if count == len(lengths) or lane + MAX_WORD_BYTES // LANE > len(lanes):
                return index, count
            for place in range(begin, begin + length, LANE):
                lanes[lane] = at_byte[place] & _MASKS[begin + length - place]
                lane += 1
            slots[slot, 0] = at_byte[begin] & _MASKS[length]
            slots[slot, 1] = at_byte[begin + LANE] & _MASKS_OF_SECOND[length]
            slots[slot, 2] = np.uint64((count + 1) << 8 | length)
            lengths[count] = length
            lane_edges[count + 1] = lane
            number = np.int64(count)
            count += 1
        numbers[index] = number
        slots[slot, 3] = max(slots[slot, 3], now)
    return len(numbers), count


@inlined
def _slot_of(
    at_byte: NDArray[np.uint64],
    begin: int,
    length: int,
    factors: NDArray[np.uint64],
    slots: NDArray[np.uint64],
    edges: NDArray[np.int64],
    lanes: NDArray[np.uint64],
) -> Any:
    """Returns the slot that holds a word, or the empty one that it would get."""
    # Two lanes of every word, with no branch to be foreseen; few words have a third.
    first = at_byte[begin] & _MASKS[length]
    second = at_byte[begin + LANE] & _MASKS_OF_SECOND[length]
    value = _mixed(_mixed(np.uint64(length), first, factors), second, factors)
    for place in range(begin + 2 * LANE, begin + length, LANE):
        value = _mixed(value, at_byte[place] & _MASKS[begin + length - place], factors)
    wrap = np.uint64(len(slots) - 1)
    slot = (value * factors[1]) >> _HALF & wrap
    while slots[slot, 2]:
        entry = slots[slot, 2]
        same = (
            (slots[slot, 0] == first)
            & (slots[slot, 1] == second)
            & (entry & np.uint64(0xFF) == np.uint64(length))
        )
        if same:
            if length <= 2 * LANE:
                return slot
            lane = edges[np.int64(entry >> _BYTE) - 1] + 2
            for place in range(begin + 2 * LANE, begin + length, LANE):
                same = same and lanes[lane] == at_byte[place] & _MASKS[begin + length - place]
                lane += 1
            if same:
                return slot
        slot = (slot + np.uint64(1)) & wrap
    return slot


@inlined
def _mixed(value: Any, lane: Any, factors: NDArray[np.uint64]) -> Any:
    mixed = (value ^ lane) * factors[0]
    return mixed ^ mixed >> _HALF


@compiled
def settle_words(
    old_slots: NDArray[np.uint64], renumbered: NDArray[np.int64], words: Words
) -> None:
    """Puts words from one array of slots into another, which is empty.

    Args:
        old_slots: where they are.
        renumbered: int64[words]; the number of each in ``words``, or -1 for one that is dropped.
        words: the table that they go to; complete but for the slots.
    """
    factors, slots, edges, _, lanes = words
    wrap = np.uint64(len(slots) - 1)
    for old in range(len(old_slots)):
        entry = old_slots[old, 2]
        if entry == 0 or renumbered[np.int64(entry >> _BYTE) - 1] < 0:
            continue
        number = renumbered[np.int64(entry >> _BYTE) - 1]
        length = entry & np.uint64(0xFF)
        first, second = old_slots[old, 0], old_slots[old, 1]
        value = _mixed(_mixed(length, first, factors), second, factors)
        for lane in range(edges[number] + 2, edges[number + 1]):
            value = _mixed(value, lanes[lane], factors)
        slot = (value * factors[1]) >> _HALF & wrap
        while slots[slot, 2]:
            slot = (slot + np.uint64(1)) & wrap
        slots[slot, 0] = first
        slots[slot, 1] = second
        slots[slot, 2] = np.uint64(number + 1) << _BYTE | length
        slots[slot, 3] = old_slots[old, 3]


@compiled
def piece_together(
    at_byte: NDArray[np.uint64],
    edges: NDArray[np.int64],
    starts: Words,
    start_ids: NDArray[np.int32],
    rest: Words,
    rest_ids: NDArray[np.int32],
    unknown: int,
    most_bytes: int,
    ids: NDArray[np.int32],
    lengths: NDArray[np.int64],
) -> int:
    """Cuts parts into the pieces of a WordPiece vocabulary, the longest that fits first.

    Args:
        at_byte: uint64[bytes and some]; the eight bytes from each on.
        edges: int64[parts + 1]; where each begins and the last one ends.
        starts: the pieces that a part can begin with.
        start_ids: int32[pieces]; their ids.
        rest: the pieces that can follow.
        rest_ids: int32[pieces]; their ids.
        unknown: the id of a part that is not made of pieces.
        most_bytes: of how many bytes a part may be that is not unknown.
        ids: int32[bytes], to be filled with the ids of all parts.
        lengths: int64[parts], to be filled: how many ids each part has; a space has none.

    Returns:
        How many ids there are.
    """
    factors, slots, lane_edges, _, lanes = starts
    rest_factors, rest_slots, rest_edges, _, rest_lanes = rest
    count = 0
    for part in range(len(lengths)):
        begin, end, first = edges[part], edges[part + 1], count
        if end - begin == 1 and at_byte[begin] & np.uint64(0xFF) == _SPACE:
            lengths[part] = 0
            continue
        place = begin
        while place < end and end - begin <= most_bytes:
            size, found = min(end - place, MAX_WORD_BYTES), np.uint64(0)
            while size and not found:
                if place == begin:
                    slot = _slot_of(at_byte, place, size, factors, slots, lane_edges, lanes)
                    found = slots[slot, 2]
                else:
                    slot = _slot_of(
                        at_byte, place, size, rest_factors, rest_slots, rest_edges, rest_lanes
                    )
                    found = rest_slots[slot, 2]
                size -= not found
            if not found:
                break
            number = np.int64(found >> _BYTE) - 1
            ids[count] = start_ids[number] if place == begin else rest_ids[number]
            count += 1
            place += size
        if place < end:
            count = first
            ids[count] = unknown
            count += 1
        lengths[part] = count - first
    return count


@compiled
def copy_stretches(
    source: NDArray[np.uint8],
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
    target: NDArray[np.uint8],
) -> None:
    """Copies stretches of ``source`` to ``target``, where they lie one after the other."""
    for index in range(len(begins)):
        shift = begins[index] - ends[index]
        for place in range(ends[index], ends[index + 1]):
            target[place] = source[place + shift]


@compiled
def join_words(
    words: NDArray[np.int32],
    bounds: NDArray[np.int64],
    edges: NDArray[np.int64],
    ids: NDArray[np.int32],
    before: NDArray[np.int32],
    head: NDArray[np.int32],
    after: NDArray[np.int32],
    room: int,
    left: bool,
    offsets: NDArray[np.int64],
    truncated: NDArray[np.bool_],
) -> NDArray[np.int32]:
    """Puts rows together and returns their ids and a few more; fills ``offsets`` and ``truncated``.

    Of each row ``before``, ``head``, the lists of its words and ``after``; between the first and
    the last at most ``room`` ids, of which the first ones go if ``left`` and else the last ones.
    """
    offsets[0] = 0
    longest = 0
    for row in range(len(bounds) - 1):
        content = len(head)
        for word in words[bounds[row] : bounds[row + 1]]:
            content += edges[word + 1] - edges[word]
        longest = max(longest, content)
        truncated[row] = content > room
        offsets[row + 1] = offsets[row] + len(before) + min(content, room) + len(after)
    joined = np.empty(offsets[-1] + SPARE, np.int32)
    whole = np.empty(longest + SPARE if longest > room else 0, np.int32)
    for row in range(len(bounds) - 1):
        begin, end = offsets[row] + len(before), offsets[row + 1] - len(after)
        joined[offsets[row] : begin] = before
        target, place = (whole, 0) if truncated[row] else (joined, begin)
        target[place : place + len(head)] = head
        place += len(head)
        for word in words[bounds[row] : bounds[row + 1]]:
            first, last = edges[word], edges[word + 1]
            # Always as many as most words have, with no branch to be foreseen; what is too much
            # is overwritten by the next.
            for more in range(SPARE):
                target[place + more] = ids[first + more]
            for index in range(first + SPARE, last):
                target[place + index - first] = ids[index]
            place += last - first
        if truncated[row]:
            skipped = place - room if left else 0
            joined[begin:end] = whole[skipped : skipped + room]
        joined[end : offsets[row + 1]] = after
    return joined
