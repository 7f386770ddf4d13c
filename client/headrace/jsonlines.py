"""JSONL records, fast where that is provably right and line by line where it is not.

The fastest way is a compiled loop (:func:`headrace.kernels.lines.read_texts`) that takes a line
at a time and reads of it only what RFC 8259 allows: one object of strings, numbers and literals,
with the text's key once. It stops at the first line that is anything else; others go on there.

The next one is ``pyarrow.json``, which reads a stream of objects and knows no lines. Its row i is
line i of n lines if each of them starts with ``{`` and ends with ``}`` and it finds n rows:

1. No string holds a raw line break, for its parser refuses control characters in strings. So a
   ``}`` at a line's end closes an object.
2. If that object lay inside another value, the next line's ``{`` would be a syntax error, and so
   would be the end of the data. So no value crosses a line's end.
3. Each line begins with an object and so makes one row or more; n lines and n rows make one each.

What pyarrow refuses is read by Python's ``json``. The two agree on what they both accept; where
pyarrow accepts more (it does for deep nesting and for the numbers ``Inf`` and ``-NaN``), a line
that Python refuses is shown to pyarrow alone, so that a row never depends on its neighbours.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from headrace.blocks import BadRow, Block, find_lines, is_utf8
from headrace.kernels.compiled import LANE, eight_bytes
from headrace.kernels.lines import read_texts

_OPEN, _CLOSE = b"{}"
_GROUPS = (1 << 16, 256)  # rows read at once; pyarrow refuses more than 100,000
# Records after one that is not flat until the flat way is tried again, first and at last.
_AFTER_OTHER = (256, 1 << 16)
_MAX_FLAT_BYTES = (1 << 31) - 64
_SURROGATES = re.compile("[\ud800-\udfff]")
_INT64 = range(-(1 << 63), 1 << 63)


class _Number(str):
    """A JSON number as it is written; Python's own would limit digits and lose spelling."""

    __slots__ = ()


_DECODER = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_Number)
_MISSING = object()


