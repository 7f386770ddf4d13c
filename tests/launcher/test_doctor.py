from __future__ import annotations

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


def test_gpus_are_named_as_the_driver_names_them(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path)
    assert gpus.find_gpus() == []
    for number in ("0000:01:00.0", "0000:02:00.0"):
        folder = tmp_path / number
        folder.mkdir()
        (folder / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 1\n")
    assert gpus.find_gpus() == ["NVIDIA H200", "NVIDIA H200"]
    assert "NVIDIA H200" in checks()["GPU"].found


@pytest.mark.parametrize("size", [0, 1 << 40])
def test_a_small_dev_shm_is_told(monkeypatch, size):
    monkeypatch.setattr(doctor, "_SHM_NEEDED", size)
    assert checks()["shm"].mark == ("ok" if size == 0 else "missing")
