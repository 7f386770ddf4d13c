"""Reaches a server, reads a model's contract, and opens the best transport that works."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import tritonclient.grpc as triton

from headrace.config import REQUEST_TIMEOUT, Engine, Precision, TransportChoice, host_of
from headrace.contract import (
    BUILT_FOR,
    PARAMETER,
    SERVER_NAME,
    Contract,
    text_name,
    tokenize_name,
)
from headrace.errors import MachineError, ServerError, ServerLostError, UsageError
from headrace.transport.base import SlotSize, Transport, server_errors
from headrace.transport.cuda import CudaMemory
from headrace.transport.grpc import GrpcTransport
from headrace.transport.http import HttpTransport, answers
from headrace.transport.memory import Memory
from headrace.transport.shared import SharedTransport
from headrace.transport.system import SystemMemory, sweep

CONNECT_SECONDS = 10.0
# Batches waiting at the server beside those being computed, so that its queue never runs empty.
QUEUED = 2


@dataclass(slots=True, kw_only=True)
class Connection:
    """A model on a running server.

    Attributes:
        client: the gRPC client.
        server: ``HOST:PORT``.
        contract: the model's settings, as the server publishes them.
        http: ``HOST:PORT`` of the server's HTTP endpoint, where it is known.
        instances: how many batches of the model the server computes at once.
        on_gpus: whether GPUs compute it.
        gpus: UUIDs of the GPUs that compute it, where they are known, by their numbers in the
            server's process.
        name: what the server calls itself.
        patience: seconds within which a batch is to be answered.
    """

    client: triton.InferenceServerClient
    server: str
    contract: Contract
    http: str | None = None
    instances: int = 1
    on_gpus: bool = False
    gpus: dict[int, str] = field(default_factory=dict)
    name: str = ""
    patience: float = REQUEST_TIMEOUT

    @property
    def slots(self) -> int:
        """Batches at the server that keep it busy, with some waiting."""
        return self.contract.in_flight * self.instances + QUEUED

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
            ServerLostError: the server is gone.
            MachineError: the one that was asked for does not work here.
        """
        slots = slots or self.slots
        if tidy and choice != "grpc":
            with suppress(MachineError):  # a server elsewhere may not know of shared memory
                sweep(self.client)
        if choice == "grpc":
            return self._grpc(slots), "asked for"
        if choice == "cuda":
            return self._shared(self._cuda(slots)), "asked for"
        if choice == "system":
            return self._shared(self._system(slots)), "asked for"
        why = "; not cuda: a CPU computes the model"
        if self.on_gpus:
            try:
                return self._shared(self._cuda(slots)), "server and client share a GPU"
            except ServerLostError:
                raise  # nothing else would work either
            except MachineError as error:
                why = f"; not cuda: {error}"
        try:
            return self._shared(self._system(slots)), f"server and client share memory{why}"
        except ServerLostError:
            raise
        except MachineError as error:
            return self._grpc(slots), f"not system: {error}{why}"

    def _grpc(self, slots: int) -> GrpcTransport:
        return GrpcTransport(self.client, self.contract, slots=slots, patience=self.patience)

    def _cuda(self, slots: int) -> CudaMemory:
        if not self.on_gpus:
            raise MachineError(
                f"--transport cuda: the model {self.contract.name} is computed by a CPU; use "
                f"--transport system"
            )
        if not self.gpus:
            raise MachineError(
                "the server does not say which GPUs it has; one that 'headrace serve' starts does"
            )
        size = SlotSize.of(self.contract)
        return CudaMemory(self.client, size, slots=slots, server_gpus=self.gpus)

    def _system(self, slots: int) -> SystemMemory:
        return SystemMemory(self.client, SlotSize.of(self.contract), slots=slots)

    def _shared(self, memory: Memory) -> SharedTransport:
        try:
            if self.http is not None and answers(self.http, self.name):
                return HttpTransport(
                    self.client, self.contract, memory, http=self.http, patience=self.patience
                )
            return SharedTransport(self.client, self.contract, memory, patience=self.patience)
        except BaseException:
            memory.close()
            raise

    def close(self) -> None:
        """Closes the connection."""
        self.client.close()


