"""Embedded blocks -> the output file and, for bad rows, the errors file."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from headrace.config import EmbedConfig
from headrace.contract import Contract
from headrace.errors import UsageError
from headrace.feeder import Embedded
from headrace.sinks import ErrorsFile, NpyRows, NpySink, Sink, open_sink


class Output:
    """Writes blocks in the order in which they come; both files appear at the commit, or neither.

    Attributes:
        rows: rows written so far.
    """

    def __init__(self, config: EmbedConfig, contract: Contract) -> None:
        self.rows = 0
        self._config = config
        self._dimension = config.truncate_dim or contract.dimension
        self._sink: Sink | None = None
        self._bad_rows = ErrorsFile(config.output)

    @property
    def errors_file(self) -> str | None:
        """Where the bad rows are described, or None if there were none."""
        return str(self._bad_rows.path) if self._bad_rows.count else None

    def open_in_place(self) -> NpyRows | None:
        """Opens the output for others to write rows at their places; None where they cannot.

        They cannot where a row's place is known only when all rows before it are.

        Raises:
            OutputError: the output cannot be written.
        """
        if self._config.output.suffix != ".npy" or self._config.on_error == "skip":
            return None
        sink = self._open(None)
        assert isinstance(sink, NpySink)
        return sink.in_place

    def write(self, embedded: Embedded, id_type: pa.DataType | None) -> None:
        """Writes one block, unless its vectors are there; the first decides the type of the ids.

        Raises:
            OutputError: the output cannot be written.
            UsageError: the ids cannot have the type of the ids before them.
        """
        # First of all: it takes the lock that keeps a second run off the files of the first.
        sink = self._open(id_type)
        vectors = embedded.vectors
        for bad in embedded.bad:
            row = embedded.first_row + bad.row
            self._bad_rows.write(embedded.file, bad.line, row, bad.reason)
        if vectors is None:
            assert isinstance(sink, NpySink)
            sink.add(embedded.rows)
            self.rows += embedded.rows
            return
        valid, first_row = embedded.valid, embedded.first_row
        ids = self._ids(embedded, id_type)
        if embedded.bad and self._config.on_error == "skip":
            # Rows that are left out leave gaps in the numbers, so the numbers are written out.
            if ids is None:
                ids = pa.array(np.arange(first_row, first_row + len(valid)))
            ids, vectors = ids.filter(pa.array(valid)), vectors[valid]
            valid = np.ones(len(vectors), np.bool_)
        sink.write(vectors, valid, ids, first_row)
        self.rows += len(vectors)

    def commit(self, id_type: pa.DataType | None) -> None:
        """Puts both files in place.

        Raises:
            OutputError: they cannot be written.
        """
        self._open(id_type).commit()
        self._bad_rows.commit()

    def abort(self) -> None:
        """Removes what was written; an output that was there before stays."""
        if self._sink is not None:
            self._sink.abort()
        self._bad_rows.abort()

    def _open(self, id_type: pa.DataType | None) -> Sink:
        if self._sink is None:
            self._sink = open_sink(
                self._config.output,
                dimension=self._dimension,
                dtype=self._config.dtype,
                id_type=id_type,
                overwrite=self._config.overwrite,
            )
        return self._sink

    def _ids(self, embedded: Embedded, id_type: pa.DataType | None) -> pa.Array | None:
        ids = embedded.ids
        if id_type is None:
            return None
        if ids is None:  # lines of plain text among records that have ids
            return pa.nulls(embedded.rows, id_type)
        try:
            return ids.cast(id_type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UsageError(
                f"{embedded.file}: its ids are of type {ids.type}, those of the run {id_type}; "
                f"pass --id-type string, or embed the files apart"
            ) from error
