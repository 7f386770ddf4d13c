"""A repository's text models on a Triton server, for the gateway."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from headrace.contract import (
    EMBEDDING,
    TEXT,
    TEXT_PARAMETER,
    TOKENS,
    Contract,
    text_name,
)
from headrace_launcher.gateway.problems import Problem

_AT_ONCE = 4
"""Parts of one caller's texts that are at the server, or as many as keep its engine busy."""
_ROWS = 64
"""Texts in each of them, or as many as the engine computes at once, if those are fewer: others'
texts wait for the parts that stand before them."""
_TOKEN = 4
"""Bytes of a text that are taken for a token; of token ids that is just so."""
_ENDING = text_name("")
_LONG = 1 << 17
"""Bytes of texts that are sent together; of more than that, one text, no other at a time."""
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # By itself it waits up to two minutes before it looks for a server again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_KNOWN_SECONDS = 10.0
_ASK_SECONDS = 5.0
_AGAIN_SECONDS = 2.0
_TEXT_AT = re.compile(r"\btext (\d+) of \d+\b")
_PROMPT = "the model has no prompt "
_ENSEMBLE = re.compile(r"^(\[[^\]]*\] )?in ensemble '[^']*', ")


@dataclass(frozen=True, slots=True)
class Vectors:
    """What a request is answered with.

    Attributes:
        embeddings: float32[texts, dimension].
        tokens: tokens of all texts, special tokens included.
    """

    embeddings: NDArray[np.float32]
    tokens: int


