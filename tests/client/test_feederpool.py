"""Who gets which block, and what becomes of it, with handles in the place of processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headrace.blocks import Block, IdColumn
from headrace.errors import BadRowError, MachineError, ServerError, ServerLostError
from headrace.feederhandle import FeederHandle, Task
from headrace.feederpool import AT_ONCE, MOST_DEATHS, FeederPool
from headrace.handover import Failed, Ready, Work
from headrace.progress import Counters
from headrace.recovery import Recovery


class Pool(FeederPool):
    """Its feeders are handles without a process; their messages are what the test says."""

    def __init__(self, setup, count):
        super().__init__(setup, count, Counters(), Recovery(None, None))
        for _ in range(count):
            self._start()

    def _start(self):
        process = SimpleNamespace(returncode=-11, poll=lambda: -11, wait=lambda *_: 0)
        connection = SimpleNamespace(send=lambda _: None, close=lambda: None)
        handle = FeederHandle(process, connection)
        handle.ready = self.ready = Ready(
            transport="",
            transport_reason="",
            word_cache="",
            dear_words=False,
            tokenizer_hash="",
        )
        self._feeders.append(handle)

    @property
    def held(self):
        return [sorted(feeder.tasks) for feeder in self._feeders]

    def has(self, index):
        return next(feeder for feeder in self._feeders if index in feeder.tasks)

    def done(self, index):
        self.has(index).tasks.pop(index)


class Blocks:
    """So many blocks, ready at once."""

    def __init__(self, count):
        self.left = [
            Task(
                Work(
                    block=Block(
                        index=index,
                        file="in.parquet",
                        format="parquet",
                        data=b"",
                        first_row=10 * index,
                        first_line=10 * index,
                        rows=10,
                        bytes_done=0,
                    ),
                    slot=0,
                    size=0,
                    ids=IdColumn(),
                )
            )
            for index in range(count)
        ]

    @property
    def ended(self):
        return not self.left

    def take(self, seconds=None):
        return self.left.pop(0) if self.left else None


@pytest.fixture
def pool():
    from dataclasses import make_dataclass

    fields = ["texts", "vectors", "in_place", "server"]
    setup = make_dataclass("Setup", fields, frozen=True)((), (), None, "host:0")
    pool = Pool(setup, 2)
    yield pool
    pool._feeders.clear()
    pool._close()


def test_each_feeder_has_a_block_at_the_server_and_one_in_preparation(pool):
    blocks = Blocks(10)
    pool._dispatch(blocks)
    assert [len(held) for held in pool.held] == [AT_ONCE, AT_ONCE]
    pool.done(0)
    pool._dispatch(blocks)
    assert sorted(pool.held) == [[1, 4], [2, 3]]


def test_the_blocks_of_the_dead_go_alone_and_the_first_one_first(pool):
    blocks = Blocks(6)
    pool._dispatch(blocks)
    second, first = pool._feeders[1], pool._feeders[0]
    pool._on_death(second)
    pool._on_death(first)
    assert [task.index for task in pool._suspects] == [0, 1, 2, 3]
    pool._dispatch(blocks)
    assert pool.held == [[0], [1]]
    pool.done(0)
    pool._dispatch(blocks)
    assert pool.held == [[2], [1]]


def test_a_block_that_was_alone_with_a_feeder_that_died_is_named(pool):
    blocks = Blocks(6)
    pool._dispatch(blocks)
    pool._on_death(pool.has(0))
    pool._dispatch(blocks)
    suspects = [task.index for task in pool._suspects]
    guilty = next(
        feeder for feeder in pool._feeders if any(t.deaths for t in feeder.tasks.values())
    )
    (index,) = guilty.tasks
    assert index not in suspects
    with pytest.raises(MachineError, match=rf"in\.parquet, rows {10 * index} to {10 * index + 9}:"):
        pool._on_death(guilty)


def test_feeders_that_die_again_and_again_end_the_run(pool):
    for _ in range(MOST_DEATHS + 3 * 2):
        pool._on_death(pool._feeders[0])
    with pytest.raises(MachineError, match="keep dying"):
        pool._on_death(pool._feeders[0])


def test_when_every_feeder_has_met_a_bad_row_the_first_of_them_is_raised(pool):
    blocks = Blocks(4)
    pool._dispatch(blocks)
    for index in (3, 1):
        pool._on_message(pool.has(index), Failed("BadRowError", f"block {index}", index))
    assert not pool._feeders
    assert str(pool._first_error()) == "block 1"
    assert isinstance(pool._first_error(), BadRowError)


def test_memory_that_was_used_last_is_used_first(pool):
    one, two = pool._free.get(), pool._free.get()
    pool._release(one)
    pool._release(two)
    assert pool._free.get() == two


class Servers:
    """A lifeline that has another server each time."""

    what = "taking the next one"

    def __init__(self):
        self.count = 0

    def explained(self, lost):
        return str(lost)

    def revive(self, lost):
        self.count += 1
        return SimpleNamespace(server=f"host:{self.count}")


class Line:
    """A connection that says one thing, unless it is closed before."""

    def __init__(self, message):
        self.message = message

    def recv(self):
        if self.message is None:
            raise OSError("handle is closed")
        return self.message

    def send(self, message):
        pass

    def close(self):
        self.message = None


@pytest.fixture
def saved(pool, monkeypatch):
    """The pool, with somebody to get its server back."""
    pool._recovery = Recovery(None, Servers())
    monkeypatch.setattr(pool, "_block_of", lambda task: task.work.block)
    return pool


def lost(index=None, rows=()):
    return Failed("ServerLostError", "it is gone", index, rows)


def test_the_blocks_of_a_lost_server_go_to_new_feeders_in_their_order(saved):
    blocks = Blocks(6)
    saved._dispatch(blocks)
    before = list(saved._feeders)
    saved._on_message(saved._feeders[1], lost())
    assert saved._setup.server == "host:1"
    assert len(saved._feeders) == 2
    assert not set(map(id, before)) & set(map(id, saved._feeders))
    given = []
    while len(given) < 6:
        saved._dispatch(blocks)
        found = min(index for held in saved.held for index in held)
        saved.done(found)
        given.append(found)
    assert given == list(range(6))


def test_feeders_that_tell_of_the_same_loss_at_once_are_replaced_once(saved, monkeypatch):
    saved._dispatch(Blocks(6))
    for feeder in saved._feeders:
        feeder.connection = Line(lost())
    monkeypatch.setattr("headrace.feederpool.wait", lambda sources, seconds: sources[:-1])
    saved._listen(0)
    assert saved._recovery.losses == 1
    assert saved.deaths == 0
    assert len(saved._feeders) == 2
    assert [task.index for task in saved._suspects] == [0, 1, 2, 3]


def test_a_block_over_which_the_server_was_lost_twice_gets_it_alone_and_is_named(saved):
    blocks = Blocks(6)
    saved._dispatch(blocks)
    saved._on_message(saved._feeders[0], lost())
    saved._dispatch(blocks)
    assert saved.held == [[0], [1]]
    saved._on_message(saved.has(1), lost())
    saved._dispatch(blocks)
    assert sorted(saved.held) == [[], [0]]
    saved._dispatch(blocks)
    assert sorted(saved.held) == [[], [0]]
    saved._recovery.finished(0)
    saved.done(0)
    saved._dispatch(blocks)
    assert sorted(saved.held) == [[], [1]]
    with pytest.raises(ServerError, match=r"in\.parquet, rows 12, 13: three times the server was"):
        saved._on_message(saved.has(1), lost(1, (2, 3)))


def test_a_run_that_is_to_stop_gets_no_server_back(saved, monkeypatch):
    saved._dispatch(Blocks(6))
    monkeypatch.setattr(saved, "_stop", lambda: True)
    saved._on_message(saved._feeders[0], lost())
    assert not saved._feeders
    assert saved._recovery.losses == 0


def test_without_somebody_to_get_it_back_the_loss_ends_the_run(pool):
    pool._dispatch(Blocks(6))
    with pytest.raises(ServerLostError, match="it is gone"):
        pool._on_message(pool._feeders[0], lost())
