"""Which engine a model is built for on this machine, and the batches that suit it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from headrace.contract import Contract
from headrace.errors import MachineError, MissingDependencyError, UsageError
from headrace_launcher.engines import openvino, tensorrt
from headrace_launcher.gpus import Gpu, find_gpus

PLANS = ("tensorrt", "tensorrt-rtx")
"""The engines that run on a GPU, from a plan."""
# Of one profile of a plan, and so of its memory.
_MOST_TOKENS = 1 << 18
_LEAST_ROWS = 64
_BF16_SINCE = (8, 0)  # compute capability: NVIDIA TensorRT, "Support Matrix"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a model is built for.

    Attributes:
        engine: ``openvino``, ``tensorrt``, ``tensorrt-rtx`` or ``null``.
        version: of the engine's library.
        capability: CUDA compute capability that a plan is for, as ``9.0``; "" on a CPU.
        devices: numbers of the GPUs that can run the plan, in :data:`headrace_launcher.gpus.ORDER`,
            where not all of the machine can; else empty.
        token_budget: most padded tokens of a batch.
        max_batch: most rows of a batch.
        pad_multiple: padded lengths are rounded up to a multiple of this many tokens.
        in_flight: batches that keep one instance busy; 0 where the number of cores says it.
    """

    engine: str
    version: str
    capability: str = ""
    devices: tuple[int, ...] = ()
    token_budget: int
    max_batch: int
    pad_multiple: int = 1
    in_flight: int = 0

    def most_rows(self, limit: int) -> int:
        """Returns the most rows of a batch for a model whose rows have up to ``limit`` tokens.

        Triton joins requests of one length into as many rows as the model takes, whatever the
        length, so that every profile of a plan must admit them, and have memory for them.
        """
        if self.engine not in PLANS:
            return self.max_batch
        return min(self.max_batch, max(_LEAST_ROWS, _MOST_TOKENS // limit))

    def precision(self, wanted: str) -> str:
        """Returns ``fp32``, ``fp16`` or ``bf16``: what ``auto`` is here, or what was asked for.

        Raises:
            UsageError: the engine or the processor does not have it.
        """
        if self.engine == "null":
            return "fp16" if wanted == "fp16" else "fp32"
        if self.engine == "openvino":
            return openvino.resolve_precision(wanted)
        if wanted == "bf16" and _numbers(self.capability) < _BF16_SINCE:
            raise UsageError(
                f"--precision bf16: a GPU of compute capability {self.capability} has none; use "
                f"fp16 or fp32"
            )
        return "fp16" if wanted == "auto" else wanted

    def dtype(self, precision: str, *, normalized: bool) -> str:
        """Returns the type that vectors are answered in.

        Vectors of unit length that were computed in half precision lose nothing in float16, whose
        steps are as fine or finer; what is not normalised may lie outside of its range.
        """
        if self.engine == "null":
            return "float16" if precision == "fp16" else "float32"
        half = self.engine in PLANS and precision != "fp32" and normalized
        return "float16" if half else "float32"


def choose(
    engine: str, capability: str = "", notice: Callable[[str], None] = lambda _: None
) -> Target:
    """Returns what to build for.

    Args:
        engine: ``auto`` (TensorRT where a GPU is found and it is installed, else OpenVINO) or an
            engine's name.
        capability: compute capability of a GPU elsewhere, as ``8.9``, for ``tensorrt-rtx``; "" for
            the GPU here.
        notice: told in one line why ``auto`` leaves a GPU idle.

    Raises:
        UsageError: ``capability`` does not go with ``engine``, or is none.
        MachineError: no GPU is found, or a library is missing.
    """
    if capability and engine != "tensorrt-rtx":
        raise UsageError(
            f"--capability {capability}: only --engine tensorrt-rtx builds for a GPU that is not "
            f"here; TensorRT itself builds on the machine that will run the plan"
        )
    if capability and not re.fullmatch(r"\d{1,2}\.\d", capability):
        raise UsageError(f"--capability {capability}: expected a compute capability such as 8.9")
    if engine == "auto":
        engine = _best(notice)
    if engine == "null":
        # As a GPU's: nothing is computed, so a request costs more than its rows.
        return Target(engine=engine, version="1", token_budget=1 << 16, max_batch=1024)
    if engine == "openvino":
        return cpu_target(engine, openvino.version())
    version = tensorrt.version(engine)
    if capability:
        tensorrt.check_capability(capability)
    devices: tuple[int, ...] = ()
    if not capability:
        gpus = find_gpus()
        if not gpus:
            raise MachineError(
                f"--engine {engine}: no NVIDIA GPU was found; build on a machine that has one "
                f"('headrace doctor' says what is seen)"
                + (
                    "; 'headrace build' builds for one elsewhere with --capability"
                    if engine == "tensorrt-rtx"
                    else ""
                )
            )
        capability = gpus[0].capability
        devices = _devices(gpus, capability)
    return gpu_target(engine, version, capability, devices)


def cpu_target(engine: str, version: str) -> Target:
    """Returns the target of an engine that computes on the CPU."""
    # Larger batches were not faster, and small ones pad less (docs/measurements.md).
    return Target(engine=engine, version=version, token_budget=2048, max_batch=64)


def gpu_target(engine: str, version: str, capability: str, devices: tuple[int, ...] = ()) -> Target:
    """Returns the target of an engine that computes on GPUs; its batches are yet unmeasured."""
    return Target(
        engine=engine,
        version=version,
        capability=capability,
        devices=devices,
        # Enough work for the largest GPUs at usual lengths; twice the rows would take twice the
        # memory: see most_rows.
        token_budget=1 << 16,
        max_batch=512,
        # Products of matrices see rows x tokens as one axis; the attention's own axis stays a
        # multiple of eight bytes.
        pad_multiple=4,
        # One computed, one whose inputs are copied meanwhile.
        in_flight=2,
    )


def misfit(contract: Contract, devices: tuple[int, ...] = ()) -> str | None:
    """Returns why this machine cannot run an entry, or None if nothing speaks against it.

    Args:
        contract: the entry's.
        devices: the numbers of the GPUs that its config names; empty for all.
    """
    built = f"it was built for {contract.built_for}"
    try:
        if contract.engine == "openvino":
            openvino.version()
        if contract.engine not in PLANS:
            return None
        gpus = find_gpus()
        version = tensorrt.version(contract.engine)
    except MachineError as error:
        return f"{built}, and {error}"
    here = sorted({gpu.capability for gpu in gpus})
    if contract.capability not in here:
        kinds = f"only GPUs of compute capability {', '.join(here)}" if here else "no NVIDIA GPU"
        return f"{built}, and here is {kinds}"
    if contract.engine_version != version:
        return f"{built}, and here is {contract.engine} {version}"
    if devices != _devices(gpus, contract.capability):
        return f"{built} on a machine with other GPUs"
    return None


def _best(notice: Callable[[str], None]) -> str:
    try:
        gpus = find_gpus()
        if not gpus:
            return "openvino"
        tensorrt.version("tensorrt")
    except MissingDependencyError as error:
        notice(f"the CPU computes: {error}")
        return "openvino"
    return "tensorrt"


def _devices(gpus: list[Gpu], capability: str) -> tuple[int, ...]:
    able = tuple(n for n, gpu in enumerate(gpus) if gpu.capability == capability)
    return () if len(able) == len(gpus) else able


def _numbers(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)
