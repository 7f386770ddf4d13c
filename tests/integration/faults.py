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
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from faultplan import Job, Planned, plan, short_plan
from faultround import MODEL, Bench, Round, Wrong

from headrace.transport.system import SHM
from headrace_launcher.build import build
from headrace_launcher.ports import free_port
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

ENTRY = f"{MODEL}-null"
_HOST = "127.0.0.1"


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


def reference(bench: Bench, job: Job, chance: random.Random) -> None:
    """Has a run that nobody interrupts, where there was none yet for these bytes or this way."""
    done = Round(bench, f"wanted-{len(bench.wanted)}-{len(bench.times)}", job, chance)
    done.go([])
    wanted = bench.wanted.setdefault(job.same, done.hashes())
    if done.hashes() != wanted:
        raise Wrong(f"two uninterrupted runs differ: {done.hashes()}, {wanted}")
    bench.times.setdefault((job.own, job.feeders), done.times)
    done.remove()


def one(bench: Bench, results: Results, name: str, what: Planned) -> None:
    """Does a round and writes down what it showed."""
    kind, job, kills, chance = what.kind, what.job, what.kills, what.chance
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended, too
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
        pauses=(0.015,) if options.short else (0.0, 0.005, 0.02),
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
    steps = results.lines.get("steps")
    if steps is not None and steps.hits < steps.kills:
        print("a run was not killed at a step")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
