"""What a manifest says after any accident, and that it says nothing that is not there."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from headrace.errors import MachineError, OutputError
from headrace.manifest import BlockRecord, Manifest, line_of, read_manifest

JOB = {"prompt": "zu \u00fc\n\ud800", "inputs": [{"path": "/in.jsonl", "size": 9}]}
COUNTS = [each.name for each in fields(BlockRecord) if each.name != "block"]


def record(block, rows=5):
    return BlockRecord(
        block=block,
        input=0,
        first_row=block * rows,
        rows=rows,
        checksum=0xFFFFFFFF - block,
        bytes_done=block * 100,
        written=(block + 1) * rows,
        data_bytes=128 + block * 16,
        error_bytes=0,
        bad_rows=0,
        truncated_rows=1,
        tokens=50,
        padded_tokens=60,
        batches=2,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "manifest.jsonl"


def write(path, count, *, complete=False):
    manifest = Manifest.create(path, JOB, replaces=False)
    for number in range(count):
        manifest.append([record(number)])
    if complete:
        manifest.complete()
    manifest.close()
    return path.read_bytes()


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("complete", [False, True])
def test_what_was_written_is_read(path, replaces, complete):
    manifest = Manifest.create(path, JOB, [record(0)], replaces=replaces)
    manifest.append([record(1), record(2)])
    manifest.append([])
    manifest.append([record(3)])
    manifest.sync()
    if complete:
        manifest.complete()
    manifest.close()
    manifest.close()
    saved = read_manifest(path)
    assert saved.job == JOB
    assert saved.records == tuple(map(record, range(4)))
    assert (saved.replaces, saved.complete) == (replaces, complete)
    assert saved.size == path.stat().st_size


def test_where_there_is_none_or_only_the_beginning_of_its_first_line_there_is_no_job(path):
    assert read_manifest(path) is None
    head = write(path, 0)
    for size in range(len(head)):
        path.write_bytes(head[:size])
        assert read_manifest(path) is None
    path.write_bytes(head)
    assert read_manifest(path).records == ()


def test_every_beginning_of_a_manifest_says_what_its_whole_lines_say(path):
    data = write(path, 3, complete=True)
    head = data.index(b"\n") + 1
    for size in range(head, len(data) + 1):
        path.write_bytes(data[:size])
        saved = read_manifest(path)
        whole = data[:size].count(b"\n") - 1
        assert saved.records == tuple(map(record, range(min(whole, 3))))
        assert saved.complete == (whole == 4)
        assert saved.size == data[:size].rindex(b"\n") + 1


@pytest.mark.parametrize("filling", [b"\0", b"\0\n", b"\xff", b"x\n"])
def test_a_last_line_that_has_room_and_no_content_counts_as_none(path, filling):
    data = write(path, 2)
    last = len(record(1).to_json()) + 1
    for kept in (0, 1, 50):  # of it, the rest is what the disk had there
        room = last - kept - len(filling) + 1
        path.write_bytes(data[: len(data) - last + kept] + filling[:1] * room + filling[1:])
        saved = read_manifest(path)
        assert saved.records == (record(0),)
        assert saved.size == len(data) - last


@pytest.mark.parametrize("line", [2, 3, 4])
@pytest.mark.parametrize(
    "wrong",
    [b"", b"?", b"[]", b"{}", b"null", b"\xff"]
    + [pytest.param(each * 100_000, id=f"many {each}") for each in (b"9", b"[")],
)
def test_damage_before_the_last_line_is_refused_with_its_number(path, line, wrong):
    lines = write(path, 4).splitlines(keepends=True)
    lines[line - 1] = wrong + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(MachineError, match=rf"line {line}: is damaged; pass --overwrite") as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


def test_a_digit_that_was_changed_is_damage_and_no_other_number(path):
    data = write(path, 3)
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        for at in range(len(line) - 1):
            changed = bytes([line[at] ^ 1])  # a digit becomes another one
            path.write_bytes(data.replace(line, line[:at] + changed + line[at + 1 :]))
            if number == len(lines):  # as one that did not get there whole: it is done again
                assert read_manifest(path).records == (record(0), record(1))
                continue
            with pytest.raises(MachineError, match=r"pass --overwrite to start anew"):
                read_manifest(path)


@pytest.mark.parametrize("count", [4, 100_000])
@pytest.mark.parametrize("line", [2, 3, 4])
def test_lines_that_the_disk_never_got_count_as_none_and_nothing_after_them(path, line, count):
    lines = write(path, 4).splitlines(keepends=True)
    lines[line - 1] = b"\0" * count + b"\n"
    path.write_bytes(b"".join(lines))
    saved = read_manifest(path)
    assert len(saved.records) == line - 2
    assert saved.size == sum(map(len, lines[: line - 1]))
    assert not saved.complete


def test_a_line_twice_or_missing_or_in_another_place_is_refused(path):
    head, *lines = write(path, 3).splitlines(keepends=True)
    for order in ([0, 0, 1, 2], [0, 2], [1, 2], [1, 0, 2], [0, 1, 1]):
        path.write_bytes(head + b"".join(lines[number] for number in order))
        with pytest.raises(MachineError, match="is damaged"):
            read_manifest(path)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(
    "value",
    [-1, 1.0, True, None, "1", [1], float("nan"), 1 << 63, pytest.param(10**400, id="huge")],
)
def test_a_number_that_cannot_be_one_is_refused(path, name, value):
    write(path, 0)
    wrong = line_of(asdict(record(0)) | {name: value})
    with path.open("a") as file:
        file.write(f"{wrong}\n{record(1).to_json()}\n")
    with pytest.raises(MachineError, match="line 2: is damaged"):
        read_manifest(path)


@pytest.mark.parametrize("change", ["unknown", "missing"])
def test_a_record_of_other_fields_is_refused_even_at_the_end(path, change):
    write(path, 0)
    found = asdict(record(0))
    if change == "unknown":
        found["more"] = 1
    else:
        del found["tokens"]
    with path.open("a") as file:
        file.write(f"{line_of(found)}\n")
    with pytest.raises(MachineError, match="line 2: is damaged"):
        read_manifest(path)


@pytest.mark.parametrize("more", [record(2).to_json(), line_of({"complete": True}), "?\n?"])
def test_nothing_follows_the_line_that_says_complete(path, more):
    write(path, 2, complete=True)
    with path.open("a") as file:
        file.write(f"{more}\n")
    with pytest.raises(MachineError, match="line 5: is damaged"):
        read_manifest(path)


@pytest.mark.parametrize(
    "head",
    [
        '{"headrace_manifest": 1, "replaces": false, "job": {"inputs": []}}',
        line_of({"headrace_manifest": 3, "replaces": False, "job": {"inputs": []}}),
        line_of({"headrace_manifest": "2", "replaces": False, "job": {"inputs": []}}),
        line_of({"headrace_manifest": 2, "replaces": False}),
        line_of({"headrace_manifest": 2, "replaces": False, "job": []}),
        line_of({"job": {"inputs": []}}),
        "{}",
        "[]",
        "1",
    ],
)
def test_what_is_no_manifest_of_this_version_is_refused(path, head):
    path.write_text(head + "\n" + record(0).to_json() + "\n")
    with pytest.raises(MachineError, match="not a manifest that this version") as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


def test_one_that_cannot_be_read_is_said_in_a_line(path):
    path.mkdir()
    with pytest.raises(MachineError, match="cannot be read: Is a directory"):
        read_manifest(path)


def test_one_that_cannot_be_made_whole_leaves_the_old_one(path, monkeypatch):
    before = write(path, 2)

    def fail(*_):
        raise OSError(5, os.strerror(5))

    for target, name in ((Path, "replace"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, fail)
            with pytest.raises(OutputError, match="Input/output error"):
                Manifest.create(path, JOB, [record(0)], replaces=True)
        assert path.read_bytes() == before
    Manifest.create(path, JOB, [record(0)], replaces=True).close()
    assert read_manifest(path).records == (record(0),)


def test_a_new_one_is_durable_before_it_has_its_name(path, monkeypatch):
    order = []
    replace_, fsync = Path.replace, os.fsync

    def note_replace(self, target):
        order.append(("rename", Path(target).name))
        return replace_(self, target)

    def note_fsync(handle):
        order.append(("sync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    monkeypatch.setattr(Path, "replace", note_replace)
    monkeypatch.setattr(os, "fsync", note_fsync)
    Manifest.create(path, JOB, replaces=False).close()
    assert order == [
        ("sync", "manifest.jsonl.new"),
        ("rename", "manifest.jsonl"),
        ("sync", path.parent.name),
    ]


def test_what_is_added_after_half_a_line_takes_its_place(path):
    data = write(path, 3)
    path.write_bytes(data[:-20])
    saved = read_manifest(path)
    manifest = Manifest(path, saved.size)
    manifest.append([record(2)])
    manifest.close()
    assert path.read_bytes() == data


def test_one_that_has_lost_bytes_meanwhile_is_refused(path):
    data = write(path, 1)
    with pytest.raises(OutputError, match="something else has cut it"):
        Manifest(path, len(data) + 1)
    assert path.read_bytes() == data


def test_a_full_disk_is_said_when_a_line_is_added(path):
    manifest = Manifest.create(path, JOB, replaces=False)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, manifest._file.fileno())
    with pytest.raises(OutputError, match="No space left on device"):
        manifest.append([record(0)])
    manifest.close()
    os.close(full)
    assert read_manifest(path).records == ()


def test_a_job_of_a_hundred_million_rows_has_a_small_manifest(path):
    largest = replace(
        record(0),
        **dict.fromkeys(("input", "block"), 10**5),
        **dict.fromkeys(("first_row", "written"), 10**8),
        **dict.fromkeys(("bytes_done", "data_bytes", "error_bytes"), 10**13),
        **dict.fromkeys(("rows", "bad_rows", "truncated_rows", "batches"), 32768),
        **dict.fromkeys(("tokens", "padded_tokens"), 32768 * 512),
        checksum=0xFFFFFFFF,
    )
    line = len(largest.to_json()) + 1
    assert line < 320
    assert line * 10**8 / 4096 < 8 << 20  # blocks have 4,096 rows at least, or many MiB


def test_many_records_are_read_in_bounded_memory(path):
    count = 30_000
    Manifest.create(path, JOB, map(record, range(count)), replaces=False).close()
    tracemalloc.start()
    try:
        saved = read_manifest(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(saved.records) == count
    assert saved.records[-1] == record(count - 1)
    assert peak < 1000 * count
