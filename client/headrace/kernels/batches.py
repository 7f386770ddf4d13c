"""The loops that plan batches and fill them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compiled import compiled


@compiled
def cut_lengths(
    lengths: NDArray[np.int64],
    ends: NDArray[np.int64],
    firsts: NDArray[np.int64],
    caps: NDArray[np.int64],
    overhead: int,
    costs: NDArray[np.int64],
    starts: NDArray[np.int64],
) -> int:
    """Cuts lengths into stretches so that padded tokens and ``overhead`` a batch are fewest.

    The shortest path over the places to cut, as in Knuth and Plass, "Breaking Paragraphs into
    Lines" (1981).

    Args:
        lengths: int64[n], ascending.
        ends: int64[n + 1]; how many rows are shorter than each length, and at last all rows.
        firsts: int64[n]; the first length of each one's bucket.
        caps: int64[n]; most rows of a batch that is padded to each length.
        overhead: what a batch costs beside its tokens, in tokens.
        costs: int64[n + 1], to be filled: of all before each length.
        starts: int64[n], to be filled: where the stretch begins that ends with each length.

    Returns:
        Tokens of all rows, padded; a stretch of several batches may do with fewer.
    """
    costs[0] = 0
    for last in range(len(lengths)):
        least = -1
        for first in range(last, firsts[last] - 1, -1):
            rows = ends[last + 1] - ends[first]
            batches = (rows + caps[last] - 1) // caps[last]
            cost = costs[first] + rows * lengths[last] + batches * overhead
            if least < 0 or cost <= least:
                least, starts[last] = cost, first
            # From here on each row that comes to the stretch adds more padding than its share of
            # a batch of its own could be, so that all of them save one batch at the most.
            elif (
                first > firsts[last]
                and (lengths[last] - lengths[first - 1]) * caps[first - 1] >= overhead
                and cost - overhead > least
            ):
                break
        costs[last + 1] = least
    padded, stop = 0, len(lengths)
    while stop:
        first = starts[stop - 1]
        padded += (ends[stop] - ends[first]) * lengths[stop - 1]
        stop = first
    return padded


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
