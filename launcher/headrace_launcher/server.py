"""Starts, watches and stops a local ``tritonserver``."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import tritonclient.grpc as triton

from headrace.contract import machine_tag
from headrace.errors import ServerError, UsageError
from headrace_launcher.links import link_entries
from headrace_launcher.ports import check_port, free_port, listens
from headrace_launcher.processes import (
    become_server,
    children_of,
    kill_session,
    parent_of,
)
from headrace_launcher.repository import read_config
from headrace_launcher.surroundings import (
    DRIVER_FOLDER,
    SCRATCH_PREFIX,
    SHM,
    SHM_PREFIX,
    environment_of,
    gpu_uuids,
    link_driver,
    sweep_leftovers,
)
from headrace_launcher.triton import TritonInstallation

STARTUP_SECONDS = 300.0
STUB_MIB = 4  # of shared memory for a model that Triton's Python backend hosts, beside batches
STOP_SECONDS = 15.0
WATCH_SECONDS = 0.5
OBITUARY_SECONDS = 2.0
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where a server listens: ``HOST:PORT`` each, None where it does not."""

    grpc: str
    http: str | None
    metrics: str | None


class Server:
    """One ``tritonserver`` process that dies with this one.

    Args:
        triton: the installation to run.
        repository: the model repository to serve.
        models: names of the models to load.
        host: address to bind to.
        grpc_port: 0 takes a free one.
        http_port: 0 takes a free one, None serves no HTTP and no metrics.
        metrics_port: 0 takes a free one, None serves no metrics; ignored without HTTP.
        drain: whether a stop lets requests of others finish (some seconds) or ends it at once.
        joined: whether requests that wait may be joined where the entry's config says so; see
            :mod:`headrace_launcher.links`.

    Raises:
        UsageError: from :meth:`start`, if the address or a port cannot be used.
        ServerError: from :meth:`start`, if the server does not become ready.
    """

    def __init__(
        self,
        triton: TritonInstallation,
        repository: Path,
        models: Sequence[str],
        *,
        host: str = _LOOPBACK,
        grpc_port: int = 0,
        http_port: int | None = None,
        metrics_port: int | None = 0,
        drain: bool = True,
        joined: bool = True,
    ) -> None:
        self._triton = triton
        self._repository = repository
        self._models = tuple(models)
        self._host = host
        self._drain = drain
        self._joined = joined
        self._ports = (grpc_port, http_port, metrics_port)
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None
        self._name = ""
        self._gpus: list[str] = []
        self._shm_prefix = f"{SHM_PREFIX}{machine_tag()}_{os.getpid()}_{secrets.token_hex(4)}_"
        self._scratch: Path | None = None
        self._log = tempfile.TemporaryFile(prefix="headrace-triton-")  # noqa: SIM115 -- closed in stop
        self.endpoints: Endpoints

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id, or None before the start and after the stop."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the process and waits until every model is ready.

        Raises:
            ServerError: it did not become ready; the message quotes the server's own words.
        """
        sweep_leftovers()
        # Triton's Python processes stumble over spaces and other letters in paths, and take modules
        # from the folder that they run in: they get an empty one, with links to the entries.
        prefix = f"{SCRATCH_PREFIX}{machine_tag()}-{os.getpid()}-"
        self._scratch = Path(tempfile.mkdtemp(prefix=prefix))
        models = self._scratch / "models"
        link_entries(self._repository, self._models, models, joined=self._joined)
        self._gpus = gpu_uuids()
        if self._gpus:
            link_driver(self._scratch / DRIVER_FOLDER)
        self._start()

    def restart(self) -> None:
        """Ends the process, if it has not ended, and starts another; free ports are taken anew.

        Raises:
            ServerError: it did not become ready; the message quotes the server's own words.
        """
        self._end_process(drain=False)
        self._remove_regions()
        self._failure = None
        self._start()

    def _start(self) -> None:
        try:
            # Again where a free port was taken between our look and the server's bind.
            for _ in range(3):
                self._launch()
                if self._wait_until_ready():
                    self._watch_models()
                    return
                reason = self._why_not_ready()
                self._end_process()
                if "address already in use" not in reason.lower() or 0 not in self._ports:
                    break
        except BaseException:
            self.stop()
            raise
        self.stop()
        raise ServerError(f"Triton did not start: {reason}")

    def stop(self) -> None:
        """Ends the server, gently first, and removes what it may have left; idempotent."""
        try:
            self._end_process()
        finally:  # also when a Ctrl-C cuts that short
            self._remove_regions()
            if self._scratch is not None:
                # Of the links, not what they lead to.
                shutil.rmtree(self._scratch, ignore_errors=True)
            self._log.close()

    def _why_not_ready(self) -> str:
        """Returns why the process did not become ready."""
        status = self.poll()
        if status is not None and status < 0:
            return f"it was ended by {signal.Signals(-status).name}"
        said = self.log_errors()
        if "shared memory key" in said:
            configs = [read_config(self._repository / name) for name in self._models]
            hosted = sum(config is not None and config.backend == "python" for config in configs)
            free = shutil.disk_usage(SHM).free / 2**20
            return (
                f"{SHM} is too small or cannot be written: {STUB_MIB * hosted} MiB are needed "
                f"there for the server, and {free:.1f} MiB are free; enlarge it (containers: "
                f"--ipc=host or --shm-size); it said: {said}"
            )
        return said

    def _remove_regions(self) -> None:
        for region in SHM.glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)

    def obituary(self) -> str | None:
        """Returns why the server has died, or None if it lives (or died of our own will)."""
        process = self._process
        if process is None:
            return None
        with suppress(subprocess.TimeoutExpired):  # a broken connection may be quicker to notice
            process.wait(OBITUARY_SECONDS)
        if process.returncode is None:
            return None
        if self._failure is not None:
            return self._failure
        if process.returncode < 0:
            return f"it was ended by {signal.Signals(-process.returncode).name}"
        return f"it ended with status {process.returncode}: {self.log_errors()}"

    def poll(self) -> int | None:
        """Returns the exit status if the process has ended, else None."""
        return self._process.poll() if self._process else None

    def wait(self) -> int:
        """Waits for the process to end and returns its exit status."""
        if self._process is None:
            return 0
        return self._process.wait()

    def log_errors(self, lines: int = 3) -> str:
        """Returns the server's last error lines as one line, or its last lines if it has none."""
        if self._log.closed:
            return ""
        size = os.fstat(self._log.fileno()).st_size
        start = max(0, size - (1 << 16))
        text = os.pread(self._log.fileno(), size - start, start).decode(errors="replace")
        if self._scratch is not None:
            text = text.replace(str(self._scratch / "models"), str(self._repository))
        # Triton says these on every machine without a GPU; they are never the reason.
        harmless = ("CudaDriverHelper", "NVML", "CUDA memory pool", "GPU metrics", "create stream")
        said = [
            line
            for line in text.splitlines()
            if line.strip() and not any(word in line for word in harmless)
        ]
        wrong = [line.split("] ", 1)[-1] for line in said if line[:1] == "E" or "rror:" in line]
        return " | ".join((wrong or said)[-lines:]) or "it said nothing"

    def _launch(self) -> None:
        grpc, http, metrics = self._ports
        taken: dict[int, str] = {}
        for option, port in (("grpc", grpc), ("http", http), ("metrics", metrics)):
            if port and (option == "grpc" or http is not None):
                check_port(self._host, port, option)
                if port in taken:
                    raise UsageError(
                        f"--{taken[port]}-port and --{option}-port are both {port}; pass different "
                        f"ones, or 0 for a free one"
                    )
                taken[port] = option
        grpc = grpc or free_port(self._host, taken)
        http = http if http is None else http or free_port(self._host, {*taken, grpc})
        if http is None or metrics is None:
            metrics = None
        else:
            metrics = metrics or free_port(self._host, {*taken, grpc, http})
        self.endpoints = Endpoints(
            grpc=f"{self._host}:{grpc}",
            http=None if http is None else f"{self._host}:{http}",
            metrics=None if metrics is None else f"{self._host}:{metrics}",
        )
        # The name tells clients where HTTP is, and which GPUs: see headrace.contract.SERVER_NAME.
        self._name = f"headrace-{os.getpid()}-{secrets.token_hex(4)}"
        self._name += f"-http-{http}" if http else ""
        self._name += f"-gpus-{','.join(self._gpus)}" if self._gpus else ""
        command = [
            str(self._triton.binary),
            f"--id={self._name}",
            f"--model-repository={self._scratch}/models",
            "--model-control-mode=none",  # nobody is to load another: see headrace_launcher.links
            # Nor to change what is logged, and where: the key is told to nobody.
            f"--http-restricted-api=logging,trace:headrace={secrets.token_hex()}",
            f"--grpc-restricted-protocol=logging,trace:headrace={secrets.token_hex()}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            f"--grpc-address={self._host}",
            f"--grpc-port={grpc}",
            "--exit-timeout-secs=10",
            *self._triton.arguments,
            *_front_end("http", self._host, http),
            *_front_end("metrics", self._host, metrics),
        ]
        parent = os.getpid()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment_of(self._triton, self._scratch),
            cwd=self._scratch,
            # Its own session: a Ctrl-C in the terminal is ours to handle, in our order.
            start_new_session=True,
            umask=0o077,  # its shared memory holds texts and vectors
            preexec_fn=lambda: become_server(parent),  # noqa: PLW1509 -- takes no lock
        )

    def _wait_until_ready(self) -> bool:
        deadline = time.monotonic() + STARTUP_SECONDS
        with triton.InferenceServerClient(self.endpoints.grpc) as client:
            while time.monotonic() < deadline:
                if self.poll() is not None:
                    return False
                try:
                    # Its name: on a port that was taken, somebody else's server would answer.
                    name = client.get_server_metadata(client_timeout=1.0).name
                    ready = name == self._name and client.is_server_ready(client_timeout=1.0)
                    # gRPC is the first to listen, the others follow.
                    others = (self.endpoints.http, self.endpoints.metrics)
                    if ready and all(listens(each) for each in others if each is not None):
                        return True
                except triton.InferenceServerException:
                    pass  # not listening yet
                time.sleep(0.05)
        return False

    def _watch_models(self) -> None:
        """Ends the server when a model's process dies: Triton would leave its requests unanswered.

        The processes of models are the server's children.
        """
        process = self._process
        assert process is not None
        models = children_of(process.pid)

        def watch() -> None:
            while process.poll() is None:
                if dead := [pid for pid in models if parent_of(pid) != process.pid]:
                    if process is self._process:  # and not one that was restarted since
                        self._failure = (
                            f"the process {dead[0]} that computes the model has died (if the "
                            f"machine ran out of memory, the kernel's log says so)"
                        )
                    process.kill()
                    return
                time.sleep(WATCH_SECONDS)

        threading.Thread(target=watch, name="headrace-watch", daemon=True).start()

    def _end_process(self, *, drain: bool = True) -> None:
        process = self._process
        if process is None:
            return
        try:
            if drain and self._drain and process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
        finally:  # also when a second Ctrl-C cuts the draining short
            self._process = None
            kill_session(process)


def _front_end(name: str, host: str, port: int | None) -> list[str]:
    """Returns the options of Triton's HTTP or metrics endpoint; None switches it off."""
    if port is None:
        return [f"--allow-{name}=false"]
    return [f"--{name}-address={host}", f"--{name}-port={port}"]
