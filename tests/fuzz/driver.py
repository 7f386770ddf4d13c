"""Starts workers, names what they died of, and keeps the bytes that did it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz import check
from fuzz.made.case import Case


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that failed.

    Attributes:
        target: name of its target.
        seed: its seed.
        fault: what happened, with a trace where there is one.
        file: where its bytes are kept.
    """

    target: str
    seed: int
    fault: str
    file: Path

    def __str__(self) -> str:
        return f"{self.target}, seed {self.seed}, bytes in {self.file}:\n{self.fault}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many cases there were, and those that failed."""

    cases: int
    failures: tuple[Failure, ...]


def run(
    target: str,
    *,
    first: int,
    cases: int,
    seconds: float,
    kept: Path,
    worker: tuple[str, ...] = ("-m", "fuzz.worker"),
) -> Outcome:
    """Runs a target's cases of the seeds from ``first`` on.

    Args:
        target: one of ``check.TARGETS``.
        first: the first seed.
        cases: how many at most.
        seconds: for how long at most; the case that is under way is finished.
        kept: folder for the bytes of cases that fail; it is made when there are some.
        worker: what Python is to run for a worker.

    Returns:
        What happened. A worker that dies is replaced by one that begins behind the case.
    """
    failures: list[Failure] = []
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done, end = 0, time.monotonic() + seconds
    with TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        while done < cases and len(failures) < 20 and (time.monotonic() < end or not done):
            start = first + done
            (folder / "seed").write_bytes(start.to_bytes(8, "little"))
            left = [str(start), str(cases - done), str(end - time.monotonic()), name]
            ran = subprocess.run(
                [sys.executable, *worker, target, *left],
                capture_output=True,
                check=False,
                env=environment,
                text=True,
            )
            ended = False
            for line in ran.stdout.splitlines():
                told = json.loads(line)
                if "done" in told:
                    done, ended = done + told["done"], True
                else:
                    failures.append(_keep(target, told["seed"], told["fault"], kept))
            if not ended:
                seed = int.from_bytes((folder / "seed").read_bytes(), "little")
                fault = f"{_death(ran.returncode)}\n{ran.stderr[-4000:]}"
                failures.append(_keep(target, seed, fault, kept))
                done = seed - first + 1
    return Outcome(done, tuple(failures))


def _death(code: int) -> str:
    if code == -signal.SIGALRM:
        return "it hangs"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _keep(target: str, seed: int, fault: str, kept: Path) -> Failure:
    case = check.case_of(target, seed)
    kept.mkdir(parents=True, exist_ok=True)
    file = kept / f"{target}-{seed}-{case.name}"
    file.write_bytes(case.data)
    return Failure(target, seed, fault, file)


def replay(file: Path) -> None:
    """Reads a kept file again, in this process.

    Raises:
        Exception: what it raised before.
    """
    target, seed, name = file.name.split("-", 2)
    case = check.case_of(target, int(seed))
    data = file.read_bytes()
    if case.data != data:  # made by other versions of the libraries, or edited since
        print("these are not the bytes of that seed: only what holds for all files is checked")
        case = Case(name=name, kind=case.kind, data=data)
    with TemporaryDirectory(prefix="fuzz-") as folder:
        check.check(case, int(seed), Path(folder))
