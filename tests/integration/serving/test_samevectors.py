"""Texts in, vectors out: the text model and the gateway's APIs give those of files."""

from __future__ import annotations

import base64
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from huggingface_hub import InferenceClient

from headrace.contract import Contract
from headrace_launcher.build import build
from headrace_launcher.ports import free_port
from headrace_launcher.serve import with_text_models
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton
from integration.serving.callers import (
    AUTO,
    FP32,
    NULL,
    a_gateway,
    by_openai,
    by_tei,
    by_triton,
    same,
    some,
    tensor,
)

pytestmark = pytest.mark.server


@pytest.mark.parametrize("name", [FP32, AUTO])
def test_the_text_model_gives_the_vectors_of_files(serving, texts, of_file, name):
    same(by_triton(serving, name, some(texts, name)), of_file[name], name)


@pytest.mark.parametrize("name", [FP32, AUTO])
def test_openais_client_gets_the_vectors_of_files(gateway, texts, of_file, name):
    vectors, found = by_openai(gateway, name, some(texts, name))
    same(vectors, of_file[name], name)
    assert [each.index for each in found.data] == list(range(len(vectors)))
    assert found.usage.prompt_tokens == found.usage.total_tokens > len(vectors)
    assert found.model == name


def test_tei_gets_the_vectors_of_files(gateway, texts, of_file):
    same(by_tei(gateway, texts), of_file[FP32], FP32)


@pytest.mark.parametrize("path", ["", "/embed"])
def test_hugging_faces_own_client_works_by_changing_a_url(gateway, texts, of_file, path):
    client = InferenceClient(f"{gateway}{path}")
    for row in range(3):
        found = np.array(client.feature_extraction(texts[row]), np.float32).reshape(1, -1)
        same(found, of_file[FP32][row : row + 1], FP32)


def test_what_is_served_is_warm_before_it_is_ready(serving):
    with triton.InferenceServerClient(serving.endpoints.grpc) as client:
        for name in (FP32, NULL):
            config = client.get_model_config(name).config
            samples = {int(each.name.split()[-1]) for each in config.model_warmup}
            buckets = Contract.from_json(config.parameters["headrace"].string_value).buckets
            assert samples == {each.max_length for each in buckets}
            masks = [each.inputs["attention_mask"] for each in config.model_warmup]
            assert all(each.input_data_file for each in masks)  # tokens, and not padding


def test_many_callers_at_once_get_the_same(serving, gateway, texts, of_file):
    """Whose rows the server computes together."""
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda row: by_tei(gateway, texts[row : row + 3])[:1], range(200))
        one_by_one = np.concatenate(list(found))
    same(one_by_one, of_file[FP32][:200], FP32)
    found = ThreadPoolExecutor(16).map(
        lambda row: by_triton(serving, FP32, texts[row : row + 1]), range(200)
    )
    same(np.concatenate(list(found)), of_file[FP32][:200], FP32)
    with triton.InferenceServerClient(serving.endpoints.grpc) as client:
        stats = client.get_inference_statistics(FP32).model_stats[0]
    assert stats.execution_count < stats.inference_count  # some were joined


@pytest.mark.parametrize("special", [True, False])
def test_token_ids_are_texts_too(gateway, of_file, texts, tokenizer, special):
    tokenizer.no_truncation()
    ids = [tokenizer.encode(text, add_special_tokens=special).ids for text in texts[:50]]
    vectors, _ = by_openai(gateway, FP32, ids)
    same(vectors, of_file[FP32][:50], FP32)
    same(by_openai(gateway, FP32, ids[0])[0], of_file[FP32][:1], FP32)
    same(by_tei(gateway, ids), of_file[FP32][:50], FP32)


def test_dimensions_base64_and_single_texts(gateway, of_file, texts):
    want = of_file[FP32][:2, :32]
    want = want / np.linalg.norm(want, axis=1, keepdims=True)
    same(by_openai(gateway, FP32, texts[:2], dimensions=32)[0], want, FP32)
    same(by_tei(gateway, texts[:2], dimensions=32), want, FP32)
    same(by_openai(gateway, FP32, texts[0], encoding_format="float")[0], of_file[FP32][:1], FP32)
    body = {"input": texts[0], "model": FP32, "encoding_format": "base64"}
    raw = httpx.post(f"{gateway}/v1/embeddings", json=body).json()["data"][0]["embedding"]
    same(np.frombuffer(base64.b64decode(raw), "<f4")[np.newaxis], of_file[FP32][:1], FP32)


