"""Runs a gateway until it is asked to stop."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.errors import UsageError
from headrace_launcher.gateway.app import make_app
from headrace_launcher.gateway.settings import GatewaySettings

_BACKLOG = 1024
_MOST_HEAD = 1 << 16  # bytes of a request's head, and of what comes with it
_SPARE = 256  # connections beyond those that are worked on: idle ones, and ones to be told so
_LAST_SECONDS = 2.0  # for answers to requests that are not waited for any more


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it, and lets requests end that it cancels."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.server_state.tasks and not self.force_exit:
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_SECONDS)  # they say so


def _protocol(patience: float) -> type[HttpToolsProtocol]:
    class Protocol(HttpToolsProtocol):
        """Closes connections on which no request begins, or no answer is read."""

        _heads = 0
        _in_head = False
        _head_bytes = 0
        _paused = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(patience, self._check_head, 0)  # that one begins

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._heads += 1
            self._in_head, self._head_bytes = True, 0
            self.loop.call_later(patience, self._check_head, self._heads)

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > _MOST_HEAD:
                    self.transport.close()

        def _check_head(self, number: int) -> None:
            """Closes the connection if that head is not there, or (0) none has begun."""
            if self._heads == number and (self._in_head or not number):
                self.transport.close()

        def _unsupported_upgrade_warning(self) -> None:
            """Logs nothing: the request is answered as if it did not ask for that."""

        def pause_writing(self) -> None:
            super().pause_writing()
            self._paused += 1
            self.loop.call_later(patience, self._check_read, self._paused)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._paused += 1

        def _check_read(self, number: int) -> None:
            if self._paused == number and not self.transport.is_closing():
                self.transport.abort()  # closing would wait for the caller to read

    return Protocol


def run_gateway(
    settings: GatewaySettings, *, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serves until SIGINT or SIGTERM, then lets the requests that are there end.

    Args:
        settings: how to serve.
        host: address to bind to.
        port: 0 takes a free one.
        ready: told the URL when the gateway listens.

    Raises:
        UsageError: the address or the port cannot be used.
    """
    with _listening(host, port) as listening:
        asyncio.run(_run(settings, listening, ready))


def _listening(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound.

    Raises:
        UsageError: the address or the port cannot be used.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        if isinstance(error, socket.gaierror) or getattr(error, "errno", 0) == errno.EADDRNOTAVAIL:
            raise UsageError(
                f"--listen {host}: this machine has no such address ({error}); use 127.0.0.1, or "
                f"0.0.0.0 for every one"
            ) from error
        raise UsageError(
            f"--port {port} of {host} cannot be used ({error}); pass another one, or 0 for a free "
            f"one"
        ) from error
    return made


async def _run(
    settings: GatewaySettings, listening: socket.socket, ready: Callable[[str], None]
) -> None:
    host, port = listening.getsockname()[:2]
    config = uvicorn.Config(
        make_app(settings),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=_protocol(settings.patience),
        ws="none",
        lifespan="on",
        backlog=_BACKLOG,
        limit_concurrency=settings.max_concurrent + _SPARE,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=settings.drain,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _ask_to_stop, server)
    shown = f"[{host}]" if ":" in host else host
    tell = loop.create_task(_tell(server, lambda: ready(f"http://{shown}:{port}")))
    await server.serve([listening])
    tell.cancel()


def _ask_to_stop(server: uvicorn.Server) -> None:
    server.force_exit = server.should_exit  # at the second time
    server.should_exit = True


async def _tell(server: uvicorn.Server, ready: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.02)
    ready()
