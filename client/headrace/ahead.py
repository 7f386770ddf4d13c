"""A thread that takes the next item from an iterator while the last one is being used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

T = TypeVar("T")
_JOIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing in the queue: why there is no more."""

    error: BaseException | None


class Ahead(Generic[T]):
    """Keeps one item ready and one in the making, never more; a context manager.

    Args:
        items: run in a thread of its own.
        name: of that thread.
        wake: called in that thread after each item, and at the end.
    """

    def __init__(
        self, items: Iterator[T], *, name: str, wake: Callable[[], None] = lambda: None
    ) -> None:
        self._items = items
        self._wake = wake
        self._queue: queue.Queue[T | _End] = queue.Queue(maxsize=1)
        self._end: _End | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # A read that blocks (a pipe) cannot be woken; the thread is a daemon and ends with us.
        self._thread.join(_JOIN_SECONDS)

    @property
    def ended(self) -> bool:
        """Whether the last item has been given out."""
        return self._end is not None

    def take(self, seconds: float | None = None) -> T | None:
        """Returns the next item; None at the end, or if none is ready in time.

        Args:
            seconds: how long to wait at most; None for as long as it takes.

        Raises:
            BaseException: what the iterator raised, in its place.
        """
        if self._end is not None:
            return None
        try:
            item = self._queue.get(block=seconds != 0, timeout=seconds or None)
        except queue.Empty:
            return None
        if not isinstance(item, _End):
            return item
        self._end = item
        if item.error is not None:
            raise item.error
        return None

    def _work(self) -> None:
        end = _End(None)
        try:
            for item in self._items:
                self._put(item)
                if self._stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 -- raised again in the other thread
            end = _End(error)
        self._put(end)

    def _put(self, item: T | _End) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            self._wake()
            return
