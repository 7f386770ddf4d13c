from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_type_hints

import pytest

from headrace.api import Settings
from headrace.config import EmbedConfig
from headrace.errors import UsageError

GOOD = {"inputs": ("a.jsonl",), "output": Path("a.npy"), "model": "m"}


def test_the_defaults_are_valid():
    assert EmbedConfig(**GOOD).dtype == "float32"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": ()}, "no input"),
        ({"inputs": ("-", "-")}, "only once"),
        ({"prompt": "a", "prompt_name": "b"}, "exclude"),
        ({"text_field": ""}, "--text-field"),
        ({"max_length": 0}, "--max-length must be at least 1"),
        ({"truncate_dim": 0}, "--truncate-dim"),
        ({"dtype": "float64"}, "float32, float16"),
        ({"precision": "int8"}, "--precision"),
        ({"transport": "pigeon"}, "--transport"),
        ({"on_error": "ignore"}, "--on-error"),
        ({"format": "csv"}, "--format"),
        ({"engine": "tpu"}, "--engine"),
        ({"id_type": "float"}, "--id-type"),
        ({"block_rows": 0}, "block rows"),
        ({"request_timeout": float("nan")}, "--request-timeout must be at least 1"),
        ({"request_timeout": float("inf")}, "--request-timeout must be at most"),
        ({"server_timeout": float("nan")}, "--server-timeout must be at least 0"),
        ({"share": 0}, "--share must be above 0 and at most 1, not 0"),
        ({"share": 1.5}, "--share"),
        ({"share": float("nan")}, "--share"),
        ({"prompt": "a\udcff"}, r"--prompt must be UTF-8, not b'a\\xff'"),
        ({"text_field": "\udcff"}, "--text-field must be UTF-8"),
    ],
)
def test_bad_settings_are_said_in_one_line(change, said):
    with pytest.raises(UsageError, match=said) as caught:
        EmbedConfig(**(GOOD | change))
    assert "\n" not in str(caught.value)


def test_unknown_settings_are_errors():
    with pytest.raises(TypeError):
        EmbedConfig(**GOOD, overwite=True)


def test_embed_takes_every_setting_of_the_config():
    fields = {field.name for field in dataclasses.fields(EmbedConfig)}
    assert set(get_type_hints(Settings)) | {"inputs", "output", "model"} == fields
    settings, config = get_type_hints(Settings), get_type_hints(EmbedConfig)
    paths = {"repository", "tokenizer", "report"}  # also taken as text
    assert all(settings[name] == config[name] for name in set(settings) - paths)
