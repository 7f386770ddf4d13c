"""When two jobs are the same, what they differ in, and when one extends the other."""

from __future__ import annotations

import gzip
import json
import os
import threading
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.config import EmbedConfig
from headrace.contract import Bucket, Contract
from headrace.errors import InputError, UsageError
from headrace.fingerprint import ENDS_BYTES, check_extension, differences, job_of, listed
from headrace.inputs import find_inputs

ANOTHER = {  # of each setting that shapes the output
    "text_field": "body",
    "id_field": "key",
    "id_type": "string",
    "dtype": "float16",
    "truncate_dim": 4,
    "on_error": "skip",
    "block_bytes": 1 << 20,
}
INDIFFERENT = {
    "transport": "grpc",
    "server": "host:1",
    "repository": Path("elsewhere"),
    "tokenizer": Path("elsewhere.json"),
    "overwrite": True,
    "extend": True,
    "feeders": 3,
    "share": 0.5,
    "word_cache": "off",
    "quiet": True,
    "report": Path("report.json"),
    "server_timeout": 1.0,
    "request_timeout": 2.0,
    "memory_limit": 1 << 30,
}
TOLD_OTHERWISE = {  # by an argument of job_of, by the contract, by the inputs, by the folder
    *("prompt", "prompt_name", "max_length", "block_rows"),
    *("model", "normalize", "precision", "engine"),
    *("inputs", "format"),
    "output",
}
ANOTHER_MODEL = {
    "weights_hash": "2" * 64,
    "tokenizer_hash": "3" * 64,
    "engine": "openvino",
    "engine_version": "2",
    "capability": "9.0",
    "precision": "bf16",
    "pooling": "cls",
    "normalized": False,
    "dimension": 16,
    "dtype": "float16",
    "pad_multiple": 8,
    "token_budget": 1024,
    "buckets": (Bucket(max_length=64, max_batch=8),),
}
SAME_MODEL = {
    "name": "other",
    "model_id": "other/small",
    "revision": "abc",
    "in_flight": 7,
    "prompts": {"query": "q: "},  # what was chosen of these is an argument of job_of
    "default_prompt": "query",
    "max_length": 32,
    "vocab_size": 9,
    "pad_id": 1,
}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 20_000)  # more than twice what is hashed
    return path


@pytest.fixture
def job(make_contract):
    def go(*paths, contract=None, prompt="", max_length=64, block_rows=100, **settings):
        config = EmbedConfig(
            inputs=tuple(map(str, paths)), output=Path("out.npy"), model="small", **settings
        )
        inputs = find_inputs(config.inputs, format=config.format)
        return job_of(
            config,
            make_contract(**(contract or {})),
            inputs,
            prompt=prompt,
            max_length=max_length,
            block_rows=block_rows,
        )

    return go


def extended(job, before, *paths, **settings):
    return check_extension(before, job(*paths, **settings), find_inputs(list(map(str, paths))))


def touch_back(path, stat):
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_every_setting_is_known_here():
    assert {each.name for each in fields(EmbedConfig)} == {
        *ANOTHER,
        *INDIFFERENT,
        *TOLD_OTHERWISE,
    }
    model = {each.name for each in fields(Contract)} - {"schema_version"}
    assert model == {*ANOTHER_MODEL, *SAME_MODEL}


def test_the_same_is_the_same_and_comes_back_from_a_file(job, source):
    assert differences(job(source), job(source)) == []
    assert json.loads(json.dumps(job(source))) == job(source)


@pytest.mark.parametrize("name", ANOTHER)
def test_a_setting_that_shapes_the_output_makes_another_job(job, source, name):
    (found,) = differences(job(source), job(source, **{name: ANOTHER[name]}))
    assert str(ANOTHER[name]) in found


@pytest.mark.parametrize("name", ANOTHER_MODEL)
def test_another_model_makes_another_job(job, source, name):
    assert differences(job(source), job(source, contract={name: ANOTHER_MODEL[name]}))


@pytest.mark.parametrize(
    ("name", "value"), [("prompt", "query: "), ("max_length", 32), ("block_rows", 99)]
)
def test_what_a_run_decides_makes_another_job(job, source, name, value):
    (found,) = differences(job(source), job(source, **{name: value}))
    assert json.dumps(value) in found


@pytest.mark.parametrize("name", INDIFFERENT)
def test_a_setting_that_does_not_shape_the_output_makes_none(job, source, name):
    assert job(source) == job(source, **{name: INDIFFERENT[name]})


