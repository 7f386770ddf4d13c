"""What a signal does: the first one asks, where somebody looks; every other one ends the run."""

from __future__ import annotations

import os
import signal

import pytest
import typer

from headrace import exits
from headrace.errors import UsageError
from headrace.stopping import Interrupted, Stop

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def test_nobody_has_asked_yet():
    stop = Stop()
    assert not stop()
    assert stop.number is None


@pytest.mark.parametrize("number", NUMBERS)
def test_where_nobody_looks_a_signal_ends_the_run(number):
    stop = Stop()
    with pytest.raises(Interrupted) as caught:
        stop.ask(number)
    assert caught.value.number == number
    assert isinstance(caught.value, KeyboardInterrupt)
    assert not stop()


def test_the_first_one_is_heeded_and_the_second_one_raises():
    stop = Stop()
    with stop.heeded():
        stop.ask(signal.SIGTERM)
        assert stop()
        with pytest.raises(Interrupted) as caught:
            stop.ask(signal.SIGINT)
        assert caught.value.number == signal.SIGINT
        assert stop.number == signal.SIGTERM
    with pytest.raises(Interrupted):
        stop.ask(signal.SIGINT)


def test_afterwards_nobody_looks_any_more_whatever_happened():
    stop = Stop()
    with pytest.raises(UsageError), stop.heeded():
        raise UsageError
    with pytest.raises(Interrupted):
        stop.ask(signal.SIGINT)
    assert not stop()


@pytest.fixture
def handlers():
    """As a process has them that was just started; put back afterwards."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    """Sends a signal, and comes back when its handler has run."""
    os.kill(os.getpid(), number)
    for _ in range(100):
        pass


def ended(stop, body):
    """The exit code with which the command line ends over a body."""
    with pytest.raises(typer.Exit) as caught, exits.exits(stop):
        body()
    return caught.value.exit_code


@pytest.mark.parametrize("number", NUMBERS)
def test_the_command_line_asks_first_and_says_so(handlers, capfd, number):
    stop = Stop()
    with exits.exits(stop), stop.heeded():
        send(number)
        assert stop.number == number
    said = capfd.readouterr().err
    assert said.splitlines() == [
        "headrace: stopping when what is in flight is done; once more stops at once"
    ]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, "headrace: interrupted"),
        (signal.SIGTERM, "headrace: terminated by SIGTERM"),
        (signal.SIGHUP, "headrace: terminated by SIGHUP"),
    ],
)
def test_the_command_line_ends_at_once_where_nobody_looks(handlers, capfd, number, said):
    def body():
        send(number)
        pytest.fail("it went on")

    assert ended(Stop(), body) == 128 + number
    assert capfd.readouterr().err.splitlines() == [said]


def test_a_second_signal_ends_it_at_once_with_its_own_number(handlers, capfd):
    stop = Stop()

    def body():
        with stop.heeded():
            send(signal.SIGINT)
            send(signal.SIGTERM)
            pytest.fail("it went on")

    assert ended(stop, body) == 128 + signal.SIGTERM
    assert capfd.readouterr().err.splitlines()[-1] == "headrace: terminated by SIGTERM"


def test_a_run_that_stopped_says_what_is_kept(handlers, capfd):
    def body():
        error = Interrupted(signal.SIGTERM)
        error.add_note("5 rows are kept")
        raise error

    assert ended(Stop(), body) == 128 + signal.SIGTERM
    assert capfd.readouterr().err == "headrace: terminated by SIGTERM; 5 rows are kept\n"


def test_a_signal_that_is_ignored_stays_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with exits.exits():
        send(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
