"""The command line in a process that kills itself at a given step, and tells what is durable.

``faults.py`` starts it as ``python faultclient.py embed ...``, with ``HEADRACE_FAULT`` in the
environment: a JSON object of :class:`Fault`'s fields. The journal gets a line for every fsync, so
that what a power cut may take can be told from what it may not.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # While modules are loaded, as by any program.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from headrace import __main__ as front
from headrace import cli
from headrace.committer import Committer
from headrace.feederhandle import FeederHandle
from headrace.manifest import Manifest
from headrace.output import Output
from headrace.sinks import NpySink, ParquetSink, Staging

VARIABLE = "HEADRACE_FAULT"


@dataclass(kw_only=True)
class Fault:
    """What is to go wrong, and when.

    Attributes:
        journal: file that gets a line for each fsync.
        pids: file that gets the id of each client and feeder.
        block_rows: rows of a block.
        pause: seconds to wait after each block, so that there are many commits.
        step: the step at which to die; none if empty.
        times: at which time that the step comes.
        finishing: whether all blocks are written.
        publishing: whether the files are being put in place.
    """

    journal: str
    pids: str
    block_rows: int
    pause: float = 0.0
    step: str = ""
    times: int = 1
    finishing: bool = False
    publishing: bool = False

    def at(self, step: str) -> None:
        """Dies if it is time to."""
        if step != self.step:
            return
        self.times -= 1
        if self.times == 0:
            die()

    def due(self, step: str) -> bool:
        """Returns whether :meth:`at` would die."""
        return step == self.step and self.times == 1

    def note(self, **record: Any) -> None:
        """Adds a line to the journal."""
        with Path(self.journal).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def note_pid(self, pid: int) -> None:
        """Adds a process that may leave something behind."""
        with Path(self.pids).open("a") as file:
            file.write(f"{pid}\n")


def die() -> None:
    """Ends this process as a kill from outside does."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def around(
    owner: Any,
    name: str,
    *,
    before: Callable[..., None] | None = None,
    after: Callable[..., None] | None = None,
) -> None:
    """Has functions called before and after a method, with its arguments."""
    method = getattr(owner, name)

    @wraps(method)
    def patched(*arguments: Any, **named: Any) -> Any:
        if before is not None:
            before(*arguments, **named)
        found = method(*arguments, **named)
        if after is not None:
            after(*arguments, **named)
        return found

    # What is bound already (a class method) must not be bound once more.
    setattr(owner, name, staticmethod(patched) if hasattr(method, "__self__") else patched)


def watch_syncs(fault: Fault) -> None:
    """Writes down which bytes, and which names, are durable."""
    really = os.fsync
    sizes: dict[str, int] = {}  # rows beyond these are being written by feeders just now

    def fsync(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            names = sorted(each.name for each in Path(path).iterdir())
            really(descriptor)
            fault.note(folder=path, names=names)
            return
        if fault.finishing and Path(path).name.startswith("data."):
            fault.at("the output's last bytes written, not synced")
        size = min(state.st_size, sizes.get(path, state.st_size))
        really(descriptor)
        fault.note(path=path, size=size)
        if path.endswith(".new"):
            fault.at("the job's manifest written, not in place")

    def before_sync(sink: NpySink) -> None:
        sizes[os.path.realpath(sink._path)] = sink.size

    def before_finish(_: Any) -> None:
        fault.at("all blocks in the manifest")
        fault.finishing = True

    os.fsync = fsync
    around(NpySink, "sync", before=before_sync)
    for sink in (NpySink, ParquetSink):
        around(sink, "sync", after=lambda _: fault.at("rows synced, bad rows not"))
        around(
            sink,
            "finish",
            before=before_finish,
            after=lambda _: fault.at("output finished, not complete"),
        )


def watch_manifest(fault: Fault) -> None:
    """Plants what can happen around the manifest."""

    def created(path: Path, *_: Any, **__: Any) -> None:
        fault.note(path=os.path.realpath(path), size=path.stat().st_size)
        fault.at("the job's manifest in place")

    def before_write(manifest: Manifest, text: str) -> None:
        step = "half the last line" if "complete" in text else "half a line in the manifest"
        if fault.due(step):
            manifest._file.write(text.encode()[: len(text) // 2])
            manifest._file.flush()
        fault.at(step)

    def after_write(_: Manifest, text: str) -> None:
        last = "complete" in text
        fault.at("last line not synced" if last else "in the manifest, not synced")

    around(
        Manifest,
        "create",
        before=lambda *_, **__: fault.at("folder made, no manifest"),
        after=created,
    )
    around(Manifest, "_write", before=before_write, after=after_write)
    around(Manifest, "sync", after=lambda _: fault.at("in the manifest, synced"))


def watch_output(fault: Fault) -> None:
    """Plants what can happen around the output's files."""

    def renamed(_: Staging, path: Path, final: Path) -> None:
        del final
        what = "data" if path.name.startswith("data.") else path.name.split(".")[0]
        fault.at(f"{what} renamed")

    def publishing(*_: Any, **__: Any) -> None:
        fault.at("complete, not renamed")
        fault.publishing = True

    def cleared(_: Staging) -> None:
        if fault.publishing:
            fault.at("folder empty, not removed")

    def handed_over(*_: Any) -> None:
        time.sleep(fault.pause)

    around(
        Committer,
        "put",
        before=lambda *_: fault.at("rows written, not handed over"),
        after=handed_over,
    )
    around(
        Output,
        "_sync",
        before=lambda _: fault.at("rows written, not synced"),
        after=lambda _: fault.at("all synced, not in the manifest"),
    )
    around(Staging, "publish", before=publishing)
    around(Staging, "_rename", after=renamed)
    around(Staging, "clear", after=cleared)


STEPS = (
    "folder made, no manifest",
    "the job's manifest written, not in place",
    "the job's manifest in place",
    "rows written, not handed over",
    "rows written, not synced",
    "rows synced, bad rows not",
    "all synced, not in the manifest",
    "half a line in the manifest",
    "in the manifest, not synced",
    "in the manifest, synced",
    "all blocks in the manifest",
    "the output's last bytes written, not synced",
    "output finished, not complete",
    "half the last line",
    "last line not synced",
    "complete, not renamed",
    "data renamed",
    "errors renamed",
    "manifest renamed",
    "folder empty, not removed",
)
"""The steps of a run at which it can be killed, in their order."""

MANY = frozenset(STEPS[3:10])
"""Those that come again with every commit."""

RENAMING = frozenset(STEPS[16:])
"""Those after which files are under their names."""


def main() -> None:
    """Runs the command line with the fault planted."""
    fault = Fault(**json.loads(os.environ[VARIABLE]))
    fault.note_pid(os.getpid())
    cli.EmbedConfig = partial(cli.EmbedConfig, block_rows=fault.block_rows)
    start = FeederHandle.start

    def started(*arguments: Any, **named: Any) -> FeederHandle:
        feeder = start(*arguments, **named)
        fault.note_pid(feeder.process.pid)
        return feeder

    FeederHandle.start = started
    watch_syncs(fault)
    watch_manifest(fault)
    watch_output(fault)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    front.main()


if __name__ == "__main__":
    main()
