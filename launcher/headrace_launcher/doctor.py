"""What this machine has of what headrace needs, and how to get the rest."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import HeadraceError
from headrace_launcher import gpus, triton
from headrace_launcher.engines import openvino, tensorrt
from headrace_launcher.engines.target import PLANS

_SHM = Path("/dev/shm")  # noqa: S108 -- where Linux keeps POSIX shared memory
_SHM_NEEDED = 64 << 20
_PACKAGES = ("onnx", "safetensors", "huggingface_hub")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the examination.

    Attributes:
        name: what was looked for.
        mark: ``ok``; ``none`` for something that one can do without; ``missing``.
        found: what was found, or what is wrong.
        remedy: what to do about it, or "".
    """

    name: str
    mark: str
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Looks at everything that a run needs; starts and downloads nothing."""
    return [
        Check(
            name="Python",
            mark="ok",
            found=f"{platform.python_version()} at {sys.executable}",
        ),
        _attempt("libpython", lambda: str(triton.find_libpython())),
        _triton(),
        _packages(),
        _attempt("OpenVINO", _openvino),
        _gpus(),
        _tensorrt(),
        _cuda_ipc(),
        _shared_memory(),
        Check(name="gRPC", mark="ok", found="transport grpc works wherever the server is reached"),
    ]


def _attempt(name: str, look: Callable[[], str]) -> Check:
    """Runs a look whose error message holds ``what is wrong; what to do``."""
    try:
        return Check(name=name, mark="ok", found=look())
    except HeadraceError as error:
        found, _, remedy = str(error).partition("; ")
        return Check(name=name, mark="missing", found=found, remedy=remedy)


def _triton() -> Check:
    if found := shutil.which("tritonserver"):
        return Check(name="Triton", mark="ok", found=f"{found} (on PATH)")
    folder = triton.embedded_folder()
    if (folder / "READY").exists():
        found = f"{triton.TRITON_VERSION}, embedded, in {folder}"
        return Check(name="Triton", mark="ok", found=found)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:
        return Check(
            name="Triton",
            mark="missing",
            found=f"not here yet, and {folder.parent} cannot be written ({error.strerror})",
            remedy="set XDG_CACHE_HOME to a folder that can be written",
        )
    source = os.environ.get(triton.WHEEL_VARIABLE) or "the package index (55 MB)"
    return Check(
        name="Triton",
        mark="none",
        found=f"not here yet; {triton.TRITON_VERSION} comes from {source} at the first run",
        remedy=f"offline: set {triton.WHEEL_VARIABLE} to a copy of the wheel "
        f"{triton.WHEEL}=={triton.WHEEL_VERSION}",
    )


def _packages() -> Check:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return Check(
            name="launcher",
            mark="missing",
            found=f"{', '.join(missing)} not installed",
            remedy="pip install 'headrace[launcher]'",
        )
    return Check(name="launcher", mark="ok", found=", ".join(_PACKAGES))


def _openvino() -> str:
    return f"{openvino.version()}, CPU, precision auto = {openvino.resolve_precision('auto')}"


def _gpus() -> Check:
    try:
        found = gpus.find_gpus()
    except HeadraceError as error:
        what, _, remedy = str(error).partition("; ")
        return Check(name="GPU", mark="none", found=what, remedy=remedy)
    if not found:
        return Check(name="GPU", mark="none", found="none found; the CPU engine is used")
    names = "; ".join(
        f"{gpu.name} ({gpu.capability}, {gpu.memory_bytes / 2**30:.0f} GiB)" for gpu in found
    )
    return Check(name="GPU", mark="ok", found=names)


def _has_gpu() -> bool:
    try:
        return bool(gpus.find_gpus())
    except HeadraceError:  # one is there, but cannot be asked
        return True


def _tensorrt() -> Check:
    found = []
    remedy = ""
    for engine in PLANS:
        try:
            found.append(f"{engine} {tensorrt.version(engine)}")
        except HeadraceError as error:
            if engine == "tensorrt" and _has_gpu():
                remedy = str(error).partition("; ")[2]
    if not found:
        return Check(name="TensorRT", mark="none", found="not installed", remedy=remedy)
    backend = "its own backend" if triton.has_backend("tensorrt") else "the Python backend"
    what = f"{', '.join(found)}; Triton runs plans with {backend}"
    return Check(name="TensorRT", mark="ok", found=what, remedy=remedy)


def _cuda_ipc() -> Check:
    if not _has_gpu():
        return Check(name="CUDA IPC", mark="none", found="no GPU, so no transport cuda")
    try:
        known = importlib.util.find_spec("cuda.bindings")
    except ModuleNotFoundError:
        known = None
    if known is None:
        return Check(
            name="CUDA IPC",
            mark="none",
            found="cuda-bindings is not installed; transport cuda needs it",
            remedy="pip install 'headrace[gpu]'",
        )
    return Check(name="CUDA IPC", mark="ok", found="transport cuda: cuda-bindings is installed")


def _shared_memory() -> Check:
    try:
        free = shutil.disk_usage(_SHM).free
    except OSError as error:
        return Check(
            name="shm",
            mark="missing",
            found=f"{_SHM}: {error.strerror}",
            remedy="mount a tmpfs there, or pass --transport grpc",
        )
    size = f"{free / 2**20:,.0f} MiB free in {_SHM}"
    if free < _SHM_NEEDED or not os.access(_SHM, os.W_OK):
        return Check(
            name="shm",
            mark="missing",
            found=f"{size}, or it cannot be written",
            remedy="containers: --ipc=host or --shm-size=1g; or pass --transport grpc",
        )
    return Check(name="shm", mark="ok", found=f"transport system: {size}")
