"""What can be wrong with a request, and how each API says so."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

RETRY_SECONDS = 1


class Problem(Exception):  # noqa: N818 -- it is the caller's problem, and not an error of ours
    """A request that is not answered with vectors.

    Args:
        status: HTTP status.
        message: what is wrong, where, and what to do about it.
        param: the field of the request that is at fault, or None.
        code: OpenAI's code, or None.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code


_OPENAI = {
    401: "authentication_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}
_TEI = {400: "Validation", 413: "Validation", 422: "Validation", 404: "NotFound"}
_TEI |= {401: "Unauthorized", 408: "Timeout", 429: "Overloaded", 503: "Unhealthy", 504: "Backend"}


def answer(problem: Problem, *, openai: bool) -> Response:
    """Returns a problem as the API that was asked tells it.

    Source: platform.openai.com/docs/guides/error-codes;
    huggingface.github.io/text-embeddings-inference (ErrorResponse).
    """
    if openai:
        kind = _OPENAI.get(
            problem.status, "invalid_request_error" if problem.status < 500 else "server_error"
        )
        told: dict[str, Any] = {
            "error": {
                "message": problem.message,
                "type": kind,
                "param": problem.param,
                "code": problem.code,
            }
        }
    else:
        told = {"error": problem.message, "error_type": _TEI.get(problem.status, "Backend")}
    headers = {}
    if problem.status in {429, 503}:
        headers["Retry-After"] = str(RETRY_SECONDS)
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if problem.status in {408, 413}:
        headers["Connection"] = "close"  # what is left of the body is not read
    return Response(
        orjson.dumps(told), problem.status, headers=headers, media_type="application/json"
    )
