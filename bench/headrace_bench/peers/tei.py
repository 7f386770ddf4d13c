"""TEI among the peers: found or started, measured, and described."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import UsageError
from headrace_bench.options import say
from headrace_bench.tei.docker import FLAGS, TeiContainers
from headrace_bench.tei.info import NOT_TEI
from headrace_bench.tei.way import TeiWay
from headrace_bench.workload import Workload
from headrace_launcher.gpus import Gpu

DOCKER = "docker"


@dataclass(frozen=True, slots=True)
class TeiServers:
    """The servers to measure.

    Attributes:
        urls: of them, each with the same model.
        how: how they came to run.
    """

    urls: Sequence[str]
    how: str


@contextmanager
def find_tei(
    given: Sequence[str], model: Path, gpus: Sequence[Gpu], max_length: int, image: str | None
) -> Iterator[TeiServers]:
    """Gives the servers of ``--tei``, and stops those that it starts.

    Args:
        given: URLs, or ``docker`` alone.
        model: the model's folder, for those that are started.
        gpus: one is started for each; on the CPU where there are none.
        max_length: tokens of a row at which headrace cuts.
        image: the image to start, in place of the pinned one.

    Raises:
        UsageError: what is given cannot be.
        MachineError: Docker is not there, or a container cannot be started.
        ServerError: TEI does not become ready.
    """
    if DOCKER not in given:
        yield TeiServers(given, "running already")
        return
    if list(given) != [DOCKER]:
        raise UsageError("--tei docker starts all servers itself; leave the URLs out")
    say("TEI: starting")
    containers = TeiContainers(model, gpus, max_length, image=image)
    with containers as urls:
        images = ", ".join(containers.digests or dict.fromkeys(containers.images))
        yield TeiServers(urls, f"{images} {' '.join(FLAGS)}")


class TeiPeer:
    """TEI, driven over HTTP until more requests at once make it no faster.

    Args:
        servers: to measure.
        workload: what to embed.
        reference: int64[n]; the rows whose vectors are wanted.
        folder: for files.

    Raises:
        UsageError: a URL is none, or the servers have different models.
        ServerError: one does not answer.

    Attributes:
        what: see :class:`headrace_bench.peers.ways.Peer`.
        name: what its figures are called; never TEI where a server may be something else.
    """

    def __init__(
        self, servers: TeiServers, workload: Workload, reference: NDArray[np.int64], folder: Path
    ) -> None:
        self._servers, self._workload, self._reference = servers, workload, reference
        self._folder = folder
        self._way = self._way_of(workload.texts, reference)
        self.what, self.name = "over HTTP", self._way.name

    def first(self) -> NDArray[np.floating]:
        """See :class:`headrace_bench.peers.ways.Peer`; looks for what is fastest, too."""
        few = self._way_of([self._workload.texts[row] for row in self._reference], None)
        few.batch_size = min(few.batch_size, max(few.batch_sizes))
        few.measure()
        self._way.search()
        way = self._way
        dtypes = ", ".join(sorted({each.model_dtype or "?" for each in self._way.infos}))
        self.what = (
            f"{dtypes}, {len(self._servers.urls)} server"
            f"{'s' if len(self._servers.urls) > 1 else ''} over HTTP, batches of {way.batch_size}, "
            f"{way.concurrency} requests in flight"
        )
        return few.vectors

    def measure(self) -> tuple[float, NDArray[np.floating]]:
        """See :class:`headrace_bench.peers.ways.Peer`."""
        self._way.measure()
        return self._way.rates[-1], self._way.vectors

    def describe(self) -> dict[str, Any]:
        """Returns what a reader must know of it, as JSON takes it; sentences under ``notes``."""
        way, servers = self._way, self._servers
        told = {"how": servers.how, "infos": [asdict(each) for each in way.infos], "notes": []}
        if not way.rates:  # it has no speed, so there is nothing to say of how it was driven
            return told
        notes = [
            f"{self.name} ({servers.how}) was driven over keep-alive HTTP, truncation on, with "
            f"what was fastest of {len(way.table)} tries: batches of {way.batch_size}, "
            f"{way.concurrency} requests in flight, sent by processes of their own. Its texts are "
            "sorted by length, its requests made before the clock starts and its answers parsed "
            "after it has stopped; both is easier for it than a client's work would be."
        ]
        if not way.saturated:
            notes.append(
                f"{self.name} was not seen to be saturated: with more requests in flight, or "
                "more rows, it may be faster."
            )
        if way.driver_bound:
            notes.append(
                f"A process that sends requests to {self.name} used more than 90 % of a core: "
                "it may be what was slow."
            )
        for each in dict.fromkeys(way.infos):
            notes.append(
                f"It says of itself: {each.model_id}, {each.model_dtype}, at most "
                f"{each.max_batch_tokens} tokens a batch, {each.max_concurrent_requests} requests "
                f"at once, {each.max_client_batch_size} rows a request, {each.max_input_length} "
                "tokens a row."
            )
            if each.max_input_length not in {None, self._workload.contract.max_length}:
                notes.append(
                    f"It cuts rows at {each.max_input_length} tokens, headrace at "
                    f"{self._workload.contract.max_length}, so that they do not the same work."
                )
        if self.name == NOT_TEI:
            notes.append(
                "What answered in TEI's way does not say what it was built from, as TEI does; so "
                "it is not called TEI."
            )
        return told | {
            "search": [
                {"batch_size": size, "in_flight": flight, "rows_per_second": rate}
                for (size, flight), rate in way.table.items()
            ],
            "batch_size": way.batch_size,
            "in_flight": way.concurrency,
            "saturated": way.saturated,
            "retries": way.retries,
            "driver_cpu_seconds": way.cpu_seconds,
            "driver_bound": way.driver_bound,
            "notes": notes,
        }

    def _way_of(self, texts: list[str], keep: NDArray[np.int64] | None) -> TeiWay:
        return TeiWay(
            self._servers.urls,
            texts,
            self._workload.contract.dimension,
            self._workload.prompt,
            keep=keep,
            folder=self._folder,
        )
