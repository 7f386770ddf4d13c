"""Mutated models: each gives an error of the tree, in one line, or works; nothing else.

The number of cases and their seed are fixed. ``HEADRACE_FUZZ_SECONDS=600 pytest THIS_FILE`` goes on
with other seeds for so long.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import (
    BertPreTokenizer,
    ByteLevel,
    Metaspace,
    Sequence,
    WhitespaceSplit,
)
from tokenizers.processors import TemplateProcessing

import hostile
from headrace.errors import LONGEST, HeadraceError
from headrace.tokenizer import TextTokenizer
from headrace_launcher.build import build
from headrace_launcher.encoder import build_graph
from headrace_launcher.models import find_model
from headrace_launcher.tokenizer import check_tokenizer

FAMILIES = Path(__file__).parents[1] / "data" / "families"
SECONDS = float(os.environ.get("HEADRACE_FUZZ_SECONDS", "0"))
TEXTS = pa.array(["", "a b", "Hello, world! [MASK] 日本 e\u0301"])
JSONS = (
    *("config.json", "modules.json", "1_Pooling/config.json", "2_Dense/config.json"),
    *("sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json"),
    "model.safetensors.index.json",
)


def seeds(count: int) -> Iterator[int]:
    """Yields ``count`` seeds, or for as long as was asked for."""
    if not SECONDS:
        yield from range(count)
        return
    end, seed = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        yield seed
        seed += 1


def endures(action, *arguments) -> bool:
    """Whether it worked; it may only fail in the project's words."""
    try:
        action(*arguments)
    except HeadraceError as error:
        message = str(error)
        assert message
        assert "\n" not in message
        assert len(message) <= LONGEST
        assert message.isprintable() or max(message) < "\udcff"
        return False
    return True


def use(folder: Path, repository: Path) -> None:
    """Reads a model, makes its entry, its graph and its tokens."""
    entry = build(str(folder), repository=repository, engine="null", precision="fp32", force=True)
    model = find_model(str(folder))
    build_graph(model)
    contract = entry.contract
    tokenizer = TextTokenizer(entry.folder / "tokenizer.json", max_length=contract.max_length)
    assert max(tokenizer.encode(TEXTS).ids, default=0) < contract.vocab_size


def wordpiece() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "hello", ",", "world"]
    made = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    made.add_special_tokens(["[MASK]"])
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def bpe() -> Tokenizer:
    made = Tokenizer(BPE({c: i for i, c in enumerate([*ByteLevel.alphabet(), "he"])}, [("h", "e")]))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return made


def unigram() -> Tokenizer:
    vocab = [("<unk>", 0.0), ("▁", -1.0), ("▁a", -2.0), ("b", -2.0), ("hello", -3.0)]
    made = Tokenizer(Unigram(vocab, unk_id=0))
    made.pre_tokenizer = Sequence([WhitespaceSplit(), Metaspace()])
    return made


@pytest.fixture(autouse=True)
def _not_synced(monkeypatch):
    """Entries are made by the hundred; none must outlive a power cut."""
    monkeypatch.setattr("headrace_launcher.repository.sync_tree", lambda _: None)


@pytest.fixture
def folder(tmp_path):
    """A small BERT with every file that is read, its weights in one file and in shards."""
    to = tmp_path / "tiny"
    shutil.copytree(FAMILIES / "bert", to)
    wordpiece().save(str(to / "tokenizer.json"))
    types = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3": "Normalize"}
    write = {
        "modules.json": [
            {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(types.items())
        ],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "include_prompt": True},
        "2_Dense/config.json": {
            "in_features": 32,
            "out_features": 8,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        },
        "sentence_bert_config.json": {"max_seq_length": 30, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"q": "a "}, "default_prompt_name": "q"},
        "tokenizer_config.json": {"do_lower_case": True, "model_max_length": 40},
        "model.safetensors.index.json": {"weight_map": {"a": "model.safetensors"}},
    }
    for name, content in write.items():
        (to / name).parent.mkdir(exist_ok=True)
        (to / name).write_bytes(json.dumps(content).encode())
    tensors = {"linear.weight": zeros(8, 32), "linear.bias": zeros(8)}
    save_file(tensors, to / "2_Dense" / "model.safetensors")
    return to


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_the_model_works_as_it_is(folder, tmp_path):
    use(folder, tmp_path / "repository")


