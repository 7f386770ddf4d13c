"""Runs that stop and go on: the bytes are those of one that did not."""

from __future__ import annotations

import json
import os
import signal
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.fakes import Plan, lose
from client.runner import OUTPUTS, jsonl, texts
from headrace.errors import UsageError
from headrace.stopping import Interrupted, Stop


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("on_error", ["null", "skip"])
@pytest.mark.parametrize("ids", [None, "id", "nothing"])
def test_a_run_that_was_stopped_goes_on_and_gives_the_same_bytes(
    run, with_bad_rows, output, on_error, ids
):
    settings = {"output": output, "on_error": on_error, "id_field": ids}
    for at in (8, 6):
        error = run.stopped(with_bad_rows, at=at, **settings)
        (note,) = error.__notes__
        assert note.endswith("the same command goes on from there")
        assert f"rows are kept in {run.folder / output}.partial" in note
        assert not (run.folder / output).exists()
    report = run(with_bad_rows, **settings)
    assert 0 < report.resumed_rows < report.rows
    found = run.bytes(output)
    assert found[1] is not None
    assert found == run.fresh(with_bad_rows, **settings)


@pytest.mark.parametrize("output", OUTPUTS)
def test_numbers_in_the_place_of_ids_go_on(run, tmp_path, output):
    found = [{"text": None if row in {3, 17} else text} for row, text in enumerate(texts(40))]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(each) + "\n" for each in found))
    settings = {"output": output, "on_error": "skip"}
    run.stopped(source, at=8, **settings)
    run(source, **settings)
    if output.endswith("parquet"):
        ids = pq.read_table(run.folder / output)["id"].to_pylist()
        assert ids == [row for row in range(40) if row not in {3, 17}]
    assert run.bytes(output) == run.fresh(source, **settings)


def test_only_what_is_left_is_sent(run, source):
    run.stopped(source, at=9)
    first = run.rows_sent
    report = run(source)
    assert report.resumed_rows == first  # what was in flight was waited for and kept
    assert run.rows_sent == 60 - first
    calm = run(source, output="calm.npy")
    assert (report.rows, report.batches, report.tokens) == (60, calm.batches, calm.tokens)
    assert (report.padding, report.bad_rows) == (calm.padding, calm.bad_rows)


def test_a_job_that_is_done_but_for_its_name_sends_nothing(run, source):
    run(source)
    want = run.bytes()
    output, manifest = run.folder / "out.npy", run.folder / "out.npy.manifest.jsonl"
    partial = run.folder / "out.npy.partial"
    partial.mkdir()
    output.rename(partial / "data.npy")
    manifest.rename(partial / "manifest.jsonl")
    report = run(source)
    assert (report.rows, report.resumed_rows, run.rows_sent) == (60, 60, 0)
    assert run.bytes() == want


def test_a_run_that_stops_before_any_block_is_done_leaves_nothing(run, source):
    stop = Stop()
    stop.number = signal.SIGINT  # between the signal handler's being set and the first block
    with pytest.raises(Interrupted) as caught:
        run(source, stop=stop)
    assert not hasattr(caught.value, "__notes__")
    assert sorted(each.name for each in run.folder.iterdir()) == ["in.jsonl"]


def test_a_second_signal_ends_it_and_what_is_durable_stays(run, source):
    stop = Stop()

    def ask():
        stop.ask(signal.SIGINT)

    with pytest.raises(Interrupted):
        run(source, plan=Plan({20: ask, 21: ask}), stop=stop)
    run(source)
    assert run.bytes() == run.fresh(source)


def test_with_overwrite_the_note_says_to_leave_it_out(run, source):
    (note,) = run.stopped(source, at=9, overwrite=True).__notes__
    assert note.endswith("the same command without --overwrite goes on from there")
    report = run(source)
    assert report.resumed_rows > 0


