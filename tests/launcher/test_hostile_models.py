"""Models whose files were written to do harm: refused in one line, and nothing outside is read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from headrace.errors import UsageError
from headrace_launcher import locate
from headrace_launcher.build import build
from headrace_launcher.engines import openvino
from headrace_launcher.models import find_model
from headrace_launcher.onnxfile import external_files, load_onnx
from headrace_launcher.serve import entry_names

FAMILIES = Path(__file__).parents[1] / "data" / "families"


class Pickled:
    """What runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def folder(tmp_path):
    """A model that works."""
    to = tmp_path / "models" / "tiny"
    shutil.copytree(FAMILIES / "bert", to)
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5}
    tokenizer = Tokenizer(WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    tokenizer.save(str(to / "tokenizer.json"))
    return to


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "repository"


def refusal(action, *arguments, **options) -> str:
    with pytest.raises(UsageError) as caught:
        action(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def settings(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---- configurations


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": True},
        {"num_attention_heads": -4},
        {"num_attention_heads": [4]},
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": "2"},
        {"hidden_size": 10**12},
        {"hidden_size": 0},
        {"hidden_size": float("nan")},
        {"hidden_size": 10**400},
        {"vocab_size": 10**12},
        {"vocab_size": -1},
        {"vocab_size": 3000},
        {"max_position_embeddings": 10**6 - 1},
        {"max_position_embeddings": "40"},
        {"max_position_embeddings": float("inf")},
        {"max_position_embeddings": 41},
        {"pad_token_id": 10**12},
        {"pad_token_id": 2**31 - 1},
        {"layer_norm_eps": "x"},
        {"layer_norm_eps": []},
        {"layer_norm_eps": float("nan")},
        {"layer_norm_eps": -1},
        {"hidden_act": ["gelu"]},
        {"hidden_act": "x\ny" * 10**5},
        {"position_embedding_type": {}},
        {"model_type": ["bert"]},
        {"model_type": "\ud800"},
        {"is_decoder": [1]},
    ],
    ids=lambda changes: f"{next(iter(changes))}={str(next(iter(changes.values())))[:20]!r}",
)
def test_impossible_configurations(folder, repository, changes):
    settings(folder, **changes)
    refusal(build, str(folder), repository=repository, engine="openvino", precision="fp32")


@pytest.mark.parametrize("engine", ["openvino", "null"])
def test_sizes_that_no_memory_holds_are_refused_whatever_computes(folder, repository, engine):
    settings(folder, hidden_size=10**12)
    said = refusal(build, str(folder), repository=repository, engine=engine, precision="fp32")
    assert "hidden_size" in said


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b""),
        ("config.json", b"\xff\xfe\x00"),
        ("config.json", b"[" * 100_000),
        ("config.json", b'{"a":' * 100_000),
        ("config.json", b'{"model_type": "bert", "x": ' + b"[" * 900 + b"]" * 900 + b"}"),
        ("config.json", b'{"x": ' + b"9" * 5000 + b"}"),
        ("config.json", b'"bert"'),
        (
            "modules.json",
            b'[{"type": "sentence_transformers.models.Transformer", "path": "\\u0000"}]',
        ),
        ("modules.json", b"[" + b"[]," * 10 + b"[]]"),
        ("sentence_bert_config.json", b'{"max_seq_length": NaN}'),
        ("sentence_bert_config.json", b'{"max_seq_length": [1]}'),
        ("sentence_bert_config.json", b'{"max_seq_length": true}'),
        ("sentence_bert_config.json", b'{"max_seq_length": -1e400}'),
        ("config_sentence_transformers.json", b'{"prompts": ["a"]}'),
        ("config_sentence_transformers.json", b'{"prompts": {"a": 1}}'),
        ("config_sentence_transformers.json", b'{"prompts": {"a": "\\ud800"}}'),
        ("config_sentence_transformers.json", b'{"default_prompt_name": []}'),
        ("tokenizer_config.json", b'{"model_max_length": {}}'),
        ("tokenizer.json", b'{"padding": "x"}'),
        ("tokenizer.json", b'{"normalizer": [1]}'),
        ("tokenizer.json", b"[" * 100_000),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value[:40]),
)
def test_malformed_json(folder, repository, file, content):
    (folder / file).write_bytes(content)
    assert folder.name in refusal(build, str(folder), repository=repository, engine="null")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "modules.json"])
