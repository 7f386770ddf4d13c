"""A run's share of a server: how many batches are there, and how long it rests."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from client.fakes import FakeTransport
from headrace import feeder
from headrace.sharing import Pace, Part


@pytest.mark.parametrize(
    ("share", "in_flight", "instances", "slots", "busy"),
    [
        (0.8, 4, 1, 2, 0.8),
        (0.5, 4, 1, 1, 1.0),
        (0.1, 4, 1, 1, 0.2),
        (0.8, 16, 1, 7, 6.4 / 7),
        (0.5, 4, 8, 8, 1.0),
        (0.9, 1, 1, 1, 0.45),
        (0.8, 16, 0.5, 4, 0.8),  # one of two feeders
        (0.5, 4, 0.25, 1, 0.25),
    ],
)
def test_no_more_batches_than_are_computed_at_once_and_their_share_of_it(
    make_contract, share, in_flight, instances, slots, busy
):
    part = Part.of(share, make_contract(in_flight=in_flight), instances)
    assert part.slots == slots
    assert part.busy == pytest.approx(busy)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_each_slot_is_busy_for_its_share_of_the_time():
    clock = Clock()
    pace = Pace(0.8, 2, clock=clock)
    assert pace.seconds(0) == pace.seconds(1) == 0
    clock.now += 4
    pace.answered(100.0)  # took four seconds: rests one
    assert pace.seconds(1) == pytest.approx(1)
    assert pace.seconds(0) == 0  # the other slot is free
    clock.now += 0.25
    assert pace.seconds(1) == pytest.approx(0.75)
    clock.now += 0.76
    assert pace.seconds(1) == 0


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_over_a_long_time_the_share_is_kept(share):
    clock, busy, pace = Clock(), 0.0, None
    pace = Pace(share, 1, clock=clock)
    chance = np.random.default_rng(3)
    for took in chance.uniform(0.1, 2, 300):
        clock.now += pace.seconds(0)
        sent = clock.now
        clock.now += took
        busy += took
        pace.answered(sent)
    clock.now += pace.seconds(0)
    assert busy / (clock.now - 100) == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_run_with_a_share_rests_and_gives_the_same(run_shared, share, monkeypatch):
    rests = []

    class Noted(Pace):
        def seconds(self, in_flight):
            rests.append(super().seconds(in_flight))
            return rests[-1]

    monkeypatch.setattr(feeder, "Pace", Noted)
    vectors, fake = run_shared(share)
    assert any(rests) == (share < 1)
    assert fake.most_in_flight <= (1 if share < 1 else 3)
    want, _ = run_shared(1.0)
    np.testing.assert_array_equal(vectors, want)


class Slow(FakeTransport):
    """Takes a while for each batch."""

    def submit(self, slot):
        slot.sent = time.monotonic()
        super().submit(slot)

    def collect(self, within=None):
        took = 0.003 if within is None else min(within, 0.003)
        deadline = time.monotonic() + took
        while time.monotonic() < deadline:
            pass
        return None if took < 0.003 else super().collect()


@pytest.fixture
def run_shared(make_contract, model_folder, tmp_path):
    from types import SimpleNamespace

    from headrace import pipeline
    from headrace.config import EmbedConfig
    from headrace.contract import file_hash
    from headrace.inputs import find_inputs

    tokenizer = model_folder / "tokenizer.json"
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": f"text {row}"}) + "\n" for row in range(60)))

    def go(share):
        contract = make_contract(tokenizer_hash=file_hash(tokenizer))
        found = []

        def open_transport(choice, slots=None):
            found.append(Slow(contract, slots=slots))
            return found[0], "a test"

        connection = SimpleNamespace(
            slots=3, instances=1, contract=contract, server="fake:1", open_transport=open_transport
        )
        config = EmbedConfig(
            inputs=(str(source),),
            output=tmp_path / "out.npy",
            model="small",
            quiet=True,
            feeders=0,
            share=share,
            overwrite=True,
        )
        pipeline.run(config, connection, tokenizer, find_inputs(config.inputs))
        return np.load(config.output), found[0]

    return go
