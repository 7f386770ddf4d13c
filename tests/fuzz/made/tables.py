"""Parquet files of several encodings, compressions and shapes."""

from __future__ import annotations

from io import BytesIO
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.made.case import Part, Valid
from fuzz.made.pages import chunk_span, page_bodies

_TOKENS = (
    b"PAR1",
    b"PARE",
    b"\0" * 8,
    b"\xff" * 8,
    b"\x15\0",
    b"\x15\x02",
    b"\x15\x80\x80\x80\x80\x10",
    b"\x19\xfc\xff\xff\xff\x0f",
    b"\x1c",
    b"\x18\xff\xff\xff\xff\x07",
    b"\x16\xff\xff\xff\xff\xff\x0f",
    b"text",
    b"\xff\xff",
    b"te\nt",
    b"\x80",
    b"schema",
    b"\x2c",
    b"\x4c",
    b"\x19\x0c",
    b"\x19\x1c",
)
_WORDS = ("a", "of", "é", "😀", "a longer piece of text ", "\n", "\0", "")
_KINDS = (
    pa.string(),
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int16(), pa.large_string()),
    pa.null(),
)
_ENCODINGS = ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY")
_COMPRESSIONS = ("none", "none", "snappy", "gzip", "brotli", "zstd", "lz4")


def parquet(chance: Random) -> Valid:
    """Makes a Parquet file; a row of it is (text, id)."""
    rows = chance.choice((0, 1, 3, 40, 40, 300))
    texts, ids = _texts(chance, rows), list(range(rows))
    nested = chance.random() < 0.3
    kind = chance.choice(_KINDS[:-1]) if any(texts) or nested else chance.choice(_KINDS)
    column = pa.array(texts, pa.string())
    column = pa.nulls(rows) if pa.types.is_null(kind) else column.cast(kind)
    if pa.types.is_null(kind):
        texts = [None] * rows
    numbers = pa.array(ids, pa.int64())
    columns: dict[str, Any] = {"text": column, "id": numbers}
    if nested:
        columns = {"m": pa.StructArray.from_arrays([column, numbers], ["text", "id"])}
    columns |= _others(chance, rows)
    names = chance.sample(sorted(columns), len(columns))
    table = pa.table({name: columns[name] for name in names})
    data, checked = _written(chance, table, nested=nested, kind=kind)
    meta = pq.ParquetFile(BytesIO(data)).metadata
    return Valid(
        name="nested.parquet" if nested else "a.parquet",
        kind="parquet",
        data=data,
        parts=_parts(meta, list(zip(texts, ids, strict=True))),
        tokens=_TOKENS,
        places=_places(meta, data),
        bodies=tuple(page_bodies(data, meta)) if checked else (),
        whole=list(zip(texts, ids, strict=True)),
    )


def _texts(chance: Random, rows: int) -> list[str | None]:
    repeated = [_text(chance) for _ in range(4)]
    fresh, nulls = chance.choice((0, 0.5, 1)), chance.choice((0, 0, 0.2, 1))
    texts: list[str | None] = []
    for _ in range(rows):
        text = _text(chance) if chance.random() < fresh else chance.choice(repeated)
        texts.append(None if chance.random() < nulls else text)
    return texts


def _text(chance: Random) -> str:
    return "".join(chance.choice(_WORDS) for _ in range(chance.choice((0, 1, 5, 30))))


def _others(chance: Random, rows: int) -> dict[str, Any]:
    """Columns that are not asked for."""
    made = {
        "list": pa.array([[str(i)] * (i % 3) for i in range(rows)], pa.list_(pa.string())),
        "map": pa.array([{"k": i} for i in range(rows)], pa.map_(pa.string(), pa.int64())),
        "score": pa.array([i / 7 for i in range(rows)], pa.float64()),
        "flag": pa.array([i % 2 == 0 for i in range(rows)], pa.bool_()),
        "when": pa.array(range(rows), pa.timestamp("us", "UTC")),
        "raw": pa.array([bytes([i % 256]) for i in range(rows)], pa.binary()),
        "té\n": pa.nulls(rows),
    }
    return {name: made[name] for name in made if chance.random() < 0.2}


def _written(chance: Random, table: Any, *, nested: bool, kind: Any) -> tuple[bytes, bool]:
    checked, dictionary = chance.random() < 0.5, chance.random() < 0.5
    path = "m.text" if nested else "text"
    # Arrow cannot read delta encodings as dictionaries.
    plain = pa.types.is_null(kind) or pa.types.is_dictionary(kind)
    encoded = not dictionary and not plain and chance.random() < 0.6
    sliced = not pa.types.is_string_view(kind)  # Arrow cannot write slices of it
    group = chance.choice((1, 7, 50)) if table.num_rows < 100 else 90
    batch = chance.choice((3, 20, None))
    out = BytesIO()
    pq.write_table(
        table,
        out,
        row_group_size=group if sliced else None,
        compression=chance.choice(_COMPRESSIONS),
        use_dictionary=dictionary,
        column_encoding={path: chance.choice(_ENCODINGS)} if encoded else None,
        data_page_version=chance.choice(("1.0", "2.0")),
        data_page_size=chance.choice((1, 200, None)),
        write_batch_size=batch if sliced else None,
        dictionary_pagesize_limit=chance.choice((50, None)),
        write_statistics=chance.random() < 0.7,
        write_page_index=chance.random() < 0.3,
        store_schema=chance.random() < 0.7,
        version=chance.choice(("1.0", "2.6")),
        write_page_checksum=checked,
    )
    return out.getvalue(), checked


def _parts(meta: Any, rows: list[Any]) -> tuple[Part, ...]:
    """The row groups, each from its first page to its last."""
    parts, first = [], 0
    for group in (meta.row_group(i) for i in range(meta.num_row_groups)):
        spans = [chunk_span(group.column(i)) for i in range(group.num_columns)]
        stop = max(b for _, b in spans)
        parts.append(Part(min(a for a, _ in spans), stop, rows[first : first + group.num_rows]))
        first += group.num_rows
    return tuple(parts)


def _places(meta: Any, data: bytes) -> tuple[int, ...]:
    """Page headers, and the directory several times, for it is small."""
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    places = [chunk_span(g.column(i))[0] for g in groups for i in range(g.num_columns)]
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    step = max((len(data) - footer) // 60, 1)
    return (*places, *range(footer, len(data), step))