class Backend:
    """Knows the models, and asks them.

    Args:
        server: ``HOST:PORT`` of the gRPC endpoint.
        timeout: seconds that texts may wait for their vectors.
    """

    def __init__(self, server: str, *, timeout: float) -> None:
        self._server = server
        self._timeout = timeout
        self._client = triton.InferenceServerClient(server, channel_args=_CHANNEL)
        self._long = asyncio.Semaphore(1)
        self._models: dict[str, Contract] = {}
        self._looked = -_AGAIN_SECONDS

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.close()

    async def is_ready(self) -> bool:
        """Returns whether the server is ready and serves a text model."""
        try:
            if not await self._client.is_server_ready(client_timeout=_ASK_SECONDS):
                return False
            return bool(await self.models(fresh=True))
        except (InferenceServerException, Problem):
            return False

    async def models(self, *, fresh: bool = False) -> Mapping[str, Contract]:
        """Returns the entries that take texts, by name.

        Args:
            fresh: whether to ask the server again, if that was not done just now.

        Raises:
            Problem: the server cannot be reached.
        """
        if self._models and not (fresh and time.monotonic() >= self._looked + _AGAIN_SECONDS):
            return self._models
        self._looked = time.monotonic()
        try:
            index = await self._client.get_model_repository_index(client_timeout=_ASK_SECONDS)
            found = {}
            for model in index.models:
                if model.state == "READY" and model.name.endswith(_ENDING):
                    told = await self._client.get_model_config(
                        model.name, client_timeout=_ASK_SECONDS
                    )
                    said = told.config.parameters[TEXT_PARAMETER].string_value
                    if said:
                        contract = Contract.from_json(said)
                        found[contract.name] = contract
        except InferenceServerException as error:
            raise self._explained(error, [], 0) from error
        except ValueError as error:
            raise Problem(503, str(error)) from error
        self._models = found
        return found

    async def find(self, name: str | None) -> Contract:
        """Returns the model of a name, as a caller gives it: the entry's, or the model's own.

        Args:
            name: None takes the only one there is.

        Raises:
            Problem: there is none, or more than one.
        """
        stale = time.monotonic() > self._looked + _KNOWN_SECONDS
        for fresh in (stale, True):
            models = await self.models(fresh=fresh)
            if name is None and len(models) == 1:
                return next(iter(models.values()))
            if name is not None and name in models:
                return models[name]
            fitting = [each for each in models.values() if each.model_id == name]
            if len(fitting) == 1:
                return fitting[0]
        known = ", ".join(sorted(models)) or "none"
        if name is None:
            raise Problem(503, f"the gateway needs --model: there are several models: {known}")
        raise Problem(
            404,
            f"the model {name[:200]!r} does not exist; there are: {known}",
            param="model",
            code="model_not_found",
        )

    async def embed(
        self, contract: Contract, texts: Sequence[bytes], parameters: Mapping[str, Any]
    ) -> Vectors:
        """Embeds texts.

        Args:
            contract: the model's.
            texts: as ``NAME-text`` takes them.
            parameters: of the request; see ``hosted_text/texts.py``.

        Raises:
            Problem: a text cannot be embedded, or the server failed.
        """
        # Texts of about one length go together, so that little is padded.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        parts = parts_of(order, [len(text) for text in texts], contract)
        embeddings = np.empty((len(texts), contract.dimension), np.float32)
        tokens = 0
        turns = asyncio.Semaphore(max(_AT_ONCE, contract.in_flight))
        deadline = time.monotonic() + self._timeout

        async def ask(part: Sequence[int]) -> int:
            long = sum(len(texts[row]) for row in part) > _LONG
            async with turns, self._long if long else nullcontext():
                batch = np.array([texts[row] for row in part], object).reshape(-1, 1)
                try:
                    result = await self._ask(contract, batch, parameters, deadline)
                except InferenceServerException as error:
                    self._models = {}  # it may be another server by now
                    raise self._explained(error, part, len(texts)) from error
            vectors = result.as_numpy(EMBEDDING)
            if vectors.shape != (len(part), contract.dimension):
                self._models = {}
                raise Problem(503, "the model has just been replaced; try again")
            embeddings[part] = vectors
            return int(result.as_numpy(TOKENS).sum())

        tasks = [asyncio.ensure_future(ask(part)) for part in parts]
        try:
            for task in asyncio.as_completed(tasks):
                tokens += await task
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return Vectors(embeddings, tokens)

    async def _ask(
        self,
        contract: Contract,
        batch: NDArray[np.object_],
        parameters: Mapping[str, Any],
        deadline: float,
    ) -> Any:
        tensor = triton.InferInput(TEXT, list(batch.shape), "BYTES")
        tensor.set_data_from_numpy(batch)
        return await self._client.infer(
            text_name(contract.name),
            [tensor],
            parameters=dict(parameters) or None,
            client_timeout=max(0.001, deadline - time.monotonic()),
        )

    def _explained(
        self, error: InferenceServerException, part: Sequence[int], count: int
    ) -> Problem:
        """Returns what the server says as a problem; texts are counted as the caller does."""
        status, said = str(error.status() or ""), str(error.message())
        said = _ENSEMBLE.sub("", said)
        if status.endswith("INVALID_ARGUMENT"):
            wrong = _TEXT_AT.search(said)
            if wrong is not None and part:
                row = part[int(wrong[1]) - 1] + 1
                said = _TEXT_AT.sub(f"text {row} of {count}", said, count=1)
            return Problem(400, said, param="prompt_name" if _PROMPT in said else "input")
        if status.endswith("DEADLINE_EXCEEDED"):
            return Problem(
                504, f"there was no answer within {self._timeout:.0f} s; send fewer texts at once"
            )
        if status.endswith("NOT_FOUND") or "unknown model" in said:
            return Problem(503, "the model is not served any more, or not yet again; try again")
        if status.endswith(("UNAVAILABLE", "CANCELLED")):
            return Problem(503, f"the server {self._server} is not there just now; try again soon")
        return Problem(500, f"the server failed: {said[:500]}")


def parts_of(order: Sequence[int], sizes: Sequence[int], contract: Contract) -> list[list[int]]:
    """Cuts texts into parts of so many rows, of so many bytes, and of so many tokens.

    Args:
        order: numbers of the texts, shorter ones first.
        sizes: of the texts, in bytes.
        contract: the model's.
    """
    most = min(_ROWS, contract.max_batch)
    parts: list[list[int]] = []
    size = 0
    for row in order:
        tokens = min(sizes[row] // _TOKEN + 1, contract.max_length)  # all rows are padded to them
        rows = max(1, min(most, contract.token_budget // tokens))
        if not parts or len(parts[-1]) >= rows or size + sizes[row] > _LONG:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += sizes[row]
    return parts
