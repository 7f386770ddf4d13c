"""Finished blocks -> durable ones, in a thread of its own: data, then bad rows, then manifest."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from headrace.manifest import BlockRecord, Manifest


class Committer:
    """Makes blocks durable in their order, as many at once as have been finished meanwhile.

    Args:
        manifest: gets a line for each.
        sync_data: makes all durable that was written before it is called.

    Attributes:
        committed: blocks that are durable, those of earlier runs not counted.
    """

    def __init__(self, manifest: Manifest, sync_data: Callable[[], None]) -> None:
        self.committed = 0
        self._manifest = manifest
        self._sync_data = sync_data
        self._queue: queue.SimpleQueue[BlockRecord | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._work, name="headrace-commit", daemon=True)
        self._thread.start()

    def put(self, record: BlockRecord) -> None:
        """Hands over a block whose rows and bad rows are written.

        Raises:
            OutputError: an earlier one could not be made durable.
        """
        self._check()
        self._queue.put(record)

    def finish(self) -> None:
        """Waits until all blocks are durable; there can be no more then.

        Raises:
            OutputError: one could not be made so.
        """
        self._queue.put(None)
        self._thread.join()
        self._check()

    def abandon(self) -> None:
        """Waits for no more than what is being made durable right now."""
        self._abandoned = True
        self._queue.put(None)
        self._thread.join()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            while records := self._next():
                self._commit(records)
                self.committed += len(records)
        except BaseException as error:  # noqa: BLE001 -- raised again in the other thread
            self._failure = error

    def _next(self) -> list[BlockRecord]:
        """Returns the blocks that wait, at least one; none when there are no more."""
        records: list[BlockRecord] = []
        while not self._abandoned and (not records or not self._queue.empty()):
            record = self._queue.get()
            if record is None:
                self._queue.put(None)  # for the next call
                break
            records.append(record)
        return [] if self._abandoned else records

    def _commit(self, records: list[BlockRecord]) -> None:
        self._sync_data()
        self._manifest.append(records)
        self._manifest.sync()
