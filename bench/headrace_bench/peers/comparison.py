"""Ways put beside each other: vectors first, then speed in turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headrace.errors import HeadraceError
from headrace_bench.options import say
from headrace_bench.peers.ways import Peer
from headrace_bench.results import Way
from headrace_bench.vectors import cosines, summary

REFERENCE = "sentence-transformers (torch, fp32)"


@dataclass(slots=True, kw_only=True)
class Comparison:
    """What is compared, and what is known of it.

    Attributes:
        rows: int64[n]; the rows whose vectors are compared.
        least_cosine: below it a vector is wrong.
        seed: of the order.
        reference: float[n, dimension]; what is right, or None where nobody tells.
        ways: all, by name, with what was measured.
        peers: those of them that can be measured.
        order: names of the ways of each repetition, in the order in which they were measured.
    """

    rows: NDArray[np.int64]
    least_cosine: float
    seed: int
    reference: NDArray[np.floating] | None = None
    ways: dict[str, Way] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    order: list[list[str]] = field(default_factory=list)

    def add(self, name: str, make: Callable[[], Peer], *, must: bool = False) -> None:
        """Adds a way, if it can be had, and compares its first vectors.

        Args:
            name: what it is called.
            make: makes it; whatever it raises, or its first vectors do, is noted.
            must: raise it instead.
        """
        say(f"{name}: first vectors")
        way = self.ways[name] = Way()
        try:
            peer = make()
            vectors = peer.first()
        except Exception as error:
            if must:
                raise
            self._leave_out(name, error)
            return
        way.what = peer.what
        self.peers[name] = peer
        self._compare(name, vectors)

    def measure(self, repetitions: int, *, must: str) -> None:
        """Measures all ways in turn, each time in another order, and compares their vectors.

        Args:
            repetitions: how often.
            must: name of the way whose error is raised; another one is left out from there on.
        """
        for repetition in range(repetitions):
            names = list(self.peers)
            random.Random(f"{self.seed} {repetition}").shuffle(names)
            self.order.append(names)
            for name in names:
                say(f"repetition {repetition + 1} of {repetitions}: {name}")
                try:
                    rate, vectors = self.peers[name].measure()
                except Exception as error:
                    if name == must:
                        raise
                    self._leave_out(name, error)
                    continue
                self.ways[name].rates.append(rate)
                self._compare(name, vectors)

    def _compare(self, name: str, vectors: NDArray[np.floating]) -> None:
        """Notes cosines, if they are the worst so far, and lets go of a way that is wrong."""
        if self.reference is None:
            return
        way = self.ways[name]
        if vectors.shape != self.reference.shape:
            way.wrong = f"its vectors have {vectors.shape[-1]} dimensions"
        else:
            found = summary(cosines(vectors, self.reference))
            if way.cosines is None or not found.least >= way.cosines.least:
                way.cosines = found
            if not found.least >= self.least_cosine:
                way.wrong = (
                    f"the least cosine to {REFERENCE} is {found.least:.6f}, below "
                    f"{self.least_cosine}"
                )
        if way.wrong:
            say(f"{name}: WRONG: {way.wrong}")
            del self.peers[name]

    def _leave_out(self, name: str, error: Exception) -> None:
        self.ways[name].missing = why(error)
        say(f"{name}: not measured: {self.ways[name].missing}")
        self.peers.pop(name, None)


def why(error: BaseException) -> str:
    """Returns in one line why something could not be measured."""
    kind = "" if isinstance(error, HeadraceError | ImportError) else f"{type(error).__name__}: "
    said = (str(error).strip() or "no message").splitlines()[0]
    return f"{kind}{said}"[:300]
