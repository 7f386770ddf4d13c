from __future__ import annotations

import os
import stat

import pyarrow as pa
import pytest

from headrace import keptwords
from headrace.keptwords import SCHEMA, forget, load, save

HASH = "ab" * 32


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "headrace" / "words"
    keptwords._makers.cache_clear()


def batch(words):
    return pa.record_batch(
        [pa.array(list(words), pa.binary()), pa.array(list(words.values()), SCHEMA[1].type)],
        schema=SCHEMA,
    )


def as_dict(words):
    return None if words is None else dict(zip(*words.to_pydict().values(), strict=True))


WORDS = {b"wheel": [1, 2], b" mill": [3], b"[SEP]": None, b"\xff\0": []}


def test_what_is_saved_is_loaded(folder):
    assert load(HASH) is None
    save(HASH, [batch(WORDS)])
    assert as_dict(load(HASH)) == WORDS
    assert load("cd" * 32) is None
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    forget(HASH)
    assert load(HASH) is None
    forget(HASH)


def test_the_newest_words_come_first_and_no_word_twice():
    save(HASH, [batch(WORDS)])
    save(HASH, [])
    save(HASH, [batch({b"a": [5]}), batch({b"b": [6], b"wheel": [1, 2]})])
    assert list(as_dict(load(HASH))) == [b"b", b"wheel", b"a", b" mill", b"[SEP]", b"\xff\0"]


def test_words_and_bytes_are_bounded(monkeypatch):
    monkeypatch.setattr(keptwords, "MAX_WORDS", 3)
    save(HASH, [batch(WORDS)])
    save(HASH, [batch({b"a": [5]})])
    assert list(as_dict(load(HASH))) == [b"a", b"wheel", b" mill"]
    monkeypatch.setattr(keptwords, "MAX_BYTES", 5 + 8 + 5)
    save(HASH, [batch({b"c": [5]})])
    assert list(as_dict(load(HASH))) == [b"c", b"a"]


def test_the_folder_is_bounded_and_the_oldest_files_go(folder, monkeypatch):
    for number in range(4):
        save(f"{number}", [batch(WORDS)])
        for file in folder.iterdir():
            os.utime(file, (file.stat().st_mtime - 10,) * 2)
    size = next(folder.iterdir()).stat().st_size
    monkeypatch.setattr(keptwords, "MAX_FOLDER_BYTES", 3 * size)
    save("4", [batch(WORDS)])
    assert [load(f"{number}") is not None for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_what_a_killed_run_has_left_half_written_goes(folder):
    save(HASH, [batch(WORDS)])
    old, young = folder / "old.part", folder / "young.part"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (old.stat().st_mtime - 7200,) * 2)
    save(HASH, [batch({b"more": [3]})])
    assert not old.exists()
    assert young.exists()


def test_no_damage_gives_a_wrong_word(folder):
    save(HASH, [batch(WORDS)])
    (file,) = folder.iterdir()
    data = file.read_bytes()
    for index in range(len(data)):
        for bit in (0, 5):
            file.write_bytes(data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :])
            assert load(HASH) is None
    for size in range(len(data)):
        file.write_bytes(data[:size])
        assert load(HASH) is None
    file.write_bytes(data + b"\0")
    assert load(HASH) is None
    file.write_bytes(data)
    assert as_dict(load(HASH)) == WORDS


def test_words_of_another_version_or_tokenizer_are_not_read(folder, monkeypatch):
    save(HASH, [batch(WORDS)])
    (file,) = folder.iterdir()
    monkeypatch.setattr("tokenizers.__version__", "0.0.0")
    keptwords._makers.cache_clear()
    assert load(HASH) is None
    file.rename(keptwords._file(HASH))
    assert load(HASH) is None
    monkeypatch.undo()


def test_a_file_of_another_shape_is_not_read(folder):
    folder.mkdir(parents=True)
    sink = pa.BufferOutputStream()
    table = pa.table({"word": ["text"], "ids": [[1]]})
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    for payload in (sink.getvalue().to_pybytes(), b"", b"no stream"):
        keptwords._file(HASH).write_bytes(keptwords._digest(HASH, payload) + payload)
        assert load(HASH) is None


def test_a_folder_that_cannot_be_used_is_no_error(folder, monkeypatch):
    folder.parent.mkdir()
    folder.write_text("a file")
    save(HASH, [batch(WORDS)])
    assert load(HASH) is None
    forget(HASH)
    folder.unlink()
    monkeypatch.setattr("os.fdopen", lambda *_: (_ for _ in ()).throw(OSError("full")))
    save(HASH, [batch(WORDS)])
    assert load(HASH) is None
    assert list(folder.iterdir()) == []
