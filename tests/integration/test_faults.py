"""The short form of ``make faults``: every step of a run once, and each kind of kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server


@pytest.mark.parametrize("output", [".npy", ".parquet"])
def test_jobs_that_are_killed_end_with_the_same_bytes(repository, tmp_path, output):
    command = [sys.executable, str(Path(__file__).with_name("faults.py")), "--short", output]
    command += ["--repository", str(repository), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