@pytest.mark.parametrize("name", SAME_MODEL)
def test_what_does_not_shape_vectors_makes_no_other_model(job, source, name):
    assert not differences(job(source), job(source, contract={name: SAME_MODEL[name]}))


def test_a_job_says_where_its_model_came_from(job, source):
    found = job(source, contract={"model_id": "x/y", "revision": "abc"})
    assert (found["model"], found["revision"]) == ("x/y", "abc")


def test_vectors_that_are_cut_here_are_not_those_that_the_server_cuts(job, source):
    assert differences(
        job(source, truncate_dim=4, contract={"dimension": 8}),
        job(source, contract={"dimension": 4}),
    )


def test_another_format_or_path_or_order_makes_another_job(job, source, tmp_path):
    assert differences(job(source), job(source, format="text")) == [
        f"input {source}: another format"
    ]
    other = tmp_path / "b.jsonl"
    other.write_bytes(source.read_bytes())
    assert differences(job(source), job(other)) == [f"input: {source} before, {other} now"]
    assert len(differences(job(source, other), job(other, source))) == 2
    assert differences(job(source), job(source, other)) == [f"input {other}: new"]
    assert differences(job(source, other), job(source)) == [f"input {other}: missing"]


def test_a_relative_path_is_the_same_input(job, source, monkeypatch):
    before = job(source)
    monkeypatch.chdir(source.parent)
    assert job(source.name) == before
    monkeypatch.chdir("/")
    assert job(source) == before


@pytest.mark.parametrize("at", [0, ENDS_BYTES - 1, -1, -ENDS_BYTES])
def test_other_bytes_at_the_ends_of_an_input_are_seen(job, source, at):
    before, stat = job(source), source.stat()
    data = bytearray(source.read_bytes())
    data[at] ^= 1
    source.write_bytes(data)
    touch_back(source, stat)
    end = "beginning" if at >= 0 else "end"
    assert differences(before, job(source)) == [f"input {source}: another {end}"]


def test_another_time_or_size_is_seen(job, source):
    before, stat = job(source), source.stat()
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert differences(before, job(source)) == [f"input {source}: another modification time"]
    with source.open("ab") as file:
        file.write(b"\n")
    size = stat.st_size
    assert differences(before, job(source)) == [
        f"input {source}: {size} bytes before, {size + 1} now"
    ]


@pytest.mark.parametrize("size", [0, 1, ENDS_BYTES, ENDS_BYTES + 1, 2 * ENDS_BYTES])
def test_inputs_of_any_size_have_a_fingerprint(job, tmp_path, size):
    path = tmp_path / "in.txt"
    path.write_bytes(b"a" * size)
    before, stat = job(path), path.stat()
    assert job(path) == before
    if size:
        path.write_bytes(b"a" * (size - 1) + b"b")
        touch_back(path, stat)
        assert differences(before, job(path)) == [
            f"input {path}: another " + ("beginning and end" if size <= ENDS_BYTES else "end")
        ]


