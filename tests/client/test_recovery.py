"""How often a lost server is got back, and when rows are to blame."""

from __future__ import annotations

import pytest

from headrace.errors import ServerError, ServerLostError
from headrace.recovery import MOST_IN_A_ROW, Recovery

LOST = ServerLostError("it is gone")


class Servers:
    """A lifeline that has another server each time."""

    what = "taking the next one"

    def __init__(self, failure=None):
        self.count = 0
        self.failure = failure

    def explained(self, lost):
        return f"{lost}, they say"

    def revive(self, lost):
        if self.failure is not None:
            raise self.failure
        self.count += 1
        return self.count


def names(block, rows):
    return f"block {block}, rows {list(rows)}"


def alone(block, *rows):
    return ServerLostError("it is gone", block=block, rows=rows)


@pytest.fixture
def notices():
    return []


@pytest.fixture
def recovery(notices):
    return Recovery(0, Servers(), notices.append)


def test_a_loss_gives_the_connection_to_the_next_server_and_is_told(recovery, notices):
    assert recovery.connection == 0
    assert recovery.recover(LOST, [0, 1], names) == 1
    assert recovery.connection == 1
    assert recovery.losses == 1
    assert notices == ["it is gone, they say; taking the next one"]


def test_without_a_lifeline_the_loss_is_raised_as_it_is(notices):
    recovery = Recovery(0, None, notices.append)
    with pytest.raises(ServerLostError) as caught:
        recovery.recover(LOST, [0], names)
    assert caught.value is LOST
    assert (recovery.losses, notices) == (0, [])


def test_a_block_that_was_in_flight_twice_goes_carefully(recovery):
    recovery.recover(LOST, [0, 1], names)
    assert not recovery.careful(0)
    recovery.recover(LOST, [1, 2], names)
    assert [recovery.careful(block) for block in range(4)] == [False, True, False, False]


def test_a_block_counts_once_a_loss(recovery):
    recovery.recover(LOST, [0, 0, 0], names)
    assert not recovery.careful(0)


def test_the_third_loss_over_the_same_rows_alone_names_them(recovery, notices):
    recovery.recover(LOST, [4, 5], names)
    recovery.recover(LOST, [4], names)
    with pytest.raises(
        ServerError, match=r"^block 4, rows \[2, 3\]: three times .*\(it is gone, they say\)"
    ) as caught:
        recovery.recover(alone(4, 2, 3), [4], names)
    assert not isinstance(caught.value, ServerLostError)
    assert "\n" not in str(caught.value)
    assert len(notices) == 2
    assert recovery.losses == 3


def test_rows_that_were_alone_before_their_block_was_careful_are_not_blamed(recovery):
    recovery.recover(alone(4, 2), [4], names)
    recovery.recover(alone(4, 2), [4], names)
    assert recovery.careful(4)


def test_a_third_loss_with_others_beside_it_blames_nobody(recovery):
    for _ in range(3):
        recovery.recover(LOST, [4, 5], names)
    assert recovery.careful(4)


def test_a_loss_over_another_block_does_not_blame_the_careful_one(recovery):
    for _ in range(2):
        recovery.recover(LOST, [4], names)
    recovery.recover(alone(5, 1), [5], names)
    assert recovery.careful(4)


def test_a_block_that_is_done_is_forgotten_and_so_is_how_often_in_a_row(recovery):
    for _ in range(3 * MOST_IN_A_ROW):
        recovery.recover(LOST, [4], names)
        recovery.recover(LOST, [4], names)
        assert recovery.careful(4)
        recovery.finished(4)
        assert not recovery.careful(4)
    assert recovery.losses == 6 * MOST_IN_A_ROW


def test_too_many_losses_before_any_block_is_done_end_the_run(recovery, notices):
    for block in range(MOST_IN_A_ROW):
        recovery.recover(LOST, [block], names)
    with pytest.raises(
        ServerError, match=rf"^{MOST_IN_A_ROW + 1} times in a row .*they say"
    ) as caught:
        recovery.recover(LOST, [], names)
    assert not isinstance(caught.value, ServerLostError)
    assert len(notices) == MOST_IN_A_ROW


def test_what_the_lifeline_cannot_do_is_raised(notices):
    failure = ServerError("it does not come back")
    recovery = Recovery(0, Servers(failure), notices.append)
    with pytest.raises(ServerError) as caught:
        recovery.recover(LOST, [0], names)
    assert caught.value is failure
    assert recovery.connection == 0
