"""Reaches a server, reads a model's contract, and opens the best transport that works."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import tritonclient.grpc as triton

from headrace.config import TransportChoice
from headrace.contract import PARAMETER, SERVER_NAME, Contract
from headrace.errors import MachineError, ServerError, UsageError
from headrace.transport.base import Transport, server_errors
from headrace.transport.grpc import GrpcTransport
from headrace.transport.http import HttpTransport, answers
from headrace.transport.system import SystemTransport

CONNECT_SECONDS = 10.0
# Batches waiting at the server beside those being computed, so that its queue never runs empty.
QUEUED = 2


@dataclass(slots=True)
class Connection:
    """A model on a running server.

    Attributes:
        client: the gRPC client.
        server: ``HOST:PORT``.
        contract: the model's settings, as the server publishes them.
        http: ``HOST:PORT`` of the server's HTTP endpoint, where it is known.
    """

    client: triton.InferenceServerClient
    server: str
    contract: Contract
    http: str | None = None

    @property
    def slots(self) -> int:
        """Batches at the server that keep it busy, with some waiting."""
        return self.contract.in_flight + QUEUED

    def open_transport(
        self, choice: TransportChoice, *, slots: int | None = None, tidy: bool = True
    ) -> tuple[Transport, str]:
        """Opens the transport that was chosen; for ``auto`` the first that works.

        Args:
            choice: what was asked for.
            slots: most batches in flight; None takes what keeps the server busy.
            tidy: whether to remove first what dead processes have left in shared memory.

        Returns:
            The transport and, in a few words, why it is that one.

        Raises:
            MachineError: the one that was asked for does not work here.
        """
        slots = slots or self.slots
        if choice == "grpc":
            return GrpcTransport(self.client, self.contract, slots=slots), "asked for"
        try:
            transport = self._open_system(slots, tidy=tidy)
        except MachineError as error:
            if choice == "system":
                raise
            return GrpcTransport(self.client, self.contract, slots=slots), str(error)
        reason = "asked for" if choice == "system" else "server and client share memory"
        return transport, reason

    def _open_system(self, slots: int, *, tidy: bool) -> SystemTransport:
        if self.http is not None and answers(self.http):
            return HttpTransport(self.client, self.contract, slots=slots, tidy=tidy, http=self.http)
        return SystemTransport(self.client, self.contract, slots=slots, tidy=tidy)

    def close(self) -> None:
        """Closes the connection."""
        self.client.close()


def connect(server: str, names: Sequence[str]) -> Connection:
    """Connects to ``server`` and to the first of the models ``names`` that it has ready.

    Args:
        server: ``HOST:PORT`` of the gRPC endpoint.
        names: names of models, the preferred one first.

    Raises:
        UsageError: ``server`` is not ``HOST:PORT``, or has none of these models.
        ServerError: nobody answers, or the model is not one of headrace's.
    """
    host, _, port = server.rpartition(":")
    if not host or "/" in server or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--server {server}: expected HOST:PORT of a gRPC endpoint")
    client = triton.InferenceServerClient(server)
    try:
        _wait_until_live(client, server)
        with server_errors(f"the server {server} cannot be asked for its models"):
            name = next((n for n in names if client.is_model_ready(n)), None)
            contract = _contract(client, server, name, names)
            # Servers that headrace starts tell their HTTP port in their name.
            found = re.fullmatch(SERVER_NAME, client.get_server_metadata().name)
    except BaseException:
        client.close()
        raise
    return Connection(client, server, contract, f"{host}:{found['http']}" if found else None)


def _contract(
    client: triton.InferenceServerClient, server: str, name: str | None, names: Sequence[str]
) -> Contract:
    if name is None:
        listed = client.get_model_repository_index().models
        have = sorted(model.name for model in listed if model.state == "READY")
        raise UsageError(
            f"the server {server} has no model {' or '.join(names)} ready; "
            f"it has: {', '.join(have) or 'none'}"
        )
    config = client.get_model_config(name).config
    if PARAMETER not in config.parameters:
        raise ServerError(
            f"the model {name} on {server} was not built by headrace (its config has no "
            f"{PARAMETER!r} parameter); build one with 'headrace build'"
        )
    try:
        return Contract.from_json(config.parameters[PARAMETER].string_value)
    except ValueError as error:
        raise ServerError(f"{name} on {server}: {error}") from error


def _wait_until_live(client: triton.InferenceServerClient, server: str) -> None:
    try:
        live = client.is_server_live(client_timeout=CONNECT_SECONDS)
    except triton.InferenceServerException as error:
        raise ServerError(
            f"no Triton server answers at {server} ({error.message()}); start one with "
            f"'headrace serve', or leave --server out to have one started"
        ) from error
    if not live:
        raise ServerError(f"the server at {server} is not live; look at its log")
