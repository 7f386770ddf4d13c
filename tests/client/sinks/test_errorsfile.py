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
def output(tmp_path):
    return tmp_path / "embeddings.npy"


def read(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_one_object_a_bad_row(output):
    errors = ErrorsFile(output)
    errors.write("data/a.jsonl", 3, 2, "no field 'text'")
    errors.write("données.parquet", None, 17, "text is null\nand more")
    assert [p.name for p in output.parent.iterdir()] == ["embeddings.npy.errors.jsonl.partial"]
    errors.commit()
    assert errors.count == 2
    assert errors.path == output.parent / "embeddings.npy.errors.jsonl"
    assert list(output.parent.iterdir()) == [errors.path]
    assert read(errors.path) == [
        {"file": "data/a.jsonl", "line": 3, "row": 2, "reason": "no field 'text'"},
        {"file": "données.parquet", "line": None, "row": 17, "reason": "text is null\nand more"},
    ]
    assert "données" in errors.path.read_text(encoding="utf-8")


@settings(max_examples=50, deadline=None)
@given(file=st.text(st.characters(exclude_categories=())), reason=st.text())
def test_any_text_comes_back(tmp_path_factory, file, reason):
    errors = ErrorsFile(tmp_path_factory.mktemp("errors") / "out.npy")
    errors.write(file, 1, 0, reason)
    errors.commit()
    errors.path.read_text(encoding="utf-8")
    assert read(errors.path) == [{"file": file, "line": 1, "row": 0, "reason": reason}]


def test_a_file_name_that_is_not_utf_8(output):
    name = os.fsdecode(b"caf\xe9.jsonl")
    errors = ErrorsFile(output)
    errors.write(name, 1, 0, "é")
    errors.commit()
    assert os.fsencode(read(errors.path)[0]["file"]) == b"caf\xe9.jsonl"


def test_a_run_without_bad_rows_removes_an_earlier_runs_files(output):
    errors = ErrorsFile(output)
    errors.path.write_text("{}\n")
    errors.path.with_name(errors.path.name + ".partial").write_text("{}\n")
    assert errors.path.exists()
    errors.commit()
    assert list(output.parent.iterdir()) == []


def test_an_earlier_file_stays_until_commit_and_after_abort(output):
    errors = ErrorsFile(output)
    errors.path.write_text("old")
    errors.write("a", 1, 0, "bad")
    assert errors.path.read_text() == "old"
    errors.abort()
    errors.abort()
    assert list(output.parent.iterdir()) == [errors.path]
    assert errors.path.read_text() == "old"


def test_a_closed_file_refuses_everything(output):
    errors = ErrorsFile(output)
    errors.write("a", 1, 0, "bad")
    errors.commit()
    errors.abort()
    with pytest.raises(ValueError, match="closed"):
        errors.write("a", 2, 1, "bad")
    with pytest.raises(ValueError, match="closed"):
        errors.commit()
    assert len(read(errors.path)) == 1


def test_a_missing_folder(output):
    errors = ErrorsFile(output.parent / "missing" / "out.npy")
    with pytest.raises(OutputError, match=r"cannot write .*out\.npy\.errors\.jsonl\.partial"):
        errors.write("a", 1, 0, "bad")
    with pytest.raises(ValueError, match="closed"):
        errors.commit()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(output):
    errors = ErrorsFile(output)
    errors.write("a", 1, 0, "bad")
    os.dup2(os.open("/dev/full", os.O_WRONLY), errors._file.fileno())
    with pytest.raises(OutputError, match=r"No space left on device .*free space there"):
        errors.commit()
    assert list(output.parent.iterdir()) == []
    errors.abort()
