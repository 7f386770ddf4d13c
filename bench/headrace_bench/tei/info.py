"""What a server with TEI's API says of itself, and whether it is TEI."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from headrace.decompress import printable
from headrace.errors import MissingDependencyError, ServerError, UsageError
from headrace.paths import shown
from headrace_bench.tei.wire import beginning

NOT_TEI = "TEI-shaped server (not TEI)"
_ANSWER_SECONDS = 10.0
_LONGEST = 100  # characters of what a server says, which goes into tables


@dataclass(frozen=True, slots=True, kw_only=True)
class TeiInfo:
    """What a server says of itself at ``/info``; None where it does not say it.

    Attributes:
        model_id: the model, as the server was told.
        version: of the server.
        sha: commit that it was built from.
        docker_label: of its image, as ``sha-630ddc7``.
        model_dtype: ``float16`` or ``float32``.
        max_client_batch_size: most rows of a request.
        max_concurrent_requests: rows that are worked on at a time; those beyond wait.
        max_batch_tokens: of a batch on the device.
        max_input_length: tokens of a row.
    """

    model_id: str | None
    version: str | None
    sha: str | None
    docker_label: str | None
    model_dtype: str | None
    max_client_batch_size: int | None
    max_concurrent_requests: int | None
    max_batch_tokens: int | None
    max_input_length: int | None

    @property
    def genuine(self) -> bool:
        """Whether it can be TEI itself: its builds say what they were built from."""
        return bool(self.version and (self.docker_label or self.sha))

    @property
    def name(self) -> str:
        """What its figures are called."""
        return f"TEI {self.version}" if self.genuine else NOT_TEI


def info(url: str) -> TeiInfo:
    """Returns what a server says of itself.

    Args:
        url: as ``http://127.0.0.1:8090``.

    Raises:
        UsageError: it is no such URL.
        ServerError: it does not answer, or with something else.
        MissingDependencyError: httpx is not installed.
    """
    httpx = _httpx()
    where = f"{checked_url(url)}/info"
    named = shown(where)
    remedy = "start TEI, or name another with --tei URL"
    try:
        answer = httpx.get(where, timeout=_ANSWER_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        raise ServerError(f"{named}: {type(error).__name__} {error}; {remedy}") from error
    if answer.status_code != 200:
        said = f"status {answer.status_code}: {beginning(answer.content)}"
        raise ServerError(f"{named}: the answer has the {said}; {remedy}")
    try:
        found = json.loads(answer.content)
    except ValueError as error:
        raise ServerError(f"{named}: no JSON: {beginning(answer.content)}; {remedy}") from error
    if not isinstance(found, dict):
        raise ServerError(f"{named}: no object: {beginning(answer.content)}; {remedy}")
    return TeiInfo(
        model_id=_text(found, "model_id"),
        version=_text(found, "version"),
        sha=_text(found, "sha"),
        docker_label=_text(found, "docker_label"),
        model_dtype=_text(found, "model_dtype"),
        max_client_batch_size=_count(found, "max_client_batch_size"),
        max_concurrent_requests=_count(found, "max_concurrent_requests"),
        max_batch_tokens=_count(found, "max_batch_tokens"),
        max_input_length=_count(found, "max_input_length"),
    )


def wait_ready(url: str, seconds: float, look: Callable[[], None] | None = None) -> None:
    """Waits until a server says at ``/health`` that it is ready.

    Args:
        url: as of :func:`info`.
        seconds: how long at most.
        look: called between attempts; raises where waiting has become useless.

    Raises:
        UsageError: it is no URL.
        ServerError: it was not ready in time.
        MissingDependencyError: httpx is not installed.
    """
    httpx = _httpx()
    where = f"{checked_url(url)}/health"
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = httpx.get(where, timeout=_ANSWER_SECONDS, trust_env=False)
        except httpx.HTTPError as error:
            why = f"{type(error).__name__} {error}"
        else:
            if answer.status_code == 200:
                return
            why = f"status {answer.status_code}: {beginning(answer.content)}"
        if look is not None:
            look()
        if time.monotonic() >= deadline:
            raise ServerError(
                f"{shown(where)}: not ready within {seconds:g} s, at the last {why}; the server's "
                f"log may say what it waits for"
            )
        time.sleep(0.2)


def checked_url(url: str) -> str:
    """Returns a URL without the slash at its end.

    Raises:
        UsageError: it is none of HTTP.
        MissingDependencyError: httpx is not installed.
    """
    httpx = _httpx()
    with suppress(httpx.InvalidURL):  # what it says quotes parts of the URL
        if httpx.URL(url).scheme in {"http", "https"}:
            return url.rstrip("/")
    # Without its scheme it may begin with a user, too.
    named = shown(url).rpartition("@")[2]
    raise UsageError(f"--tei {named}: no URL of HTTP; give one such as http://127.0.0.1:8090")


def _httpx() -> ModuleType:
    try:
        import httpx
    except ImportError as error:
        raise MissingDependencyError(
            "asking TEI needs httpx, which is not installed; run: pip install 'headrace[bench]'"
        ) from error
    return httpx


def _text(found: dict[str, Any], key: str) -> str | None:
    """Returns what is said, as one line of at most :data:`_LONGEST` characters."""
    value = found.get(key)
    if not isinstance(value, str) or not value:
        return None
    line = printable(value)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _count(found: dict[str, Any], key: str) -> int | None:
    value = found.get(key)
    return value if isinstance(value, int) and value > 0 else None
