"""What a benchmark ran on: hardware and versions, to be written beside every number."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from headrace.errors import MachineError
from headrace_bench.gpu.busy import driver_version
from headrace_launcher.gpus import find_gpus

PACKAGES = (
    "headrace",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "optimum",
    "optimum-intel",
    "optimum-onnx",
    "pyarrow",
    "sentence-transformers",
    "tensorrt",
    "tokenizers",
    "torch",
    "transformers",
    "tritonclient",
)
"""Distributions whose versions matter to a result."""

EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
"""Instruction sets that decide how fast a processor multiplies matrices, as Linux names them."""


def hardware() -> dict[str, object]:
    """Returns the processor's name and extensions, usable cores, memory (bytes), and the GPUs."""
    processor, flags = _processor()
    return {
        "processor": processor,
        "extensions": [name for name in EXTENSIONS if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "cores_of_machine": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "gpus": _gpus(),
    }


def versions() -> dict[str, str]:
    """Returns the version of Python and of every one of :data:`PACKAGES` that is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if commit := _commit():
        found["headrace"] += f" ({commit})"
    return found


def _commit() -> str:
    """Returns the commit that headrace runs from, where that is a clone; else ""."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "log", "-1", "--format=%h", "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def describe(hardware: Mapping[str, object], versions: Mapping[str, str]) -> list[str]:
    """Returns lines for a person: what :func:`hardware` and :func:`versions` found."""
    extensions = hardware["extensions"]
    assert isinstance(extensions, list)
    memory = hardware["memory_bytes"]
    assert isinstance(memory, int)
    gpus = hardware["gpus"]
    assert isinstance(gpus, list)
    return [
        f"machine   {hardware['processor']} ({', '.join(extensions) or 'no vector extensions'}) · "
        f"{hardware['cores']} of {hardware['cores_of_machine']} cores · "
        f"{memory / 2**30:.0f} GiB · {hardware['system']}",
        *(
            f"GPU       {gpu['name']} · compute capability {gpu['capability']} · "
            f"{gpu['memory_bytes'] / 2**30:.0f} GiB · driver {gpu['driver']}"
            for gpu in gpus
        ),
        "versions  " + " · ".join(f"{name} {number}" for name, number in versions.items()),
    ]


def _gpus() -> list[dict[str, object]]:
    """Returns what is known of the GPUs that this process may use, and their driver's version."""
    try:
        found = find_gpus()
    except MachineError:  # whoever needs them says what is wrong
        return []
    driver = driver_version() if found else ""
    told = ("name", "capability", "memory_bytes")
    return [{each: getattr(gpu, each) for each in told} | {"driver": driver} for gpu in found]


def _processor() -> tuple[str, frozenset[str]]:
    """Returns the processor's name and its flags, as ``/proc/cpuinfo`` (proc(5)) has them."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags") or fields.get("Features") or ""
    return name, frozenset(flags.split())
