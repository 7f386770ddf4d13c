"""Who gets which block, and what becomes of it, with handles in the place of processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headrace.blocks import Block, IdColumn
from headrace.errors import BadRowError, MachineError
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

    setup = make_dataclass("Setup", ["texts", "vectors", "in_place"], frozen=True)((), (), None)
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
