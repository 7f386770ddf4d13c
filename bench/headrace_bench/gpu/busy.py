"""How busy a GPU is while something runs: NVML, asked every 100 ms."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

from headrace_launcher.gpus import Gpu

SAMPLE_SECONDS = 0.1


class BusySampler:
    """Asks, in a thread, while the ``with`` statement lasts.

    Args:
        read: returns the percentage now, or is None where there is nothing to ask.
        seconds: between two samples.
    """

    def __init__(self, read: Callable[[], float] | None, seconds: float = SAMPLE_SECONDS) -> None:
        self._read, self._seconds = read, seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.samples: list[tuple[float, float]] = []
        """``time.time()`` and percentage."""

    def __enter__(self) -> Self:
        if self._read is not None:
            self._thread = threading.Thread(target=self._sample, args=(self._read,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def mean(self, start: float, end: float) -> float | None:
        """Returns the mean percentage between two times, or None without a sample there."""
        inside = [percent for when, percent in self.samples if start <= when <= end]
        return sum(inside) / len(inside) if inside else None

    def _sample(self, read: Callable[[], float]) -> None:
        while not self._stop.is_set():
            self.samples.append((time.time(), read()))
            self._stop.wait(self._seconds)


def reader(gpu: Gpu) -> Callable[[], float] | None:
    """Returns what asks NVML how busy a GPU is, in percent; None where NVML does not say.

    It is the share of NVML's last sample period (a sixth of a second to a second, by product) in
    which a kernel ran: NVML API Reference, ``nvmlUtilization_t``. So it says that the GPU was never
    without work, and not that all of it worked.
    """
    import pynvml

    pynvml.nvmlInit()  # for as long as this process lives
    handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)

    def read() -> float:
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)

    try:
        read()
    except pynvml.NVMLError:
        return None
    return read


def driver_version() -> str:
    """Returns the version of NVIDIA's driver."""
    import pynvml

    pynvml.nvmlInit()
    said = pynvml.nvmlSystemGetDriverVersion()
    return said.decode() if isinstance(said, bytes) else str(said)
