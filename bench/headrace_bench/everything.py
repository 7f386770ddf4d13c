"""All benchmarks that this machine allows, one after the other: ``make bench``.

What cannot be measured here is left out, and it is said why; what fails does not keep the others
from running.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import HeadraceError
from headrace_bench.options import say
from headrace_launcher.gpus import find_gpus


@dataclass(frozen=True, slots=True)
class Step:
    """One benchmark.

    Attributes:
        name: what it is called.
        arguments: of Python.
        missing: why it cannot run here, or "".
        instead: arguments to try where these fail, or ().
    """

    name: str
    arguments: tuple[str, ...]
    missing: str = ""
    instead: tuple[str, ...] = ()


def steps(output: Path) -> Iterator[Step]:
    """Yields all benchmarks, and what each lacks here; results of those with files go to a folder.

    Args:
        output: the folder.
    """
    headrace = ("-m", "headrace", "bench")
    there = ("--output", str(output))
    docker = _docker_missing()
    yield Step("feed", (*headrace, "feed", *there))
    peers = (*headrace, "peers", *there)
    if docker:
        yield Step("peers", peers)
        yield Step("TEI among the peers", (), docker)
    else:
        yield Step("peers", (*peers, "--tei", "docker"), instead=peers)
    yield Step("gpu", (*headrace, "gpu", *there), _gpu_missing())
    for name in ("engineprofile", "memory", "commits", "longrun", "serving", "stalls"):
        yield Step(name, ("-m", f"headrace_bench.{name}"))


def run_all(
    found: Sequence[Step], start: Callable[[Sequence[str]], int], only: Sequence[str] = ()
) -> int:
    """Runs them and says in the end what was measured, left out and failed; returns the exit code.

    Args:
        found: the benchmarks.
        start: runs Python with arguments and returns its exit code.
        only: names; none means all.
    """
    ended: dict[str, int] = {}
    without: list[str] = []
    for step in found:
        if step.missing or (only and step.name not in only):
            continue
        say(f"== {step.name}")
        ended[step.name] = start([sys.executable, *step.arguments])
        if ended[step.name] and step.instead:
            left = " ".join(word for word in step.arguments if word not in step.instead)
            without.append(f"{step.name} with {left}: failed with exit code {ended[step.name]}")
            say(f"== {step.name}, without {left}")
            ended[step.name] = start([sys.executable, *step.instead])
    lines = ["", "measured:   " + (", ".join(n for n, code in ended.items() if not code) or "none")]
    lines += [f"left out:   {step.name}: {step.missing}" for step in found if step.missing]
    lines += [f"left out:   {each}" for each in without]
    lines += [f"left out:   {s.name}: not asked for" for s in found if only and s.name not in only]
    lines += [f"FAILED:     {name}, exit code {code}" for name, code in ended.items() if code]
    print("\n".join(lines), flush=True)
    return 1 if any(ended.values()) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all that can run here; returns 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace_bench.everything", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks"), help="for results")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these alone")
    options = parser.parse_args(arguments)
    found = list(steps(options.output))
    known = {step.name for step in found}
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return run_all(
        found, lambda command: subprocess.run(command, check=False).returncode, options.only
    )


def _gpu_missing() -> str:
    try:
        return "" if find_gpus() else "no NVIDIA GPU was found"
    except HeadraceError as error:
        return str(error)


def _docker_missing() -> str:
    if shutil.which("docker") is None:
        return "docker is not installed; or start TEI and run headrace bench peers --tei URL"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "no reason told").splitlines()[-1]
        return f"docker does not answer: {said}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
