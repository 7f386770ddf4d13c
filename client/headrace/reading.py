"""The blocks of a run's inputs in order, and the ids that go with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from headrace.blocks import Block, IdColumn, find_lines
from headrace.config import EmbedConfig
from headrace.errors import DamagedInputError, HeadraceError, UsageError
from headrace.inputs import Input
from headrace.manifest import BlockRecord
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
        done: the first blocks, which earlier runs have embedded: they are read and compared, and
            not given out.
        stop: says whether no more blocks are wanted.

    Attributes:
        ids: where the ids come from; decided by the first block.
        damage: the damage that ended the reading, once the blocks have ended, or None.
        failure: why no more could be read, once the blocks have ended, or None. So those before it
            can be finished first.
        count: blocks that were read so far, those of earlier runs included.
        ended: whether the inputs were read to their end, or to a damage.
    """

    def __init__(
        self,
        config: EmbedConfig,
        inputs: list[Input],
        block_rows: int,
        counters: Counters,
        *,
        done: Sequence[BlockRecord] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.ids = IdColumn()
        self.damage: DamagedInputError | None = None
        self.failure: HeadraceError | None = None
        self.count = 0
        self.ended = False
        self._done = done
        self._stop = stop
        self._config = config
        self._inputs = inputs
        self._block_rows = block_rows
        self._counters = counters
        find_lines(b"", "text")  # has it compiled now, and not when the clock runs

    def blocks(self) -> Iterator[Block]:
        """Yields the blocks; what ends them too early is kept in ``damage`` or ``failure``."""
        try:
            yield from self._blocks()
        except HeadraceError as error:
            self.failure = error

    def _blocks(self) -> Iterator[Block]:
        config, id_field = self._config, self._id_field()
        blocks = read_blocks(
            self._inputs,
            columns=[config.text_field, id_field] if id_field else [config.text_field],
            block_bytes=config.block_bytes,
            block_rows=self._block_rows,
            first_rows=FIRST_ROWS,
        )
        while not self._stop():
            block = self._next(blocks)
            if block is None:
                self._check_all_done_again()
                self.ended = True
                return
            if block.index == 0 and id_field:
                kind = self._decide_id_type(block, id_field)
                self.ids = IdColumn(id_field, kind) if kind else IdColumn()
            self.count += 1
            if block.index < len(self._done):
                self._check_same(block)
                self._counters.bytes_done = block.bytes_done
            else:
                yield block

    def _next(self, blocks: Iterator[Block]) -> Block | None:
        try:
            with self._counters.timed("read"):
                return next(blocks, None)
        except DamagedInputError as error:
            self.damage = error
            return None

    def _check_same(self, block: Block) -> None:
        record = self._done[block.index]
        now = (block.input, block.first_row, block.rows, block.checksum)
        if now != (record.input, record.first_row, record.rows, record.checksum):
            unit = "row" if block.format == "parquet" else "line"
            raise UsageError(
                f"{block.file}, from {unit} {block.first_line} on: is not what it was when these "
                f"rows were embedded; restore it, or pass --overwrite to start anew"
            )

    def _check_all_done_again(self) -> None:
        if self.count < len(self._done):
            raise UsageError(
                f"the inputs end after {self._done[self.count].first_row:,} records, and more were "
                f"embedded before; restore them, or pass --overwrite to start anew"
            )

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