class JsonReader:
    """Reads the texts and ids of one block.

    Args:
        block: a JSONL block.
        text_field: field of the text; dots descend into objects.
        id_field: field of the id, or None.
        string_ids: whether ids are strings; otherwise they are int64.
    """

    def __init__(
        self, block: Block, text_field: str, id_field: str | None, *, string_ids: bool
    ) -> None:
        self._block = block
        self._data: bytes = block.data
        self._text_field, self._id_field = text_field, id_field
        self._text_path = text_field.split(".")
        self._id_path = None if id_field is None else id_field.split(".")
        self._string_ids = string_ids
        self._id_kind = pa.string() if string_ids else pa.int64()
        self._options = [
            pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
            for schema in self._schemas()
        ]
        self._lines = find_lines(self._data, "jsonl")
        array = np.frombuffer(self._data, np.uint8)
        lines = self._lines
        self._framed = (array[lines.starts] == _OPEN) & (array[lines.ends - 1] == _CLOSE)
        self._bad: list[BadRow] = []
        # The key to find in flat objects, where their ids are not asked for.
        key = text_field.encode(errors="surrogatepass")
        plain = id_field is None and not any(one in key for one in b'."\\')
        self._key = key if plain and is_utf8(self._data) else None

    def read(self) -> tuple[Any, Any | None, tuple[BadRow, ...]]:
        """Returns texts: string[rows], ids: int64 or string [rows] or None, and the bad rows."""
        parts: list[tuple[Any, Any]] = []
        first, last, group = 0, len(self._lines.starts), _AFTER_OTHER[0]
        while first < last:
            texts = self._read_flat(first)
            if len(texts):
                parts.append((texts, None))
                first += len(texts)
            least, most = _AFTER_OTHER
            group = least if len(texts) >= group else min(2 * group, most)
            if first < last:
                stop = min(first + group, last)
                parts += self._read_range(first, stop, _GROUPS)
                first = stop
        texts = pa.concat_arrays([pa.array([], pa.string()), *(part[0] for part in parts)])
        ids = None
        if self._id_path is not None:
            ids = pa.concat_arrays([pa.array([], self._id_kind), *(part[1] for part in parts)])
        return texts, ids, tuple(self._bad)

    def _schemas(self) -> list[Any]:
        """The schemas to try in turn; none where the two fields get in each other's way."""
        if self._id_path is None:
            return [_schema([(self._text_path, pa.string())])]
        shared = min(len(self._text_path), len(self._id_path))
        if self._text_path[:shared] == self._id_path[:shared]:
            return []
        kinds = [pa.string(), pa.int64()] if self._string_ids else [pa.int64()]
        return [_schema([(self._text_path, pa.string()), (self._id_path, kind)]) for kind in kinds]

    def _read_range(self, start: int, stop: int, groups: tuple[int, ...]) -> list[tuple[Any, Any]]:
        """Reads these records in groups of the first size, and a group that fails in the next."""
        if not groups:
            return [self._read_slowly(start, stop)]
        parts = []
        for first in range(start, stop, groups[0]):
            last = min(first + groups[0], stop)
            fast = self._read_fast(first, last)
            if fast is None:
                parts += self._read_range(first, last, groups[1:])
            else:
                parts.append(self._explain_nulls(fast, first))
        return parts

    def _read_flat(self, start: int) -> Any:
        """Returns the texts of the records from ``start`` on that are flat, and have one."""
        starts, ends = self._lines.starts[start:], self._lines.ends[start:]
        if self._key is None or ends[-1] - starts[0] > _MAX_FLAT_BYTES:
            return pa.array([], pa.string())
        out = np.empty(ends[-1] - starts[0] + 2 * LANE, np.uint8)
        offsets = np.empty(len(starts) + 1, np.int32)
        rows = read_texts(
            np.frombuffer(self._data, np.uint8),
            eight_bytes(self._data),
            starts,
            ends,
            np.frombuffer(self._key, np.uint8),
            out,
            np.ndarray(len(out) - LANE, np.uint64, out, 0, (1,)),
            offsets,
        )
        return pa.Array.from_buffers(
            pa.string(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(out)]
        )

    def _read_fast(self, start: int, stop: int) -> tuple[Any, Any] | None:
        """Reads these records with pyarrow, null where there is no text; None if it cannot."""
        if not self._framed[start:stop].all():
            return None
        data = self._data[self._lines.starts[start] : self._lines.ends[stop - 1]]
        if b"\0" in data or not is_utf8(data):
            return None
        whole = pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
        for options in self._options:
            try:
                table = pj.read_json(pa.py_buffer(data), read_options=whole, parse_options=options)
                texts = _column(table, self._text_path)
                ids = None if self._id_path is None else _column(table, self._id_path)
                # Some versions of the parser make invalid UTF-8 of a lone surrogate.
                texts.validate(full=True)
                if ids is not None:
                    ids.validate(full=True)
            except pa.ArrowException:
                continue
            if len(texts) == stop - start:
                return texts, None if ids is None else ids.cast(self._id_kind)
        return None

    def _explain_nulls(self, fast: tuple[Any, Any], first: int) -> tuple[Any, Any]:
        texts, ids = fast
        if not texts.null_count:
            return fast
        for row in np.flatnonzero(pc.is_null(texts).to_numpy(zero_copy_only=False)).tolist():
            self._read_line(first + row)
        return pc.fill_null(texts, ""), ids

    def _read_slowly(self, start: int, stop: int) -> tuple[Any, Any]:
        pairs = [self._read_line(row) for row in range(start, stop)]
        texts = pa.array([text for text, _ in pairs], pa.string())
        return texts, pa.array([found for _, found in pairs], self._id_kind)

    def _read_line(self, row: int) -> tuple[str, int | str | None]:
        """Returns a record's text and id; a bad row is noted and its text is empty."""
        line = self._data[self._lines.starts[row] : self._lines.ends[row]]
        value, fault = _decode(line)
        if fault and (tolerated := self._read_fast(row, row + 1)):
            text, found = tolerated[0][0].as_py(), tolerated[1] and tolerated[1][0].as_py()
            if text is None:
                self._note(row, f"no text in field '{self._text_field}'")
            return text or "", found
        if fault is None:
            text, fault = _text(value, self._text_path)
        found = None
        if self._id_path is not None:
            found, id_fault = self._id(_walk(value, self._id_path)[0])
            fault = fault or id_fault
        if fault:
            self._note(row, fault)
        return "" if fault else text, found

    def _note(self, row: int, reason: str) -> None:
        self._bad.append(BadRow(row, self._line(row), reason))

    def _line(self, row: int) -> int:
        return self._block.first_line + int(self._lines.numbers[row])

    def _id(self, value: Any) -> tuple[int | str | None, str | None]:
        """Returns an id, and what is wrong with it or None."""
        if value is None or value is _MISSING:
            return None, None
        if not self._string_ids:
            if (number := _integer(value)) is not None:
                return number, None
            fault = "not an integer of 64 bits as the ids before it (--id-type string takes both)"
        elif isinstance(value, bool):
            return ("true" if value else "false"), None
        elif isinstance(value, str):
            number_zero = value == "-0" and isinstance(value, _Number)
            return ("0" if number_zero else _mend(value)), None
        else:
            fault = "not a string or a number"
        return None, f"field '{self._id_field}' is {_name(value)}, {fault}"


