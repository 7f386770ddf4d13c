"""The job that is killed near its end: what is watched, on a stand-in for the client."""

from __future__ import annotations

import sys

import pytest

from headrace_bench import longrun
from headrace_bench.memory import MIB

CLIENT = """
import json, sys, time
have = 20 * int(sys.argv[2])
with open(sys.argv[1], "a") as file:
    for number in range(have, 20):
        file.write(json.dumps({"block": number, "written": (number + 1) * 50}) + "\\n")
        file.flush()
        time.sleep(0.15)
"""


def command(manifest, done=0):
    return [sys.executable, "-c", CLIENT, str(manifest), str(done)]


def test_a_run_is_killed_where_it_should_be_and_watched_by_tenth(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    part, status = longrun.watch(command(manifest), manifest, 1000, lambda rows: rows < 500)
    assert status == -9
    assert 500 <= part.rows < 900
    assert part.first_row == 0
    assert 0 < part.first_commit < part.seconds
    assert all(peak > MIB for peak in part.resident[1:5])
    assert part.resident[9] == 0


def test_a_run_that_is_let_be_ends_by_itself(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"block": 0, "written": 50}\n')
    part, status = longrun.watch(command(manifest, 1), manifest, 1000, lambda _: True)
    assert (status, part.first_row, part.rows, part.first_commit) == (0, 50, 50, None)


def test_a_run_that_fails_says_why(tmp_path):
    failing = [sys.executable, "-c", "import sys; sys.exit('the disk is full')"]
    with pytest.raises(RuntimeError, match="ended with 1: the disk is full"):
        longrun.watch(failing, tmp_path / "none", 10, lambda _: True)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"", 0),
        (b'{"job": {}}\n', 0),
        (b'{"job": {}}\n{"block": 0, "written": 7}\n', 7),
        (b'{"block": 0, "written": 7}\n{"block": 1, "writ', 7),
        (b'{"block": 0, "written": 7}\n{"complete": true}\n', 7),
    ],
)
def test_the_last_whole_block_of_a_manifest_counts(tmp_path, content, rows):
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(content)
    assert longrun.rows_done(path) == rows


def test_rows_of_a_manifest_that_is_not_there(tmp_path):
    assert longrun.rows_done(tmp_path / "none") == 0


def test_the_table_has_both_runs():
    part = {"first_row": 0, "rows": 900, "seconds": 2.0, "first_commit": 0.5}
    found = {
        "first": {**part, "resident": [MIB, 2 * MIB, 0]},
        "second": {**part, "first_row": 900, "first_commit": None, "resident": [3 * MIB]},
        "report": {"memory_bytes": 4 * MIB},
        "manifest_bytes": 5000,
        "input_bytes": 6 * MIB,
    }
    table = longrun.show(found, 1000)
    assert "first block durable after 0.5 s · resident by tenth 1 2 MiB" in table
    assert "durable after - · resident by tenth 3 MiB" in table
    assert "calculated 4 MiB · manifest 5,000 bytes for 1,000 rows · input 6 MiB" in table
