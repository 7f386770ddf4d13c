"""What dead processes have left in shared memory is removed; what cannot be removed stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.contract import machine_tag
from headrace.transport.system import SHM, sweep


@pytest.fixture
def region():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = SHM / f"headrace-{machine_tag()}-{dead.pid}-0123456789ab"
    path.write_bytes(b"")
    yield path
    path.unlink(missing_ok=True)


def test_a_dead_processs_region_goes_and_a_live_ones_stays(region):
    own = SHM / f"headrace-{machine_tag()}-{os.getpid()}-0123456789ab"
    own.write_bytes(b"")
    try:
        sweep()
        assert not region.exists()
        assert own.exists()
    finally:
        own.unlink()


def test_another_users_region_is_left_alone(region, monkeypatch):
    def unlink(path, **_):
        raise PermissionError(1, "Operation not permitted", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        sweep()
    assert region.exists()
