"""What every engine of the hosted model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class DeviceArray(NamedTuple):
    """A C-ordered array in a GPU's memory.

    Attributes:
        address: of its first byte.
        shape: of the array.
        dtype: type of its numbers.
        device: number of the GPU.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int


Ids = NDArray[np.int32] | DeviceArray
Answer = Callable[["NDArray[np.floating] | DeviceArray | None", "Exception | None"], None]


class Engine(Protocol):
    """Computes batches in the background."""

    def submit(self, ids: Any, mask: Any, answer: Answer) -> None:
        """Starts ``ids`` and ``mask``, int32[rows, length]; blocks while every stream is busy.

        Both are the request's own memory, which may go as soon as ``submit`` returns; they are
        :class:`DeviceArray` where the config asks Triton for that.
        ``answer`` is called once, from any thread, with the vectors, [rows, dimension] in the
        type that the settings name, or an error; it has copied the vectors when it returns.
        """

    def close(self) -> None:
        """Waits for what is running."""
