"""How a run is asked to stop: finish what is in flight, make it durable, say how to go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """A signal that ends a run, raised in the main thread.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


class Stop:
    """Whether a run was asked to stop.

    Attributes:
        number: the signal that asked, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._heeded = False

    def __call__(self) -> bool:
        """Returns whether the run was asked to stop."""
        return self.number is not None

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """While its body runs, somebody looks at this now and then, and stops."""
        self._heeded = True
        try:
            yield
        finally:
            self._heeded = False

    def ask(self, number: int) -> None:
        """Asks the run to stop; from a signal handler.

        Args:
            number: the signal.

        Raises:
            Interrupted: it was asked before, or is not at a point where it would look.
        """
        if not self._heeded or self.number is not None:
            raise Interrupted(number)
        self.number = number
