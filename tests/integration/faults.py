"""Kills jobs at every step and at random moments, goes on with them, and compares the bytes.

``python tests/integration/faults.py --rounds 100 --seed 1`` (or ``make faults``). Each round embeds
one file with the null encoder through a real Triton server: the client, a feeder or the server is
killed, the same command is given again until the job is complete, and its files must have the
SHA-256 of those of a run that nobody interrupted. Nothing may be left: no process, no shared
memory, no temporary file. Ends with 1 if something differs or is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from faultclient import MANY, STEPS
from faultround import MODEL, Bench, Job, Kill, Round, Wrong
from powercut import WAYS

from headrace.transport.system import SHM
from headrace_launcher.build import build
from headrace_launcher.ports import free_port
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

ENTRY = f"{MODEL}-null"
_HOST = "127.0.0.1"
_RANDOM = ("client", "feeder", "server", "client", "server elsewhere", "SIGTERM", "client", "SIGINT")


class Elsewhere:
    """A server that no run has started; it can be killed and started again at the same ports."""

    def __init__(self, repository: Path) -> None:
        self._server = Server(
            find_triton(),
            repository,
            [ENTRY],
            grpc_port=free_port(_HOST),
            http_port=free_port(_HOST),
            metrics_port=None,
            drain=False,
        )
        self._started = False

    def endpoint(self) -> str:
        if not self._started:
            self._server.start()
            self._started = True
        return self._server.endpoints.grpc

    def restart(self, seconds: float) -> None:
        """Kills it, and starts it again after some seconds."""
        assert self._server.pid is not None
        os.kill(self._server.pid, signal.SIGKILL)
        time.sleep(seconds)
        self._server.restart()

    def stop(self) -> None:
        self._server.stop()


@dataclass(kw_only=True)
class Tally:
    """A line of the table."""

    rounds: int = 0
    kills: int = 0
    hits: int = 0
    resumes: int = 0
    equal: int = 0


@dataclass(kw_only=True)
class Results:
    """What the rounds have shown, by kind of kill."""

    lines: dict[str, Tally] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, kind: str, planned: int, done: Round, *, equal: bool) -> None:
        line = self.lines.setdefault(kind, Tally())
        line.rounds += 1
        line.kills += planned
        line.hits += len(done.hits)
        line.resumes += done.runs - 1
        line.equal += equal

    def table(self) -> str:
        heads = ("kind of kill", "rounds", "kills", "hit", "resumes", "equal")
        rows = [
            (kind, t.rounds, t.kills, t.hits, t.resumes, t.equal) for kind, t in self.lines.items()
        ]
        rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 6))))
        width = max(len(str(row[0])) for row in rows)
        lines = [f"{heads[0]:{width}}" + "".join(f"{head:>9}" for head in heads[1:])]
        lines += [f"{row[0]:{width}}" + "".join(f"{each:>9}" for each in row[1:]) for row in rows]
        return "\n".join(lines)


def write_corpus(path: Path, rows: int, seed: int) -> None:
    """Writes records with ids and text of made-up words; one in 83 is bad, in several ways."""
    chance = random.Random(seed)
    letters = "abcdefghijklmnoprstuvwz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(5000)]
    bad = ('{"id": "r%d", "text": null}', '{"id": "r%d", "txt": "a"}', '{"id": "r%d", "text": ')
    with path.open("w") as file:
        for row in range(rows):
            if row % 83 == 17:
                file.write(chance.choice(bad) % row + "\n")
                continue
            text = " ".join(chance.choices(words, k=chance.randint(1, 24)))
            file.write(json.dumps({"id": f"r{row}", "text": text}) + "\n")


def some_job(chance: random.Random, suffix: str, *, own: bool, feeders: int | None = None) -> Job:
    return Job(
        suffix=suffix,
        dtype=chance.choice(["float32", "float16"]),
        on_error=chance.choice(["null", "skip"]),
        feeders=chance.choice([0, 1, 2]) if feeders is None else feeders,
        own=own,
    )


def some_kill(chance: random.Random, kind: str, step: str = "") -> Kill:
    return Kill(
        kind=kind,
        step=step,
        times=chance.randint(1, 4) if step in MANY else 1,
        written=chance.random() < 0.7,
        moment=chance.uniform(0.02, 0.95),
        cut=chance.choice([None, *WAYS]) if kind in {"step", "client"} else None,
        at_once=chance.random() < 0.5,
    )


def plan(seed: int, number: int) -> tuple[str, Job, list[Kill], random.Random]:
    """Returns what a round is: a step and a random moment in turn."""
    chance = random.Random(f"{seed} {number}")
    turn = number // 2
    if number % 2 == 0:
        step = STEPS[turn % len(STEPS)]
        suffix = (".npy", ".parquet")[(turn + turn // len(STEPS)) % 2]
        kills = [some_kill(chance, "step", step)]
        if chance.random() < 0.3:  # and once more, before
            kills.insert(0, some_kill(chance, "step", chance.choice(STEPS[3:8])))
        return f"step: {step}", some_job(chance, suffix, own=chance.random() < 0.5), kills, chance
    kind = _RANDOM[turn % len(_RANDOM)]
    suffix = chance.choice([".npy", ".parquet"])
    own = kind != "server elsewhere" and chance.random() < 0.8
    feeders = chance.choice([1, 2]) if kind == "feeder" else None
    own = own or kind == "server"
    kills = [some_kill(chance, kind.split()[0])]
    while kind == "client" and len(kills) < 4 and chance.random() < 0.4:
        kills.append(some_kill(chance, kind))
    return kind, some_job(chance, suffix, own=own, feeders=feeders), kills, chance


def short_plan(seed: int, suffix: str) -> Iterator[tuple[str, Job, list[Kill], random.Random]]:
    """Yields rounds for one kind of output, which between both kinds have every step."""
    chance = random.Random(f"{seed} {suffix}")
    odd = suffix == ".parquet"
    # Each chain is one job, killed at one step after the other.
    steps = [step for i, step in enumerate(STEPS) if i % 2 == odd or i in {4, 11, 13, 15}]
    for half, feeders in ((steps[::2], 0), (steps[1::2], 1)):
        kills = [some_kill(chance, "step", step) for step in half]
        yield "steps", some_job(chance, suffix, own=False, feeders=feeders), kills, chance
    for kind in ("client", "SIGINT" if odd else "SIGTERM"):
        yield kind, some_job(chance, suffix, own=False), [some_kill(chance, kind)], chance
    yield "feeder", some_job(chance, suffix, own=False, feeders=1), [
        some_kill(chance, "feeder")
    ], chance
    kind = "server elsewhere" if odd else "server"
    yield kind, some_job(chance, suffix, own=not odd), [some_kill(chance, "server")], chance


def reference(bench: Bench, job: Job, chance: random.Random) -> None:
    """Has a run that nobody interrupts, where there was none yet for these bytes or this way."""
    done = Round(bench, f"wanted-{len(bench.wanted)}-{len(bench.times)}", job, chance)
    done.go([])
    wanted = bench.wanted.setdefault(job.same, done.hashes())
    if done.hashes() != wanted:
        raise Wrong(f"two uninterrupted runs differ: {done.hashes()}, {wanted}")
    bench.times.setdefault((job.own, job.feeders), done.times)
    done.remove()


def one(
    bench: Bench, results: Results, name: str, what: tuple[str, Job, list[Kill], random.Random]
) -> None:
    """Does a round and writes down what it showed."""
    kind, job, kills, chance = what
    if job.same not in bench.wanted or (job.own, job.feeders) not in bench.times:
        reference(bench, job, chance)
    done = Round(bench, name, job, chance)
    wrong = ""
    try:
        done.go(kills)
        if (found := done.hashes()) != bench.wanted[job.same]:
            wrong = f"the files differ: {found}, not {bench.wanted[job.same]}"
    except Wrong as error:
        wrong = str(error)
    results.add(kind, len(kills), done, equal=not wrong)
    if wrong:
        results.failures.append(f"{name} ({kind}; {job}; {kills}): {wrong}; see {done.folder}")
        print(f"WRONG: {results.failures[-1]}", flush=True)
    else:
        done.remove()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--block-rows", type=int, default=700)
    parser.add_argument("--short", choices=[".npy", ".parquet"], help="a dozen steps, few rows")
    parser.add_argument("--repository", type=Path, help="has the null encoder; made if left out")
    parser.add_argument("--folder", type=Path, help="where to work; a new one if left out")
    return parser.parse_args(arguments)


def main() -> int:
    """Runs all rounds, prints the table, and returns the exit code."""
    options = parse()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=options.folder)).resolve()
    repository = options.repository or folder / "models"
    if options.short:
        options.rows, options.block_rows = 6000, 100
    build(MODEL, repository=repository, engine="null")
    corpus = folder / "in.jsonl"
    write_corpus(corpus, options.rows, options.seed)
    server = Elsewhere(repository.resolve())
    bench = Bench(
        folder=folder,
        corpus=corpus,
        repository=repository.resolve(),
        block_rows=options.block_rows,
        elsewhere=server.endpoint,
        restart=server.restart,
    )
    results = Results()
    start = time.monotonic()
    try:
        if options.short:
            for number, what in enumerate(short_plan(options.seed, options.short)):
                one(bench, results, f"round-{number}", what)
        else:
            last = options.first + options.rounds
            for number in range(options.first, last):
                one(bench, results, f"round-{number}", plan(options.seed, number))
                print(f"{number + 1} of {last}", file=sys.stderr, flush=True)
    finally:
        server.stop()
    print(results.table())
    for line in results.failures:
        print(f"\n{line}")
    if left := [path.name for path in SHM.glob(f"headrace*[-_]{os.getpid()}[-_]*")]:
        results.failures.append(f"shared memory of the server elsewhere is left: {left}")
        print(results.failures[-1])
    print(f"\nseed {options.seed}, {time.monotonic() - start:.0f} s")
    if results.failures:
        print(f"repeat a round N with --seed {options.seed} --first N --rounds 1")
        return 1
    corpus.unlink()
    if options.short and any(each.hits < each.kills for each in results.lines.values()):
        print("a kill has not hit")
        return 1
    with suppress(OSError):
        import shutil

        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