# An input that is not what it was


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_input_that_changed_under_the_same_size_and_time_is_refused(run, tmp_path, output, kind):
    source = tmp_path / f"in.{kind}"
    found = [f"{row:04} " + "word " * 40 for row in range(1600)]

    def write():
        if kind == "jsonl":
            jsonl(source, found)
        else:
            table = pa.table({"id": [str(row) for row in range(1600)], "text": found})
            pq.write_table(table, source, compression="none", use_dictionary=False)

    write()
    stat = source.stat()
    settings = {"output": output, "block_rows": 100}
    run.stopped(source, at=300, **settings)
    partial = run.folder / f"{output}.partial"
    before = {each.name: each.read_bytes() for each in partial.iterdir()}
    found[600] = found[600].replace("word", "Word")
    write()
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert source.stat().st_size == stat.st_size
    changed = 601 if kind == "jsonl" else 600
    with pytest.raises(UsageError, match="is not what it was when these rows were embedded") as why:
        run(source, **settings)
    first = int(str(why.value).split(" on: ", maxsplit=1)[0].split(" ")[-1])
    assert first <= changed < first + 100
    assert run.rows_sent == 0
    names = {"manifest.jsonl", "data.npy" if output == "out.npy" else "rows.arrows"}
    after = {each.name: each.read_bytes() for each in partial.iterdir()}
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    found[600] = found[600].replace("Word", "word")
    write()
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(source, **settings)
    assert run.bytes(output) == run.fresh(source, **settings)


@pytest.fixture
def pipe(tmp_path):
    """A pipe that can be filled again and again."""
    path = tmp_path / "pipe"
    threads = []

    def fill(data):
        path.unlink(missing_ok=True)  # whoever still reads the one before gets nothing of this
        os.mkfifo(path)

        def write():
            try:
                with path.open("wb") as file:
                    file.write(data)
            except BrokenPipeError:
                pass

        threads.append(threading.Thread(target=write))
        threads[-1].start()
        return path

    yield fill
    for thread in threads:
        thread.join(30)


def test_a_stream_that_comes_again_goes_on_and_another_one_is_refused(run, pipe, source):
    settings = {"format": "jsonl", "id_field": "id"}
    data = source.read_bytes()
    run.stopped(pipe(data), at=30, **settings)
    lines = data.splitlines(keepends=True)
    with pytest.raises(UsageError, match=r"the inputs end after \d+ records, and more were"):
        run(pipe(b"".join(lines[:8])), **settings)
    with pytest.raises(UsageError, match="from line 1 on: is not what it was"):
        run(pipe(b"".join([lines[1], *lines[1:]])), **settings)
    report = run(pipe(data), **settings)
    assert report.resumed_rows > 8
    assert run.bytes() == run.fresh(pipe(data), **settings)


interruptions = st.lists(
    st.tuples(st.sampled_from(["stop", "crash", "lose", "kill"]), st.integers(1, 40)), max_size=4
)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    found=st.lists(st.none() | st.text("ab \té", max_size=40), min_size=1, max_size=30),
    block_rows=st.integers(1, 9),
    output=st.sampled_from(OUTPUTS),
    on_error=st.sampled_from(["null", "skip"]),
    interrupted=interruptions,
)
def test_whatever_happens_the_bytes_are_those_of_a_run_that_nothing_happens_to(
    run, found, block_rows, output, on_error, interrupted
):
    source = jsonl(run.folder / "in.jsonl", found)
    given_ = {"output": output, "on_error": on_error, "block_rows": block_rows}
    want = run.fresh(source, **given_)
    for each in run.folder.glob(f"{output}*"):
        each.unlink()

    def crash():
        raise MemoryError("planted")

    done = False
    for kind, at in interrupted:
        stop = Stop()
        event = {
            "stop": lambda stop=stop: stop.ask(signal.SIGINT),
            "crash": crash,
            "lose": lose,
            "kill": lambda: (_ for _ in ()).throw(Interrupted()),
        }[kind]
        try:
            run(source, plan=Plan({at: event}), stop=stop, **given_)
        except (Interrupted, MemoryError):
            continue
        done = True
        break
    if not done:
        run(source, **given_)
    assert run.bytes(output) == want
