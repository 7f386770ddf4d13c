"""The words of a tokenizer that are kept in the user's cache folder from run to run.

One file a tokenizer: a SHA-256 over all that follows, then an Arrow stream with the columns
``word`` (binary) and ``ids`` (list<int32>, null where rows with the word are not cached). The
file's name stands for this format, the version of ``tokenizers`` and the tokenizer's own hash.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers

SCHEMA = pa.schema([("word", pa.binary()), ("ids", pa.list_(pa.int32()))])
MAX_WORDS = 3 << 17  # six sevenths of what a cache holds, so that there is room for new ones
MAX_BYTES = 32 << 20
MAX_FOLDER_BYTES = 256 << 20
_PART_SECONDS = 3600.0
_FORMAT = 1
_CODE = (
    *("separable", "newwords", "wordpiece", "wordcache", "cutting", "wordtable", "idlists"),
    *("kernels/words", "kernels/compiled"),
)
_DIGEST_BYTES = hashlib.sha256().digest_size


def load(tokenizer_hash: str) -> pa.RecordBatch | None:
    """Returns the kept words, or None where there are none that can be trusted.

    Args:
        tokenizer_hash: SHA-256 (hex) of the ``tokenizer.json``.
    """
    try:
        if not _file(tokenizer_hash).is_file():
            return None
        data = memoryview(_file(tokenizer_hash).read_bytes())
    except OSError:
        return None
    digest, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if _digest(tokenizer_hash, payload) != digest:
        return None
    try:
        words = pa.ipc.open_stream(payload).read_all().combine_chunks()
    except (pa.ArrowException, OSError):
        return None
    if words.schema != SCHEMA or not words.num_rows:
        return None
    return words.to_batches()[0]


def save(tokenizer_hash: str, batches: Sequence[pa.RecordBatch]) -> None:
    """Adds words to the kept ones; the newest come first and the last ones go when it is full.

    At most :data:`MAX_WORDS` words and :data:`MAX_BYTES` bytes of words and ids are kept, and
    at most :data:`MAX_FOLDER_BYTES` for all tokenizers together: other files go, the ones
    written longest ago first. Nothing is raised where the folder cannot be written.

    Args:
        tokenizer_hash: SHA-256 (hex) of the ``tokenizer.json``.
        batches: batches of :data:`SCHEMA`, the newest last.
    """
    old = load(tokenizer_hash)
    parts = [batch for batch in reversed(batches) if batch.num_rows]
    if not parts:
        return
    words = _capped(pa.Table.from_batches(parts if old is None else [*parts, old], SCHEMA))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as stream:
        stream.write_table(words)
    payload = memoryview(sink.getvalue())
    with contextlib.suppress(OSError):
        file = _file(tokenizer_hash)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(file, _digest(tokenizer_hash, payload), payload)
        _tidy(file)


def forget(tokenizer_hash: str) -> None:
    """Removes what is kept for a tokenizer, where that can be done."""
    with contextlib.suppress(OSError):
        _file(tokenizer_hash).unlink(missing_ok=True)


@functools.cache
def _makers() -> str:
    """What words depend on beside the tokenizer's file: the code that makes ids of them."""
    digest = hashlib.sha256(f"{_FORMAT} {tokenizers.__version__}".encode())
    for name in _CODE:
        digest.update(Path(__file__).parent.joinpath(f"{name}.py").read_bytes())
    return digest.hexdigest()


def _file(tokenizer_hash: str) -> Path:
    key = f"{_makers()} {tokenizer_hash}"
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "headrace" / "words" / f"{name}.words"


def _digest(tokenizer_hash: str, payload: memoryview) -> bytes:
    digest = hashlib.sha256(f"{_makers()} {tokenizer_hash} ".encode())
    digest.update(payload)
    return digest.digest()


def _capped(words: pa.Table) -> pa.Table:
    """Returns the first of every word, as many as fit."""
    words = words.combine_chunks()
    codes = words["word"].combine_chunks().dictionary_encode().indices.to_numpy()
    # A word's code is a new highest one where the word is met for the first time.
    first = np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))[:MAX_WORDS]
    if len(first) < len(codes):
        words = words.take(pa.array(first))
    lengths = pc.binary_length(words["word"]).to_numpy().astype(np.int64)
    ids = pc.fill_null(pc.list_value_length(words["ids"]), 0).to_numpy()
    fitting = int(np.searchsorted(np.cumsum(lengths + 4 * ids), MAX_BYTES, "right"))
    return words.slice(0, fitting)


def _write(file: Path, *parts: bytes | memoryview) -> None:
    # mkstemp makes the file for its owner alone (0600).
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            for part in parts:
                stream.write(part)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _tidy(newest: Path) -> None:
    """Removes other files, oldest first, until the folder is within its bound.

    Half a file that a run has left when it was killed goes after an hour.
    """
    for path in newest.parent.glob("*.part"):
        if path.stat().st_mtime < time.time() - _PART_SECONDS:
            path.unlink(missing_ok=True)
    files = sorted(
        ((path.stat().st_mtime, path.stat().st_size, path) for path in newest.parent.iterdir()),
        reverse=True,
    )
    total = newest.stat().st_size
    for _, size, path in files:
        if path != newest and (total := total + size) > MAX_FOLDER_BYTES:
            path.unlink(missing_ok=True)
