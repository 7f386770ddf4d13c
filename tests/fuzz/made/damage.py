"""Ways to damage a file, each drawn from a seed."""

from __future__ import annotations

from random import Random

from fuzz.made.case import Case, Damaged, Valid

_SIZES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)


def case_of(valid: Valid, chance: Random) -> Case:
    """Returns the valid file itself (one time in ten), or damaged in one to four places."""
    if chance.random() < 0.1:
        return Case(
            name=valid.name,
            kind=valid.kind,
            data=valid.data,
            parts=valid.parts,
            whole=valid.whole,
            sound=True,
        )
    damaged = Damaged(bytearray(valid.data), len(valid.data))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(_WAYS)(damaged, valid, chance)
    data = bytes(damaged.data)
    flipped = not damaged.other and damaged.bits > 0
    inside = all(any(a <= at < b for a, b in valid.bodies) for at in damaged.touched)
    return Case(
        name=valid.name,
        kind=valid.kind,
        data=data,
        parts=tuple(part for part in valid.parts if part.stop <= damaged.first),
        whole=valid.whole,
        sound=data == valid.data,
        # A checksum of 32 bits is sure of a few flipped bits, and of other damage but for luck.
        noticed=flipped and inside,
        flipped=flipped,
    )


def _place(damaged: Damaged, valid: Valid, chance: Random) -> int:
    """Draws an offset: any, near the ends, or near one where the format says something."""
    size = len(damaged.data)
    drawn = chance.random()
    if valid.places and drawn < 0.5:
        at = chance.choice(valid.places) + chance.randint(-2, 12)
    elif drawn < 0.6:
        at = chance.choice((0, size)) + chance.randint(-24, 24)
    else:
        at = chance.randint(0, size)
    return min(max(at, 0), size)


def _write(damaged: Damaged, at: int, stop: int, data: bytes) -> None:
    damaged.data[at:stop] = data
    damaged.first = min(damaged.first, at)
    damaged.touched += range(at, stop)
    damaged.other = True


def _flip(damaged: Damaged, valid: Valid, chance: Random) -> None:
    at = _place(damaged, valid, chance)
    if at < len(damaged.data):
        bit = 1 << chance.randrange(8)
        damaged.data[at] ^= bit
        damaged.first = min(damaged.first, at)
        damaged.touched.append(at)
        damaged.bits += 1


def _set(damaged: Damaged, valid: Valid, chance: Random) -> None:
    at = _place(damaged, valid, chance)
    if at < len(damaged.data):
        _write(
            damaged,
            at,
            at + 1,
            bytes([chance.choice((0, 0x7F, 0x80, 0xFF, chance.getrandbits(8)))]),
        )


def _garble(damaged: Damaged, valid: Valid, chance: Random) -> None:
    at = _place(damaged, valid, chance)
    stop = min(at + chance.randint(1, 40), len(damaged.data))
    _write(damaged, at, stop, chance.randbytes(stop - at))


def _cut(damaged: Damaged, valid: Valid, chance: Random) -> None:
    _write(damaged, _place(damaged, valid, chance), len(damaged.data), b"")


def _take_out(damaged: Damaged, valid: Valid, chance: Random) -> None:
    at = _place(damaged, valid, chance)
    _write(damaged, at, min(at + chance.randint(1, 60), len(damaged.data)), b"")


def _repeat(damaged: Damaged, valid: Valid, chance: Random) -> None:
    at = _place(damaged, valid, chance)
    again = bytes(damaged.data[at : at + chance.randint(1, 200)])
    stop = at + len(again)
    _write(damaged, stop, stop, again * chance.choice((1, 1, 2, 20)))


def _splice(damaged: Damaged, valid: Valid, chance: Random) -> None:
    """Copies a stretch of the file over, or between, others."""
    start, at = _place(damaged, valid, chance), _place(damaged, valid, chance)
    piece = bytes(damaged.data[start : start + chance.randint(1, 120)])
    over = chance.random() < 0.5
    _write(damaged, at, min(at + len(piece) * over, len(damaged.data)), piece)


def _token(damaged: Damaged, valid: Valid, chance: Random) -> None:
    at, token = _place(damaged, valid, chance), chance.choice(valid.tokens)
    over = chance.choice((0, 1, len(token)))
    _write(damaged, at, min(at + over, len(damaged.data)), token)


def _size(damaged: Damaged, valid: Valid, chance: Random) -> None:
    """Writes a number that may be taken for a length: little endian, or as Thrift writes them."""
    at = _place(damaged, valid, chance)
    number = max(0, chance.choice(_SIZES) + chance.randint(-1, 1)) & 0xFFFF_FFFF
    if chance.random() < 0.5:
        data = number.to_bytes(4, "little")[: chance.choice((1, 2, 3, 4))]
    else:
        data = _varint(number)
    _write(damaged, at, min(at + len(data), len(damaged.data)), data)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


_WAYS = (_flip, _flip, _flip, _set, _set, _garble, _cut, _take_out, _repeat, _splice, _token, _size)
