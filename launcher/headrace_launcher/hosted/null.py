"""An engine that computes nothing, to measure and check all the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Answer


def load(folder: Path, settings: dict[str, Any], device: int) -> NullEngine:
    """Returns the engine; it needs no file."""
    del folder, device
    return NullEngine(settings)


class NullEngine:
    """Answers at once, so that everything but the encoder can be measured and checked.

    A vector holds the row's token count, the sum of its ids modulo 65,521 and its first ids, so
    that a row in the wrong place or with wrong tokens shows. In float16, which has no integers
    above 2,048, each number n stands as two: n // 256 and n % 256.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._dimension = int(settings["dimension"])
        step = 2 if settings["dtype"] == "float16" else 1
        count = -(-self._dimension // step)  # numbers in a vector
        most = max(bucket["max_batch"] for bucket in settings["buckets"])
        # Kept from one request to the next: fresh memory would cost more than all the rest.
        self._vectors = np.zeros((most, count * step), settings["dtype"])
        self._numbers = self._vectors.view(np.float32)
        self._width = count  # columns of it that may hold something
        self._head = np.empty(most * (settings["buckets"][-1]["max_length"] + 2), np.int32)
        length = settings["buckets"][-1]["max_length"]
        # int32, where it fits
        self._sum = np.result_type(np.int32, np.min_scalar_type(-length * settings["vocab_size"]))
        self._pairs: NDArray[np.float32] | None = None
        if step == 2:
            every = np.arange(max(65521, settings["vocab_size"]))
            halves = np.stack([every // 256, every % 256], axis=1).astype(np.float16)
            self._pairs = halves.view(np.float32).ravel()

    def submit(self, ids: NDArray[np.int32], mask: NDArray[np.int32], answer: Answer) -> None:
        """See :meth:`Engine.submit`."""
        rows, length = ids.shape
        head = self._head[: rows * (length + 2)].reshape(rows, length + 2)
        kept = np.multiply(ids, mask, out=head[:, 2:])
        head[:, 0] = mask.sum(1, dtype=np.int32)
        head[:, 1] = kept.sum(1, dtype=self._sum) % 65521
        head = head[:, : self._numbers.shape[1]]
        width = head.shape[1]
        self._numbers[:, width : self._width] = 0
        self._width = width
        self._numbers[:rows, :width] = head if self._pairs is None else self._pairs.take(head)
        answer(self._vectors[:rows, : self._dimension], None)

    def close(self) -> None:
        """See :meth:`Engine.close`."""
