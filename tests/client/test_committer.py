"""When a block counts as done: never before its data is durable, and in its place."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from headrace.committer import Committer
from headrace.errors import OutputError

WAIT = 30.0


class Disk:
    """A manifest and a sync of data that note what is called, and can be held up or fail."""

    def __init__(self):
        self.calls = []
        self.lines = []
        self.fail_at = None
        self.free = threading.Event()
        self.free.set()
        self.held = threading.Event()

    def sync_data(self):
        self._note("data")
        self.held.set()
        assert self.free.wait(WAIT)

    def append(self, records):
        self._note("lines")
        self.lines.append([record.block for record in records])

    def sync(self):
        self._note("manifest")

    def _note(self, what):
        self.calls.append(what)
        if self.fail_at == (what, self.calls.count(what)):
            raise OutputError(f"planted at {what}")


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def committer(disk):
    made = Committer(disk, disk.sync_data)
    yield made
    disk.free.set()
    made.abandon()


def block(number):
    return SimpleNamespace(block=number)


def hold(disk, committer):
    """Has the committer wait for the disk with block 0, so that others gather behind it."""
    disk.free.clear()
    committer.put(block(0))
    assert disk.held.wait(WAIT)


def test_data_goes_before_the_line_and_the_line_is_synced(disk, committer):
    for number in range(500):
        committer.put(block(number))
    committer.finish()
    commits = len(disk.lines)
    assert disk.calls == ["data", "lines", "manifest"] * commits
    assert [number for lines in disk.lines for number in lines] == list(range(500))
    assert all(disk.lines)
    assert committer.committed == 500


def test_a_block_that_comes_after_the_sync_began_waits_for_the_next_one(disk, committer):
    hold(disk, committer)
    committer.put(block(1))
    committer.put(block(2))
    assert disk.lines == []
    assert committer.committed == 0
    disk.free.set()
    committer.finish()
    assert disk.lines == [[0], [1, 2]]
    assert committer.committed == 3


def test_finish_waits_for_what_is_being_made_durable(disk, committer):
    hold(disk, committer)
    finished = threading.Event()

    def finish():
        committer.finish()
        finished.set()

    thread = threading.Thread(target=finish)
    thread.start()
    assert not finished.is_set()
    assert committer.committed == 0
    disk.free.set()
    thread.join(WAIT)
    assert finished.is_set()
    assert committer.committed == 1


def test_nothing_to_commit_touches_nothing(disk, committer):
    committer.finish()
    committer.finish()
    assert disk.calls == []
    assert committer.committed == 0


def test_abandoning_leaves_what_waits(disk, committer):
    hold(disk, committer)
    for number in range(1, 10):
        committer.put(block(number))
    thread = threading.Thread(target=committer.abandon)
    thread.start()
    while not committer._abandoned:
        pass
    disk.free.set()
    thread.join(WAIT)
    assert disk.lines == [[0]]
    assert committer.committed == 1
    committer.abandon()
    committer.finish()
    assert disk.lines == [[0]]


@pytest.mark.parametrize("at", ["data", "lines", "manifest"])
def test_a_failure_is_told_at_the_next_block_and_at_the_end_and_nothing_follows(
    disk, committer, at
):
    disk.fail_at = (at, 2)
    committer.put(block(0))
    while not committer.committed:
        pass
    hold(disk, committer)
    committer.put(block(2))  # waits behind the one that fails
    disk.free.set()
    committer._thread.join(WAIT)
    before = list(disk.calls)
    with pytest.raises(OutputError, match=f"planted at {at}"):
        committer.put(block(3))
    with pytest.raises(OutputError, match=f"planted at {at}"):
        committer.finish()
    committer.abandon()
    assert disk.calls == before
    assert before[-1] == at
    assert committer.committed == 1


def test_an_error_of_another_kind_is_told_too(disk, committer, monkeypatch):
    def fail(_):
        raise ZeroDivisionError

    monkeypatch.setattr(disk, "append", fail)
    committer.put(block(0))
    with pytest.raises(ZeroDivisionError):
        committer.finish()
