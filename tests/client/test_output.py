"""A job's files: what is staged, what is durable, what goes on, what is put in place."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.blocks import BadRow
from headrace.config import EmbedConfig
from headrace.errors import MachineError, OutputError, UsageError
from headrace.feeder import Embedded
from headrace.manifest import line_of, read_manifest
from headrace.output import Output

DIMENSION = 4
JOB = {"prompt": "", "inputs": [{"path": "/in.jsonl", "size": 9}]}


@pytest.fixture(params=["npy", "parquet"])
def path(request, tmp_path):
    return tmp_path / f"out.{request.param}"


@pytest.fixture
def open_job(make_contract):
    def go(path, *, job=JOB, inputs=(), **settings):
        config = EmbedConfig(inputs=("in.jsonl",), output=path, model="small", **settings)
        return Output.open(config, make_contract(dimension=DIMENSION), job, inputs)

    return go


def block(number, rows=5, bad=()):
    vectors = np.full((rows, DIMENSION), number, np.float32)
    vectors[:, 0] = np.arange(rows)
    return Embedded(
        index=number,
        file="in.jsonl",
        first_row=number * rows,
        bytes_done=number * 100,
        input=0,
        checksum=number,
        rows=rows,
        ids=pa.array([f"id {number} {row}" for row in range(rows)]),
        bad=tuple(BadRow(row, number * rows + row + 1, "bad") for row in bad),
        vectors=vectors,
        truncated_rows=1,
        tokens=50,
        padded_tokens=60,
        batches=2,
    )


def write(output, *numbers, **settings):
    for number in numbers:
        output.write(block(number, **settings), pa.string())


def names(path):
    return sorted(each.name for each in path.parent.iterdir())


def complete_names(path, *, errors=False):
    found = [path.name, f"{path.name}.manifest.jsonl"]
    return sorted([*found, f"{path.name}.errors.jsonl"] if errors else found)


def whole(open_job, path, count, **settings):
    """The bytes that a job has that was never interrupted."""
    output = open_job(path.with_name(f"want{path.suffix}"), **settings)
    write(output, *range(count))
    output.finish(pa.string())
    return output._staging.output.read_bytes()


def test_an_existing_output_stays_until_all_is_there(open_job, path):
    path.write_bytes(b"old")
    output = open_job(path, overwrite=True)
    write(output, 0, 1)
    assert path.read_bytes() == b"old"
    output.finish(pa.string())
    assert path.read_bytes() != b"old"
    assert names(path) == complete_names(path)


def test_a_block_is_in_the_manifest_only_when_its_bytes_are_durable(open_job, path, monkeypatch):
    order = []
    real = os.fsync

    def fsync(handle):
        order.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    output = open_job(path)
    monkeypatch.setattr(os, "fsync", fsync)
    write(output, 0, bad=[2])
    output._committer.finish()
    data = "data.npy" if path.suffix == ".npy" else "rows.arrows"
    assert [each for each in order if each != f"{path.name}.partial"] == [
        data,
        "errors.jsonl",
        "manifest.jsonl",
    ]
    (record,) = read_manifest(path.with_name(f"{path.name}.partial") / "manifest.jsonl").records
    assert (record.rows, record.written, record.bad_rows, record.tokens) == (5, 5, 1, 50)
    staged = path.with_name(f"{path.name}.partial")
    assert record.data_bytes == (staged / data).stat().st_size
    assert record.error_bytes == (staged / "errors.jsonl").stat().st_size
    output.keep()


@pytest.mark.parametrize("bad", [(), (3,)])
@pytest.mark.parametrize("on_error", ["null", "skip"])
def test_a_job_goes_on_where_it_stopped(open_job, path, on_error, bad):
    want = open_job(path.with_name(f"want{path.suffix}"), on_error=on_error)
    write(want, 0, 1, 2, 3, bad=bad)
    want.finish(pa.string())
    first = open_job(path, on_error=on_error)
    write(first, 0, 1, bad=bad)
    assert first.keep() == (10 if on_error == "null" or not bad else 8)
    partial = path.with_name(f"{path.name}.partial")
    data = "data.npy" if path.suffix == ".npy" else "rows.arrows"
    for name in (data, "errors.jsonl", "manifest.jsonl"):  # of a block that was not committed
        with (partial / name).open("ab") as file:
            file.write(b'{"half a li')
    second = open_job(path, on_error=on_error)
    assert len(second.done) == 2
    assert second.rows == second.resumed_rows == (10 if on_error == "null" or not bad else 8)
    write(second, 2, 3, bad=bad)
    second.finish(pa.string())
    assert path.read_bytes() == want._staging.output.read_bytes()
    assert (second.errors_file is not None) == bool(bad)
    if bad:
        assert Path(second.errors_file).read_bytes() == Path(want.errors_file).read_bytes()


def test_where_nothing_is_done_nothing_is_left(open_job, path):
    output = open_job(path)
    assert path.with_name(f"{path.name}.partial").is_dir()
    assert output.keep() == 0
    assert names(path) == []


def test_overwrite_begins_anew(open_job, path):
    first = open_job(path)
    write(first, 0, 1)
    first.keep()
    second = open_job(path, overwrite=True)
    assert second.done == ()
    write(second, 0)
    second.keep()
    third = open_job(path)  # and then it goes on without being asked to
    assert len(third.done) == 1
    write(third, 1)
    third.finish(pa.string())
    assert path.read_bytes() == whole(open_job, path, 2)


def test_a_job_that_may_replace_an_output_goes_on_to_do_so(open_job, path):
    path.write_bytes(b"old")
    first = open_job(path, overwrite=True)
    write(first, 0)
    first.keep()
    second = open_job(path)
    write(second, 1)
    second.finish(pa.string())
    assert path.read_bytes() == whole(open_job, path, 2)


def test_another_job_is_refused_with_what_differs_and_nothing_is_touched(open_job, path):
    first = open_job(path)
    write(first, 0)
    first.keep()
    partial = path.with_name(f"{path.name}.partial")
    before = {each.name: each.read_bytes() for each in partial.iterdir()}
    other = {"prompt": "query: ", "inputs": [{"path": "/in.jsonl", "size": 10}]}
    with pytest.raises(UsageError, match=r'prompt: "" before, "query: " now; input /in\.jsonl: 9'):
        open_job(path, job=other)
    assert {each.name: each.read_bytes() for each in partial.iterdir()} == before
    open_job(path).keep()


def test_an_output_that_exists_is_refused(open_job, path):
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match=r"exists; pass --overwrite to replace it$"):
        open_job(path)
    assert path.read_bytes() == b"old"
    assert names(path) == [path.name]


def test_an_output_that_came_meanwhile_is_not_replaced_and_no_row_is_lost(open_job, path):
    output = open_job(path)
    write(output, 0)
    path.write_bytes(b"someone else's")
    with pytest.raises(OutputError, match="came into being"):
        output.finish(pa.string())
    output.keep()
    assert path.read_bytes() == b"someone else's"
    with pytest.raises(UsageError, match="move the output away"):
        open_job(path)
    path.unlink()
    assert open_job(path).complete
    assert path.read_bytes() == whole(open_job, path, 1)


@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_publication_is_taken_up_where_it_stopped(open_job, path, monkeypatch, step, errors):
    path.with_name(f"{path.name}.errors.jsonl").write_text("an earlier job's")
    output = open_job(path)
    write(output, 0, bad=[1] if errors else [])
    replace, done = Path.replace, []

    def fail(self, target):
        if len(done) == step:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done.append(self.name)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        if step == 2 and not errors:
            output.finish(pa.string())
        else:
            with pytest.raises(OutputError, match="Input/output error"):
                output.finish(pa.string())
    if not output.complete:
        assert output.keep() == 5
        again = open_job(path)
        assert again.complete
        assert again.rows == 5
    assert names(path) == complete_names(path, errors=errors)
    if errors:
        (line,) = path.with_name(f"{path.name}.errors.jsonl").read_text().splitlines()
        assert json.loads(line)["row"] == 1


@pytest.mark.parametrize("same", [True, False])
def test_a_folder_that_was_left_when_all_was_in_place_goes(open_job, path, same):
    output = open_job(path)
    write(output, 0, bad=[1])
    output.finish(pa.string())
    before = path.read_bytes()
    left = path.with_name(f"{path.name}.partial")
    left.mkdir()
    (left / "rows.arrows").write_bytes(b"staged")
    if same:
        again = open_job(path)
        assert again.complete
        assert again.rows == 5
    else:
        with pytest.raises(UsageError, match="exists"):
            open_job(path, job=JOB | {"prompt": "another"})
    assert names(path) == complete_names(path, errors=True)
    assert path.read_bytes() == before


def test_names_are_durable_before_the_manifest_tells_of_their_files(open_job, path, monkeypatch):
    durable = set()
    real = os.fsync

    def fsync(handle):
        what = Path(f"/proc/self/fd/{handle}").readlink()
        real(handle)
        if what.is_dir():
            durable.update(each.name for each in what.iterdir())
        elif what.name == "manifest.jsonl":
            assert {each.name for each in what.parent.iterdir()} <= durable

    monkeypatch.setattr(os, "fsync", fsync)
    output = open_job(path)
    write(output, 0)
    while output._committer.committed < 1:
        pass
    write(output, 1, bad=[1])
    output.finish(pa.string())
    assert "errors.jsonl" in durable


def test_lines_of_zeros_and_what_follows_them_are_done_again(open_job, path):
    output = open_job(path)
    write(output, 0, 1, 2)
    output.keep()
    manifest = path.with_name(f"{path.name}.partial") / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    *before, second, third = lines
    manifest.write_bytes(b"".join(before) + bytes(len(second) + 7) + third[7:])
    output = open_job(path)
    assert output.rows == 5
    write(output, 1, 2)
    output.finish(pa.string())
    assert path.read_bytes() == whole(open_job, path, 3)


@pytest.mark.parametrize("left", ["data", "errors.jsonl"])
def test_half_a_copy_is_never_put_in_place(open_job, path, left):
    """What --extend has left that was killed while it copied a finished output."""
    for _ in range(2):  # so that the manifest says that the output may be replaced
        output = open_job(path, overwrite=True)
        write(output, 0, 1)
        output.finish(pa.string())
    before = {each: each.read_bytes() for each in path.parent.iterdir()}
    partial = path.with_name(path.name + ".partial")
    partial.mkdir()
    name = f"data{path.suffix}" if left == "data" else left
    (partial / name).write_bytes(path.read_bytes()[:200])
    output = open_job(path)
    assert output.complete
    assert {each: each.read_bytes() for each in path.parent.iterdir()} == before


@pytest.mark.parametrize("lost", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_staged_rows_without_a_manifest_are_told_of(open_job, path, lost):
    output = open_job(path)
    assert not output.useless
    write(output, 0)
    output.keep()
    lost(path.with_name(path.name + ".partial") / "manifest.jsonl")
    output = open_job(path)
    assert output.useless
    assert output.rows == 0


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", ["data", "manifest.jsonl"])
def test_what_is_no_file_in_the_folder_is_somebody_elses(open_job, path, tmp_path, kind, name):
    partial = path.with_name(path.name + ".partial")
    partial.mkdir()
    place = partial / (name if "." in name else f"{name}{path.suffix}")
    other = tmp_path / "precious"
    other.write_text("mine")
    if kind == "link":
        place.symlink_to(other)
    else:
        os.mkfifo(place)
    with pytest.raises(OutputError, match="holds files that headrace did not write"):
        open_job(path, overwrite=True)
    assert other.read_text() == "mine"


@pytest.mark.parametrize("inputs", [5, [5], [{"path": 7}], None])
def test_a_manifest_whose_inputs_are_none_is_refused(open_job, path, inputs):
    output = open_job(path)
    write(output, 0)
    output.keep()
    manifest = path.with_name(path.name + ".partial") / "manifest.jsonl"
    head, *rest = manifest.read_text().splitlines(keepends=True)
    job = json.loads(head)
    del job["crc"]
    job["job"]["inputs"] = inputs
    manifest.write_text(line_of(job) + "\n" + "".join(rest))
    with pytest.raises(MachineError, match="not a manifest that this version"):
        open_job(path)


def test_a_crashed_runs_leftover_without_a_manifest_is_replaced(open_job, path):
    leftover = path.with_name(path.name + ".partial")
    leftover.mkdir()
    (leftover / f"data{path.suffix}").write_bytes(b"half a file" * 1000)
    (leftover / "manifest.jsonl.new").write_bytes(b"{")
    output = open_job(path)
    output.finish(pa.string())
    assert names(path) == complete_names(path)
    assert b"half" not in path.read_bytes()


@pytest.mark.parametrize("kind", ["file", "link", "foreign file inside"])
def test_what_is_not_ours_is_never_removed(open_job, path, kind):
    partial = path.with_name(path.name + ".partial")
    if kind == "file":
        partial.write_text("mine")
    else:
        folder = path.parent / "folder"
        folder.mkdir()
        (folder / "thesis.tex").write_text("mine")
        partial.symlink_to(folder) if kind == "link" else folder.rename(partial)
    with pytest.raises(OutputError, match="move"):
        open_job(path, overwrite=True)
    assert (partial if kind == "file" else partial / "thesis.tex").read_text() == "mine"


def test_two_runs_on_one_output(open_job, path):
    first = open_job(path)
    write(first, 0)
    for settings in ({}, {"overwrite": True}, {"extend": True}):
        with pytest.raises(UsageError, match="another run is writing"):
            open_job(path, **settings)
    write(first, 1)
    first.finish(pa.string())
    assert path.read_bytes() == whole(open_job, path, 2)


def test_a_file_system_without_locks(open_job, path, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    open_job(path).finish(pa.string())
    assert path.exists()


def test_a_link_is_followed(open_job, path):
    real = path.parent / "elsewhere" / f"real{path.suffix}"
    real.parent.mkdir()
    path.symlink_to(real)
    output = open_job(path)
    write(output, 0, bad=[0])
    output.finish(pa.string())
    assert path.is_symlink()
    assert names(real) == complete_names(real, errors=True)
    assert Path(output.errors_file).resolve().parent == real.parent


def test_a_relative_output(open_job, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    output = open_job(Path(path.name))
    write(output, 0)
    output.keep()
    output = open_job(Path(path.name))
    write(output, 1)
    output.finish(pa.string())
    assert path.exists()


@pytest.mark.parametrize("what", ["gone", "short", "manifest", "line"])
def test_files_that_were_tampered_with_are_refused(open_job, path, what):
    output = open_job(path)
    write(output, 0, 1, 2)
    output.keep()
    partial = path.with_name(f"{path.name}.partial")
    data = partial / ("data.npy" if path.suffix == ".npy" else "rows.arrows")
    manifest = partial / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    if what == "gone":
        data.unlink()
    elif what == "short":
        data.write_bytes(data.read_bytes()[:-1])
    elif what == "manifest":
        manifest.write_bytes(b"something else\n" + b"".join(lines[1:]))
    else:
        manifest.write_bytes(lines[0] + b"?\n" + b"".join(lines[2:]))
    with pytest.raises(MachineError, match=r"No such file|made durable|manifest|is damaged"):
        open_job(path)
    again = open_job(path, overwrite=True)
    again.finish(pa.string())


def test_a_full_disk_stops_cleanly_and_what_is_durable_is_gone_on_from(open_job, path, monkeypatch):
    output = open_job(path)
    write(output, 0, 1)
    output._committer.finish()
    full = os.open("/dev/full", os.O_WRONLY)
    kept = os.dup(output._sink._file.fileno())
    os.dup2(full, output._sink._file.fileno())
    with pytest.raises(OutputError, match=r"No space left on device .*free space there"):
        write(output, 2)
    output.keep()
    os.close(full)
    os.close(kept)
    again = open_job(path)
    assert len(again.done) == 2
    write(again, 2)
    again.finish(pa.string())
    assert path.read_bytes() == whole(open_job, path, 3)


@pytest.mark.parametrize("which", ["manifest", "sync"])
def test_a_commit_that_fails_ends_the_run_at_the_next_block(open_job, path, monkeypatch, which):
    output = open_job(path)
    write(output, 0)
    while not output._committer.committed:
        pass

    def fail(*_):
        raise OutputError("the disk is full")

    target, name = (output._manifest, "append") if which == "manifest" else (output._sink, "sync")
    monkeypatch.setattr(target, name, fail)
    write(output, 1)
    output._committer._thread.join()
    with pytest.raises(OutputError, match="the disk is full"):
        write(output, 2)
    assert output.keep() == 5
    monkeypatch.undo()
    assert len(open_job(path).done) == 1


def test_ids_that_cannot_have_the_type_of_those_before(open_job, path):
    if path.suffix == ".npy":
        pytest.skip("has no ids")
    output = open_job(path)
    output.write(block(0), pa.string())
    other = open_job(path.with_name("other.parquet"))
    with pytest.raises(UsageError, match="--id-type string"):
        other.write(block(0), pa.int64())
    other.keep()
    output.finish(pa.string())
    assert pq.read_table(path)["id"].to_pylist()[0] == "id 0 0"
