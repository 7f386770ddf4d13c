from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pyarrow as pa
import pytest

from client.trained import SENTENCES, trained
from headrace.batcher import compile_loops
from headrace.blocks import Block
from headrace.kernels import batches, compiled, lines, words
from headrace.records import parse
from headrace.tokenizer import TextTokenizer

CLIENT = Path(__file__).parent


def loops():
    return {
        name: value
        for module in (batches, compiled, lines, words)
        for name, value in vars(module).items()
        if isinstance(value, numba.core.dispatcher.Dispatcher) and not name.startswith("_")
    }


@pytest.mark.parametrize("writable", [False, True])
def test_every_loop_is_compiled_for_one_kind_of_arrays(tmp_path, writable):
    for name in ("bert", "roberta", "xlm-r"):
        path = tmp_path / "tokenizer.json"
        path.write_text(trained(name))
        tokenizer = TextTokenizer(path, max_length=16, prompt="query: it is ")
        column = pa.array(SENTENCES)
        if writable:  # as buffers are that Arrow's readers have made
            buffers = [
                None if one is None else pa.py_buffer(bytearray(one)) for one in column.buffers()
            ]
            column = pa.Array.from_buffers(pa.string(), len(column), buffers)
        tokenizer.encode(column)
        tokenizer.encode(pa.array([""]))
        tokenizer.encode(pa.array([], pa.string()))
    compile_loops()
    for data in (b'{"text": "a"}\n', b'{"text": "a"}\n{"id": 1, "text": "b"}'):
        block = Block(
            index=0,
            file="",
            format="jsonl",
            data=data,
            first_row=0,
            first_line=1,
            rows=data.count(b"{"),
            bytes_done=0,
        )
        parse(block, text_field="text", id_field=None, id_type="string")
    assert len(loops()) == 11
    for name, loop in loops().items():
        assert len(loop.signatures) == 1, name


def test_no_loop_leaves_its_arrays(tmp_path):
    """Runs other tests with every index checked."""
    names = ["wordtable", "wordpiece", "wordcache", "batcher", "records"]
    environment = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        # Those that compare with slow ways run as they are, and take their time.
        + ["-k", "not agree"]
        + [str(CLIENT / f"test_{name}.py") for name in names],
        cwd=CLIENT.parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_where_nothing_can_be_kept_everything_works(tmp_path):
    """A read-only installation, and no home: compiled by every process for itself."""
    script = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from headrace.batcher import compile_loops\n"
        "compile_loops()\n"
        "from headrace.kernels import batches, compiled\n"
        "assert not compiled.is_kept(batches.fill_batch)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def damage_index(folder):
    for path in folder.rglob("*.nbi"):
        path.write_bytes(b"")


def damage_data(folder):
    for path in folder.rglob("*.nbc"):
        path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [damage_index, damage_data])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    script = (
        "from headrace.kernels import batches, compiled\n"
        "from headrace.batcher import compile_loops\n"
        "compile_loops()\n"
        "assert compiled.is_kept(batches.fill_batch)\n"
        "print(sum(batches.fill_batch.stats.cache_hits.values()))\n"
    )

    def run():
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert [run(), run()] == [0, 1]
    damage(tmp_path)
    assert [run(), run()] == [0, 1]


def test_a_cache_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    script = "from headrace.batcher import compile_loops; compile_loops()"
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); " + script
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "folder")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