def first_id_type(block: Block, id_field: str) -> Literal["int64", "string"] | None:
    """Returns the type that suits the ids of a JSONL block; see ``records.detect_id_type``."""
    lines, data = find_lines(block.data, "jsonl"), block.data
    path, first, seen = id_field.split("."), True, False
    for start, end in zip(lines.starts.tolist(), lines.ends.tolist(), strict=True):
        value, fault = _decode(data[start:end])
        if fault:
            continue
        found, _ = _walk(value, path)
        if first and found is _MISSING:
            return None
        first = False
        if found is None or found is _MISSING:
            continue
        if _integer(found) is None:
            return "string"
        seen = True
    return "int64" if seen else None if first else "string"


def _schema(fields: list[tuple[list[str], Any]]) -> Any:
    """Builds a schema of nested structs from paths and types."""
    tree: dict[str, list[tuple[list[str], Any]]] = {}
    for path, kind in fields:
        tree.setdefault(path[0], []).append((path[1:], kind))
    return pa.schema(
        [
            (name, pa.struct(list(_schema(below))) if below[0][0] else below[0][1])
            for name, below in tree.items()
        ]
    )


def _column(table: Any, path: list[str]) -> Any:
    column = table.column(path[0]).combine_chunks()
    for name in path[1:]:
        column = pc.struct_field(column, name)
    return column


def _decode(line: bytes) -> tuple[Any, str | None]:
    """Returns a line's value, or what is wrong with it."""
    try:
        value = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        return None, f"invalid UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return None, f"not valid JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        return None, "nested too deeply"
    return value, None if isinstance(value, dict) else "not a JSON object"


def _walk(value: Any, path: list[str]) -> tuple[Any, int]:
    """Returns the value at a path, or the one that it cannot get past, and how far it got."""
    for depth, name in enumerate(path):
        if not isinstance(value, dict) or name not in value:
            return _MISSING, depth
        value = value[name]
    return value, len(path)


def _text(value: Any, path: list[str]) -> tuple[str, str | None]:
    found, depth = _walk(value, path)
    if found is _MISSING:
        parent, _ = _walk(value, path[:depth])
        if isinstance(parent, dict):
            return "", f"no field '{'.'.join(path[: depth + 1])}'"
        found, wanted = parent, "an object"
    elif isinstance(found, str) and not isinstance(found, _Number):
        return _mend(found), None
    else:
        wanted = "a string"
    field = ".".join(path[:depth])
    if found is None:
        return "", f"field '{field}' is null"
    return "", f"field '{field}' is {_name(found)}, not {wanted}"


def _name(value: Any) -> str:
    names: list[tuple[type, str]] = [
        (bool, "a boolean"),
        (_Number, "a number"),
        (str, "a string"),
        (dict, "an object"),
        (list, "an array"),
    ]
    return next(name for kind, name in names if isinstance(value, kind))


def _integer(value: Any) -> int | None:
    if not isinstance(value, _Number) or len(value) > 20 or not value.lstrip("-").isdigit():
        return None
    number = int(value)
    return number if number in _INT64 else None


def _mend(text: str) -> str:
    """Returns the text with U+FFFD for each surrogate that has no partner."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)
