"""The thread that reads ahead."""

from __future__ import annotations

import threading
import time

import pytest

from headrace.ahead import Ahead


def test_items_come_in_order_and_then_nothing():
    with Ahead(iter(range(50)), name="test") as ahead:
        assert [ahead.take() for _ in range(50)] == list(range(50))
        assert not ahead.ended
        assert ahead.take() is None
        assert ahead.ended
        assert ahead.take() is None


def test_it_never_makes_more_than_two_ahead():
    made = []

    def items():
        for number in range(10):
            made.append(number)
            yield number

    def settled(count):
        deadline = time.monotonic() + 10
        while len(made) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        return len(made)

    with Ahead(items(), name="test") as ahead:
        assert settled(2) == 2
        ahead.take()
        assert settled(3) == 3


def test_without_waiting_it_says_that_nothing_is_ready_yet():
    go, woken = threading.Event(), threading.Event()

    def items():
        go.wait()
        yield 7

    with Ahead(items(), name="test", wake=woken.set) as ahead:
        assert ahead.take(0) is None
        assert not ahead.ended
        go.set()
        assert woken.wait(5)
        assert ahead.take(0) == 7


def test_an_error_comes_in_its_place_and_once():
    def items():
        yield 1
        raise RuntimeError("planted")

    with Ahead(items(), name="test") as ahead:
        assert ahead.take() == 1
        with pytest.raises(RuntimeError, match="planted"):
            ahead.take()
        assert ahead.ended
        assert ahead.take() is None


def test_leaving_early_ends_the_thread():
    with Ahead(iter(range(1000)), name="test-leaving") as ahead:
        ahead.take()
    assert "test-leaving" not in {thread.name for thread in threading.enumerate()}
