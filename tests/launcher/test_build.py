"""Entries: their names, when they are current, and what is in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from headrace.contract import Contract, file_hash
from headrace.errors import MachineError, UsageError
from headrace_launcher import repository as repo
from headrace_launcher.build import build

FAMILY = Path(__file__).parents[1] / "data" / "families" / "bert"


@pytest.fixture
def model(tmp_path):
    """A tiny BERT that may be changed."""
    folder = tmp_path / "models" / "tiny"
    shutil.copytree(FAMILY, folder)
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5}
    tokenizer = Tokenizer(WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "repository"


def test_an_entry_has_all_that_triton_and_a_client_need(model, repository):
    entry = build(str(model), repository=repository, precision="fp32", normalize=False)
    assert entry.built
    assert entry.folder == repository / "tiny-fp32-raw"
    files = {str(path.relative_to(entry.folder)) for path in entry.folder.rglob("*")}
    assert files == {
        "1",
        "1/model.bin",
        *(f"1/{path.name}" for path in repo.HOSTED_FILES),
        "1/model.xml",
        "config.pbtxt",
        "tokenizer.json",
        "warmup",
        *(f"warmup/ones-{bucket.max_length}" for bucket in entry.contract.buckets),
    }
    contract, _ = repo.read_entry(entry.folder)
    assert contract == entry.contract
    assert contract.tokenizer_hash == file_hash(model / "tokenizer.json")
    assert contract.name == "tiny-fp32-raw"
    assert (contract.precision, contract.normalized) == ("fp32", False)
    limits = [bucket.max_length for bucket in contract.buckets]
    assert limits == sorted(set(limits))
    positions = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    assert contract.length_limit == positions


def test_a_current_entry_is_left_alone_and_force_builds_it_again(model, repository):
    first = build(str(model), repository=repository)
    made = (first.folder / "config.pbtxt").stat().st_ino
    again = build(str(model), repository=repository)
    assert not again.built
    assert again.contract == first.contract
    assert (first.folder / "config.pbtxt").stat().st_ino == made
    assert build(str(model), repository=repository, force=True).built


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "1_Pooling/config.json"])
def test_a_changed_model_is_built_again_in_its_place(model, repository, file):
    first = build(str(model), repository=repository)
    path = model / file
    if file == "1_Pooling/config.json":
        (model / "modules.json").write_text(
            json.dumps(
                [
                    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
                    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                ]
            )
        )
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"pooling_mode_cls_token": True}))
    elif file == "config.json":
        settings = json.loads(path.read_text())
        path.write_text(json.dumps(settings | {"hidden_act": "relu"}))
    else:
        path.write_text(path.read_text() + "\n")
    again = build(str(model), repository=repository)
    assert again.built
    assert again.folder == first.folder


def test_another_model_of_the_same_name_is_built_beside(model, repository, tmp_path):
    other = tmp_path / "other" / "tiny"
    shutil.copytree(model, other)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    first = build(str(model), repository=repository)
    second = build(str(other), repository=repository)
    assert second.folder.name == f"tiny-{second.contract.weights_hash[:8]}"
    for folder, entry in ((model, first), (other, second)):
        again = build(str(folder), repository=repository)
        assert not again.built
        assert again.contract == entry.contract


def test_a_name_of_ones_own_is_kept(model, repository):
    entry = build(str(model), repository=repository, name="mine")
    assert (entry.folder.name, entry.contract.name) == ("mine", "mine")


@pytest.mark.parametrize("name", ["", "../out", "a/b", ".hidden", "a b", "-x"])
def test_a_name_cannot_leave_the_repository(model, repository, name):
    with pytest.raises(UsageError, match="--name"):
        build(str(model), repository=repository, name=name)
    assert not repository.exists()


def test_a_folder_by_another_way_is_the_same_model(model, repository, monkeypatch):
    first = build(str(model), repository=repository)
    monkeypatch.chdir(model.parent)
    for spelled in ("tiny", "./tiny", "tiny/", "../models/tiny"):
        again = build(spelled, repository=repository)
        assert not again.built
        assert again.folder == first.folder


def test_a_current_entry_needs_no_right_to_write(model, repository, monkeypatch):
    first = build(str(model), repository=repository)

    def refused(*_):
        raise MachineError("read-only")

    monkeypatch.setattr(repo, "locked", refused)
    assert build(str(model), repository=repository).folder == first.folder


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_lower_case": False}, "do_lower_case"),
        ({"strip_accents": True}, "strip_accents"),
        ({"tokenize_chinese_chars": False}, "tokenize_chinese_chars"),
        ({"truncation_side": "left"}, "truncation_side"),
    ],
)
def test_a_tokenizer_that_transformers_would_change_is_refused(model, repository, settings, said):
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=said):
        build(str(model), repository=repository)
    (model / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert build(str(model), repository=repository).built


def test_tokens_that_the_model_does_not_know_are_refused(model, repository):
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"vocab_size": 5}))
    with pytest.raises(UsageError, match="token ids up to 5"):
        build(str(model), repository=repository)


def test_a_broken_tokenizer_is_refused_and_leaves_no_entry(model, repository):
    (model / "tokenizer.json").write_text('{"model": {"type": "Telepathy"}}')
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        build(str(model), repository=repository)
    assert not repository.exists()


def test_more_dimensions_than_there_are_is_refused(model, repository):
    with pytest.raises(UsageError, match="--truncate-dim 4096"):
        build(str(model), repository=repository, truncate_dim=4096)


def test_bf16_where_the_processor_has_none_is_refused(model, repository, monkeypatch):
    from headrace_launcher.engines import openvino

    monkeypatch.setattr(openvino, "_native_bf16", lambda: False)
    assert openvino.resolve_precision("auto") == "fp32"
    with pytest.raises(UsageError, match="--precision fp32"):
        build(str(model), repository=repository, precision="bf16")
    monkeypatch.setattr(openvino, "_native_bf16", lambda: True)
    assert openvino.resolve_precision("auto") == "bf16"


def test_a_repository_that_cannot_be_written_says_so(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="--repository"):
        build(str(model), repository=tmp_path / "file" / "repository")


def test_a_build_that_fails_leaves_the_old_entry_and_no_scratch(model, repository, monkeypatch):
    first = build(str(model), repository=repository)

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repo.shutil, "copyfile", broken)
    with pytest.raises(MachineError, match="No space left"):
        build(str(model), repository=repository, force=True)
    assert repo.read_entry(first.folder)[0] == first.contract
    assert sorted(path.name for path in repository.iterdir()) == [
        ".lock",
        "tiny",
        "tiny-text",
        "tiny-tokenize",
    ]


@pytest.mark.parametrize("config", [None, "", "not { a config", "name: 'x'", b"\xff\xfe"])
def test_what_is_no_entry_counts_as_none(tmp_path, config):
    if config is not None:
        content = config if isinstance(config, bytes) else config.encode()
        (tmp_path / "config.pbtxt").write_bytes(content)
    assert repo.read_entry(tmp_path) is None


def test_the_null_engine_needs_no_weights_file_in_the_entry(model, repository):
    entry = build(str(model), repository=repository, engine="null")
    assert entry.folder.name == "tiny-null"
    assert isinstance(entry.contract, Contract)
    assert not (entry.folder / "1" / "model.xml").exists()
