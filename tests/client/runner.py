"""Runs the pipeline through fake transports, with what a test plans to happen to them."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import pytest

from client.fakes import FakeTransport, Plan
from headrace import pipeline
from headrace.config import EmbedConfig
from headrace.errors import ServerLostError
from headrace.inputs import find_inputs
from headrace.progress import Counters
from headrace.stopping import Interrupted, Stop

OUTPUTS = ["out.npy", "out.parquet"]


class Spares:
    """A lifeline that always has another server."""

    what = "taking another one"

    def __init__(self, connect):
        self.revive = lambda lost: connect()

    def explained(self, lost):
        return str(lost)


class Runner:
    """Runs the pipeline through fake transports; keeps those of the last run."""

    def __init__(self, tmp_path, contract, tokenizer):
        self.folder = tmp_path
        self.contract = contract
        self.tokenizer = tokenizer
        self.transports = []

    def __call__(
        self, *inputs, output="out.npy", plan=None, stop=None, alone=False, refused=(), **changes
    ):
        """Returns the report.

        ``alone``: with nobody to get the server back; ``refused``: numbers of connections, from 0,
        that are lost before a transport is open.
        """
        self.transports = []
        self.counters = Counters()
        config = EmbedConfig(
            inputs=tuple(map(str, inputs)),
            output=self.folder / output,
            model="small",
            quiet=True,
            feeders=0,
            word_cache="off",
            **({"block_rows": 8} | changes),
        )
        found = find_inputs(config.inputs, format=config.format)

        def connect():
            fake = FakeTransport(self.contract, seed=len(self.transports), plan=plan)
            number = len(self.transports)
            self.transports.append(fake)

            def open_transport(choice, slots=None):
                if number in refused:
                    fake.closed = True
                    raise ServerLostError("gone again")
                return fake, "a test"

            return SimpleNamespace(
                slots=3,
                contract=self.contract,
                server=f"fake:{number + 1}",
                open_transport=open_transport,
            )

        try:
            report, damage = pipeline.run(
                config,
                connect(),
                self.tokenizer,
                found,
                stop=stop,
                counters=self.counters,
                lifeline=None if alone else Spares(connect),
            )
        finally:
            started = self.transports if self.transports[0].sent else []
            assert all(each.closed for each in started)
        assert damage is None
        return report

    @property
    def rows_sent(self):
        return sum(each.rows_sent for each in self.transports)

    def stopped(self, *inputs, at, **settings):
        """Runs until the n-th call of the transport, and no further; returns what was raised."""
        stop = Stop()
        plan = Plan({at: lambda: stop.ask(signal.SIGINT)})
        with pytest.raises(Interrupted) as caught:
            self(*inputs, plan=plan, stop=stop, **settings)
        return caught.value

    def bytes(self, output="out.npy"):
        """Those of the output and of its bad rows."""
        path = self.folder / output
        errors = path.with_name(f"{path.name}.errors.jsonl")
        assert not path.with_name(f"{path.name}.partial").exists()
        return path.read_bytes(), errors.read_bytes() if errors.exists() else None

    def fresh(self, *inputs, output="out.npy", **settings):
        """The same of a run that nothing happens to."""
        settings.pop("extend", None)
        self(*inputs, output=f"fresh-{output}", overwrite=True, **settings)
        return self.bytes(f"fresh-{output}")


def texts(count, start=0):
    return [f"number {row} " + "word " * (row * 7 % 12) for row in range(start, start + count)]


def jsonl(path, found, start=0, mode="w"):
    with path.open(mode) as file:
        for row, text in enumerate(found, start):
            file.write(json.dumps({"id": f"id {row}", "text": text}) + "\n")
    return path
