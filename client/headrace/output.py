"""Embedded blocks -> the files of a job: staged, committed block by block, put in place at the end.

What lies where, and what a job that was interrupted goes on from, is decided here: see
:meth:`Output.open`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

import numpy as np
import pyarrow as pa

from headrace.committer import Committer
from headrace.config import EmbedConfig
from headrace.contract import Contract
from headrace.errors import OutputError, UsageError
from headrace.feeder import Embedded
from headrace.files import check_kept, output_errors, sync_folder
from headrace.inputs import Input
from headrace.manifest import BlockRecord, Manifest
from headrace.resumption import Start, find_start
from headrace.sinks import (
    ErrorsFile,
    NpyRows,
    NpySink,
    ParquetSink,
    Sink,
    Staging,
    errors_path,
)
from headrace.sinks.staging import ERRORS, MANIFEST, ROWS


class Output:
    """The output of one job; blocks are written in order, those of earlier runs are there.

    Attributes:
        done: the blocks that earlier runs have made durable.
        complete: whether these are all, and the output is in place.
        useless: whether something was there that no manifest told of.
        records: the same and those that this run has written.
    """

    def __init__(
        self,
        config: EmbedConfig,
        contract: Contract,
        staging: Staging,
        start: Start,
    ) -> None:
        """See :meth:`open`."""
        saved = start.saved
        self.done = saved.records
        self.complete = saved.complete
        self.useless = start.useless
        self.records: list[BlockRecord] = list(saved.records)
        self._config = config
        self._dimension = config.truncate_dim or contract.dimension
        self._staging = staging
        self._replaces = saved.replaces
        self._start = start
        self._id_kind = saved.ids
        self._sink: Sink | None = None
        if self.complete:
            staging.publish(replaces=saved.replaces)
            return
        if self.done:
            staged = staging.data if staging.output.suffix == ".npy" else staging.path(ROWS)
            check_kept(staged, self.done[-1].data_bytes)
        self._bad_rows = ErrorsFile(
            staging.path(ERRORS), size=self.done[-1].error_bytes if self.done else 0
        )
        self._manifest = Manifest(staging.path(MANIFEST), saved.size)
        self._synced_names = (False, False)
        self._committer = Committer(self._manifest, self._sync)

    @classmethod
    def open(
        cls, config: EmbedConfig, contract: Contract, job: dict[str, Any], inputs: Sequence[Input]
    ) -> Self:
        """Opens a job's files: those of an interrupted one where there are some, else new ones.

        Args:
            config: the run's settings.
            contract: the model's.
            job: the job's fingerprint.
            inputs: what it reads.

        Raises:
            UsageError: the files are of another job, another run is writing them, or there is an
                output that may not be replaced. Nothing is changed then.
            OutputError: the output cannot be written.
            MachineError: the manifest cannot be read.
        """
        staging = Staging(config.output)
        fresh = not staging.path(MANIFEST).exists()
        try:
            return cls(config, contract, staging, find_start(config, staging, job, inputs))
        except BaseException:
            if fresh:
                staging.discard()
            staging.close()
            raise

    @property
    def rows(self) -> int:
        """Rows of the output so far."""
        return self.records[-1].written if self.records else 0

    @property
    def resumed_rows(self) -> int:
        """Rows among them that earlier runs have written."""
        return self.done[-1].written if self.done else 0

    @property
    def errors_file(self) -> str | None:
        """Where the bad rows are described, or None if there are none."""
        bad = self.records and self.records[-1].error_bytes
        return str(errors_path(self._config.output)) if bad else None

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
        """Writes one block, unless its vectors are there, and hands it over to be committed.

        Args:
            embedded: the block after those that are there.
            id_type: type of the ids in the output, None where rows are numbered.

        Raises:
            OutputError: the output cannot be written, or an earlier block not be made durable.
            UsageError: the ids cannot have the type of the ids before them.
        """
        sink = self._open(id_type)
        for bad in embedded.bad:
            row = embedded.first_row + bad.row
            self._bad_rows.write(embedded.file, bad.line, row, bad.reason)
        self._bad_rows.flush()
        rows = self._write_rows(sink, embedded, id_type)
        record = BlockRecord(
            block=embedded.index,
            input=embedded.input,
            first_row=embedded.first_row,
            rows=embedded.rows,
            checksum=embedded.checksum,
            bytes_done=embedded.bytes_done,
            written=self.rows + rows,
            data_bytes=sink.size,
            error_bytes=self._bad_rows.size,
            bad_rows=len(embedded.bad),
            truncated_rows=embedded.truncated_rows,
            tokens=embedded.tokens,
            padded_tokens=embedded.padded_tokens,
            batches=embedded.batches,
        )
        self._committer.put(record)
        self.records.append(record)

    def finish(self, id_type: pa.DataType | None) -> None:
        """Makes all durable and puts it in place.

        Raises:
            OutputError: that cannot be done; the job can be gone on with.
        """
        sink = self._open(id_type)
        self._committer.finish()
        sink.finish()
        self._bad_rows.sync()
        self._sync_names()
        self._manifest.complete()
        self._close()
        self._staging.publish(replaces=self._replaces)
        self.complete = True

    def keep(self, *, wait: bool = True) -> int:
        """Closes the files and leaves what is durable; where nothing is, nothing is left.

        Where a job was to be extended, and was not by a single block, it is what it was before: a
        finished output is in its place, and nothing else is left.

        Args:
            wait: whether finished blocks that are not durable yet are made so.

        Returns:
            Rows that are kept.
        """
        if self.complete:
            return self.rows
        if wait:
            with suppress(OutputError):
                self._committer.finish()
        self._committer.abandon()
        committed = len(self.done) + self._committer.committed
        self._close()
        more = committed > len(self.done)
        if committed and (more or not self._start.copied):
            if not more and self._start.before != self._start.saved.job:
                Manifest.create(
                    self._staging.path(MANIFEST),
                    self._start.before,
                    self.done,
                    replaces=self._replaces,
                    ids=self._id_kind,
                ).close()
            self._staging.close()
            return self.records[committed - 1].written
        self._staging.discard()
        return 0

    def _sync(self) -> None:
        if self._sink is not None:
            self._sink.sync()
        self._bad_rows.sync()
        # The files' names, too: the errors file is made when the first bad row comes.
        names = (True, self._bad_rows.path.exists())
        if names != self._synced_names:
            self._sync_names()
            self._synced_names = names

    def _sync_names(self) -> None:
        with output_errors(self._staging.folder):
            sync_folder(self._staging.folder)

    def _close(self) -> None:
        for each in (self._sink, self._bad_rows, self._manifest):
            if each is not None:
                each.close()

    def _write_rows(self, sink: Sink, embedded: Embedded, id_type: pa.DataType | None) -> int:
        vectors, valid, first_row = embedded.vectors, embedded.valid, embedded.first_row
        if vectors is None:
            assert isinstance(sink, NpySink)
            sink.add(embedded.rows)
            return embedded.rows
        ids = self._ids(embedded, id_type)
        if embedded.bad and self._config.on_error == "skip":
            # Rows that are left out leave gaps in the numbers, so the numbers are written out.
            if ids is None:
                ids = pa.array(np.arange(first_row, first_row + len(valid)))
            ids, vectors = ids.filter(pa.array(valid)), vectors[valid]
            valid = np.ones(len(vectors), np.bool_)
        sink.write(vectors, valid, ids, first_row)
        return len(vectors)

    def _open(self, id_type: pa.DataType | None) -> Sink:
        if self._sink is None:
            if self._staging.output.suffix != ".npy":
                self._settle_ids(id_type)
            self._sink = self._make_sink(id_type)
        return self._sink

    def _settle_ids(self, id_type: pa.DataType | None) -> None:
        """Sees that the ids are what those were that are there, since new inputs may differ."""
        ids = "row numbers" if id_type is None else str(id_type)
        if self._id_kind is None:
            self._manifest.note_ids(ids)
        elif self._id_kind != ids:
            raise UsageError(
                f"the ids in {self._config.output} are of the kind {self._id_kind}, and with these "
                f"inputs they would be {ids}; embed the new inputs apart, or pass --overwrite to "
                f"start anew"
            )
        self._id_kind = ids

    def _make_sink(self, id_type: pa.DataType | None) -> Sink:
        staging, dtype = self._staging, self._config.dtype
        if staging.output.suffix == ".npy":
            size = self.done[-1].data_bytes if self.done else 0
            return NpySink(staging.data, dimension=self._dimension, dtype=dtype, size=size)
        return ParquetSink(
            staging.data,
            staging.path(ROWS),
            dimension=self._dimension,
            dtype=dtype,
            id_type=id_type,
            blocks=[each.data_bytes for each in self.done],
        )

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
