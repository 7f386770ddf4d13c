"""The thread that reads, parses and tokenizes ahead of the server."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from headrace.blocks import Block
from headrace.config import EmbedConfig, IdType
from headrace.errors import BadRowError, DamagedInputError, UsageError
from headrace.feeder import Feeder, Prepared
from headrace.inputs import Input
from headrace.progress import Counters
from headrace.records import detect_id_type
from headrace.sources import column_type, read_blocks

DEFAULT_ID_FIELD = "id"


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing in the queue: why there is no more."""

    error: BaseException | None


class Prefetch:
    """Keeps one prepared block ready and one in the making, never more.

    Attributes:
        damage: the damage that ended the reading, once ``blocks`` has ended.
        id_type: Arrow type of the id column, once the first block is there; None numbers rows.
    """

    def __init__(
        self, config: EmbedConfig, inputs: list[Input], feeder: Feeder, counters: Counters
    ) -> None:
        self.damage: DamagedInputError | None = None
        self.id_type: pa.DataType | None = None
        self._config = config
        self._inputs = inputs
        self._feeder = feeder
        self._counters = counters
        self._queue: queue.Queue[Prepared | _End] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="headrace-prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # A read that blocks (a pipe) cannot be woken; the thread is a daemon and ends with us.
        self._thread.join(2.0)

    def blocks(self) -> Iterator[Prepared]:
        """Yields the prepared blocks in order.

        Damage in an input ends them and is kept in ``damage``; every other error is raised.
        """
        while True:
            with self._counters.timed("starve"):
                item = self._queue.get()
            if isinstance(item, Prepared):
                yield item
                continue
            if isinstance(item.error, DamagedInputError):
                self.damage = item.error
            elif item.error is not None:
                raise item.error
            return

    def _work(self) -> None:
        end = _End(None)
        try:
            for prepared in self._prepared():
                self._put(prepared)
                if self._stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 -- raised again in the other thread
            end = _End(error)
        self._put(end)

    def _put(self, item: Prepared | _End) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def _prepared(self) -> Iterator[Prepared]:
        config = self._config
        id_field = self._id_field()
        blocks = read_blocks(
            self._inputs,
            columns=[config.text_field, id_field] if id_field else [config.text_field],
            block_bytes=config.block_bytes,
            block_rows=config.block_rows,
        )
        first = True
        while True:
            with self._counters.timed("read"):
                block = next(blocks, None)
            if block is None:
                return
            if first and id_field:
                self.id_type = self._decide_id_type(block, id_field)
            first = False
            whole = self.id_type is not None and pa.types.is_integer(self.id_type)
            id_type: IdType = "int64" if whole else "string"
            prepared = self._feeder.prepare(
                block, id_field=id_field if self.id_type else None, id_type=id_type
            )
            if prepared.bad and config.on_error == "fail":
                bad = prepared.bad[0]
                row = block.first_line + bad.row
                place = f"row {row}" if bad.line is None else f"line {bad.line}"
                raise BadRowError(
                    f"{block.file}, {place}: {bad.reason}; mend it, or pass --on-error null or skip"
                )
            yield prepared

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
