"""Rows to compare on."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": f"text {i} " + "word " * (i % 30)}) + "\n" for i in range(60)]
    path.write_text("".join(lines))
    return path