def test_what_is_no_file_is_not_waited_for(folder, repository, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refusal(build, str(folder), repository=repository, engine="null")
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    refusal(build, str(folder), repository=repository, engine="null")


def test_a_json_file_of_gigabytes_is_not_read(folder, repository):
    with (folder / "config.json").open("wb") as stream:
        stream.truncate(5 << 30)
    assert "bytes" in refusal(build, str(folder), repository=repository, engine="null")
    shutil.copy(FAMILIES / "bert" / "config.json", folder)
    with (folder / "tokenizer.json").open("wb") as stream:
        stream.truncate(5 << 30)
    assert "bytes" in refusal(build, str(folder), repository=repository, engine="null")


# ---- paths


def test_folders_of_modules_stay_in_the_models(folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text('{"pooling_mode": "cls"}')
    for path in ("../../outside", str(tmp_path / "outside"), "x/../../../outside", "link"):
        (folder / "modules.json").write_text(
            json.dumps(
                [
                    {"type": "sentence_transformers.models.Transformer", "path": ""},
                    {"type": "sentence_transformers.models.Pooling", "path": path},
                ]
            )
        )
        if path == "link":
            (folder / "link").symlink_to(tmp_path / "outside")
        said = refusal(find_model, str(folder))
        assert "outside" in said
        assert "modules.json" in said


@pytest.mark.parametrize(
    "shard", ["../../x.safetensors", "/x.safetensors", "a/../../x", "..", "\0"]
)
def test_shards_stay_in_the_models_folder(folder, shard):
    (folder / "model.safetensors").rename(folder.parent.parent / "x.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    said = refusal(find_model, str(folder))
    assert "outside" in said
    assert index.name in said


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../out", "a/b", "/etc", ".hidden", "a b", "-x", "a\n", "a\0b", "x" * 101),
        *("\u212a", "é", "a\\b", "a.", "C:x"),
    ],
)
def test_names_of_entries_are_names(folder, repository, name):
    assert "--name" in refusal(build, str(folder), repository=repository, name=name)
    assert not repository.exists()


@pytest.mark.parametrize(
    "model",
    [
        *(
            "../../x",
            "a\0b",
            "x" * 5000,
            "x" * 300,
            "~nobody-is-called-so/x",
            "..x/",
            "a\nb",
            "\ud800",
        ),
        *("a/../b", "/etc/x", "..\\x", "a/b/c", "a b", "a/" + "x" * 5000),
    ],
    ids=lambda model: repr(model[:20]),
)
def test_names_of_models_lead_nowhere(repository, monkeypatch, model):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def offline(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: offline())
    refusal(build, model, repository=repository)
    assert not repository.exists()


@pytest.mark.parametrize("name", ["..", ".", "../other", "/"])
def test_what_is_served_lies_in_the_repository(folder, repository, tmp_path, name):
    build(str(folder), repository=repository, engine="null", name="other")
    (repository / "other").rename(tmp_path / "other")
    shutil.copytree(tmp_path / "other", tmp_path, dirs_exist_ok=True)  # an entry at ".."
    with pytest.raises(UsageError):
        entry_names([name], repository)


def test_folders_of_any_name_give_entries_of_plain_names(folder, repository):
    for name in ("x" * 200, "a\nb", "é", "-.-", "größe und mehr", os.fsdecode(b"\xff")):
        other = folder.with_name(name)
        shutil.copytree(folder, other)
        settings(other, initializer_range=len(name))
        entry = build(str(other), repository=repository, engine="null", precision="fp32")
        assert entry.folder.parent == repository
        assert entry.folder.name.isascii()
        assert entry.folder.name.replace("-", "").isalnum()
        assert "\n" not in entry.folder.name


# ---- weights


def test_pickles_are_refused_and_never_opened(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    trace = tmp_path / "ran"
    for name in ("pytorch_model.bin", "model.pkl", "model.pt", "model.ckpt"):
        (folder / name).write_bytes(pickle.dumps(Pickled(trace)))
    said = refusal(find_model, str(folder))
    assert "pytorch_model.bin" in said
    assert "can run code" in said
    # Not under another name either.
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    model = find_model(str(folder))
    from headrace_launcher.encoder import build_graph

    assert "not a readable safetensors file" in refusal(build_graph, model)
    assert not trace.exists()


def test_the_hub_is_asked_for_no_pickle():
    from huggingface_hub.utils import filter_repo_objects

    names = [
        *("pytorch_model.bin", "model.pkl", "model.pt", "x.pth", "model.ckpt", "a.pickle", "x.h5"),
        *("modeling.py", "1_Pooling/own.py", "2_Dense/pytorch_model.bin", "flax_model.msgpack"),
        *("rust_model.ot", "model.npz", "model.joblib", "onnx/model.py"),
    ]
    wanted = [*locate.HUB_FILES, *locate.HUB_ONNX]
    assert not list(filter_repo_objects(names, allow_patterns=wanted))


def test_no_code_of_a_model_is_ever_trusted():
    sources = Path(locate.__file__).parents[1]
    for root in (sources, sources.parent / "client", sources.parent / "bench"):
        for file in root.rglob("*.py"):
            text = file.read_text()
            assert "trust_remote_code" not in text, file
            assert "import pickle" not in text or "bench" not in str(file), file


def header(content: object, data: bytes = b"", size: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


WORDS = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        header({}, size=2**63),
        header({}, size=10**9),
        header(b"[" * 100_000),
        header(b"\xff{}"),
        header(
            {WORDS: {"dtype": "F32", "shape": [10**18, 10**18], "data_offsets": [0, 4]}}, b"1234"
        ),
        header({WORDS: {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 2**62]}}, b"1234"),
        header({WORDS: {"dtype": "F32", "shape": [1, 1], "data_offsets": [4, 0]}}, b"1234"),
        header({WORDS: {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        header({WORDS: {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        header({WORDS: {"dtype": "BF16", "shape": [10**9, 32], "data_offsets": [0, 4]}}, b"1234"),
        header({WORDS: {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        header({WORDS: {"dtype": "I64", "shape": [0, 32], "data_offsets": [0, 0]}}),
        header({WORDS: {"dtype": "F32", "shape": [0, 32], "data_offsets": [0, 0]}}),
        header({WORDS: []}),
        header({"__metadata__": {"a": 1}}),
    ],
    ids=lambda content: repr(content[:60]),
)
def test_malformed_safetensors(folder, repository, content):
    (folder / "model.safetensors").write_bytes(content)
    build_it = {"repository": repository, "engine": "openvino", "precision": "fp32"}
    assert "safetensors" in refusal(build, str(folder), **build_it)


# ---- ONNX


def tensor(name: str, location: str, **entries: object) -> onnx.TensorProto:
    """A tensor of four bytes that lie elsewhere."""
    made = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    made.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        made.external_data.add(key=key, value=str(value))
    return made


def exported(bad: onnx.TensorProto | None, place: str = "initializer") -> onnx.ModelProto:
    """An exported encoder; ``bad`` is in the place named."""
    table = numpy_helper.from_array(np.zeros((20, 4), np.float32), "table")
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
    more, sparse, functions = [], [], []
    if place == "initializer" and bad is not None:
        more = [bad]
    elif place == "attribute":
        nodes.append(helper.make_node("Constant", [], ["c"], value=bad))
    elif place == "attributes":
        node = helper.make_node("Constant", [], ["c"])
        node.attribute.add(name="values", type=onnx.AttributeProto.TENSORS).tensors.append(bad)
        nodes.append(node)
    elif place == "sparse attribute":
        node = helper.make_node("Constant", [], ["c"])
        found = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
        found.sparse_tensor.values.CopyFrom(bad)
        nodes.append(node)
    elif place == "sparse":
        sparse = [onnx.SparseTensorProto(values=bad, dims=[4])]
    elif place == "subgraph":
        output = [helper.make_tensor_value_info(bad.name, TensorProto.FLOAT, [1])]
        branch = helper.make_graph([], "branch", [], output, [bad])
        inner = helper.make_graph(
            [helper.make_node("If", ["no"], ["x"], then_branch=branch)], "inner", [], output
        )
        nodes.append(helper.make_node("If", ["no"], ["x"], then_branch=inner, else_branch=inner))
        more = [numpy_helper.from_array(np.array(False), "no")]
    elif place == "function":
        body = [helper.make_node("Constant", [], ["y"], value=bad)]
        functions = [helper.make_function("own", "f", [], ["y"], body, [])]
    elif place == "function default":
        function = helper.make_function("own", "f", [], [], [], [])
        function.attribute_proto.add(name="a", type=onnx.AttributeProto.TENSOR).t.CopyFrom(bad)
        functions = [function]
    graph = helper.make_graph(
        nodes,
        "exported",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "s", 4])],
        [table, *more],
        sparse_initializer=sparse,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


@pytest.fixture
def novel(folder):
    """A model of another family, which ships ONNX: novel(proto or bytes) -> its folder."""
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(
        '{"model_type": "novel", "max_position_embeddings": 32, "hidden_size": 4}'
    )
    (folder / "onnx").mkdir()

    def novel(content) -> Path:
        data = content if isinstance(content, bytes) else content.SerializeToString()
        (folder / "onnx" / "model.onnx").write_bytes(data)
        return folder

    return novel


PLACES = [
    *("initializer", "attribute", "attributes", "sparse attribute", "sparse", "subgraph"),
    *("function", "function default"),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location", ["../../../secret", "/etc/hostname", "x/../../../../s", "link"]
)
def test_external_data_outside_is_refused_wherever_it_stands(
    novel, tmp_path, repository, place, location
):
    (tmp_path / "secret").write_bytes(b"1234")
    folder = novel(exported(tensor("bad", location), place))
    (folder / "onnx" / "link").symlink_to(tmp_path / "secret")
    file = folder / "onnx" / "model.onnx"
    for action in (external_files, load_onnx):
        said = refusal(action, file)
        assert "outside" in said
        assert str(file) in said
    assert "outside" in refusal(build, str(folder), repository=repository, engine="openvino")
    assert not repository.exists()


@pytest.mark.parametrize("place", PLACES)
def test_external_data_inside_is_read_wherever_it_stands(novel, place):
    folder = novel(exported(tensor("bad", "data"), place))
    (folder / "onnx" / "data").write_bytes(b"1234")
    loaded = load_onnx(folder / "onnx" / "model.onnx")
    assert b"1234" in loaded.SerializeToString()
    assert b"location" not in loaded.SerializeToString()


def test_links_of_the_hubs_cache_are_followed(novel, tmp_path):
    folder = novel(exported(tensor("bad", "model.onnx_data")))
    commit = tmp_path / "models--a--b" / "snapshots" / ("c" * 40)
    shutil.copytree(folder, commit)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (blobs / "d").write_bytes(b"1234")
    link = commit / "onnx" / "model.onnx_data"
    link.symlink_to("../../../blobs/d")
    assert external_files(commit / "onnx" / "model.onnx") == (link,)
    link.unlink()
    link.symlink_to("../../../../secret")
    assert "outside" in refusal(external_files, commit / "onnx" / "model.onnx")


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": -1},
        {"length": -5},
        {"length": 10**15},
        {"offset": 10**30},
        {"offset": "x"},
        {"offset": 2},
        {"length": 3},
    ],
    ids=str,
)
def test_external_data_that_lies_about_its_place(novel, entries):
    folder = novel(exported(tensor("bad", "data", **entries)))
    (folder / "onnx" / "data").write_bytes(b"1234")
    refusal(load_onnx, folder / "onnx" / "model.onnx")


def test_external_data_is_of_the_tensors_own_size_and_not_used_without_end(novel):
    proto = exported(None)
    for number in range(100):
        proto.graph.initializer.append(tensor(f"t{number}", "data"))
        proto.graph.initializer[-1].dims[:] = [1 << 20]
    folder = novel(proto)
    with (folder / "onnx" / "data").open("wb") as stream:
        stream.truncate(4 << 20)
    refusal(load_onnx, folder / "onnx" / "model.onnx")
    proto.graph.initializer[-1].dims[:] = [1 << 60, 1 << 60]
    novel(proto)
    refusal(load_onnx, folder / "onnx" / "model.onnx")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "circle", "missing"])
def test_external_data_that_is_no_file(novel, kind):
    folder = novel(exported(tensor("bad", "data")))
    data = folder / "onnx" / "data"
    match kind:
        case "fifo":
            os.mkfifo(data)
        case "device":
            data.symlink_to("/dev/zero")
        case "folder":
            data.mkdir()
        case "circle":
            data.symlink_to("data")
    refusal(external_files, folder / "onnx" / "model.onnx")
    refusal(load_onnx, folder / "onnx" / "model.onnx")


def sized(size: int) -> bytes:
    """An encoder that makes a constant of ``size`` numbers."""
    proto = exported(None)
    shape = numpy_helper.from_array(np.array([size], np.int64), "shape")
    proto.graph.initializer.append(shape)
    zero = numpy_helper.from_array(np.array([1], np.float32))
    del proto.graph.node[:]
    proto.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["big"], value=zero),
            helper.make_node("ReduceMean", ["big"], ["one"]),
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Mul", ["rows", "one"], ["last_hidden_state"]),
        ]
    )
    return proto.SerializeToString()


