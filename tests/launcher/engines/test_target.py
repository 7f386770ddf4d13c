"""Which engine is chosen on which machine; NVML and the libraries are stood in for."""

from __future__ import annotations

import pytest

from headrace.errors import MachineError, MissingDependencyError, UsageError
from headrace_launcher import gpus
from headrace_launcher.engines import buildplan, target, tensorrt
from headrace_launcher.engines.target import choose


@pytest.fixture
def rtx():
    try:
        return buildplan.load("tensorrt-rtx")
    except ImportError as error:
        pytest.skip(f"{error}; make test-rtx installs it")


def gpu(capability, name="NVIDIA X"):
    return gpus.Gpu(uuid="GPU-1", name=name, capability=capability, memory_bytes=1 << 30)


def test_auto_takes_tensorrt_where_a_gpu_is_found(monkeypatch):
    monkeypatch.setattr(target, "find_gpus", lambda: [gpu("9.0"), gpu("9.0")])
    monkeypatch.setattr(tensorrt, "version", lambda engine: "11.2.1.4")
    found = choose("auto")
    assert (found.engine, found.version, found.capability) == ("tensorrt", "11.2.1.4", "9.0")
    assert found.devices == ()  # all of them
    assert found.precision("auto") == "fp16"
    assert found.precision("bf16") == "bf16"
    assert found.dtype("fp16", normalized=True) == "float16"
    assert found.dtype("fp16", normalized=False) == "float32"
    assert found.dtype("fp32", normalized=True) == "float32"


def test_a_plan_runs_only_on_gpus_of_its_kind(monkeypatch):
    monkeypatch.setattr(target, "find_gpus", lambda: [gpu("7.5"), gpu("9.0"), gpu("7.5")])
    monkeypatch.setattr(tensorrt, "version", lambda engine: "10.13")
    found = choose("tensorrt")
    assert (found.capability, found.devices) == ("7.5", (0, 2))
    with pytest.raises(UsageError, match=r"capability 7\.5 has none"):
        found.precision("bf16")


def test_auto_says_why_a_gpu_is_left_idle(monkeypatch):
    def missing(engine):
        raise MissingDependencyError("the engine tensorrt needs a library; install it")

    said = []
    monkeypatch.setattr(target, "find_gpus", lambda: [gpu("9.0")])
    monkeypatch.setattr(tensorrt, "version", missing)
    assert choose("auto", notice=said.append).engine == "openvino"
    assert said == ["the CPU computes: the engine tensorrt needs a library; install it"]
    with pytest.raises(MissingDependencyError):
        choose("tensorrt")


def test_without_a_gpu_the_engines_say_what_to_do(rtx, monkeypatch):
    monkeypatch.setattr(target, "find_gpus", list)
    assert choose("auto").engine == "openvino"
    monkeypatch.setattr(tensorrt, "version", lambda engine: "10.13")
    with pytest.raises(MachineError, match="no NVIDIA GPU was found; build on a machine"):
        choose("tensorrt")
    with pytest.raises(MachineError, match="elsewhere with --capability"):
        choose("tensorrt-rtx")
    with pytest.raises(UsageError, match="only --engine tensorrt-rtx"):
        choose("tensorrt", "8.9")
    with pytest.raises(UsageError, match="expected a compute capability"):
        choose("tensorrt-rtx", "89")
    with pytest.raises(UsageError, match=r"builds for 7\.5, 8\.0"):
        choose("tensorrt-rtx", "9.0")


def test_long_rows_leave_memory_for_fewer(rtx):
    found = choose("tensorrt-rtx", "8.9")
    assert [found.most_rows(limit) for limit in (128, 512, 1024, 8192)] == [512, 512, 256, 64]
    assert choose("null").most_rows(8192) == 1024
