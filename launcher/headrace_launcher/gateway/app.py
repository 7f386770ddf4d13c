"""The gateway's routes: OpenAI's ``/v1/embeddings``, and those of Hugging Face TEI."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import orjson
from fastapi import FastAPI, Request
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from headrace.contract import Contract
from headrace_launcher.gateway.backend import Backend, Vectors
from headrace_launcher.gateway.limits import Limits, is_openai
from headrace_launcher.gateway.metrics import Metrics
from headrace_launcher.gateway.problems import Problem, answer
from headrace_launcher.gateway.requests import EmbeddingsRequest, EmbedRequest, Inputs, Reader
from headrace_launcher.gateway.settings import GatewaySettings

_SURROGATES = re.compile("[\ud800-\udfff]")
_CREATED = 1_700_000_000  # OpenAI's clients want a number; a model's files have none that is sure


def _body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """Returns what ``/docs`` says of a request's body."""
    schema = {"schema": kind.model_json_schema()}
    return {"requestBody": {"content": {"application/json": schema}, "required": True}}


class Json(Response):
    """JSON by orjson, which writes arrays of float32 as they are: shortest, and exact."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Returns the bytes."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def make_app(settings: GatewaySettings) -> FastAPI:
    """Returns the ASGI application of a gateway."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.backend = Backend(settings.server, timeout=settings.timeout)
        try:
            yield
        finally:
            await app.state.backend.close()

    app = FastAPI(title="headrace gateway", version=version("headrace"), lifespan=lifespan)
    app.add_middleware(Limits, settings=settings, metrics=metrics)
    _say_problems(app)
    served = _Served(settings, metrics, Reader())
    _openai_routes(app, served)
    _tei_routes(app, served)
    return app


class _Served(NamedTuple):
    """What all routes share."""

    settings: GatewaySettings
    metrics: Metrics
    reader: Reader


def _openai_routes(app: FastAPI, served: _Served) -> None:
    @app.post("/v1/embeddings", openapi_extra=_body_of(EmbeddingsRequest))
    async def embeddings(request: Request) -> Response:
        most = served.settings.max_inputs
        asked, inputs = await served.reader.read(
            await request.body(), EmbeddingsRequest, field="input", most=most, status=400
        )
        backend: Backend = request.app.state.backend
        contract = await backend.find(asked.model)
        _check_dimensions(asked.dimensions, contract, status=400)
        parameters = _parameters(asked.prompt_name, truncate=True)
        found = await _embed(served, backend, contract, inputs, parameters)
        rows = _cut(found.embeddings, contract, asked.dimensions, normalize=contract.normalized)
        base64_wanted = asked.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()
                if base64_wanted
                else row,
            }
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        return Json({"object": "list", "data": data, "model": asked.model, "usage": usage})

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        backend: Backend = request.app.state.backend
        names = sorted(await backend.models(fresh=True))
        data = [
            {"id": name, "object": "model", "created": _CREATED, "owned_by": "headrace"}
            for name in names
        ]
        return Json({"object": "list", "data": data})


def _tei_routes(app: FastAPI, served: _Served) -> None:
    settings, metrics = served.settings, served.metrics

    @app.post("/embed", openapi_extra=_body_of(EmbedRequest))
    @app.post("/", include_in_schema=False)
    async def embed(request: Request) -> Response:
        most = settings.max_inputs
        asked, inputs = await served.reader.read(
            await request.body(), EmbedRequest, field="inputs", most=most, status=422
        )
        normalize = asked.normalize is not False
        backend: Backend = request.app.state.backend
        contract = await backend.find(settings.model)
        _check_dimensions(asked.dimensions, contract, status=422)
        if asked.truncation_direction in {"left", "Left"}:
            raise Problem(422, "truncation_direction: rows are cut as the model's tokenizer does")
        if contract.normalized and not normalize:
            raise Problem(
                422,
                f"normalize: the engine of {contract.name} normalises; build one that does not: "
                f"headrace build MODEL --no-normalize",
            )
        truncate = settings.auto_truncate if asked.truncate is None else asked.truncate
        parameters = _parameters(asked.prompt_name, truncate=truncate)
        found = await _embed(served, backend, contract, inputs, parameters)
        return Json(_cut(found.embeddings, contract, asked.dimensions, normalize=normalize))

    @app.get("/info")
    async def info(request: Request) -> Response:
        backend: Backend = request.app.state.backend
        contract = await backend.find(settings.model)
        return Json(
            {
                "model_id": contract.model_id,
                "model_sha": contract.revision or None,
                "model_dtype": {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[
                    contract.precision
                ],
                "model_type": {"embedding": {"pooling": contract.pooling}},
                "max_concurrent_requests": settings.max_concurrent,
                "max_input_length": contract.max_length,
                "max_batch_tokens": contract.token_budget,
                "max_batch_requests": contract.max_batch,
                "max_client_batch_size": settings.max_inputs,
                "auto_truncate": settings.auto_truncate,
                "tokenization_workers": 1,
                "version": version("headrace"),
                "sha": None,
                "docker_label": None,
            }
        )

    @app.get("/health")
    @app.head("/health", include_in_schema=False)
    @app.api_route("/ping", methods=["GET", "HEAD"], include_in_schema=False)
    async def health(request: Request) -> Response:
        backend: Backend = request.app.state.backend
        if not await backend.is_ready():
            raise Problem(503, f"the server {settings.server} is not ready")
        return Response(status_code=200)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _parameters(prompt_name: str | None, *, truncate: bool) -> dict[str, Any]:
    named = {} if prompt_name is None else {"prompt_name": prompt_name}
    return {"truncate": truncate} | named


async def _embed(
    served: _Served,
    backend: Backend,
    contract: Contract,
    given: Inputs,
    parameters: dict[str, Any],
) -> Vectors:
    """Embeds what a request gives: a text, texts, token ids, or rows of token ids."""
    texts = [
        _SURROGATES.sub("\ufffd", each).encode() if isinstance(each, str) else _ids(each, contract)
        for each in given
    ]
    if not isinstance(given[0], str):
        parameters = parameters | {"input_type": "ids"}
    found = await backend.embed(contract, texts, parameters)
    served.metrics.texts.inc(len(texts))
    served.metrics.tokens.inc(found.tokens)
    return found


def _ids(row: Sequence[int], contract: Contract) -> bytes:
    if row and not (min(row) >= 0 and max(row) < contract.vocab_size):
        raise Problem(
            400,
            f"token ids that the model does not know; it knows 0 to {contract.vocab_size - 1}",
            param="input",
        )
    return np.array(row, "<i4").tobytes()


def _check_dimensions(dimensions: int | None, contract: Contract, *, status: int) -> None:
    if dimensions is not None and dimensions > contract.dimension:
        raise Problem(
            status,
            f"dimensions is {dimensions}, and vectors of {contract.name} have {contract.dimension}",
            param="dimensions",
        )


def _cut(
    rows: NDArray[np.float32], contract: Contract, dimensions: int | None, *, normalize: bool
) -> NDArray[np.float32]:
    """Shortens vectors, and normalises those that are not or not any more."""
    if dimensions is not None and dimensions < contract.dimension:
        rows = rows[:, :dimensions]
    elif contract.normalized or not normalize:
        return rows
    if normalize:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(rows)


def _say_problems(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return answer(error, openai=is_openai(request.url.path))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        told = answer(Problem(error.status_code, message), openai=is_openai(request.url.path))
        told.headers.update(error.headers or {})
        return told
