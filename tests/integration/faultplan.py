"""What the rounds of ``faults.py`` are: which job, killed how and when, all from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from faultclient import MANY, STEPS
from powercut import WAYS

_RANDOM = (
    "client",
    "feeder",
    "server",
    "client",
    "server elsewhere",
    "SIGTERM",
    "client",
    "SIGINT",
)

# What differs between the kinds of output.
_OF_EACH = {
    "rows written, not synced",
    "the output's last bytes written, not synced",
    "data renamed",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is embedded, and into what."""

    suffix: str
    dtype: str
    on_error: str
    feeders: int
    own: bool

    @property
    def output(self) -> str:
        return f"out{self.suffix}"

    @property
    def same(self) -> tuple[str, str, str]:
        """What the bytes depend on."""
        return self.suffix, self.dtype, self.on_error


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One way to end a run before it is done.

    Attributes:
        kind: ``step``, ``client``, ``feeder``, ``server``, ``SIGTERM`` or ``SIGINT``.
        step: the step, see :mod:`faultclient`.
        times: at which time that the step comes.
        written: whether the moment is a part of the job's blocks, or of a run's time.
        moment: which part.
        cut: what a power cut takes, see :func:`powercut.cut`; None for none.
        at_once: whether the job is gone on with while processes of the killed run may live.
    """

    kind: str
    step: str = ""
    times: int = 1
    written: bool = True
    moment: float = 0.5
    cut: str | None = None
    at_once: bool = False


class Planned(NamedTuple):
    """A round; ``chance`` decides what is left open."""

    kind: str
    job: Job
    kills: list[Kill]
    chance: random.Random


def some_job(chance: random.Random, suffix: str, *, own: bool, feeders: int | None = None) -> Job:
    return Job(
        suffix=suffix,
        dtype=chance.choice(["float32", "float16"]),
        on_error=chance.choice(["null", "skip"]),
        feeders=chance.choice([0, 1, 2]) if feeders is None else feeders,
        own=own,
    )


def some_kill(chance: random.Random, kind: str, step: str = "", most: int = 4) -> Kill:
    return Kill(
        kind=kind,
        step=step,
        times=chance.randint(1, most) if step in MANY else 1,
        written=chance.random() < 0.7,
        moment=chance.uniform(0.02, 0.95),
        cut=chance.choice([None, *WAYS]) if kind in {"step", "client"} else None,
        at_once=chance.random() < 0.5,
    )


def plan(seed: int, number: int) -> Planned:
    """Returns what a round is: a step and a random moment in turn."""
    chance = random.Random(f"{seed} {number}")
    turn = number // 2
    if number % 2 == 0:
        step = STEPS[turn % len(STEPS)]
        suffix = (".npy", ".parquet")[(turn + turn // len(STEPS)) % 2]
        kills = [some_kill(chance, "step", step)]
        if chance.random() < 0.3:  # and once more, before
            kills.insert(0, some_kill(chance, "step", chance.choice(STEPS[3:8])))
        job = some_job(chance, suffix, own=chance.random() < 0.5)
        return Planned(f"step: {step}", job, kills, chance)
    kind = _RANDOM[turn % len(_RANDOM)]
    suffix = chance.choice([".npy", ".parquet"])
    own = kind != "server elsewhere" and chance.random() < 0.8
    feeders = chance.choice([1, 2]) if kind == "feeder" else None
    own = own or kind == "server"
    kills = [some_kill(chance, kind.split()[0])]
    while kind == "client" and len(kills) < 4 and chance.random() < 0.4:
        kills.append(some_kill(chance, kind))
    return Planned(kind, some_job(chance, suffix, own=own, feeders=feeders), kills, chance)


def short_plan(seed: int, suffix: str) -> Iterator[Planned]:
    """Yields rounds for one kind of output; both have every step and every kill between them."""
    chance = random.Random(f"{seed} {suffix}")
    odd = suffix == ".parquet"
    # Few kinds of bytes: each wants a run that nobody interrupts.
    one, two = (("float16", "skip"), ("float32", "null"))[:: -1 if odd else 1]

    def job(feeders: int, *, own: bool = False) -> Job:
        dtype, on_error = two if feeders else one
        return Job(suffix=suffix, dtype=dtype, on_error=on_error, feeders=feeders, own=own)

    # Each chain is one job, killed at one step after the other.
    steps = [step for i, step in enumerate(STEPS) if i % 2 == odd or step in _OF_EACH]
    for feeders, half in enumerate((steps[::2], steps[1::2])):
        kills = [some_kill(chance, "step", step, most=2) for step in half]
        yield Planned("steps", job(feeders), kills, chance)
    asked = "SIGINT" if odd else "SIGTERM"
    yield Planned(asked, job(1), [some_kill(chance, asked)], chance)
    if odd:
        yield Planned("client", job(0), [some_kill(chance, "client")], chance)
    else:
        yield Planned("feeder", job(1), [some_kill(chance, "feeder")], chance)
    kill = [some_kill(chance, "server")]
    if odd:
        yield Planned("server elsewhere", job(1), kill, chance)
    else:
        yield Planned("server", job(0, own=True), kill, chance)
