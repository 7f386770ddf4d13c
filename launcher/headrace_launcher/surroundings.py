"""What a server is started in: its environment, the GPUs' driver, and what dead ones have left."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from headrace.contract import is_leftover
from headrace.errors import MachineError
from headrace_launcher.gpus import ORDER, find_gpus
from headrace_launcher.processes import kill_program
from headrace_launcher.triton import STUB, TritonInstallation

SHM = Path("/dev/shm")  # noqa: S108 -- where Linux keeps POSIX shared memory
SHM_PREFIX = "headrace_stub_"
SCRATCH_PREFIX = "headrace-server-"
DRIVER_FOLDER = "driver"  # in the scratch folder
_SECRET = re.compile(
    r"(TOKEN|SECRET|PASSWORD|CREDENTIALS|API_KEY|ACCESS_KEY(_ID)?)$", re.IGNORECASE
)


def sweep_leftovers() -> None:
    """Removes what servers of dead headrace processes have left: processes, shared memory, folders.

    A model's process ends when its server is gone, but not always: it may wait for a lock that was
    held by the server when that was killed.
    """
    kill_program(STUB, _is_leftover_region)
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*"):
        tag, pid, *_ = [*folder.name.removeprefix(SCRATCH_PREFIX).split("-"), "", ""]
        if is_leftover(tag, pid):
            shutil.rmtree(folder, ignore_errors=True)
    for region in SHM.glob(f"{SHM_PREFIX}*"):
        if _is_leftover_region(region.name):
            with suppress(PermissionError):  # another user's
                region.unlink(missing_ok=True)


def _is_leftover_region(name: str) -> bool:
    tag, pid, *_ = [*name.removeprefix(SHM_PREFIX).split("_"), "", ""]
    return name.startswith(SHM_PREFIX) and is_leftover(tag, pid)


def gpu_uuids() -> list[str]:
    """Returns the UUIDs of this machine's GPUs, in NVML's order; none where none is found."""
    with suppress(MachineError):
        return [gpu.uuid for gpu in find_gpus()]
    return []


def link_driver(folder: Path) -> None:
    """Makes ``libcuda.so``, which Triton's Python backend asks for, where only ``.so.1`` is.

    Without it every input of a hosted model goes by way of the host's memory. The short name comes
    with CUDA's development files alone.

    Args:
        folder: where to put the link; made.
    """
    try:
        ctypes.CDLL("libcuda.so")
    except OSError:
        with suppress(OSError, StopIteration):
            ctypes.CDLL("libcuda.so.1")
            mapped = Path("/proc/self/maps").read_text().splitlines()
            found = next(line.split()[-1] for line in mapped if "/libcuda.so" in line)
            folder.mkdir()
            (folder / "libcuda.so").symlink_to(found)


def environment_of(triton: TritonInstallation, scratch: Path | None) -> dict[str, str]:
    """The server's environment: this interpreter first on PATH, where the stub looks for packages.

    ``VIRTUAL_ENV`` and ``PYTHONHOME`` of the caller's shell would lead the stub elsewhere. Tokens
    and keys of the caller's are not for the server: all that it reads lies in the repository.
    """
    unwanted = {"PYTHONHOME", "VIRTUAL_ENV"} | {k for k in os.environ if _SECRET.search(k)}
    environment = {k: v for k, v in os.environ.items() if k not in unwanted}
    environment |= ORDER  # as the numbers of GPUs in config.pbtxt and in the server's name
    # Triton starts its models through a shell, so the system's folders must be there too.
    environment["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), environment.get("PATH", ""), os.defpath]
    )
    libraries = [str(folder) for folder in triton.library_folders]
    if scratch is not None and (scratch / DRIVER_FOLDER).is_dir():
        libraries.append(str(scratch / DRIVER_FOLDER))
    if inherited := environment.get("LD_LIBRARY_PATH"):
        libraries.append(inherited)
    if libraries:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    return environment
