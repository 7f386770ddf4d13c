"""What a gateway is told."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import UsageError

MIB = 1 << 20


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
        max_pending_bytes: of the bodies of all requests that are worked on.
        timeout: seconds that a request may wait for its vectors.
        body_timeout: seconds within which a request's head, and then its body, must be there.
        drain: seconds that requests have to end in when the gateway is stopped.
        auto_truncate: whether texts that are too long are cut where a request does not say.
    """

    server: str = "127.0.0.1:8001"
    model: str | None = None
    api_key: str = ""
    max_concurrent: int = 512
    max_inputs: int = 2048
    max_body_bytes: int = 16 * MIB
    max_pending_bytes: int = 256 * MIB
    timeout: float = 60.0
    body_timeout: float = 20.0
    drain: float = 30.0
    auto_truncate: bool = True

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
