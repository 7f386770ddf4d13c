"""Jobs that get more input: the bytes are those of a job that had it from the beginning."""

from __future__ import annotations

import re
import signal
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.fakes import Plan
from client.runner import OUTPUTS, jsonl, texts
from headrace.errors import OutputError, UsageError
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


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_that_is_another_one_of_more_bytes_is_not_extended(run, source, tmp_path, output):
    run(source, output=output)
    path = run.folder / output
    if output == "out.npy":
        np.save(path, np.zeros((1000, *np.load(path).shape[1:]), np.float16))
    else:
        table = pq.read_table(path)
        pq.write_table(table.rename_columns(["id", "vector"]), path)
    before = path.read_bytes()
    more = jsonl(tmp_path / "more.jsonl", texts(5, 60))
    with pytest.raises(OutputError, match="is not the file that was written"):
        run(source, more, output=output, extend=True)
    assert path.read_bytes() == before
    assert not (run.folder / f"{output}.partial").exists()


def test_an_errors_file_that_is_gone_is_named(run, with_bad_rows, tmp_path):
    run(with_bad_rows)
    gone = run.folder / "out.npy.errors.jsonl"
    gone.unlink()
    more = jsonl(tmp_path / "more.jsonl", texts(5, 60))
    with pytest.raises(OutputError, match=re.escape(f"{gone}: No such file")):
        run(with_bad_rows, more, extend=True)


ROWS = 120


def table(path, ids):
    columns = {"text": [f"row {row}" for row in range(ROWS)]}
    pq.write_table(pa.table(columns | ({} if ids is None else {"id": ids})), path)
    return path


@pytest.mark.parametrize("before", [finish, begin])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array(range(ROWS), pa.int64()), pa.array([i / 2 for i in range(ROWS)])),
        (pa.array(range(ROWS), pa.int32()), pa.array(range(ROWS), pa.int64())),
        (pa.array(range(ROWS), pa.timestamp("ms")), pa.array(range(ROWS), pa.timestamp("us"))),
        (pa.array(range(ROWS), pa.int64()), None),
        (pa.array(map(str, range(ROWS))), None),
        (None, pa.array(range(ROWS))),
    ],
)
def test_inputs_that_would_make_the_ids_others_extend_nothing(run, tmp_path, before, first, second):
    inputs = [table(tmp_path / "a.parquet", first), table(tmp_path / "b.parquet", second)]
    before(run, inputs[0], output="out.parquet")
    whole = run.bytes("out.parquet") if before is finish else None
    if first is None:  # then the second's are row numbers, too
        run(*inputs, output="out.parquet", extend=True)
        assert run.bytes("out.parquet") == run.fresh(*inputs, output="out.parquet")
        return
    with pytest.raises(UsageError, match="embed the new inputs apart"):
        run(*inputs, output="out.parquet", extend=True)
    if before is finish:
        assert run.bytes("out.parquet") == whole
        assert not (run.folder / "out.parquet.partial").exists()
        run(inputs[0], table(tmp_path / "c.parquet", first), output="out.parquet", extend=True)
    else:
        report = run(inputs[0], output="out.parquet")  # goes on, as if nothing had been
        assert report.resumed_rows > 0
        assert run.bytes("out.parquet") == run.fresh(inputs[0], output="out.parquet")


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
