from __future__ import annotations

import json

import pytest

from headrace.contract import Contract, entry_name, file_hash, model_slug


def test_a_contract_survives_json(make_contract):
    contract = make_contract(prompts={"query": "frage: ä", "document": ""}, default_prompt="query")
    assert Contract.from_json(contract.to_json()) == contract
    assert contract.length_limit == 128


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "{", "null"])
def test_what_is_no_contract_is_an_error_with_a_remedy(text):
    with pytest.raises(ValueError, match="rebuild"):
        Contract.from_json(text)


def test_another_schema_an_unknown_and_a_missing_setting_are_errors(make_contract):
    raw = json.loads(make_contract().to_json())
    for change, said in (
        ({"schema_version": 99}, "schema 99"),
        ({"surprise": 1}, "surprise"),
        ({"buckets": [{"max_length": 3}]}, "incomplete"),
    ):
        with pytest.raises(ValueError, match=said):
            Contract.from_json(json.dumps(raw | change))
    del raw["pad_id"]
    with pytest.raises(ValueError, match="incomplete"):
        Contract.from_json(json.dumps(raw))


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "all-minilm-l6-v2"),
        ("/models/My Model (v2)/", "my-model-v2"),
        ("../..", "model"),
        (".hidden", "hidden"),
        ("", "model"),
        ("a/../b", "b"),
    ],
)
def test_a_slug_is_one_harmless_path_part(model, slug):
    assert model_slug(model) == slug


def test_variants_have_names_of_their_own():
    names = {
        entry_name("org/M"),
        entry_name("org/M", precision="fp32"),
        entry_name("org/M", truncate_dim=64),
        entry_name("org/M", normalize=False),
        entry_name("org/M", engine="null"),
        entry_name("org/M", precision="bf16", truncate_dim=64, normalize=False),
    }
    assert len(names) == 6
    assert "m-bf16-d64-raw" in names
    assert "m" in names


def test_file_hash_is_sha256(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert file_hash(path).startswith("ba7816bf8f01cfea414140de5dae2223")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../evil"},
        {"name": "/etc"},
        {"name": "a b"},
        {"name": "a\r\nHost: x"},
        {"name": "a\0"},
        {"name": ".hidden"},
        {"name": "x" * 256},
        {"name": ["a"]},
        {"tokenizer_hash": "../../x"},
        {"tokenizer_hash": None},
        {"weights_hash": 5},
        {"model_id": 5},
        {"dimension": 10**12},
        {"dimension": 8.5},
        {"dimension": True},
        {"in_flight": 10**9},
        {"token_budget": 0},
        {"max_length": -1},
        {"vocab_size": 2**40},
        {"pad_id": -1},
        {"pad_multiple": 0},
        {"precision": "int8"},
        {"dtype": "object"},
        {"capability": "9.0; rm"},
        {"normalized": "no"},
        {"prompts": ["a"]},
        {"prompts": {"a": 1}},
        {"default_prompt": "none"},
        {"default_prompt": []},
        {"buckets": []},
        {"buckets": [{"max_length": 10**12, "max_batch": 1}]},
        {"buckets": [{"max_length": 8, "max_batch": 10**9}]},
        {"buckets": [{"max_length": 8, "max_batch": 1}, {"max_length": 8, "max_batch": 1}]},
        {"buckets": [{"max_length": "8", "max_batch": 1}]},
        {"buckets": "x"},
        {"buckets": 7},
    ],
    ids=str,
)
def test_settings_that_no_launcher_writes_are_refused(make_contract, changes):
    raw = json.loads(make_contract().to_json())
    with pytest.raises(ValueError, match="rebuild the entry"):
        Contract.from_json(json.dumps(raw | changes))


@pytest.mark.parametrize(
    "text", ["[]", "5", "[" * 100_000, '{"schema_version":' * 100_000, "\ud800"]
)
def test_settings_that_are_none(text):
    with pytest.raises(ValueError, match="rebuild the entry"):
        Contract.from_json(text)


def test_a_name_of_any_length_gives_a_folders_name():
    assert model_slug("x" * 5000) == "x" * 100
    assert model_slug("a/" + "x" * 99 + "-" + "y" * 99) == "x" * 99
