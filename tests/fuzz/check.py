"""One case: read in several ways, and held against the slow reading."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any

from fuzz import slow
from fuzz.made import damage, lines, packed, tables
from fuzz.made.case import Case, Maker
from fuzz.reading import Limits, Reading, read_dribble, read_path, read_pipe, seams
from headrace.errors import DamagedInputError, UsageError

TARGETS: dict[str, Maker] = {
    "jsonl": lines.jsonl,
    "text": lines.plain,
    "gzip": packed.gzip_lines,
    "zstd": packed.zstd_lines,
    "parquet": tables.parquet,
}
_STEPS = (1 << 20, 64 << 10, 256 << 10)  # as the decoders have them
_ZLIB_HOLDS = 8  # bytes
_WIDE = Limits(block_bytes=8 << 20, block_rows=65_536, first_rows=4096)


def case_of(target: str, seed: int) -> Case:
    """Returns the case of a seed."""
    chance = Random(f"{target} {seed}")
    return damage.case_of(TARGETS[target](chance), chance)


def check(case: Case, seed: int, folder: Path) -> None:
    """Reads a case in all ways.

    Args:
        case: the case; of bytes alone it has neither parts nor content.
        seed: decides the limits and ways.
        folder: where its file is written.

    Raises:
        AssertionError: it did not give what it must.
        Exception: anything that the readers let out and should not.
    """
    path = folder / case.name
    path.write_bytes(case.data)
    chance = Random(seed)
    try:
        (_check_parquet if case.kind == "parquet" else _check_lines)(case, path, chance)
    finally:
        path.unlink()


def _limits(chance: Random) -> Limits:
    return Limits(
        block_bytes=chance.choice((1, 7, 100, 1000, 1 << 20)),
        block_rows=chance.choice((1, 2, 5, 50, 1000)),
        first_rows=chance.choice((None, 1, 3)),
    )


def _check_lines(case: Case, path: Path, chance: Random) -> None:
    content, whole = slow.unpacked(case.data)
    known = content if whole else content[: content.rfind(b"\n") + 1]
    expected = slow.rows_of(known, case.kind)
    form = chance.choice(("auto", case.kind))
    columns = chance.choice((["text"], ["text", "id"], ["m.text", "m.id"]))
    if columns[0] != "text" and case.kind == "jsonl":
        expected = [slow.Row(row.line, slow.ANY) for row in expected]

    def ways(limits: Limits) -> list[Callable[[], Reading]]:
        options: dict[str, Any] = {"columns": columns}
        return [
            lambda: read_path(path, limits, form=form, **options),
            lambda: read_pipe(case.data, limits, form=case.kind, **options),
            lambda: read_dribble(case.data, chance, limits, kind=case.kind, **options),
        ]

    first = ways(_WIDE)[0]()
    if _begins(content)[:4] == b"PAR1" and not slow.is_packed(case.data) and form == "auto":
        return  # by its content it is Parquet, whatever the name says
    if case.name.endswith((".gz", ".zst")) and slow.is_stub(case.data):
        assert isinstance(first.error, DamagedInputError), "by its name it breaks off"
        return
    if first.error and not isinstance(first.error, DamagedInputError):
        _refused(first, content, form)
        return
    _equal(first, expected)
    assert (first.error is None) == whole, f"damage: {first.error}, of whole content: {whole}"
    if columns[0] == "text" or case.kind == "text":
        _keep_promises(case, first)
    for limits in (_limits(chance), _limits(chance)):
        steps = chance.choice(
            ((1 << 20, 64 << 10, 256 << 10), (64, 16, 13), (5, 1, 1), (1000, 7, 99))
        )
        cuts = None
        for way in ways(limits):
            with seams(*(steps if chance.random() < 0.5 else _STEPS)):
                other = way()
            _same(other, first)
            assert cuts in (None, other.cuts), "cuts depend on how the file arrives"
            cuts = other.cuts


def _begins(content: bytes) -> bytes:
    return content.removeprefix(slow.BOM).lstrip(b" \t\r\n")


def _refused(reading: Reading, content: bytes, form: str) -> None:
    begins = _begins(content)
    assert isinstance(reading.error, UsageError), repr(reading.error)
    assert not reading.rows, "rows and a refusal"
    assert begins[:4] == b"PAR1" or begins[:1] == b"[", f"refused: {reading.error}"
    assert form != "text", f"refused: {reading.error}"


def _equal(reading: Reading, expected: list[slow.Row]) -> None:
    # Rows whose text is right and whose id is not of the run's type are bad, too.
    unfit = {row for row, why in reading.reasons if why.startswith("field 'id' is")}
    for row, (got, want) in enumerate(zip_longest(reading.rows, expected)):
        assert got is not None, f"row {row} is missing: {want}"
        assert want is not None, f"row {row} is too many: {got}"
        assert got[0] == want.line, f"row {row} is of line {got[0]}, not {want.line}"
        right = want.text is slow.ANY or got[1] == want.text or row in unfit
        assert right, f"row {row}: {got}, not {want}"


def _same(other: Reading, first: Reading) -> None:
    assert len(other.rows) == len(first.rows), f"{len(other.rows)} rows, then {len(first.rows)}"
    for row, (one, two) in enumerate(zip(other.rows, first.rows, strict=True)):
        # The type of ids is decided by the first block, so ids may be spelled otherwise.
        assert one[:2] == two[:2] or _misfit(other, first, row), f"row {row}: {one}, then {two}"
    one, two = other.error, first.error
    assert type(one) is type(two), f"{one!r}, then {two!r}"
    if isinstance(one, DamagedInputError) and isinstance(two, DamagedInputError):
        # zlib meets a fault with some bits still in hand, more or fewer by what it had room for.
        near = abs(one.offset - two.offset) <= (_ZLIB_HOLDS if "gzip" in str(one) else 0)
        assert near, f"damage at {one.offset}, then at {two.offset}"


def _misfit(other: Reading, first: Reading, row: int) -> bool:
    """Whether a row is bad in one of them for an id of another type."""
    reasons = [why for reading in (other, first) for at, why in reading.reasons if at == row]
    return any("not an integer of 64 bits" in why for why in reasons)


def _keep_promises(case: Case, reading: Reading) -> None:
    """What is in front of the damage is the valid file's; where checksums are sure, all is."""
    before = b"".join(part.content for part in case.parts)
    if slow.is_packed(case.data):
        rows = slow.rows_of(before[: before.rfind(b"\n") + 1], case.kind)
        assert len(reading.rows) >= len(rows), "a row in front of the damage is missing"
        _equal(Reading(reading.rows[: len(rows)], reading.reasons), rows)
    if case.noticed and not reading.error and case.whole is not None:
        _equal(reading, slow.rows_of(case.whole, case.kind))


