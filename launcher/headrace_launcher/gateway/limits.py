"""What every request goes through first: the key, its size, its turn."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace_launcher.gateway.metrics import Metrics
from headrace_launcher.gateway.problems import Problem, answer
from headrace_launcher.gateway.settings import MAX_PENDING_BYTES, GatewaySettings

OPEN = frozenset({"/health", "/ping"})
"""Without a key: for whoever looks whether the gateway is alive."""

_LOG = logging.getLogger("uvicorn.error")
_DRAINED = 4  # times the largest body
_DRAIN_SECONDS = 5.0


def is_openai(path: str) -> bool:
    """Returns whether a path belongs to OpenAI's API."""
    return path.startswith("/v1/")


class Limits:
    """An ASGI middleware; hands on requests whose body is there, whole and not too large.

    Args:
        app: what to hand them to.
        settings: the gateway's.
        metrics: where to count.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._working = 0
        self._pending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = str(scope["path"])
        with self._metrics.request(path) as note:
            begun = False

            async def noting(message: Message) -> None:
                nonlocal begun
                begun = True
                if message["type"] == "http.response.start":
                    note(int(message["status"]))
                await send(message)

            try:
                await self._serve(scope, path, receive, noting)
            except _GoneError:
                return
            except asyncio.CancelledError:  # the gateway ends, and has waited long enough
                if not begun:
                    problem = Problem(503, "the gateway is being stopped; try again soon")
                    await answer(problem, openai=is_openai(path))(scope, receive, noting)
            except Problem as problem:
                if problem.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                    await self._drain(receive)
                await answer(problem, openai=is_openai(path))(scope, receive, noting)
            except Exception as error:
                if begun:
                    raise
                _LOG.exception("a request to %s failed", path[:200])
                ours = Problem(500, f"internal error: {type(error).__name__}; please report it")
                await answer(ours, openai=is_openai(path))(scope, receive, noting)

    async def _serve(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        self._check_key(path, headers.get(b"authorization", b""))
        if scope["method"] in {"GET", "HEAD"}:  # over at once
            await self._app(scope, receive, send)
            return
        if self._working >= self._settings.max_concurrent:
            raise Problem(429, "too many requests at once; try again soon")
        self._working += 1
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._pending + size > MAX_PENDING_BYTES:
                raise Problem(429, "the requests that are worked on fill the memory; try again")
            self._pending += size
            held += size

        try:
            body = await self._body(headers.get(b"content-length"), receive, hold)
            await self._work(scope, body, receive, send)
        finally:
            self._working -= 1
            self._pending -= held

    async def _work(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Hands a request on, for as long as its caller is there.

        Raises:
            _GoneError: he has closed the connection; nothing is done for him any more.
        """
        ended = False

        async def noting(message: Message) -> None:
            nonlocal ended
            # After its end a request is as good as its caller: both are called disconnected.
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        gone = asyncio.ensure_future(_gone(receive))
        work = asyncio.ensure_future(self._app(scope, _replay(body, gone), noting))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not ended:
                raise _GoneError
            await work
        finally:
            for each in (work, gone):
                each.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _drain(self, receive: Receive) -> None:
        """Reads on for a while what is too much: a caller who still sends would see no answer."""
        left = _DRAINED * self._settings.max_body_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while left > 0:
                    message = await receive()
                    if not message.get("more_body", False):
                        return
                    left -= len(message.get("body", b""))

    def _check_key(self, path: str, given: bytes) -> None:
        key = self._settings.api_key
        if not key or path in OPEN:
            return
        kind, _, token = given.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), key.encode()):
            raise Problem(
                401,
                "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
            )

    async def _body(
        self, length: bytes | None, receive: Receive, hold: Callable[[int], None]
    ) -> bytes:
        most = self._settings.max_body_bytes
        if length is not None and length.isdigit() and int(length) > most:
            raise _too_large(most)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.patience):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise _too_large(most)
                    hold(len(part))
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            seconds = self._settings.patience
            raise Problem(408, f"the body was not there within {seconds:.0f} s") from None


class _GoneError(Exception):
    """The caller has closed the connection before he was answered."""


def _too_large(most: int) -> Problem:
    return Problem(413, f"the body has more than {most:,} bytes; send fewer texts at once")


async def _gone(receive: Receive) -> None:
    """Waits until the caller of a request whose body is there has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _replay(body: bytes, gone: asyncio.Future[None]) -> Receive:
    """Returns a ``receive`` that gives the body, and then waits until the caller is gone."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            await asyncio.shield(gone)
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
