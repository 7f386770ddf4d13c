"""Models in folders, and a way to run graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from headrace_launcher.models import Model

FAMILIES = Path(__file__).parents[2] / "data" / "families"

Run = Callable[..., np.ndarray]
ModelOf = Callable[..., Model]


@pytest.fixture
def run() -> Run:
    """Runs a graph in fp32: run(graph, ids, mask) -> the first output."""
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()

    def run(graph: onnx.ModelProto, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        onnx.checker.check_model(graph)
        assert [i.name for i in graph.graph.input] == ["input_ids", "attention_mask"]
        compiled = core.compile_model(
            core.read_model(graph.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        return np.array(compiled([ids.astype(np.int32), mask.astype(np.int32)])[0])

    return run


@pytest.fixture
def model_of() -> ModelOf:
    """Describes the model in a folder: model_of(folder, config={...}, pooling="cls")."""

    def model_of(folder: Path, *, config: dict[str, Any] | None = None, **changes: Any) -> Model:
        settings = {**json.loads((folder / "config.json").read_text()), **(config or {})}
        onnx_file = folder / "onnx" / "model.onnx"
        model = Model(
            model_id=folder.name,
            revision="",
            folder=folder,
            config=settings,
            weights=tuple(sorted(folder.glob("*.safetensors"))),
            onnx=onnx_file if onnx_file.is_file() else None,
            tokenizer=folder / "tokenizer.json",
            pooling="mean",
            dense=(),
            normalized=False,
            max_length=32,
            max_positions=32,
            pad_id=settings.get("pad_token_id", 0),
            prompts={},
            default_prompt=None,
        )
        return replace(model, **changes)

    return model_of


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Returns a family's golden arrays: ids, mask, hidden (zero at padding)."""

    def golden(family: str) -> dict[str, np.ndarray]:
        with np.load(FAMILIES / family / "golden.npz") as arrays:
            return {name: arrays[name] for name in arrays.files}

    return golden


@pytest.fixture
def family_folder() -> Callable[[str], Path]:
    """Returns the committed folder of a family."""
    return lambda family: FAMILIES / family
