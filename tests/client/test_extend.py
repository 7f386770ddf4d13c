"""Jobs that get more input: the bytes are those of a job that had it from the beginning."""

from __future__ import annotations

import signal
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.fakes import Plan
from client.runner import OUTPUTS, jsonl, texts
from headrace.errors import OutputError
from headrace.stopping import Interrupted, Stop


def finish(run, *inputs, **settings):
    run(*inputs, **settings)


def begin(run, *inputs, **settings):
    run.stopped(*inputs, at=9, **settings)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("on_error", ["null", "skip"])
@pytest.mark.parametrize("before", [finish, begin])
@pytest.mark.parametrize("more", ["file", "lines", "half a line", "both", "bad"])
def test_a_job_that_is_extended_gives_the_bytes_of_one_over_everything(
    run, with_bad_rows, tmp_path, output, on_error, before, more
):
    last = jsonl(tmp_path / "last.jsonl", texts(21, 60), start=60)
    if more == "half a line":
        last.write_bytes(last.read_bytes()[:-20])
    if more == "bad":
        jsonl(last, [None] * 21, start=60)
    settings = {"output": output, "on_error": on_error, "id_field": "id"}
    inputs = [with_bad_rows, last]
    before(run, *inputs, **settings)
    if more == "half a line":
        with last.open("a") as file:
            file.write('is whole now"}\n')
    if more != "file":
        jsonl(last, texts(30, 81), start=81, mode="a")
    if more in {"file", "both"}:
        inputs.append(jsonl(tmp_path / "new.jsonl", texts(10, 200), start=200))
    report = run(*inputs, extend=True, **settings)
    assert report.resumed_rows > 0
    sent = run.rows_sent
    assert run.bytes(output) == run.fresh(*inputs, **settings)
    assert sent < run.rows_sent
    # And once more, from what was extended.
    inputs.append(jsonl(tmp_path / "newer.jsonl", texts(9, 300), start=300))
    run(*inputs, extend=True, **settings)
    assert run.rows_sent == 9
    assert run.bytes(output) == run.fresh(*inputs, **settings)


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_extension_that_was_stopped_goes_on_without_saying_so_again(
    run, source, tmp_path, output
):
    run(source, output=output)
    before = run.bytes(output)
    more = jsonl(tmp_path / "more.jsonl", texts(60, 60), start=60)
    stop = Stop()
    plan = Plan({9: lambda: stop.ask(signal.SIGINT)})
    with pytest.raises(Interrupted):
        run(source, more, output=output, extend=True, plan=plan, stop=stop)
    assert (run.folder / output).read_bytes() == before[0]
    report = run(source, more, output=output)
    assert report.resumed_rows > 60
    assert run.bytes(output) == run.fresh(source, more, output=output)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_job_without_a_row_is_extended(run, source, tmp_path, output):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    run(empty, output=output)
    run(empty, source, output=output, extend=True)
    assert run.bytes(output) == run.fresh(empty, source, output=output)


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_that_somebody_else_has_changed_is_not_extended(run, source, tmp_path, output):
    run(source, output=output)
    path = run.folder / output
    if output == "out.npy":
        np.save(path, np.load(path)[:-1])
    else:
        pq.write_table(pq.read_table(path)[:-1], path)
    more = jsonl(tmp_path / "more.jsonl", texts(5, 60))
    with pytest.raises(OutputError, match=r"something else has c.* --overwrite to start anew"):
        run(source, more, output=output, extend=True)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lines=st.lists(
        st.sampled_from(
            ["", " ", "a", "b c", "\u00e9 \U0001f600", "\ufeff", '{"text": "d"}', "{}"]
        ),
        min_size=1,
        max_size=20,
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    cut=st.integers(0, 100),
    kind=st.sampled_from(["txt", "jsonl"]),
    output=st.sampled_from(OUTPUTS),
    limits=st.tuples(st.integers(1, 5), st.integers(1, 40)),
    stop_at=st.none() | st.integers(1, 30),
)
def test_a_file_that_grew_from_any_byte_on_gives_the_bytes_of_the_whole_one(
    run, lines, end, cut, kind, output, limits, stop_at
):
    source = run.folder / f"in.{kind}"
    data = "".join(f"{line}{end}" for line in lines).encode()
    size = len(data) * cut // 101
    source.write_bytes(data[:size])
    given_ = {"output": output, "block_rows": limits[0], "block_bytes": limits[1]}
    stop = Stop()
    plan = Plan({stop_at: lambda: stop.ask(signal.SIGINT)} if stop_at else {})
    with suppress(Interrupted):
        run(source, overwrite=True, plan=plan, stop=stop, **given_)
    source.write_bytes(data)
    left = (run.folder / f"{output}.partial").exists() or (run.folder / output).exists()
    run(source, extend=left, **given_)
    assert run.bytes(output) == run.fresh(source, **given_)
    for each in run.folder.iterdir():
        each.unlink()
