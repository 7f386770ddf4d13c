"""Two ways to get a server back: one of our own is started again, another one waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from headrace.errors import HeadraceError, ServerError, ServerLostError
from headrace.transport import Connection, connect

_PAUSE_SECONDS = 1.0
_STARTS = 3


class Endpoints(Protocol):
    """Where a server listens."""

    @property
    def grpc(self) -> str:
        """``HOST:PORT``."""


class OwnServer(Protocol):
    """A server that this process has started: :class:`headrace_launcher.server.Server`."""

    @property
    def endpoints(self) -> Endpoints:
        """Where it listens."""

    def obituary(self) -> str | None:
        """Returns why it has died, or None if it lives."""

    def restart(self) -> None:
        """Ends it, if it lives, and starts it anew, at other ports."""


class Ours:
    """A server of our own.

    Args:
        server: the server, which runs.
        names: name of the model, in a list.
        patience: seconds within which a batch is to be answered.

    Attributes:
        connection: to the model on the server that is there now.
        what: see :class:`headrace.recovery.Lifeline`.
    """

    what = "starting it again"

    def __init__(self, server: OwnServer, names: Sequence[str], patience: float) -> None:
        self._server = server
        self._names = names
        self._patience = patience
        self.connection = self._connect()

    def explained(self, lost: ServerLostError) -> str:
        """Returns how the server was lost, by what it has left."""
        why = self._server.obituary()
        return str(lost) if why is None else f"the Triton server has died: {why}"

    def revive(self, lost: ServerLostError) -> Connection:
        """See :meth:`headrace.recovery.Lifeline.revive`."""
        del lost
        before = self.connection
        for left in reversed(range(_STARTS)):
            self._server.restart()
            try:
                now = self._connect()
                break
            except ServerError:
                if not left:
                    raise
        _check_same(before, now)
        self.connection = now
        before.close()
        return now

    def _connect(self) -> Connection:
        return connect(
            self._server.endpoints.grpc, self._names, exact=True, patience=self._patience
        )


class Elsewhere:
    """A server that somebody else has started, and may start again.

    Args:
        connection: to the model.
        seconds: how long to wait for it.
        stop: says whether it need not come back any more.

    Attributes:
        connection: to the model on the server that is there now.
        what: see :class:`headrace.recovery.Lifeline`.
    """

    def __init__(
        self, connection: Connection, seconds: float, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.connection = connection
        self._stop = stop
        self._seconds = seconds
        self.what = f"waiting for it to come back, up to {seconds:.0f} s"

    def explained(self, lost: ServerLostError) -> str:
        """Returns how the server was lost."""
        return str(lost)

    def revive(self, lost: ServerLostError) -> Connection:
        """See :meth:`headrace.recovery.Lifeline.revive`."""
        before = self.connection
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                now = connect(
                    before.server, [before.contract.name], exact=True, patience=before.patience
                )
                break
            except HeadraceError as error:  # it may not be there, or not have the model yet
                if self._stop():
                    raise lost from error
                if time.monotonic() >= deadline:
                    raise ServerError(
                        f"{lost}; the server {before.server} has not come back within "
                        f"{self._seconds:.0f} s ({error})"
                    ) from error
            time.sleep(_PAUSE_SECONDS)
        _check_same(before, now)
        self.connection = now
        before.close()
        return now


def _check_same(before: Connection, now: Connection) -> None:
    """Checks that it is the same model; the new connection is closed if it is not."""
    if now.contract != before.contract:
        now.close()
        raise ServerError(
            f"the server {before.server} has come back with another model of the name "
            f"{before.contract.name}; its vectors would not go with those that are there"
        )
