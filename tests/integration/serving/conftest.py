"""A server, a gateway, and texts with the vectors that files give."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

import headrace
from headrace_bench.corpus import take
from headrace_launcher.serve import with_text_models
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton
from integration.serving.callers import AUTO, FP32, NULL, a_gateway, some

ROWS = 1000


@pytest.fixture(scope="package")
def serving(repository):
    """A server with three entries and their text models."""
    names = with_text_models([FP32, AUTO, NULL], repository)
    with Server(find_triton(), repository, names, http_port=0) as running:
        yield running


@pytest.fixture(scope="package")
def gateway(serving):
    with a_gateway(serving.endpoints.grpc, "--model", FP32) as (url, _):
        yield url


@pytest.fixture(scope="package")
def texts():
    """Real ones, some that are cut, and some awkward ones."""
    found = take(ROWS - 6)
    return [*found, "", " ", "naïve 日本語 😀\u200d😀", "a\x00b", "word " * 2000, "é" * 3000]


@pytest.fixture(scope="package")
def of_file(serving, repository, texts, tmp_path_factory):
    """The vectors that files give, by entry."""
    folder = tmp_path_factory.mktemp("files")
    source = folder / "in.jsonl"
    vectors = {}
    for name in (FP32, AUTO):
        lines = [json.dumps({"text": text}) + "\n" for text in some(texts, name)]
        source.write_text("".join(lines))
        headrace.embed(
            source,
            folder / f"{name}.npy",
            model=name,
            server=serving.endpoints.grpc,
            repository=repository,
            quiet=True,
        )
        vectors[name] = np.load(folder / f"{name}.npy")
    return vectors


@pytest.fixture(scope="package")
def tokenizer(model_folder):
    made = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    made.no_padding()
    made.enable_truncation(256)
    return made
