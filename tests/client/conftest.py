"""Fixtures of several tests of the client: a pipeline on fake transports, and what it reads."""

from __future__ import annotations

import pytest

from client.runner import Runner, jsonl, texts
from headrace.contract import file_hash


@pytest.fixture
def run(make_contract, model_folder, tmp_path):
    tokenizer = model_folder / "tokenizer.json"
    contract = make_contract(tokenizer_hash=file_hash(tokenizer))
    return Runner(tmp_path, contract, tokenizer)


@pytest.fixture
def source(tmp_path):
    return jsonl(tmp_path / "in.jsonl", texts(60))


@pytest.fixture
def with_bad_rows(tmp_path):
    bad = {0, 1, 7, 20, *range(32, 40)}  # a whole block of them, too
    return jsonl(
        tmp_path / "bad.jsonl", [None if row in bad else text for row, text in enumerate(texts(60))]
    )
