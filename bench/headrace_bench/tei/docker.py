"""Hugging Face Text Embeddings Inference (TEI) in containers: one for each GPU, or one on the CPU.

The version is pinned, and so is the image: TEI's are built for one compute capability each, which
the beginning of the tag says (``.github/workflows/matrix.json`` of its sources).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from headrace.errors import MachineError, ServerError, UsageError
from headrace_bench.options import say
from headrace_bench.tei.info import info, wait_ready
from headrace_launcher.gpus import Gpu

REGISTRY = "ghcr.io/huggingface/text-embeddings-inference"
VERSION = "1.9.3"
CPU = "cpu-"
PREFIXES = {
    "7.5": "turing-",
    "8.0": "",
    "8.6": "86-",
    "8.9": "89-",
    "9.0": "hopper-",
    "10.0": "100-",
    "12.0": "120-",
}
"""Of the images' tags, by compute capability."""

FLAGS = (
    *("--max-batch-tokens", "65536", "--max-concurrent-requests", "512"),
    *("--max-client-batch-size", "1024", "--auto-truncate"),
)
"""What TEI is started with, beside the model."""

OTHERWISE = "or start TEI yourself and pass --tei URL"
_SOON, _PULL = 120.0, 3600.0  # seconds
_LINES = 20  # of a log


def image_for(gpu: Gpu | None) -> str:
    """Returns the name of the image for a GPU, or for the CPU.

    Raises:
        UsageError: there is none for such a GPU.
    """
    prefix = CPU if gpu is None else PREFIXES.get(gpu.capability)
    if prefix is None:
        assert gpu is not None
        raise UsageError(
            f"TEI has no image for the {gpu.name} (compute capability {gpu.capability}; there are "
            f"some for {', '.join(PREFIXES)}); name one with --tei-image, {OTHERWISE}"
        )
    return f"{REGISTRY}:{prefix}{VERSION}"


class TeiContainers:
    """Runs TEI while its context lasts; entering it returns the URLs.

    The containers are removed at the end, however it comes, but not where this process is killed;
    their names begin with ``headrace-tei-``.

    Attributes:
        images: of the containers, in their order.
        digests: what the images really are, as far as Docker tells, each once.

    Args:
        model: the model's folder.
        gpus: one container for each; none means one on the CPU.
        max_length: tokens of a row at which headrace cuts; TEI must cut there, too. None: any.
        image: the image for all, in place of the pinned ones.
        seconds: until TEI must be ready, from when its container runs.

    Raises:
        UsageError: there is no image for a GPU.
    """

    def __init__(
        self,
        model: Path,
        gpus: Sequence[Gpu],
        max_length: int | None = None,
        *,
        image: str | None = None,
        seconds: float = 600.0,
    ) -> None:
        self._model, self._max_length = model, max_length
        self._gpus: list[Gpu | None] = [*gpus] or [None]
        self.images = [image or image_for(gpu) for gpu in self._gpus]
        self.digests: list[str] = []
        self._seconds = seconds
        self._stack = ExitStack()

    def __enter__(self) -> list[str]:
        """Starts them, and waits until all are ready.

        Raises:
            MachineError: Docker is not there, or a container cannot be started.
            ServerError: TEI is not ready in time, or cuts texts elsewhere than headrace.
        """
        with ExitStack() as stack:
            docker = _docker()
            for image in dict.fromkeys(self.images):
                _pull(docker, image)
                self.digests += _digests(docker, image)
            folder = stack.enter_context(_readable(self._model))
            names = [f"headrace-tei-{os.getpid()}-{n}" for n in range(len(self._gpus))]
            for name, gpu, image in zip(names, self._gpus, self.images, strict=True):
                # Before it is there: it may be half made when this is interrupted.
                stack.callback(_remove, docker, name)
                say(f"starting {image} as {name}")
                self._start(docker, name, gpu, image, folder)
            urls = [_url(docker, name) for name in names]
            for url, name in zip(urls, names, strict=True):
                wait_ready(url, self._seconds, partial(_look, docker, name))
                self._check_length(url)
            self._stack = stack.pop_all()
        return urls

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, docker: str, name: str, gpu: Gpu | None, image: str, folder: Path) -> None:
        command = [docker, "run", "--detach", "--name", name, "--publish", "127.0.0.1::80"]
        if gpu is not None:
            command += ["--gpus", f"device={gpu.uuid}"]
        cores = os.sched_getaffinity(0)
        if len(cores) < (os.cpu_count() or 1):  # those that all others have, too
            command += ["--cpuset-cpus", ",".join(map(str, sorted(cores)))]
        command += ["--volume", f"{folder}:/model:ro", image, "--model-id", "/model", *FLAGS]
        remedy = "see whether 'docker run hello-world' works"
        if gpu is not None:
            remedy = "install the NVIDIA Container Toolkit if it is not there"
        _run(command, f"docker run {image}", remedy)

    def _check_length(self, url: str) -> None:
        if self._max_length is None:
            return
        found = info(url).max_input_length
        if found not in (None, self._max_length):
            raise ServerError(
                f"{url}: TEI cuts texts at {found} tokens, headrace at {self._max_length}; set "
                f"max_seq_length in sentence_bert_config.json of {self._model}, {OTHERWISE}"
            )


