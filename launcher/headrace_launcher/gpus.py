"""What NVIDIA GPUs there are: NVML, NVIDIA's management library."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import MachineError, MissingDependencyError

_DRIVER = Path("/proc/driver/nvidia/gpus")
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Environment under which CUDA numbers GPUs as NVML does (CUDA C++ Programming Guide)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU that this process may use.

    Attributes:
        uuid: its name in all processes, as ``GPU-`` and hexadecimal digits.
        name: the product's.
        capability: CUDA compute capability, as ``9.0``.
        memory_bytes: all of its memory.
    """

    uuid: str
    name: str
    capability: str
    memory_bytes: int


def find_gpus() -> list[Gpu]:
    """Returns the GPUs that CUDA would show this process, in its order; none without a driver.

    The order is that of :data:`ORDER`; ``CUDA_VISIBLE_DEVICES`` is heeded.

    Raises:
        MissingDependencyError: a driver is loaded, but nvidia-ml-py is not installed.
        MachineError: a GPU does not answer.
    """
    try:
        import pynvml
    except ImportError as error:
        if names := driver_names():
            raise MissingDependencyError(
                f"a GPU is here ({names[0]}), but nvidia-ml-py, which tells of it, is not "
                f"installed; install it with: pip install 'headrace[launcher,gpu]'"
            ) from error
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        count = int(pynvml.nvmlDeviceGetCount())
        found = [_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(n)) for n in range(count)]
    except pynvml.NVMLError as error:  # fallen off its bus, say
        raise MachineError(
            f"a GPU does not answer ({error}); nvidia-smi may say which; reset it, or choose "
            f"--engine openvino"
        ) from error
    finally:
        pynvml.nvmlShutdown()
    return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(gpus: list[Gpu], chosen: str | None) -> list[Gpu]:
    """Returns the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, in its order.

    As CUDA reads it: numbers or (the beginning of) UUIDs; everything from the first that names
    no GPU on is left out.

    Args:
        gpus: all of the machine's.
        chosen: the variable's value, or None where it is not set.
    """
    if chosen is None:
        return gpus
    left: list[Gpu] = []
    for word in (each.strip() for each in chosen.split(",")):
        if word.isdecimal():
            named = gpus[int(word) : int(word) + 1]
        else:
            named = [gpu for gpu in gpus if word and gpu.uuid.startswith(word)]
        if len(named) != 1:
            break
        left += named
    return left


def driver_names() -> list[str]:
    """Returns the model names of the GPUs that the NVIDIA driver shows; none without a driver.

    Source: the driver's ``/proc/driver/nvidia/gpus/*/information`` (NVIDIA driver README,
    "The /proc Interface").
    """
    names: list[str] = []
    for path in sorted(_DRIVER.glob("*/information")):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                names.append(value.strip())
    return names


def _gpu(nvml: Any, handle: Any) -> Gpu:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        capability=f"{major}.{minor}",
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
    )


def _text(said: str | bytes) -> str:  # bytes in older versions
    return said.decode() if isinstance(said, bytes) else said
