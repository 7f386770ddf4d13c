from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pyarrow as pa
import pytest

from client.trained import SENTENCES, trained
from headrace import kernels
from headrace.batcher import compile_fill
from headrace.tokenizer import TextTokenizer

CLIENT = Path(__file__).parent


def loops():
    return {
        name: value
        for name, value in vars(kernels).items()
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
    compile_fill()
    assert len(loops()) >= 7
    for name, loop in loops().items():
        assert len(loop.signatures) == 1, name


def test_no_loop_leaves_its_arrays(tmp_path):
    """Runs other tests with every index checked."""
    tests = ["test_wordtable.py", "test_wordpiece.py", "test_wordcache.py", "test_batcher.py"]
    environment = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        + [str(CLIENT / name) for name in tests],
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
        "from headrace.batcher import compile_fill\n"
        "compile_fill()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