def test_a_stream_is_known_by_its_name(job, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def feed(text):
        pipe.write_text(text)

    jobs = []
    for text in ("one\n", "other\n"):
        thread = threading.Thread(target=feed, args=(text,))
        thread.start()
        jobs.append(job(pipe, format="text"))
        thread.join()
    assert jobs[0] == jobs[1]
    assert jobs[0]["inputs"] == [{"path": str(pipe), "format": "text", "size": None}]


def test_an_input_that_cannot_be_read_is_named(make_contract, source):
    config = EmbedConfig(inputs=(str(source),), output=Path("out.npy"), model="small")
    inputs = find_inputs(config.inputs)
    source.unlink()
    with pytest.raises(InputError, match=r"in\.jsonl: cannot be read") as caught:
        job_of(config, make_contract(), inputs, prompt="", max_length=64, block_rows=1)
    assert "\n" not in str(caught.value)


def test_differences_are_one_bounded_line_that_names_both_sides(job, source):
    before = job(source, prompt="one\nline " * 1000)
    now = job(source, prompt="zwei\r\n" * 1000, dtype="float16", on_error="skip")
    found = differences(before, now)
    line = listed(found)
    assert len(line.splitlines()) == 1
    assert len(line) < 300
    assert r'prompt: "one\nline ' in line
    assert r', "zwei\r\n' in line
    assert 'dtype: "float32" before, "float16" now' in line
    assert 'on-error: "null" before, "skip" now' in line


def test_of_many_differences_the_first_are_told_and_the_others_counted(job, source):
    now = job(source)
    before = now | {"inputs": [{"path": f"/{number}"} for number in range(100)]}
    line = listed(differences(before, now))
    assert line.startswith(f"input: /0 before, {source} now; input /1: missing; ")
    assert line.endswith("; and 92 more")
    assert listed(["a", "b"]) == "a; b"


def test_a_setting_of_another_version_is_a_difference(job, source):
    now = job(source)
    assert differences({**now, "colour": "red"}, now) == ['colour: "red" before, null now']
    assert differences(now, {**now, "colour": "red"}) == ['colour: null before, "red" now']


def test_inputs_after_those_that_there_were_extend_a_job(job, source, tmp_path):
    other, third = tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    for each in (other, third):
        each.write_text('{"text": "b"}\n')
    assert not extended(job, job(source), source, other)
    assert not extended(job, job(source, other), source, other, third)
    assert not extended(job, job(source), source, source)


@pytest.mark.parametrize("newline", [True, False])
@pytest.mark.parametrize("lines", [0, 1, 20_000])
def test_a_last_plain_file_may_have_grown(job, source, tmp_path, newline, lines):
    last = tmp_path / "last.jsonl"
    whole = b'{"text": "a"}\n' * lines
    last.write_bytes(whole if newline else whole[:-1])
    before = job(source, last)
    with last.open("ab") as file:
        file.write(b'\n{"text": "more"}\n')
    assert extended(job, before, source, last)
    assert extended(job, before, source, last, source)


@pytest.mark.parametrize("kind", ["gzip", "parquet", "not last"])
def test_another_that_has_grown_is_refused(job, source, tmp_path, kind):
    path = tmp_path / ("in.parquet" if kind == "parquet" else "in2.jsonl")
    if kind == "parquet":
        pq.write_table(pa.table({"text": ["a"]}), path)
    else:
        line = b'{"text": "a"}\n'
        path.write_bytes(gzip.compress(line) if kind == "gzip" else line)
    inputs = [path, source] if kind == "not last" else [source, path]
    before, size = job(*inputs), path.stat().st_size
    if kind == "parquet":
        pq.write_table(pa.table({"text": ["a", "b"]}), path)
    else:
        with path.open("ab") as file:
            file.write(gzip.compress(line) if kind == "gzip" else line)
    with pytest.raises(UsageError, match=rf"--extend: only more .* {size} bytes before, \d+ now"):
        extended(job, before, *inputs, source)


def test_a_file_that_is_plain_and_has_become_a_compressed_one_has_not_grown(job, tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"")
    before = job(path)
    path.write_bytes(gzip.compress(b"line\n"))
    with pytest.raises(UsageError, match="0 bytes before"):
        extended(job, before, path)


@pytest.mark.parametrize("how", ["shrunk", "rewritten", "head", "old end", "touched", "format"])
def test_a_last_file_that_is_not_what_it_was_and_more_is_refused(job, source, how):
    before, data = job(source), source.read_bytes()
    settings = {}
    match how:
        case "shrunk":
            source.write_bytes(data[:-14])
        case "rewritten":
            source.write_bytes(data.replace(b"a", b"b") + b"more\n")
        case "head":
            source.write_bytes(b'{"text": "b"}' + data[13:] + b"more\n")
        case "old end":
            source.write_bytes(data[:-1] + b" \n")
        case "touched":
            os.utime(source, ns=(1, 1))
        case "format":
            source.write_bytes(data + data)
            settings["format"] = "text"
    inputs = find_inputs([str(source)], **settings)
    with pytest.raises(UsageError, match="--extend: only more inputs"):
        check_extension(before, job(source, **settings), inputs)


def test_fewer_or_other_inputs_or_settings_or_nothing_new_are_refused(job, source, tmp_path):
    other = tmp_path / "b.jsonl"
    other.write_text('{"text": "b"}\n')
    before = job(source, other)
    with pytest.raises(UsageError, match="2 inputs before, 1 now"):
        extended(job, before, source)
    with pytest.raises(UsageError, match=rf"input: {source} before, {other} now"):
        extended(job, before, other)
    with pytest.raises(UsageError, match=rf"input: {source} before, {other} now"):
        extended(job, before, other, source, other)
    with pytest.raises(UsageError, match='dtype: "float32" before, "float16" now'):
        extended(job, before, source, other, source, dtype="float16")
    with pytest.raises(UsageError, match="there is nothing new"):
        extended(job, before, source, other)


def test_other_settings_are_told_even_where_the_last_file_has_grown(job, source):
    before = job(source)
    with source.open("ab") as file:
        file.write(b"more\n")
    with pytest.raises(UsageError, match="prompt: "):
        extended(job, before, source, prompt="query: ")