def _check_parquet(case: Case, path: Path, chance: Random) -> None:
    nested = case.name.startswith("nested")
    columns = ["m.text", "m.id"] if nested else ["text", "id"]
    before = [row for part in case.parts for row in part.content]
    readings = []
    for limits in (_WIDE, _limits(chance), _limits(chance)):
        reading = read_path(path, limits, form=chance.choice(("auto", "parquet")), columns=columns)
        readings.append(reading)
        numbers = [number for number, _, _ in reading.rows]
        assert numbers == list(range(len(numbers))), "rows of the file are not contiguous"
        rows = [(text, identifier) for _, text, identifier in reading.rows]
        if case.sound:
            assert reading.error is None, str(reading.error)
            assert rows == case.whole
        elif case.noticed:
            # All damage lies in pages with checksums: what is read is right, or it is not read.
            assert rows == case.whole[: len(rows)], "rows are not those of the valid file"
            assert rows[: len(before)] == before, "a row in front of the damage is missing"
        if case.flipped and not reading.error:
            assert len(rows) == len(case.whole), "rows are missing, and nothing was said"
    least = min(readings, key=lambda one: len(one.rows))
    for reading in readings:
        got = [row[1:] for row in reading.rows[: len(least.rows)]]
        assert got == [row[1:] for row in least.rows], "rows depend on the size of the blocks"