def connect(
    server: str,
    names: Sequence[str],
    *,
    engine: Engine = "auto",
    precision: Precision = "auto",
    exact: bool = False,
    patience: float = REQUEST_TIMEOUT,
) -> Connection:
    """Connects to ``server`` and to the first of the models ``names`` that it has ready.

    Of one model there may be several entries beside each other, for other engines and GPUs: the
    one that fits ``engine`` and ``precision`` is taken, and of two that do the one on a GPU.

    Args:
        server: ``HOST:PORT`` of the gRPC endpoint.
        names: names of models, the preferred one first.
        engine: what is to compute.
        precision: what it is to compute in.
        exact: whether only an entry of just that name will do.
        patience: seconds within which a batch is to be answered.

    Raises:
        UsageError: ``server`` is not ``HOST:PORT``, or has none of these models.
        ServerLostError: nobody answers.
        ServerError: the model is not one of headrace's.
    """
    host = host_of(server)
    client = triton.InferenceServerClient(server)
    try:
        _wait_until_live(client, server)
        with server_errors(f"the server {server} cannot be asked for its models"):
            config, contract = _choose(client, server, names, engine, precision, exact=exact)
            name = client.get_server_metadata(client_timeout=CONNECT_SECONDS).name
    except BaseException:
        client.close()
        raise
    # Servers that headrace starts tell their HTTP port and their GPUs in their name.
    told = re.fullmatch(SERVER_NAME, name)
    uuids = told["gpus"].split(",") if told and told["gpus"] else []
    # Triton fills in the GPUs of a group that names none.
    numbers = sorted({number for group in config.instance_group for number in group.gpus})
    return Connection(
        client=client,
        server=server,
        name=name,
        contract=contract,
        http=f"{host}:{told['http']}" if told and told["http"] else None,
        instances=sum(group.count * max(1, len(group.gpus)) for group in config.instance_group),
        on_gpus=_on_gpus(config),
        gpus={number: uuids[number] for number in numbers if number < len(uuids)},
        patience=patience,
    )


def _choose(
    client: triton.InferenceServerClient,
    server: str,
    names: Sequence[str],
    engine: Engine,
    precision: Precision,
    *,
    exact: bool,
) -> tuple[Any, Contract]:
    """Returns the config and the contract of the entry to use."""
    ready = _ready(client, names, exact=exact)
    unfit: list[tuple[Any, Contract]] = []
    wrong: list[ServerError] = []
    for name in names:
        pattern = re.compile(re.escape(name) if exact else rf"{re.escape(name)}(-{BUILT_FOR})?")
        fitting: list[tuple[Any, Contract]] = []
        for found in filter(pattern.fullmatch, ready):  # the name itself comes first
            config = client.get_model_config(found, client_timeout=CONNECT_SECONDS).config
            try:
                contract = _contract(config, server)
            except ServerError as error:
                wrong.append(error)
                continue
            fits = engine in {"auto", contract.engine} and precision in {"auto", contract.precision}
            (fitting if fits else unfit).append((config, contract))
        if fitting:
            return max(fitting, key=lambda entry: _on_gpus(entry[0]))
    if unfit:  # what is wrong with it is said when the settings are checked
        return unfit[0]
    if wrong:
        raise wrong[0]
    beside = {each for name in ready for each in (text_name(name), tokenize_name(name))}
    raise UsageError(
        f"the server {server} has no model {' or '.join(names)} ready; "
        f"it has: {', '.join(name for name in ready if name not in beside) or 'none'}"
    )


def _ready(client: triton.InferenceServerClient, names: Sequence[str], *, exact: bool) -> list[str]:
    """Returns the names of the models that are ready: all, or those of ``names``."""
    if not exact:
        with suppress(triton.InferenceServerException):  # a server may not tell
            listed = client.get_model_repository_index(client_timeout=CONNECT_SECONDS).models
            return sorted(model.name for model in listed if model.state == "READY")
    return [name for name in names if client.is_model_ready(name, client_timeout=CONNECT_SECONDS)]


def _on_gpus(config: Any) -> bool:
    return any(group.kind == group.KIND_GPU for group in config.instance_group)


def _contract(config: Any, server: str) -> Contract:
    if PARAMETER not in config.parameters:
        raise ServerError(
            f"the model {config.name} on {server} was not built by headrace (its config has no "
            f"{PARAMETER!r} parameter); build one with 'headrace build'"
        )
    try:
        contract = Contract.from_json(config.parameters[PARAMETER].string_value)
    except ValueError as error:
        raise ServerError(f"{config.name} on {server}: {error}") from error
    if contract.name != config.name:
        raise ServerError(
            f"{config.name} on {server} says that its name is {contract.name}; build the entry "
            f"again with 'headrace build'"
        )
    return contract


def _wait_until_live(client: triton.InferenceServerClient, server: str) -> None:
    try:
        live = client.is_server_live(client_timeout=CONNECT_SECONDS)
    except triton.InferenceServerException as error:
        raise ServerLostError(
            f"no Triton server answers at {server} ({error.message()}); start one with "
            f"'headrace serve', or leave --server out to have one started"
        ) from error
    if not live:
        raise ServerLostError(f"the server at {server} is not live; look at its log")
