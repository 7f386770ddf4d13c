from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import OutputError
from headrace.sinks.errorsfile import ErrorsFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "errors.jsonl"


def read(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_one_object_a_bad_row(path):
    errors = ErrorsFile(path)
    assert not path.exists()
    errors.write("data/a.jsonl", 3, 2, "no field 'text'")
    errors.write("données.parquet", None, 17, "text is null\nand more")
    errors.flush()
    errors.sync()
    assert errors.size == path.stat().st_size
    errors.close()
    assert read(path) == [
        {"file": "data/a.jsonl", "line": 3, "row": 2, "reason": "no field 'text'"},
        {"file": "données.parquet", "line": None, "row": 17, "reason": "text is null\nand more"},
    ]
    assert "données" in path.read_text(encoding="utf-8")


@settings(max_examples=50, deadline=None)
@given(file=st.text(st.characters(exclude_categories=())), reason=st.text())
def test_any_text_comes_back(tmp_path_factory, file, reason):
    errors = ErrorsFile(tmp_path_factory.mktemp("errors") / "errors.jsonl")
    errors.write(file, 1, 0, reason)
    errors.close()
    errors.path.read_text(encoding="utf-8")
    assert read(errors.path) == [{"file": file, "line": 1, "row": 0, "reason": reason}]


def test_a_file_name_that_is_not_utf_8(path):
    name = os.fsdecode(b"caf\xe9.jsonl")
    errors = ErrorsFile(path)
    errors.write(name, 1, 0, "é")
    errors.close()
    assert os.fsencode(read(path)[0]["file"]) == b"caf\xe9.jsonl"


def test_what_was_not_made_durable_is_cut_off(path):
    first = ErrorsFile(path)
    first.write("a", 1, 0, "bad")
    first.flush()
    size = first.size
    first.write("a", 2, 1, "half a li")
    first.close()
    again = ErrorsFile(path, size=size)
    again.write("a", 3, 2, "worse")
    again.close()
    assert [each["line"] for each in read(path)] == [1, 3]
    ErrorsFile(path).close()
    assert not path.exists()


def test_only_what_was_flushed_counts_as_synced(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    errors = ErrorsFile(path)
    errors.sync()
    errors.write("a", 1, 0, "bad")
    errors.sync()
    assert synced == []  # nothing that a manifest would tell of
    errors.flush()
    errors.sync()
    errors.sync()
    assert len(synced) == 1
    errors.close()


def test_a_missing_folder(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*missing/errors\.jsonl"):
        ErrorsFile(tmp_path / "missing" / "errors.jsonl").write("a", 1, 0, "bad")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(path):
    errors = ErrorsFile(path)
    errors.write("a", 1, 0, "bad")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, errors._file.fileno())
    os.close(full)
    with pytest.raises(OutputError, match=r"No space left on device .*free space there"):
        errors.flush()
    errors.close()
