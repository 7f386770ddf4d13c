"""What every engine of the hosted model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Answer = Callable[["NDArray[np.floating] | None", "Exception | None"], None]


class Engine(Protocol):
    """Computes batches in the background."""

    def submit(self, ids: NDArray[np.int32], mask: NDArray[np.int32], answer: Answer) -> None:
        """Starts ``ids`` and ``mask``, int32[rows, length]; blocks while every stream is busy.

        Both are the request's own memory, which may go as soon as ``submit`` returns.
        ``answer`` is called once, from any thread, with the vectors, [rows, dimension] in the
        type that the settings name, or an error; it has copied the vectors when it returns.
        """

    def close(self) -> None:
        """Waits for what is running."""
