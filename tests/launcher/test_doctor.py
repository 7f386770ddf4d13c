from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from headrace.errors import MissingDependencyError
from headrace_launcher import doctor, gpus, triton


def checks():
    return {check.name: check for check in doctor.examine()}


def test_everything_is_looked_at():
    found = checks()
    assert list(found) == [
        "Python",
        "libpython",
        "Triton",
        "launcher",
        "OpenVINO",
        "GPU",
        "TensorRT",
        "CUDA IPC",
        "shm",
        "gRPC",
    ]
    assert all(check.mark in {"ok", "none", "missing"} for check in found.values())


def test_what_is_missing_comes_with_its_remedy(monkeypatch, tmp_path):
    def no_library():
        raise MissingDependencyError("libpython3.x.so is not installed; install it")

    monkeypatch.setattr(triton, "find_libpython", no_library)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_SHM", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = checks()
    for name, remedy in (
        ("libpython", "install it"),
        ("launcher", "pip install"),
        ("shm", "--transport grpc"),
    ):
        assert found[name].mark == "missing"
        assert remedy in found[name].remedy
    assert found["Triton"].mark == "none"
    assert triton.WHEEL_VARIABLE in found["Triton"].remedy


def test_a_cache_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = checks()["Triton"]
    assert found.mark == "missing"
    assert "XDG_CACHE_HOME" in found.remedy


class Nvml:
    """A stand-in for pynvml: two kinds of GPU, in the order of their buses."""

    class NVMLError(Exception):
        pass

    kinds = (("H200", (9, 0)), ("L4", (8, 9)), ("H200", (9, 0)))

    def nvmlInit(self):
        pass

    def nvmlShutdown(self):
        pass

    def nvmlDeviceGetCount(self):
        return len(self.kinds)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, index):
        return f"GPU-{index}aa"

    def nvmlDeviceGetName(self, index):
        return f"NVIDIA {self.kinds[index][0]}".encode()

    def nvmlDeviceGetCudaComputeCapability(self, index):
        return self.kinds[index][1]

    def nvmlDeviceGetMemoryInfo(self, index):
        return SimpleNamespace(total=80 << 30)


def test_gpus_are_told_as_nvml_tells_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = gpus.find_gpus()
    assert [(gpu.uuid, gpu.name, gpu.capability) for gpu in found] == [
        ("GPU-0aa", "NVIDIA H200", "9.0"),
        ("GPU-1aa", "NVIDIA L4", "8.9"),
        ("GPU-2aa", "NVIDIA H200", "9.0"),
    ]
    assert "NVIDIA L4 (8.9, 80 GiB)" in checks()["GPU"].found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    assert [gpu.uuid for gpu in gpus.find_gpus()] == ["GPU-2aa", "GPU-1aa"]


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (None, "ABC"),
        ("", ""),
        ("-1", ""),
        ("1", "B"),
        ("2, 0", "CA"),
        ("0,7,1", "A"),
        ("GPU-c", "C"),
        ("GPU", ""),  # names three
        ("GPU-b,GPU-a", "BA"),
        ("NoDevFiles", ""),
    ],
)
def test_hidden_gpus_are_left_out_as_cuda_does(chosen, left):
    every = [
        gpus.Gpu(uuid=f"GPU-{name}", name=name.upper(), capability="9.0", memory_bytes=1)
        for name in "abc"
    ]
    assert "".join(gpu.name for gpu in gpus.visible(every, chosen)) == left


def test_without_a_driver_there_is_no_gpu(monkeypatch, tmp_path):
    class Without(Nvml):
        def nvmlInit(self):
            raise self.NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", Without())
    assert gpus.find_gpus() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path)
    assert gpus.find_gpus() == []


def test_a_gpu_that_cannot_be_asked_comes_with_the_remedy(monkeypatch, tmp_path):
    folder = tmp_path / "0000:01:00.0"
    folder.mkdir()
    (folder / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 1\n")
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependencyError, match=r"NVIDIA H200.*nvidia-ml-py"):
        gpus.find_gpus()
    assert "pip install" in checks()["GPU"].remedy


@pytest.mark.parametrize("size", [0, 1 << 40])
def test_a_small_dev_shm_is_told(monkeypatch, size):
    monkeypatch.setattr(doctor, "_SHM_NEEDED", size)
    assert checks()["shm"].mark == ("ok" if size == 0 else "missing")
