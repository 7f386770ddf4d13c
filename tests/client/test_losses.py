"""Runs that lose their server: the bytes are those of one that did not, or rows are named."""

from __future__ import annotations

import re
import signal

import pytest
from tokenizers import Tokenizer

from client.fakes import Plan, lose
from client.runner import OUTPUTS, jsonl, texts
from headrace.errors import ServerError, ServerLostError
from headrace.recovery import MOST_IN_A_ROW
from headrace.stopping import Interrupted, Stop

POISON = "zebra"


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("at", [(1,), (2,), (6, 7, 8), (5, 20, 33, 34), (7, 47, 87)])
def test_the_bytes_are_the_same_after_losses(run, source, output, at):
    plan = Plan(dict.fromkeys(at, lose))
    report = run(source, output=output, plan=plan)
    assert report.server_losses == len(plan.losses) > 0
    assert report.server == f"fake:{report.server_losses + 1}"
    assert (report.rows, report.resumed_rows) == (60, 0)
    found = run.bytes(output)
    assert found == run.fresh(source, output=output)


def test_what_was_sent_twice_is_counted_once_in_the_report(run, source):
    lost = run(source, plan=Plan({5: lose, 9: lose}))
    calm = run(source, output="calm.npy")
    names = ("rows", "tokens", "padding", "batches", "truncated_rows", "bad_rows")
    assert [getattr(lost, name) for name in names] == [getattr(calm, name) for name in names]


def test_what_was_sent_twice_is_counted_once_in_the_progress(run, source):
    run(source, output="calm.npy")
    calm = run.counters
    run(source, plan=Plan({12: lose, 40: lose}))
    for name in ("rows", "tokens", "padded_tokens", "batches", "truncated_rows", "bytes_done"):
        assert getattr(run.counters, name) == getattr(calm, name)


@pytest.mark.parametrize("refused", [(1,), (1, 2, 3)])
def test_a_server_that_is_lost_while_it_is_reached_is_got_back_too(run, source, refused):
    report = run(source, plan=Plan({12: lose}), refused=refused)
    assert report.server_losses == 1 + len(refused)
    assert len(run.transports[-1].log[2]) == 3  # no block is to blame for that
    assert run.bytes() == run.fresh(source)


def test_a_server_that_is_never_reached_again_ends_the_run(run, source):
    with pytest.raises(ServerError, match=rf"{MOST_IN_A_ROW + 1} times in a row .*gone again"):
        run(source, plan=Plan({30: lose}), refused=range(1, 1000))


def test_without_a_lifeline_the_run_ends_and_goes_on_with_the_next_command(run, source):
    with pytest.raises(ServerLostError, match="the server is gone") as caught:
        run(source, plan=Plan({30: lose}), alone=True)
    (note,) = caught.value.__notes__
    assert "rows are kept in" in note
    report = run(source)
    assert report.resumed_rows > 0
    assert run.bytes() == run.fresh(source)


def deadly(run, times=1000):
    """A plan in which the server dies of batches with a certain word, so many times."""
    poison = Tokenizer.from_file(str(run.tokenizer)).token_to_id(POISON)
    assert poison is not None
    left = iter(range(times))

    def kills(ids, mask):
        return bool((ids == poison).any()) and next(left, None) is not None

    return Plan(kills=kills)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("block_rows", [1, 4, 8, 60])
@pytest.mark.parametrize("row", [0, 30, 59])
def test_a_batch_that_kills_the_server_is_named_and_what_was_done_before_stays(
    run, tmp_path, output, block_rows, row
):
    found = texts(60)
    found[row] = f"a {POISON}"
    source = jsonl(tmp_path / "in.jsonl", found)
    plan = deadly(run)
    with pytest.raises(ServerError, match="three times the server was lost over these") as caught:
        run(source, output=output, plan=plan, block_rows=block_rows)
    assert not isinstance(caught.value, ServerLostError)
    said = str(caught.value)
    file, lines = re.split(", lines? ", said.split(":", maxsplit=1)[0])
    assert file == str(source)
    named = set(map(int, lines.split(", ")))
    assert row + 1 in named
    assert len(named) <= min(8, block_rows)
    assert len(plan.losses) <= MOST_IN_A_ROW
    assert len(plan.losses[-1]) == 1
    blocks_before = row // block_rows
    if blocks_before:
        rows = blocks_before * block_rows
        assert caught.value.__notes__[0].startswith(f"{rows} rows are kept in ")


@pytest.mark.parametrize("block_rows", [4, 24])
def test_a_block_that_was_there_at_two_losses_goes_one_batch_at_a_time(run, tmp_path, block_rows):
    found = texts(60)
    found[25] = f"a {POISON}"
    source = jsonl(tmp_path / "in.jsonl", found)
    plan = deadly(run, times=2)
    run(source, plan=plan, block_rows=block_rows)
    careful = set(plan.losses[0]) & set(plan.losses[1])
    assert 25 // block_rows in careful
    at_server = [blocks for blocks in run.transports[2].log if careful & set(blocks)]
    assert at_server
    assert all(len(blocks) == 1 for blocks in at_server)
    assert max(map(len, run.transports[2].log)) == 3  # afterwards as before
    assert run.bytes() == run.fresh(source, block_rows=block_rows)


def test_a_server_that_is_lost_again_and_again_ends_the_run(run, source):
    plan = Plan(dict.fromkeys(range(1, 1000), lose))
    with pytest.raises(ServerError, match=rf"{MOST_IN_A_ROW + 1} times in a row the server"):
        run(source, plan=plan)
    assert len(plan.losses) == MOST_IN_A_ROW + 1
    assert not (run.folder / "out.npy.partial").exists()


def test_a_run_that_is_to_stop_needs_no_other_server(run, source):
    stop = Stop()

    def ask_and_lose():
        stop.ask(signal.SIGTERM)
        lose()

    with pytest.raises(Interrupted) as caught:
        run(source, plan=Plan({12: ask_and_lose}), stop=stop)
    assert caught.value.number == signal.SIGTERM
    assert len(run.transports) == 1
    run(source)
    assert run.bytes() == run.fresh(source)
