"""Options of the gateway and of the server that cannot be, said in a line."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from headrace.errors import UsageError
from headrace_launcher.gateway.run import run_gateway
from headrace_launcher.gateway.settings import GatewaySettings
from headrace_launcher.server import Server
from headrace_launcher.triton import TritonInstallation

SETTINGS = GatewaySettings(
    server="127.0.0.1:1",
    model=None,
    api_key="",
    max_concurrent=1,
    max_inputs=1,
    max_body_bytes=1,
    timeout=1,
    auto_truncate=True,
)


def refused(host, port):
    with pytest.raises(UsageError) as caught:
        run_gateway(SETTINGS, host=host, port=port, ready=pytest.fail)
    return str(caught.value)


def test_a_port_that_cannot_be_is_named_with_its_option():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused("127.0.0.1", port)
    assert f"--port {port}" in said
    assert "port-port" not in said
    assert "--port 99999" in refused("127.0.0.1", 99999)


@pytest.mark.parametrize("port", [0, 8080])
@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_that_is_not_here_is_named_with_its_option(host, port):
    assert f"--listen {host}: this machine has no such address" in refused(host, port)


@pytest.mark.parametrize("server", ["nonsense", "http://127.0.0.1:8001"])
def test_a_server_that_cannot_be_is_refused(server):
    command = [sys.executable, "-m", "headrace", "gateway", "--server", server, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"--server {server} (or HEADRACE_SERVER): expected HOST:PORT" in done.stderr


def test_two_ports_that_are_one_are_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    triton = TritonInstallation(binary=tmp_path / "none", version="", source="PATH")
    server = Server(triton, tmp_path, [], grpc_port=port, http_port=0, metrics_port=port)
    with pytest.raises(UsageError, match=f"--grpc-port and --metrics-port are both {port}"):
        server.start()