def test_mutated_configurations(folder, tmp_path):
    plain = {name: (folder / name).read_bytes() for name in JSONS}
    worked = 0
    for seed in seeds(150):
        dice = random.Random(seed)
        name = dice.choice(JSONS)
        (folder / name).write_bytes(hostile.mutate(plain[name], dice))
        try:
            worked += endures(use, folder, tmp_path / "repository")
        except BaseException as error:
            error.add_note(f"seed {seed}: {name} {(folder / name).read_bytes()[:300]!r}")
            raise
        (folder / name).write_bytes(plain[name])
    assert worked  # or the rest was never reached


def test_mutated_weights(folder, tmp_path):
    file = folder / "model.safetensors"
    plain = file.read_bytes()
    header = 8 + int.from_bytes(plain[:8], "little")
    for seed in seeds(100):
        dice = random.Random(seed)
        changed = hostile.mutate_bytes(plain[:header], dice)
        if dice.random() < 0.5:  # of the right length, so that the rest is read
            changed = max(0, len(changed) - 8).to_bytes(8, "little") + changed[8:]
        file.write_bytes(changed + plain[header:])
        endures(use, folder, tmp_path / "repository")


@pytest.mark.parametrize("kind", [wordpiece, bpe, unigram])
def test_mutated_tokenizers(kind, tmp_path):
    file = tmp_path / "tokenizer.json"
    kind().save(str(file))
    plain = file.read_bytes()

    def use() -> None:
        TextTokenizer(file, max_length=20).encode(TEXTS)

    assert endures(use)
    for seed in seeds(30):
        file.write_bytes(hostile.mutate(plain, random.Random(seed)))
        try:
            endures(use)
        except BaseException as error:
            error.add_note(f"seed {seed}: {file.read_bytes()[:1000]!r}")
            raise


def test_mutated_files_of_a_real_model(model_folder, tmp_path):
    to = tmp_path / "model"
    shutil.copytree(model_folder, to, ignore=shutil.ignore_patterns("*.safetensors"))
    (to / "model.safetensors").symlink_to(model_folder / "model.safetensors")
    names = [*JSONS[:3], *JSONS[4:7], "tokenizer.json"]
    plain = {name: (to / name).read_bytes() for name in names}

    def use() -> None:
        model = find_model(str(to))
        check_tokenizer(model)
        TextTokenizer(model.tokenizer, max_length=model.max_length).encode(TEXTS)

    assert endures(use)
    for seed in seeds(20):
        dice = random.Random(seed)
        name = dice.choice(names)
        (to / name).write_bytes(hostile.mutate(plain[name], dice))
        endures(use)
        (to / name).write_bytes(plain[name])


def shipped() -> onnx.ModelProto:
    """An exported encoder with a branch."""
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x0"], ["same"])],
        "branch",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, None)],
    )
    yes = numpy_helper.from_array(zeros().astype(bool), "yes")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x0"]),
        helper.make_node(
            "If", ["yes"], ["last_hidden_state"], then_branch=branch, else_branch=branch
        ),
    ]
    table = numpy_helper.from_array(zeros(20, 4), "table")
    graph = helper.make_graph(
        nodes,
        "exported",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "s", 4])],
        [table, yes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_mutated_onnx_files(folder, tmp_path):
    for name in ("modules.json", "model.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink()
    (folder / "config.json").write_text('{"model_type": "novel", "max_position_embeddings": 32}')
    (folder / "onnx").mkdir()
    file = folder / "onnx" / "model.onnx"
    plain = shipped().SerializeToString()

    def use() -> None:
        model = find_model(str(folder))
        model.weights_hash()
        build_graph(model)

    file.write_bytes(plain)
    assert endures(use)
    for seed in seeds(300):
        file.write_bytes(hostile.mutate_bytes(plain, random.Random(seed)))
        try:
            endures(use)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
