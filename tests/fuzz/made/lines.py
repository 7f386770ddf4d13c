"""Lines of JSON and of plain text."""

from __future__ import annotations

import json
from random import Random

from fuzz.made.case import Kind, Part, Valid

BOM = b"\xef\xbb\xbf"
_ENDS = (b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b" \r\n", b"\r\r\n", b"\n \t\n")
_WORDS = (
    "a",
    "of",
    "é",
    "😀",
    "eight or more bytes ",
    '"',
    "\\",
    "\n",
    "\t",
    "\0",
    "\ud800",
    " ",
    "",
)
_KEYS = ("text", "id", "m", "x", "é", "te.xt", "")
_NUMBERS = (0, -0.0, 7, -1, 2**63 - 1, 2**63, 10**25, 1.5, 1e300, float("nan"), float("inf"))
TOKENS = (
    *(bytes([byte]) for byte in b'{}[]",:\\ \t\r\n\0-+.eE019\x01\x7f'),
    b"\xff",
    b"\xc3",
    b"\xc3\xa9",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    BOM,
    b"\r\n",
    b"\r\r\n",
    b"\\ud800",
    b"\\udc00",
    b"\\ud83d\\ude00",
    b"\\u0000",
    b"\\u00",
    b"\\x",
    b"\\",
    b"NaN",
    b"Inf",
    b"Infinity",
    b"-NaN",
    b"null",
    b"true",
    b"tru",
    b"9" * 25,
    b"1e999",
    b"01",
    b'"text":',
    b'"text":"a",',
    b'"id":7,',
    b'"m":{"text":"b"},',
    b"{}",
    b"//",
    b"/*",
    b"PAR1",
    b"[" * 40,
    b'{"a":' * 40,
    b"[" * 3000,
    b"]" * 3000,
    b"\n" * 40,
    b"x" * 300,
)


def text(chance: Random, kind: Kind) -> bytes:
    """Returns some lines of a kind."""
    make = _object if kind == "jsonl" else _line
    pieces = [BOM] if chance.random() < 0.1 else []
    for _ in range(chance.choice((0, 1, 3, 10, 40))):
        pieces += [make(chance), chance.choice(_ENDS)]
    if chance.random() < 0.3:
        pieces = pieces[:-1]
    return b"".join(pieces)


def jsonl(chance: Random) -> Valid:
    """Makes a JSONL file."""
    return _plain(text(chance, "jsonl"), "a.jsonl", "jsonl")


def plain(chance: Random) -> Valid:
    """Makes a file of plain text."""
    return _plain(text(chance, "text"), "a.txt", "text")


def _plain(data: bytes, name: str, kind: Kind) -> Valid:
    return Valid(name=name, kind=kind, data=data, parts=(Part(0, len(data), data),), tokens=TOKENS)


def _line(chance: Random) -> bytes:
    line = "".join(chance.choice(_WORDS) for _ in range(chance.choice((0, 1, 5, 60))))
    return line.replace("\n", "").encode("utf-8", "replace")


def _object(chance: Random) -> bytes:
    drawn = chance.random()
    if drawn < 0.6:
        record = {"id": chance.randrange(1000), "text": _words(chance)}
    elif drawn < 0.8:
        record = {"m": {"text": _words(chance), "id": _words(chance)}, "text": _words(chance)}
    else:
        record = {chance.choice(_KEYS): _value(chance, 3) for _ in range(chance.randrange(5))}
    separators = chance.choice(((",", ":"), (", ", ": "), (" , ", " : ")))
    line = json.dumps(record, ensure_ascii=chance.random() < 0.3, separators=separators)
    return line.encode("utf-8", "surrogatepass" if chance.random() < 0.5 else "replace")


def _words(chance: Random) -> str:
    return "".join(chance.choice(_WORDS) for _ in range(chance.choice((0, 1, 5, 5, 60))))


def _value(chance: Random, depth: int) -> object:
    kind = chance.randrange(7 if depth else 5)
    if kind == 5:
        return [_value(chance, depth - 1) for _ in range(chance.randrange(3))]
    if kind == 6:
        return {chance.choice(_KEYS): _value(chance, depth - 1) for _ in range(chance.randrange(3))}
    simple = (None, chance.random() < 0.5, chance.choice(_NUMBERS), _words(chance), _words(chance))
    return simple[kind]