def test_usage_counts_tokens_as_they_are_computed(gateway, texts, tokenizer):
    tokenizer.enable_truncation(256)
    want = sum(len(tokenizer.encode(text).ids) for text in texts[-100:])
    assert by_openai(gateway, FP32, texts[-100:])[1].usage.prompt_tokens == want


@pytest.mark.parametrize("name", ["query", "document"])
def test_a_model_without_prompts_takes_their_usual_names(serving, gateway, texts, of_file, name):
    same(by_triton(serving, FP32, texts[:5], prompt_name=name), of_file[FP32][:5], FP32)
    same(by_tei(gateway, texts[:5], prompt_name=name), of_file[FP32][:5], FP32)
    found = by_openai(gateway, FP32, texts[:5], extra_body={"prompt_name": name})[0]
    same(found, of_file[FP32][:5], FP32)


def test_a_prompt_of_ones_own(serving, texts):
    found = by_triton(serving, NULL, ["b"], prompt="a ")
    np.testing.assert_array_equal(found, by_triton(serving, NULL, ["a b"]))


WRONG = [
    ([b"good", b"caf\xe9"], {}, "text 2 of 2 is not UTF-8: byte 0xe9 at 3"),
    ([b"x" * ((1 << 20) + 1)], {}, "text 1 of 1 has 1048577 bytes, more than 1048576"),
    (["a", "b " * 900], {"truncate": False}, "text 2 of 2 has 902 tokens, the model takes 256"),
    (["a"], {"truncate": 1}, "the parameter truncate is 1; it must be true or false"),
    (["a"], {"prompt_name": "nope"}, "no prompt 'nope'; there are: document, query"),
    (["a"], {"input_type": "image"}, "input_type is 'image'; it must be text or ids"),
    ([b"abc"], {"input_type": "ids"}, "text 1 of 1 has 3 bytes, which are no int32 token ids"),
    ([b"\xff\xff\xff\xff"], {"input_type": "ids"}, "token ids from -1 to -1; the model knows 0 to"),
    (["a"] * 2000, {}, "batch-size must be <= "),
]


@pytest.mark.parametrize(("texts", "parameters", "said"), WRONG)
def test_the_text_model_says_what_is_wrong(serving, texts, parameters, said):
    with (
        triton.InferenceServerClient(serving.endpoints.grpc) as client,
        pytest.raises(triton.InferenceServerException) as caught,
    ):
        client.infer(f"{FP32}-text", [tensor(texts)], parameters=parameters)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert said in caught.value.message()


def test_texts_are_counted_as_the_caller_does(gateway):
    """Though the gateway sends them in another order, and in parts."""
    texts = [f"{'word ' * (row % 7)}{row}" for row in range(300)]
    texts[217] = "long " * 1000
    body = {"inputs": texts, "truncate": False}
    answer = httpx.post(f"{gateway}/embed", json=body, timeout=60)
    assert answer.status_code == 400
    assert "text 218 of 300 has 1002 tokens" in answer.json()["error"]


def test_a_malformed_tensor_harms_nobody_else(serving):
    """One whose strings are not as long as they say, among good ones that wait with it."""
    good = tensor(["word " * 200])
    broken = triton.InferInput("text", [1, 1], "BYTES")
    broken.set_data_from_numpy(np.array([[b"abc"]], object))
    broken._raw_content = struct.pack("<I", 1000) + b"hi"

    def ask(row):
        with triton.InferenceServerClient(serving.endpoints.grpc) as client:
            try:
                client.infer(f"{FP32}-text", [broken if row % 4 == 1 else good])
            except triton.InferenceServerException as error:
                return str(error)
            return None

    with ThreadPoolExecutor(12) as pool:
        said = list(pool.map(ask, range(40)))
    for row, error in enumerate(said):
        assert (error is not None) == (row % 4 == 1), error


def test_another_model_of_that_name_is_noticed(repository, tmp_path, model_folder):
    """The server is started again with vectors of another length."""
    port = free_port("127.0.0.1")
    places = [tmp_path / "one", tmp_path / "other"]
    for place, dimension in zip(places, (None, 64), strict=True):
        build(AUTO, repository=place, engine="null", name="same", truncate_dim=dimension)
    with a_gateway(f"127.0.0.1:{port}") as (url, _):
        for place, dimension in zip(places, (384, 64), strict=True):
            names = with_text_models(["same"], place)
            with Server(find_triton(), place, names, grpc_port=port):
                deadline = time.monotonic() + 30
                while True:
                    answer = httpx.post(f"{url}/embed", json={"inputs": "a"}, timeout=30)
                    if answer.status_code == 200:
                        break
                    assert answer.status_code == 503, answer.text
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
                assert len(answer.json()[0]) == dimension
