"""Which rows peers are compared on."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from headrace.errors import UsageError
from headrace_bench.peers import run as peers
from headrace_bench.peers import texts as peertexts


def chosen(*words):
    return peertexts.choose_texts(peers.parse_arguments([str(word) for word in words]))


def test_texts_are_drawn_by_the_seed_and_stay_in_order(texts):
    every = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    one = chosen("--input", texts, "--rows", "20")
    assert one.texts == chosen("--input", texts, "--rows", "20").texts
    assert [every.index(text) for text in one.texts] == sorted(map(every.index, one.texts))
    assert len(set(one.texts)) == 20
    assert one.texts != chosen("--input", texts, "--rows", "20", "--seed", "1").texts
    assert one.texts != every[:20]


def test_a_file_that_has_fewer_rows_is_taken_whole(tmp_path, capsys):
    path = tmp_path / "in.txt"
    path.write_bytes(b"a\n\xff\nb\n")
    found = chosen("--input", path, "--rows", "9")
    assert (found.texts, found.left_out) == (["a", "b"], 1)
    said = capsys.readouterr().err
    assert "1 rows are left out, which are bad or blank" in said
    assert "has 2 rows, fewer than the 9 that were asked for" in said
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="no rows that can be embedded"):
        chosen("--input", path)
    with pytest.raises(UsageError, match="name a file"):
        chosen("--input", "-")


def test_only_the_beginning_of_a_large_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(peertexts, "POOL", 30)
    (tmp_path / "in.txt").write_text("".join(f"{i}\n" for i in range(1000)))
    found = chosen("--input", tmp_path / "in.txt", "--rows", "10")
    assert max(map(int, found.texts)) < 30
    assert "drawn from its first 30" in found.source
    assert len(chosen("--input", tmp_path / "in.txt", "--rows", "40").texts) == 40


def test_without_an_input_ms_marco_is_taken_where_a_hub_is(tmp_path, monkeypatch, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    passages = tmp_path / "snapshots" / "0123456789abcdef" / "passage" / "train.parquet"
    passages.parent.mkdir(parents=True)
    pq.write_table(
        pa.table({"pid": range(9), "text": [f"passage {i}" for i in range(9)]}), passages
    )
    asked = []

    class Hub:
        class HfApi:
            def dataset_info(self, dataset, timeout):
                return SimpleNamespace(sha="0123456789abcdef")

        @staticmethod
        def hf_hub_download(*given, **more):
            asked.append((given, more))
            return str(passages)

    errors = SimpleNamespace(HfHubHTTPError=type("E", (OSError,), {}))
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    found = chosen("--rows", "4")
    assert len(found.texts) == 4
    assert all(text.startswith("passage ") for text in found.texts)
    assert "MS MARCO passages" in found.source
    assert "revision 0123456789ab" in found.source
    assert asked == [(peertexts.MSMARCO, {"repo_type": "dataset", "revision": "0123456789abcdef"})]

    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(Hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(Hub, "hf_hub_download", unreachable)
    monkeypatch.setattr(peertexts, "DOCSTRINGS", 50)
    found = chosen("--rows", "10")
    assert "docstrings" in found.source
    assert len(found.texts) == 10
    assert "no hub is reachable" in capsys.readouterr().err
