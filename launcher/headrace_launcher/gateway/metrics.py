"""What the gateway counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_ROUTES = frozenset({"/v1/embeddings", "/embed", "/"})
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "headrace_gateway_requests",
            "Requests by route and HTTP status; 0: the caller was gone",
            ["route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "headrace_gateway_request_seconds",
            "Time from the head of a request to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._running = Gauge(
            "headrace_gateway_running", "Requests that are worked on", registry=self.registry
        )
        self.texts = Counter(
            "headrace_gateway_texts", "Texts that were embedded", registry=self.registry
        )
        self.tokens = Counter("headrace_gateway_tokens", "Their tokens", registry=self.registry)

    @contextmanager
    def request(self, path: str) -> Iterator[Callable[[int], None]]:
        """Counts a request; yields what is to be told its status."""
        route = path if path in _ROUTES else "other"
        status = 0
        start = time.perf_counter()
        self._running.inc()

        def note(found: int) -> None:
            nonlocal status
            status = found

        try:
            yield note
        finally:
            self._running.dec()
            self._requests.labels(route, str(status)).inc()
            self._seconds.labels(route).observe(time.perf_counter() - start)

    def text(self) -> bytes:
        """Returns all of it as Prometheus reads it."""
        return generate_latest(self.registry)
