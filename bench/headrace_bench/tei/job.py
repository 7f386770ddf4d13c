"""What a process that sends requests to TEI is told."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

NUMBER_BYTES = 4
"""Of a request's number in the queue, little-endian."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often and when a request that failed in passing is sent again.

    Attributes:
        retries: how often at most.
        timeouts: how often of these for an answer that did not come in time.
        first: seconds before the first time, doubled each time; up to half of it less, by chance.
        longest: seconds, at most.
        timeout: seconds for one answer.
        seed: of the chance.
    """

    retries: int = 30
    timeouts: int = 2
    first: float = 0.05
    longest: float = 2.0
    timeout: float = 120.0
    seed: int = 0

    def wait(self, attempt: int, chance: random.Random) -> float:
        """Returns the seconds to wait after an attempt, of which 0 is the first."""
        most = min(self.longest, self.first * 2.0 ** min(attempt, 30))
        return most * chance.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process does.

    Attributes:
        folder: of the requests, and for what comes back.
        number: of this process.
        urls: whom each of its requests in flight asks; as many as there are to be.
        queue: a file descriptor that is shared with the others: numbers of requests.
        dimension: of a vector.
        patience: with failures.
    """

    folder: str
    number: int
    urls: list[str]
    queue: int
    dimension: int
    patience: Patience

    def to_json(self) -> str:
        """Returns it for the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Reads what :meth:`to_json` has written."""
        found = json.loads(text)
        return cls(**(found | {"patience": Patience(**found["patience"])}))

    def result(self, kind: str) -> Path:
        """Returns the file of this process for ``answers``, ``rows.npy`` or ``vectors.npy``."""
        return Path(self.folder) / f"{self.number}-{kind}"
