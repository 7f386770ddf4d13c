"""What callers may ask: bodies read and checked, the length of a list before its content.

Bodies are as large as ``--max-body``, and anybody's: nothing here may take a multiple of that for
each element that is wrong, so lists are checked by hand and to their first wrong element. Large
ones are read one at a time, and as long as it takes to read one everybody else has his turn.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.contract import is_utf8
from headrace_launcher.gateway.problems import Problem

_INPUT = "a text, a list of texts, or token ids (lists of integers)"
_SHOWN = 200
_LARGE = 1 << 20
"""Bytes of a body that takes longer to read than others should wait."""


class EmbeddingsRequest(BaseModel):
    """A request for ``/v1/embeddings`` (platform.openai.com/docs/api-reference/embeddings)."""

    model_config = ConfigDict(extra="ignore", strict=True)
    input: Any = Field(description=_INPUT)
    model: str
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(None, ge=1)
    prompt_name: str | None = None  # ours


class EmbedRequest(BaseModel):
    """A request for ``/embed`` (huggingface.github.io/text-embeddings-inference)."""

    model_config = ConfigDict(extra="ignore", strict=True)
    inputs: Any = Field(description=_INPUT)
    normalize: bool | None = True
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right", "left", "Left"] | None = None
    prompt_name: str | None = None
    dimensions: int | None = Field(None, ge=1)


_Asked = TypeVar("_Asked", bound=BaseModel)
Inputs = list[str] | list[list[int]]
"""Texts, or rows of token ids."""


class Reader:
    """Reads the bodies of all requests."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def read(
        self, body: bytes, kind: type[_Asked], *, field: str, most: int, status: int
    ) -> tuple[_Asked, Inputs]:
        """Returns what a body asks for, and its inputs.

        Args:
            body: the request's.
            kind: what it should be.
            field: what it calls its inputs.
            most: how many inputs there may be.
            status: HTTP status for what makes no sense.

        Raises:
            Problem: it is not what it should be.
        """

        def found() -> tuple[_Asked, Inputs]:
            asked = read(body, kind, status=status)
            given = getattr(asked, field)
            return asked, inputs_of(given, field=field, most=most, status=status)

        if len(body) <= _LARGE:
            return found()
        async with self._turn:
            start = time.perf_counter()
            # Of millions of new lists the collector would look at each again and again.
            gc.disable()
            try:
                return found()
            finally:
                gc.enable()
                await asyncio.sleep(time.perf_counter() - start)


def read(body: bytes, kind: type[_Asked], *, status: int) -> _Asked:
    """Returns what a body asks for; the input is looked at later, by :func:`inputs_of`.

    Args:
        body: the request's.
        kind: what it should be.
        status: HTTP status for what makes no sense.

    Raises:
        Problem: it does not.
    """
    found = _parse(body, status)
    if not isinstance(found, dict):
        raise Problem(status, "the body must be a JSON object")
    try:
        asked = kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else None
        message = f"{field or 'the body'}: {first['msg']}"[:_SHOWN]
        raise Problem(status, message, param=field) from None
    name = found.get("prompt_name")
    if name is not None and ("\0" in name or not is_utf8(name)):
        raise Problem(status, "prompt_name must be UTF-8 without NUL", param="prompt_name")
    return asked


def inputs_of(given: Any, *, field: str, most: int, status: int) -> Inputs:
    """Returns the inputs of a request as a list of texts, or of rows of token ids.

    Args:
        given: a text, texts, token ids, or rows of token ids.
        field: what the request calls it.
        most: how many there may be.
        status: HTTP status for what makes no sense.

    Raises:
        Problem: it is none of these, empty, or too many.
    """
    wrong = Problem(status, f"{field} must be {_INPUT}", param=field)
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        raise wrong
    if not given:
        raise Problem(status, f"{field} is empty; send a text", param=field)
    if type(given[0]) is int:
        given = [given]
    if len(given) > most:
        raise Problem(
            413,
            f"{len(given):,} inputs, and at most {most:,} are taken at once; send them in several "
            f"requests",
            param=field,
        )
    kind = type(given[0])
    if kind not in {str, list} or not all(type(each) is kind for each in given):
        raise wrong
    if kind is list and not all(set(map(type, row)) <= {int} for row in given):
        raise wrong
    checked: Inputs = given
    return checked


def _parse(body: bytes, status: int) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # It takes no escapes of lone surrogates, and the standard library's does.
        if b"\\u" in body:
            try:
                return json.loads(body)
            except (ValueError, RecursionError):
                pass
        raise Problem(status, f"the body is not JSON: {str(error)[:_SHOWN]}") from None
