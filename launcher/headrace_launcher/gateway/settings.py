"""What a gateway is told."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import UsageError

MAX_PENDING_BYTES = 256 << 20
"""Of the bodies of all requests that are worked on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """How a gateway serves.

    Attributes:
        server: ``HOST:PORT`` of Triton's gRPC endpoint.
        model: name of the entry that requests without a model get; None: the only one that is
            served, if there is just one.
        api_key: what callers must send as a bearer token; "" lets everybody in.
        max_concurrent: requests that are worked on at once; more are told to come again.
        max_inputs: texts in one request.
        max_body_bytes: of one request.
        timeout: seconds that a request may wait for its vectors.
        auto_truncate: whether texts that are too long are cut where a request does not say.
        patience: seconds within which a caller must have sent a request's head, then its body, and
            read on at its answer.
        drain: seconds that requests have to end in when the gateway is stopped.
    """

    server: str
    model: str | None
    api_key: str
    max_concurrent: int
    max_inputs: int
    max_body_bytes: int
    timeout: float
    auto_truncate: bool
    patience: float = 20.0
    drain: int = 30

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UsageError: one cannot be.
        """
        for option, value in (
            ("--max-concurrent", self.max_concurrent),
            ("--max-inputs", self.max_inputs),
            ("--max-body", self.max_body_bytes),
        ):
            if value < 1:
                raise UsageError(f"{option} must be at least 1, not {value}")
        if not 0 < self.timeout <= 86400:
            raise UsageError(f"--timeout must be above 0 and at most 86400, not {self.timeout}")
        if not self.api_key.isascii() or any(each.isspace() for each in self.api_key):
            raise UsageError("the API key must be ASCII without spaces")
