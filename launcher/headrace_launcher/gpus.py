"""What NVIDIA GPUs there are, as their driver says."""

from __future__ import annotations

from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/gpus")


def find_gpus() -> list[str]:
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
