"""What goes to TEI and comes back: bodies of requests, made ahead in a file, and answers read."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import orjson
except ImportError:

    def quote(text: str) -> bytes:
        """Returns a text as JSON."""
        return json.dumps(text, ensure_ascii=False).encode()

    def parse(body: bytes) -> Any:
        """Returns what JSON says.

        Raises:
            ValueError: it is none.
        """
        return json.loads(body)

else:

    def quote(text: str) -> bytes:
        """Returns a text as JSON."""
        return orjson.dumps(text)

    def parse(body: bytes) -> Any:
        """Returns what JSON says.

        Raises:
            ValueError: it is none.
        """
        return orjson.loads(body)


MOST_BYTES = 2_000_000
"""Of a body: TEI's --payload-limit where nobody sets it; /info does not tell it."""

_BEGIN, _END = b'{"inputs":[', b'],"truncate":true,"normalize":true}'
_SHOWN = 5  # rows named in a message


class WrongAnswerError(ValueError):
    """An answer is not what was asked for; the message goes on after "the answer to ..."."""


class Requests:
    """Requests in the files of a folder, which several processes read.

    Args:
        folder: where :func:`write_requests` has put them.
    """

    def __init__(self, folder: Path) -> None:
        self._offsets: NDArray[np.int64] = np.load(folder / "offsets.npy")
        self._starts: NDArray[np.int64] = np.load(folder / "starts.npy")
        self._rows: NDArray[np.int64] = np.load(folder / "rows.npy")
        self._wanted: NDArray[np.bool_] = np.load(folder / "wanted.npy")
        with (folder / "bodies.bin").open("rb") as file:
            self._bodies = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def body(self, request: int) -> bytes:
        """Returns the body of a request."""
        return self._bodies[self._offsets[request] : self._offsets[request + 1]]

    def count(self, request: int) -> int:
        """Returns how many rows a request has."""
        return int(self._starts[request + 1] - self._starts[request])

    def wanted(self, request: int) -> NDArray[np.int64]:
        """Returns which rows of a request are to be kept, numbered from its first."""
        return np.flatnonzero(self._wanted[self._starts[request] : self._starts[request + 1]])

    def rows(self, request: int) -> NDArray[np.int64]:
        """Returns the rows of a request, by their numbers in the input."""
        return self._rows[self._starts[request] : self._starts[request + 1]]

    def name(self, request: int) -> str:
        """Returns words for a request in a message."""
        rows = self.rows(request)
        more = ", …" if len(rows) > _SHOWN else ""
        return f"request {request:,} (rows {', '.join(map(str, rows[:_SHOWN]))}{more})"


def write_requests(
    folder: Path,
    quoted: Sequence[bytes],
    rows: NDArray[np.int64],
    wanted: NDArray[np.bool_],
    *,
    batch_size: int,
    most_bytes: int = MOST_BYTES,
) -> int:
    """Writes the requests for some rows; returns how many they are.

    Args:
        folder: an empty one.
        quoted: texts as JSON, by the numbers of their rows.
        rows: int64[n], n > 0: which of them to send, in this order.
        wanted: bool[n]: whose vectors to keep.
        batch_size: most rows of a request.
        most_bytes: of a body, but for a text that is longer by itself.
    """
    room = most_bytes - len(_BEGIN) - len(_END)
    starts, offsets = [0], [0]
    with (folder / "bodies.bin").open("wb") as file:
        texts: list[bytes] = []
        size = 0

        def close() -> None:
            body = _BEGIN + b",".join(texts) + _END
            file.write(body)
            starts.append(starts[-1] + len(texts))
            offsets.append(offsets[-1] + len(body))

        for row in rows:
            text = quoted[row]
            if texts and (len(texts) == batch_size or size + len(text) + 1 > room):
                close()
                texts, size = [], 0
            texts.append(text)
            size += len(text) + 1
        close()
    np.save(folder / "starts.npy", np.array(starts, np.int64))
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    np.save(folder / "rows.npy", rows.astype(np.int64))
    np.save(folder / "wanted.npy", wanted)
    return len(starts) - 1


def read_answer(
    body: bytes, count: int, dimension: int, wanted: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns float32[len(wanted), dimension]: some vectors of an answer.

    Where none is wanted, an answer that can be seen to be right is not parsed.

    Args:
        body: what came.
        count: vectors that it must have.
        dimension: numbers that each must have.
        wanted: int64: which vectors.

    Raises:
        WrongAnswerError: it is wrong.
    """
    if not len(wanted) and _looks_right(body, count, dimension):
        return np.empty((0, dimension), np.float32)
    try:
        found = parse(body)
    except ValueError as error:
        raise WrongAnswerError(f"is not JSON ({error}): {beginning(body)}") from error
    if not isinstance(found, list):
        raise WrongAnswerError(f"is not a list of vectors: {beginning(body)}")
    if len(found) != count:
        raise WrongAnswerError(f"has {len(found):,} vectors, not {count:,}")
    for place, vector in enumerate(found):
        size = len(vector) if isinstance(vector, list) else None
        if size != dimension:
            what = "no vector" if size is None else f"a vector of {size:,} numbers"
            raise WrongAnswerError(f"has {what} in place {place:,}, not one of {dimension:,}")
    try:
        vectors = np.array(found, np.float32)
    except (TypeError, ValueError) as error:
        raise WrongAnswerError(f"has something else than numbers: {beginning(body)}") from error
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise WrongAnswerError(f"has numbers that are null or not finite in place {bad[0]:,}")
    return vectors[wanted]


def beginning(body: bytes) -> str:
    """Returns the beginning of a body for a message."""
    text = body[:200].decode(errors="replace")
    return repr(text) + ("…" if len(body) > 200 else "")


def _looks_right(body: bytes, count: int, dimension: int) -> bool:
    """Returns whether an answer, but for the numbers, is what one without spaces must be."""
    vector = b"[" + b"," * (dimension - 1) + b"]"
    return body.translate(None, b"0123456789+-.eE") == b"[" + b",".join([vector] * count) + b"]"