@contextmanager
def _readable(model: Path) -> Iterator[Path]:
    """Gives a folder with all files of a model that a container can read; links are followed.

    In a cache of the hub the files are links to others out of the folder, which a container has
    not got.
    """
    model = model.resolve()
    if not model.is_dir():
        raise UsageError(f"{model}: no folder of a model; name one")
    # Docker ends the name of a folder to mount at a colon.
    if ":" not in str(model) and not any(path.is_symlink() for path in model.rglob("*")):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="headrace-tei-") as scratch:
        copy = Path(scratch) / "model"
        try:
            shutil.copytree(model, copy)
        except (OSError, shutil.Error) as error:
            raise MachineError(
                f"{model} cannot be copied to {copy} for TEI ({error}); free some room or name a "
                f"whole folder, {OTHERWISE}"
            ) from error
        for path in (copy.parent, copy, *copy.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield copy


def _docker() -> str:
    """Returns the program; its engine answers."""
    docker = shutil.which("docker")
    if docker is None:
        raise MachineError(
            f"docker, by which TEI would be started, is not installed; install it, {OTHERWISE}"
        )
    _run([docker, "version"], "docker version", "start its engine, or join its group")
    return docker


def _pull(docker: str, image: str) -> None:
    what = f"docker image inspect {image}"
    if _done([docker, "image", "inspect", image], what, "see 'docker images'").returncode:
        say(f"pulling {image}")
        remedy = "see that its registry can be reached, load it with 'docker load'"
        _run([docker, "pull", "--quiet", image], f"docker pull {image}", remedy, _PULL)


def _digests(docker: str, image: str) -> list[str]:
    """Returns the image's names by content; none of one that came from no registry."""
    command = [docker, "image", "inspect", "--format", '{{join .RepoDigests " "}}', image]
    return _run(command, f"docker image inspect {image}", "see 'docker images'").split()


def _url(docker: str, name: str) -> str:
    try:
        said = _run([docker, "port", name, "80"], f"docker port {name}", "see 'docker ps'")
    except MachineError:
        _look(docker, name)  # one that has ended has no ports
        raise
    return f"http://{said.splitlines()[0].strip()}"


def _look(docker: str, name: str) -> None:
    """Looks whether a container runs.

    Raises:
        MachineError: it does not.
    """
    command = [docker, "inspect", "--format", "{{.State.Running}}", name]
    if _run(command, f"docker inspect {name}", "see 'docker ps --all'").strip() == "true":
        return
    said = _logs(docker, name)
    raise MachineError(
        f"TEI ended in its container {name}: {said}; mend what it names, {OTHERWISE}"
    )


def _logs(docker: str, name: str) -> str:
    """Returns the last lines that a container wrote, in their order, or why there are none."""
    try:
        done = _call([docker, "logs", "--tail", str(_LINES), name], stderr=subprocess.STDOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its log cannot be read ({error})"
    return _end(done.stdout)


def _remove(docker: str, name: str) -> None:
    # In a session of its own: Ctrl-C must not reach it.
    try:
        done = _call([docker, "rm", "--force", "--volumes", name], start_new_session=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        left = str(error)
    else:
        left = _end(done.stderr) if done.returncode else ""
    if left and "No such container" not in left:
        say(f"{name} may be left ({left}); remove it: docker rm --force {name}")


def _run(command: Sequence[str], what: str, remedy: str, seconds: float | None = None) -> str:
    """Returns what a command prints.

    Raises:
        MachineError: it failed.
    """
    done = _done(command, what, remedy, seconds)
    if done.returncode:
        raise MachineError(f"{what}: {_end(done.stderr or done.stdout)}; {remedy}, {OTHERWISE}")
    return done.stdout


def _done(
    command: Sequence[str], what: str, remedy: str, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Returns a command that has ended, well or not.

    Raises:
        MachineError: it cannot be started, or does not end.
    """
    try:
        return _call(command, seconds)
    except subprocess.TimeoutExpired as error:
        raise MachineError(
            f"{what}: no end within {error.timeout:g} s; {remedy}, {OTHERWISE}"
        ) from error
    except OSError as error:
        raise MachineError(f"{what}: {error}; {remedy}, {OTHERWISE}") from error


def _call(
    command: Sequence[str],
    seconds: float | None = None,
    *,
    stderr: int = subprocess.PIPE,
    start_new_session: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, whatever that is.

    Raises:
        OSError: it cannot be started.
        TimeoutExpired: it did not end within so many seconds (by default ``_SOON``), and was
            killed.
    """
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        timeout=_SOON if seconds is None else seconds,
        start_new_session=start_new_session,
        check=False,
    )


def _end(text: str) -> str:
    """Returns the last lines of a text as one, without docker's hint at its help."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Run 'docker")]
    return " | ".join(lines[-_LINES:])[-2000:] or "it said nothing"
