"""The texts of any input of headrace, for benchmarks that read them themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.blocks import BadRow, Block
from headrace.config import FormatChoice, IdType
from headrace.inputs import find_inputs
from headrace.records import parse
from headrace.sources import read_blocks


@dataclass(frozen=True, slots=True)
class TextBlock:
    """Rows that follow each other in the input.

    Attributes:
        texts: Arrow string[rows]; "" at the bad rows.
        ids: any type [rows], null where a record has none; None where none were asked for.
        bad: those that have no text, ascending, numbered from this block's first row.
        block: where they come from; :func:`headrace.blocks.name_rows` names lines of it.
    """

    texts: Any
    ids: Any | None
    bad: tuple[BadRow, ...]
    block: Block


def read_texts(
    inputs: Sequence[str],
    *,
    text_field: str = "text",
    format: FormatChoice = "auto",  # noqa: A002 -- as the option is called
    own: Collection[Path] = (),
    id_field: str | None = None,
    id_type: IdType = "string",
) -> Iterator[TextBlock]:
    """Yields the texts of files, in order.

    Args:
        inputs: as of ``headrace embed``.
        text_field: likewise.
        format: likewise.
        own: files that are left out of folders and of what a glob matches.
        id_field: field or column of the ids, or None for none.
        id_type: of those in JSONL: ``int64`` or ``string``.

    Raises:
        HeadraceError: they cannot be read.
    """
    for block in read_blocks(
        find_inputs(list(inputs), format=format, own=own),
        columns=[text_field] if id_field in {None, text_field} else [text_field, id_field],
        block_bytes=4 << 20,
        block_rows=1 << 14,
    ):
        found = parse(block, text_field=text_field, id_field=id_field, id_type=id_type)
        yield TextBlock(found.texts, found.ids, found.bad, block)
