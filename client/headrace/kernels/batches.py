"""The loop that fills batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compiled import compiled


@compiled
def fill_batch(
    rows: NDArray[np.int64],
    offsets: NDArray[np.int64],
    tokens: NDArray[np.int32],
    pad_id: np.int32,
    ids: NDArray[np.int32],
    mask: NDArray[np.int32],
) -> None:
    """See :func:`headrace.batcher.fill`."""
    for index in range(len(rows)):
        start = offsets[rows[index]]
        length = offsets[rows[index] + 1] - start
        for place in range(length):
            ids[index, place] = tokens[start + place]
            mask[index, place] = 1
        for place in range(length, ids.shape[1]):
            ids[index, place] = pad_id
            mask[index, place] = 0
