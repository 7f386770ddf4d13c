"""The GPU benchmark, all of it, on the CPU with a tiny encoder; and its parts without a server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import types
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest

from headrace.errors import MachineError, MissingDependencyError, UsageError
from headrace_bench import corpus
from headrace_bench.exactness import bert
from headrace_bench.geometry import GEOMETRIES, Geometry, write_model
from headrace_bench.gpu import busy as gpubusy
from headrace_bench.gpu import run as gpu
from headrace_bench.gpu import ways as gpuways
from headrace_bench.gpu.busy import BusySampler
from headrace_bench.gpu.result import TORCH, Measured, Result, show
from headrace_bench.gpu.run import Place
from headrace_bench.gpu.texts import Shapes, resized
from headrace_bench.gpu.ways import TransportError, compared, look_at, matrix_product
from headrace_bench.page import page
from headrace_launcher.gpus import Gpu
from headrace_launcher.models import find_model

TINY = Geometry(name="tiny", layers=2, hidden=32, heads=4, wide=64, vocabulary=500, positions=128)
CPU = Place(
    device="cpu", transports=("cuda", "system", "grpc"), batch_sizes=(8, 16), product_size=128
)
CARD = Gpu(uuid="GPU-1", name="Some Card", capability="9.0", memory_bytes=80 << 30)


def run(tmp_path, *more, place=CPU):
    """Returns the exit code and the JSON of a tiny run."""
    path = tmp_path / "result.json"
    words = ["--precision", "fp32", "--feeders", "0", "--output", tmp_path / "out"]
    words += ["--json", path, *more]
    code = gpu.report(gpu.parse_arguments([str(word) for word in words]), place, [TINY])
    return code, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.torch
@pytest.mark.server
def test_everything_is_measured_on_a_cpu_as_on_a_gpu(tmp_path, capsys):
    pytest.importorskip("sentence_transformers", reason="not installed: make test-torch")
    code, result = run(tmp_path, "--rows", "300", "--repetitions", "2", "--st-rows", "100")
    said = capsys.readouterr()
    assert code == 0
    (tiny,) = result["details"]["geometries"].values()
    assert tiny["engine"].startswith("torchbert ")
    assert tiny["wrong"] == []
    # A CPU's memory is no GPU's: that way is told of, and the others go on.
    assert "computed by a CPU" in tiny["missing"]["cuda"]
    assert "headrace, cuda          not measured: " in said.out
    assert list(tiny["ways"]) == list(tiny["reports"]) == ["system", "grpc"]
    shapes = tiny["shapes"]
    assert shapes["rows"] == 300
    # What is computed from the input is what headrace has sent.
    for report in [tiny["warm_up"], *tiny["reports"]["system"], *tiny["reports"]["grpc"]]:
        assert (report["rows"], report["tokens"]) == (300, shapes["tokens"])
        assert report["tokens"] / (1 - report["padding"]) == pytest.approx(shapes["padded"])
        assert report["gpu_busy"] is None
        assert report["wall_seconds"] > report["seconds"]
    assert tiny["warm_up"]["transport"] == "system"
    for name, way in tiny["ways"].items():
        assert way["transport"] == name
        assert way["transport_reason"] == "asked for"
        assert way["rows_per_second"]["median"] > 0
        assert way["gpu_busy_percent"] is None
        assert way["share_of_matrix_product"]["median"] > 0
        assert way["ratio_to_sentence_transformers"]["median"] > 0
        tokens, padded = way["tokens_per_second"], way["padded_tokens_per_second"]
        assert tokens["median"] / padded["median"] == pytest.approx(
            shapes["tokens"] / shapes["padded"]
        )
    assert len(tiny["products"]) == len(tiny["torch_rates"]) == 2
    assert tiny["torch_batch"] in {8, 16}
    assert tiny["torch_rows"] == 100
    assert tiny["cosines"]["grpc"] > 0.99999
    assert tiny["cosines"][TORCH] > 0.9999
    assert "--transport auto takes system (server and client share memory; " in said.out
    assert "where headrace loses:" in said.out
    assert "GPU  " not in said.out.split("tiny:")[0]
    assert "repetition 2 of 2: matrix product" in said.err


@pytest.mark.torch
@pytest.mark.server
def test_without_torch_here_the_rest_is_measured(tmp_path, capsys, monkeypatch):
    """The server's process has it all the same."""
    pytest.importorskip("torch", reason="not installed: make test-torch")
    for name in ("torch", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    # Of a GPU only NVML is asked: that can be shown here as well.
    monkeypatch.setattr(gpubusy, "driver_version", lambda: "580.1")
    monkeypatch.setattr(gpubusy, "reader", lambda card: lambda: 97.0)
    monkeypatch.setattr(gpuways, "BusySampler", partial(BusySampler, seconds=0.002))
    place = Place(device="cpu", gpu=CARD, transports=("grpc",), product_size=64)
    words = ["--rows", "60", "--length", "20", "--repetitions", "1"]
    code, result = run(tmp_path, *words, place=place)
    out = capsys.readouterr().out
    assert code == 0
    (tiny,) = result["details"]["geometries"].values()
    assert 15 < tiny["shapes"]["tokens"] / 60 < 25
    assert tiny["ways"]["grpc"]["share_of_matrix_product"] is None
    assert tiny["ways"]["grpc"]["ratio_to_sentence_transformers"] is None
    assert tiny["warm_up"]["gpu_busy"] == tiny["reports"]["grpc"][0]["gpu_busy"] == 97
    assert "Some Card" in out
    assert "97 %" in out
    assert "matrix product: not measured: not installed" in out
    assert "pip install 'headrace[bench]'" in tiny["torch_missing"]


@pytest.mark.torch
@pytest.mark.server
def test_wrong_vectors_are_said_to_be_so(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch", reason="not installed: make test-torch")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setattr(gpu, "compared", lambda ours, theirs: float("nan"))
    place = Place(device="cpu", transports=("system",), product_size=64)
    code, result = run(tmp_path, "--rows", "40", "--repetitions", "1", place=place)
    assert code == 1
    assert "VECTORS WRONG" in capsys.readouterr().out
    assert "below 0.9999" in result["details"]["geometries"]["tiny"]["wrong"][0]


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "find_gpus", list)
    with pytest.raises(MachineError, match="no NVIDIA GPU was found"):
        gpu.main([])
    code = (
        "from headrace_launcher import gpus; gpus.find_gpus = list; import headrace.__main__ as m"
    )
    command = [sys.executable, "-c", f"{code}; m.main()", "bench", "gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert not done.stdout
    assert done.stderr.startswith("headrace: error: bench gpu: no NVIDIA GPU was found")
    assert done.stderr.count("\n") == 1


def test_the_command_has_the_options():
    command = [sys.executable, "-m", "headrace", "bench", "gpu", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in ("--geometry", "--rows", "--length", "--repetitions", "--engine", "--precision"):
        assert option in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--json", "{folder}/no/x.json", "--output", "{folder}"],
            "is not a file in a folder that exists",
        ),
        (["--feeders", "x"], "auto or a number"),
    ],
)
def test_what_cannot_be_followed_is_refused_at_the_start(tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        gpu.main([word.format(folder=tmp_path) for word in options])


def test_of_several_gpus_the_first_is_measured(monkeypatch):
    seen = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(gpu, "find_gpus", lambda: [CARD, CARD])
    monkeypatch.setattr(gpu, "report", lambda *given: seen.append(given) or 0)
    assert gpu.main(["--geometry", "e5-base"]) == 0
    ((_, place, geometries),) = seen
    assert (place.device, place.gpu) == ("cuda", CARD)
    assert geometries == [GEOMETRIES["e5-base"]]
    assert gpu.os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    gpu.main([])
    assert [geometry.name for geometry in seen[1][2]] == ["e5-small", "e5-base", "e5-large"]


def options(*words):
    return gpu.parse_arguments(list(words))


def test_tensorrt_is_taken_where_it_is_installed(monkeypatch, tmp_path):
    built = []
    monkeypatch.setattr(gpu.tensorrt, "version", lambda engine: "10.16")
    monkeypatch.setattr(gpu, "build", lambda model, **settings: built.append(settings) or "entry")
    entry, reason = gpu.build_entry(tmp_path, tmp_path / "models", options(), "cuda")
    assert (entry, reason) == ("entry", "TensorRT is installed")
    assert (built[0]["engine"], built[0]["precision"]) == ("tensorrt", "fp16")
    gpu.build_entry(tmp_path, tmp_path, options("--engine", "tensorrt"), "cuda")
    assert built[1]["engine"] == "tensorrt"


def test_torch_is_taken_where_it_is_not(monkeypatch, tmp_path):
    def version(engine):
        raise MissingDependencyError("not here")

    published = []
    monkeypatch.setattr(gpu.tensorrt, "version", version)
    monkeypatch.setattr(gpu, "find_model", lambda model: model)
    monkeypatch.setattr(
        gpu, "publish_entry", lambda *given, **settings: published.append(settings) or "entry"
    )
    found = gpu.build_entry(tmp_path, tmp_path, options("--precision", "bf16"), "cuda")
    assert found == ("entry", "TensorRT is not installed")
    assert published == [{"precision": "bf16", "device": "cuda"}]


def test_operations_are_those_counted_by_hand():
    # Of each of two layers: query, key, value and output 32 x 32 each, then 32 x 64 and 64 x 32.
    assert TINY.matrix_weights == 2 * (4 * 32 * 32 + 32 * 64 + 64 * 32) == 16_384
    # 3 rows of 5 tokens and one of 7: products, then scores and mixing, both S x S x 32 a row.
    padded, squares = 3 * 5 + 7, 3 * 5 * 5 + 7 * 7
    by_hand = 2 * 16_384 * 22 + 2 * (2 * 3 * 5 * 5 * 32 * 2 + 2 * 7 * 7 * 32 * 2)
    assert TINY.flops(padded, squares) == by_hand == 752_640
    weights = {name: geometry.matrix_weights / 1e6 for name, geometry in GEOMETRIES.items()}
    # Without the table of words: 33 M, 109 M and 335 M in all.
    assert weights == pytest.approx({"e5-small": 21.2, "e5-base": 84.9, "e5-large": 302}, rel=0.01)


@pytest.mark.torch
def test_operations_are_those_that_torch_counts(tmp_path):
    torch = pytest.importorskip("torch", reason="not installed: make test-torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from headrace_bench.gpu import torchbert
    from headrace_bench.gpu.torchentry import publish_entry

    write_model(TINY, tmp_path / "tiny", bert(corpus.take(50), lowercase=True, size=500))
    entry = publish_entry(find_model(str(tmp_path / "tiny")), tmp_path / "models")
    encoder = torchbert.Encoder(entry.folder / "1", asdict(entry.contract), torch.device("cpu"))
    ids = torch.ones((3, 40), dtype=torch.int32)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        encoder(ids, ids)
    assert counter.get_total_flops() == TINY.flops(3 * 40, 3 * 40 * 40)


def test_a_model_of_random_weights_is_one_that_headrace_takes(tmp_path):
    write_model(TINY, tmp_path / "tiny", bert(corpus.take(50), lowercase=True, size=500))
    model = find_model(str(tmp_path / "tiny"))
    assert (model.dimension, model.pooling, model.normalized) == (32, "mean", True)
    assert (model.max_length, model.max_positions, model.family) == (128, 128, "bert")
    assert model.from_safetensors


@pytest.mark.parametrize(("rows", "mean"), [(50, 20), (500, None), (300, 90)])
def test_texts_are_made_of_a_wanted_length(rows, mean):
    base = corpus.take(200)
    tokenizer = bert(base, lowercase=True, size=500)
    texts = resized(base, rows, mean, tokenizer)
    lengths = [len(row.ids) for row in tokenizer.encode_batch_fast(texts)]
    want = mean or np.mean([len(row.ids) for row in tokenizer.encode_batch_fast(base)])
    assert len(texts) == rows
    assert len(set(texts)) > 0.98 * rows
    assert np.mean(lengths) == pytest.approx(want, rel=0.2)
    assert np.std(lengths) > 5


def test_few_words_give_as_many_texts_as_are_wanted():
    tokenizer = bert(["some words of a text"], lowercase=True, size=100)
    texts = resized(["some words", "of a text"], 30, 40, tokenizer)
    assert len(texts) == 30
    assert all(texts)


def test_how_busy_the_gpu_is_counts_from_start_to_end():
    percents = iter([0.0, 50.0, 100.0, *[70.0] * 10_000])
    with BusySampler(lambda: next(percents), seconds=0.001) as sampler:
        while len(sampler.samples) < 5:
            time.sleep(0.001)
    times = [when for when, _ in sampler.samples]
    assert sampler.mean(times[1], times[2]) == 75
    assert sampler.mean(0, times[0] - 1) is None
    with BusySampler(None) as nothing:
        pass
    assert nothing.mean(0, time.time()) is None


def test_nvml_is_asked_for_the_gpu_by_its_name(monkeypatch):
    class NVMLError(Exception):
        pass

    nvml = types.ModuleType("pynvml")
    nvml.NVMLError = NVMLError
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: {"GPU-1": "handle"}[uuid]
    nvml.nvmlDeviceGetUtilizationRates = lambda handle: types.SimpleNamespace(gpu=97, memory=3)
    nvml.nvmlSystemGetDriverVersion = lambda: b"580.1"
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpubusy.reader(CARD)() == 97.0
    assert gpubusy.driver_version() == "580.1"

    def unsupported(handle):
        raise NVMLError

    nvml.nvmlDeviceGetUtilizationRates = unsupported
    assert gpubusy.reader(CARD) is None


def test_vectors_are_looked_at():
    vectors = np.eye(4, dtype=np.float16)
    assert look_at(vectors, (4, 4)) == ""
    assert "shape [4, 4], not [5, 4]" in look_at(vectors, (5, 4))
    vectors[2] = 0.9
    assert "row 2 has the length 1.7998" in look_at(vectors, (4, 4))
    vectors[1] = np.nan
    assert "row 1 has the length nan" in look_at(vectors, (4, 4))


def test_what_vectors_have_in_common_is_left_out_of_their_cosine():
    random = np.random.default_rng(1)
    vectors = 10 + random.standard_normal((6, 16))
    assert compared(vectors, vectors) == pytest.approx(1)
    assert compared(vectors[[1, 0, 2, 3, 4, 5]], vectors) < 0.5
    assert np.isnan(compared(vectors[:5], vectors))
    assert compared(vectors[:1], vectors[:1]) == pytest.approx(1)


@pytest.mark.torch
def test_a_product_has_two_operations_a_multiplication(monkeypatch):
    torch = pytest.importorskip("torch", reason="not installed: make test-torch")
    clock = iter(np.arange(0.0, 100.0, 0.5))
    monkeypatch.setattr(gpuways.time, "perf_counter", lambda: float(next(clock)))
    # Ten in half a second.
    assert matrix_product("cpu", "fp32", 16) == pytest.approx(2 * 16**3 * 20)
    assert torch.get_num_threads()


def run_report(seconds, transport="cuda", reason="asked for", busy=97.0):
    return {
        "rows": 100,
        "seconds": seconds,
        "wall_seconds": seconds + 2,
        "transport": transport,
        "transport_reason": reason,
        "gpu_busy": busy,
    }


@pytest.fixture
def measured():
    found = Measured(
        geometry=TINY,
        engine="tensorrt 10.16",
        engine_reason="TensorRT is installed",
        precision="fp16",
        shapes=Shapes(rows=100, tokens=900, padded=1000, squares=10_000, percentiles=(5, 9, 14)),
    )
    assert found.flops == 2 * 16_384 * 1000 + 4 * 2 * 32 * 10_000 == 35_328_000
    found.warm_up = run_report(4.0, reason="server and client share a GPU")
    found.reports = {
        "cuda": [run_report(1.0), run_report(2.0)],
        "grpc": [run_report(2.0, busy=60.0), run_report(1.0, transport="grpc", busy=None)],
    }
    found.products = [353_280_000.0, 353_280_000.0]
    found.torch_rates, found.torch_busy = [200.0, 100.0], [80.0, 90.0]
    found.torch_rows, found.torch_batch, found.batch_search = 50, 256, {256: 210.0, 512: 190.0}
    found.cosines = {"cuda": 1.0, "grpc": 0.9999}
    return found


def test_shares_and_ratios_are_taken_repetition_by_repetition(measured):
    assert measured.rates("cuda") == [100, 50]
    share = measured.share("cuda")
    assert (share.median, share.least, share.most) == pytest.approx((0.075, 0.05, 0.1))
    ratio = measured.ratio("cuda", TORCH)
    assert (ratio.median, ratio.least, ratio.most) == (0.5, 0.5, 0.5)
    assert measured.per_second("cuda", 900).most == 900
    assert measured.busy("grpc").median == 60
    assert measured.busy(TORCH).median == 85
    measured.products = []
    assert measured.share("cuda") is None


def test_the_table_and_the_json_say_the_same(measured):
    settings = {"repetitions": 2}
    card = asdict(CARD) | {"driver": "580.1"}
    result = Result(settings, "cuda", card, 8192, [measured])
    everything = result.to_outcome("headrace bench gpu").to_dict()
    told = everything["details"]["geometries"]["tiny"]
    assert list(everything["ways"]) == everything["ours"] + [f"tiny, {TORCH}"]
    assert everything["ways"]["tiny, headrace, cuda"]["rates"] == [100, 50]
    assert everything["losses"] == [f"tiny: {loss}" for loss in told["losses"]]
    assert "| tiny, headrace, grpc (tensorrt 10.16 in fp16" in page(everything)
    assert told["flops"] == 35_328_000
    assert told["ways"]["cuda"]["flops_per_second"]["most"] == 35_328_000
    assert told["ways"]["cuda"]["gpu_busy_percent"]["median"] == 97
    assert told["ways"]["grpc"]["transport"] == "grpc"
    shown = show(result)
    assert "Some Card · compute capability 9.0 · 80 GiB · driver 580.1" in shown
    assert "75 [50..100]" in shown
    assert "7.5%" in shown
    assert "0.50 [0.50..0.50]" in shown
    assert "--transport auto takes cuda (server and client share a GPU)" in shown
    assert "batch size 256, the best of (rows/s) 256: 210, 512: 190" in shown
    assert told["losses"] == [
        "cuda loses to sentence-transformers: 0.50 [0.50..0.50] of its speed",
        "grpc loses to sentence-transformers: 0.62 [0.25..1.00] of its speed",
        "grpc keeps the GPU busy for 60.0 [60.0..60.0] % of the time only",
    ]
    measured.reports["grpc"][0]["seconds"] = 0.5
    assert "cuda loses to grpc: 0.50 [0.50..0.50] of its speed" in measured.losses()
    measured.reports["cuda"].append(run_report(1.0, transport="system", reason="no GPU is shared"))
    measured.reports["grpc"].append(run_report(0.5))
    measured.products.append(353_280_000.0)
    measured.torch_rates.append(1.0)
    assert "really system: no GPU is shared" in show(result)


def test_a_command_that_fails_says_why(monkeypatch, tmp_path):
    entry = types.SimpleNamespace(
        contract=types.SimpleNamespace(name="x", dimension=4), folder=tmp_path / "x"
    )
    way = gpuways.HeadraceWay(
        tmp_path / "in", 1, entry, "h:1", feeders="0", folder=tmp_path, kept=1, read=None
    )
    for code, kind in ((4, TransportError), (2, RuntimeError)):
        done = types.SimpleNamespace(returncode=code, stderr="headrace: error: no such way\n")
        monkeypatch.setattr(gpuways.subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(kind, match=r"^no such way$") as said:
            way.run("cuda")
        assert type(said.value) is kind
