"""TEI's containers, with a program in docker's place that says what it was asked."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from headrace.errors import MachineError, ServerError, UsageError
from headrace_bench.peers.tei import find_tei
from headrace_bench.tei import docker as teidocker
from headrace_bench.tei.docker import PREFIXES, TeiContainers, image_for
from headrace_bench.tei.info import NOT_TEI, info
from headrace_launcher.gpus import Gpu

PROGRAM = Path(__file__).with_name("dockerstandin.py")


def gpu(capability="9.0", number=0):
    return Gpu(uuid=f"GPU-{number}", name="Some GPU", capability=capability, memory_bytes=1 << 30)


@dataclass
class Docker:
    folder: Path

    def ways(self, **ways):
        (self.folder / "ways.json").write_text(json.dumps(ways))

    @property
    def calls(self):
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def of(self, verb):
        return [words for words in self.calls if words[0] == verb]

    @property
    def containers(self):
        return sorted(path.name for path in self.folder.glob("headrace-tei-*"))


@pytest.fixture
def docker(tmp_path, monkeypatch):
    folder = tmp_path / "docker"
    folder.mkdir()
    program = folder / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{PROGRAM}" "{folder}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = Docker(folder)
    found.ways()
    yield found
    assert found.containers == []
    assert list(tmp_path.glob("headrace-tei-*")) == []


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling/config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("capability", "tag"),
    [
        ("7.5", "turing-1.9.3"),
        ("8.0", "1.9.3"),
        ("8.6", "86-1.9.3"),
        ("8.9", "89-1.9.3"),
        ("9.0", "hopper-1.9.3"),
        ("10.0", "100-1.9.3"),
        ("12.0", "120-1.9.3"),
    ],
)
def test_each_gpu_has_its_image(capability, tag):
    assert image_for(gpu(capability)) == f"ghcr.io/huggingface/text-embeddings-inference:{tag}"
    assert capability in PREFIXES


def test_a_gpu_without_an_image_is_said_before_docker_is_asked(docker, model):
    with pytest.raises(UsageError, match=r"compute capability 7\.0.*--tei-image.*--tei URL"):
        TeiContainers(model, [gpu("7.0")])
    assert docker.calls == []
    assert TeiContainers(model, [gpu("7.0")], image="mine").images == ["mine"]


def test_a_gpu_has_a_container_of_its_own_and_nothing_is_left(docker, model):
    gpus = [gpu("8.6", 3), gpu("9.0", 4)]
    with TeiContainers(model, gpus, 256) as urls:
        assert [httpx.get(f"{url}/health").status_code for url in urls] == [200, 200]
        assert len(set(urls)) == 2
        runs = docker.of("run")
        assert len(docker.containers) == 2
    for number, (run, tag) in enumerate(zip(runs, ["86-1.9.3", "hopper-1.9.3"], strict=True)):
        assert run == [
            *("run", "--detach", "--name", f"headrace-tei-{os.getpid()}-{number}"),
            *("--publish", "127.0.0.1::80", "--gpus", f"device=GPU-{3 + number}"),
            *("--volume", f"{model}:/model:ro"),
            f"ghcr.io/huggingface/text-embeddings-inference:{tag}",
            *("--model-id", "/model", "--max-batch-tokens", "65536"),
            *("--max-concurrent-requests", "512", "--max-client-batch-size", "1024"),
            "--auto-truncate",
        ]
    for url in urls:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
    assert docker.of("pull") == []


def test_without_a_gpu_one_runs_on_the_cpu(docker, model):
    with TeiContainers(model, []) as urls:
        assert len(urls) == 1
    (run,) = docker.of("run")
    assert "--gpus" not in run
    assert "ghcr.io/huggingface/text-embeddings-inference:cpu-1.9.3" in run


def test_the_comparison_starts_it_and_says_how(docker, model):
    with find_tei(["docker"], model, [], 256, None) as servers:
        assert [info(url).name for url in servers.urls] == [NOT_TEI]  # it is the stand-in
        assert "@sha256:0123 --max-batch-tokens 65536" in servers.how
        assert "--max-concurrent-requests 512" in servers.how
        assert docker.of("rm") == []
    assert len(docker.of("rm")) == 1


def test_a_container_has_the_cores_that_all_others_have(docker, model, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 1})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    with TeiContainers(model, []):
        (run,) = docker.of("run")
    assert run[run.index("--cpuset-cpus") + 1] == "1,3"


def test_an_image_that_is_not_there_is_pulled_once(docker, model):
    docker.ways(pulled=False)
    containers = TeiContainers(model, [gpu(number=0), gpu(number=1)], image="mine:1")
    with containers:
        assert containers.digests == ["mine@sha256:0123"]
    assert docker.of("pull") == [["pull", "--quiet", "mine:1"]]


def test_links_are_followed_into_a_copy_that_all_can_read(docker, model, tmp_path):
    blob = tmp_path / "blob"
    blob.write_text("weights")
    blob.chmod(0o600)
    (model / "model.safetensors").symlink_to(blob)
    with TeiContainers(model, []):
        (run,) = docker.of("run")
        copy = Path(run[run.index("--volume") + 1].removesuffix(":/model:ro"))
        assert copy != model
        assert (copy / "model.safetensors").read_text() == "weights"
        assert not any(path.is_symlink() for path in copy.rglob("*"))
        assert (copy / "model.safetensors").stat().st_mode & 0o777 == 0o644
        for folder in (copy.parent, copy, copy / "1_Pooling"):
            assert folder.stat().st_mode & 0o777 == 0o755
    assert not copy.exists()


def test_a_link_to_nowhere_is_said(docker, model):
    (model / "model.safetensors").symlink_to("nowhere")
    with pytest.raises(MachineError, match="cannot be copied"), TeiContainers(model, []):
        pass


def test_a_model_that_is_no_folder_is_said(docker, tmp_path):
    with pytest.raises(UsageError, match="no folder"), TeiContainers(tmp_path / "none", []):
        pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_happens_inside_leaves_no_container(docker, model, error):
    containers = TeiContainers(model, [])

    def use():
        with containers:
            assert len(docker.containers) == 1
            raise error

    with pytest.raises(error):
        use()


def test_an_interruption_while_waiting_leaves_no_container(docker, model, monkeypatch):
    def interrupted(*_):
        assert len(docker.containers) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(teidocker, "wait_ready", interrupted)
    with pytest.raises(KeyboardInterrupt), TeiContainers(model, [gpu(), gpu(number=1)]):
        pass


def test_a_container_that_ends_says_its_log(docker, model):
    docker.ways(exits=True)
    with (
        pytest.raises(MachineError, match=r"ended in its container .*Could not create backend"),
        TeiContainers(model, []),
    ):
        pass


@pytest.mark.parametrize(
    ("verb", "wanted"),
    [
        ("image inspect", r"docker image inspect .*: no end within 2 s; see 'docker images'"),
        ("logs", r"ended in its container .*its log cannot be read \(.* timed out after 2"),
    ],
)
def test_a_command_that_does_not_end_is_said(docker, model, monkeypatch, verb, wanted):
    monkeypatch.setattr(teidocker, "_SOON", 2)
    docker.ways(exits=True, hangs=verb)
    with pytest.raises(MachineError, match=wanted), TeiContainers(model, []):
        pass


def test_one_that_does_not_start_takes_the_others_with_it(docker, model):
    docker.ways(not_started="-1")
    with (
        pytest.raises(MachineError, match=r"docker run mine: docker: Error response from daemon: "),
        TeiContainers(model, [gpu(), gpu(number=1)], image="mine"),
    ):
        pass
    assert len(docker.of("rm")) == 2


def test_one_that_is_not_ready_in_time_is_removed(docker, model):
    docker.ways(ready_after=600)
    with (
        pytest.raises(ServerError, match=r"not ready within 0\.3 s, at the last "),
        TeiContainers(model, [], seconds=0.3),
    ):
        pass


def test_another_length_is_said(docker, model):
    with (
        pytest.raises(ServerError, match="cuts texts at 256 tokens, headrace at 128"),
        TeiContainers(model, [], 128),
    ):
        pass


@pytest.mark.parametrize(
    ("verb", "said", "wanted"),
    [
        ("version", "Cannot connect to the Docker daemon.", "start its engine"),
        ("pull", "manifest unknown", "docker load"),
        ("run", "could not select device driver", "NVIDIA Container Toolkit"),
        ("port", "no public port", "docker ps"),
    ],
)
def test_what_docker_says_is_in_one_line_with_what_to_do(docker, model, verb, said, wanted):
    docker.ways(fails={verb: f"{said}\n\nRun 'docker --help' for more information\n"}, pulled=False)
    with pytest.raises(MachineError) as found, TeiContainers(model, [gpu()]):
        pass
    message = str(found.value)
    assert said in message
    assert wanted in message
    assert "--tei URL" in message
    assert "\n" not in message
    assert "--help" not in message


def test_without_docker_it_is_said(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(MachineError, match=r"docker.*is not installed.*--tei URL"),
        TeiContainers(model, []),
    ):
        pass


def test_a_container_that_cannot_be_removed_is_named(docker, model, capsys):
    with TeiContainers(model, []):
        docker.ways(fails={"rm": "permission denied"})
    name = f"headrace-tei-{os.getpid()}-0"
    assert f"{name} may be left (permission denied)" in capsys.readouterr().err
    docker.ways()
    os.system(f"docker rm --force {name}")