def unknown_operator() -> bytes:
    proto = exported(None)
    proto.graph.node[0].op_type = "Telepathy"
    return proto.SerializeToString()


def lying_shape() -> bytes:
    proto = exported(None)
    proto.graph.initializer[0].dims[:] = [1 << 40, 4]
    return proto.SerializeToString()


def circle() -> bytes:
    proto = exported(None)
    proto.graph.node[0].input[0] = "last_hidden_state"
    return proto.SerializeToString()


def deep() -> bytes:
    """Graphs within graphs, further than protobuf goes: the bytes of its fields."""

    def field(number: int, data: bytes) -> bytes:
        size, left = b"", len(data)
        while left > 127:
            size, left = size + bytes([left & 127 | 128]), left >> 7
        return bytes([number << 3 | 2]) + size + bytes([left]) + data

    graph = b""
    for _ in range(3000):
        graph = field(1, field(5, field(6, graph)))  # graph: node: attribute: graph
    return field(7, graph)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 40,
        b"\x08",
        exported(None).SerializeToString()[:-50],
        sized(1 << 45),
        unknown_operator(),
        lying_shape(),
        circle(),
        deep(),
    ],
    ids=["empty", "noise", "short", "cut", "huge", "operator", "shape", "circle", "deep"],
)
def test_malformed_onnx(novel, repository, content):
    folder = novel(content)
    said = refusal(build, str(folder), repository=repository, engine="openvino", precision="fp32")
    assert "ONNX" in said or ".onnx" in said
    assert not list(repository.glob("[a-z]*"))


def test_what_ends_the_conversion_does_not_end_us(novel, repository, monkeypatch):
    folder = novel(exported(None))
    monkeypatch.setattr(openvino, "_LEAST_MEMORY", 1 << 20)
    monkeypatch.setattr(openvino, "_TIMES", 0)
    said = refusal(build, str(folder), repository=repository, engine="openvino", precision="fp32")
    assert "OpenVINO cannot convert" in said


def test_a_foreign_onnx_file_that_is_sound_is_converted(novel, repository):
    folder = novel(exported(None))
    entry = build(str(folder), repository=repository, engine="openvino", precision="fp32")
    assert (entry.folder / "1" / "model.xml").is_file()


def test_an_onnx_file_of_gigabytes_is_not_read(novel):
    folder = novel(b"")
    with (folder / "onnx" / "model.onnx").open("wb") as stream:
        stream.truncate(5 << 30)
    assert "bytes" in refusal(external_files, folder / "onnx" / "model.onnx")


def test_an_onnx_file_that_is_no_file(novel):
    folder = novel(b"")
    file = folder / "onnx" / "model.onnx"
    file.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(folder / "onnx")
        made.bind("model.onnx")
    assert "neither" in refusal(find_model, str(folder))
