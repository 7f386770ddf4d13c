"""The blocks of a run's inputs in order, and the ids that go with them."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from headrace.blocks import Block, IdColumn, find_lines
from headrace.config import EmbedConfig
from headrace.errors import DamagedInputError, UsageError
from headrace.inputs import Input
from headrace.progress import Counters
from headrace.records import detect_id_type
from headrace.sources import column_type, read_blocks

DEFAULT_ID_FIELD = "id"
FIRST_ROWS = 4096


class Reading:
    """Reads the inputs of one run.

    Args:
        config: the run's settings.
        inputs: what to read.
        block_rows: records in one block, at most.
        counters: where to count the time.

    Attributes:
        ids: where the ids come from; decided by the first block.
        damage: the damage that ended the reading, once the blocks have ended, or None.
    """

    def __init__(
        self, config: EmbedConfig, inputs: list[Input], block_rows: int, counters: Counters
    ) -> None:
        self.ids = IdColumn()
        self.damage: DamagedInputError | None = None
        self._config = config
        self._inputs = inputs
        self._block_rows = block_rows
        self._counters = counters
        find_lines(b"", "text")  # has it compiled now, and not when the clock runs

    def blocks(self) -> Iterator[Block]:
        """Yields the blocks; damage in an input ends them and is kept in ``damage``.

        Raises:
            UsageError: an input has no such column, or too long a line.
        """
        config, id_field = self._config, self._id_field()
        blocks = read_blocks(
            self._inputs,
            columns=[config.text_field, id_field] if id_field else [config.text_field],
            block_bytes=config.block_bytes,
            block_rows=self._block_rows,
            first_rows=FIRST_ROWS,
        )
        first = True
        while True:
            try:
                with self._counters.timed("read"):
                    block = next(blocks, None)
            except DamagedInputError as error:
                self.damage = error
                return
            if block is None:
                return
            if first and id_field:
                kind = self._decide_id_type(block, id_field)
                self.ids = IdColumn(id_field, kind) if kind else IdColumn()
            first = False
            yield block

    def _id_field(self) -> str | None:
        """The field to take ids from, or None where rows are numbered."""
        if self._config.output.suffix != ".parquet":
            return None
        if self._config.id_field is not None:
            return self._config.id_field
        tables = [item for item in self._inputs if item.format == "parquet"]
        have = len(self._parquet_id_types(DEFAULT_ID_FIELD))
        return DEFAULT_ID_FIELD if have == len(tables) else None

    def _parquet_id_types(self, id_field: str) -> list[pa.DataType]:
        """The types of this column in the Parquet inputs that have it, or are damaged (null)."""
        kinds: list[pa.DataType] = []
        for item in self._inputs:
            if item.format != "parquet":
                continue
            try:
                kind = column_type(item, id_field)
            except DamagedInputError:  # it is reported when its turn comes
                kind = pa.null()
            if kind is not None:
                kinds.append(kind.value_type if pa.types.is_dictionary(kind) else kind)
        return kinds

    def _common_id_type(self, id_field: str) -> pa.DataType:
        """The type that holds the ids of every Parquet input."""
        kinds = self._parquet_id_types(id_field)
        schemas = [pa.schema([("id", kind)]) for kind in kinds]
        try:
            return pa.unify_schemas(schemas, promote_options="permissive").field("id").type
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            names = ", ".join(dict.fromkeys(map(str, kinds)))
            raise UsageError(
                f"the column {id_field!r} has types that do not go together ({names}); "
                f"embed these files apart"
            ) from error

    def _decide_id_type(self, block: Block, id_field: str) -> pa.DataType | None:
        """The type of the id column, by the first block; None where rows are numbered."""
        if self._config.id_type != "auto":
            return pa.int64() if self._config.id_type == "int64" else pa.string()
        if block.format == "parquet":
            return self._common_id_type(id_field)
        detected = detect_id_type(block, id_field)  # None, too, where the first block is text
        if detected is None and self._config.id_field is None:
            return None
        return pa.int64() if detected == "int64" else pa.string()
