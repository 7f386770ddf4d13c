"""Ragged tokens -> length-sorted padded batches under a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.contract import Bucket, Contract
from headrace.kernels.batches import cut_lengths, fill_batch
from headrace.tokens import Tokens

MOST_PADDING = 0.045  # of a block, beside what the rounding adds; a run is to stay below 5 %
# What a batch may cost beside its tokens, in parts of the token budget: first and at last.
_OVERHEADS = (32, 16384)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one block that go to the server together.

    Attributes:
        rows: int64[n]; their numbers in the block.
        length: tokens that each is padded to.
    """

    rows: NDArray[np.int64]
    length: int


def plan_batches(
    lengths: NDArray[np.int64], rows: NDArray[np.int64], contract: Contract
) -> Iterator[Batch]:
    """Cuts ``rows`` into batches of rows of like length, the longest first.

    A batch lies in one of the contract's buckets, has at most the bucket's ``max_batch`` rows and
    at most ``token_budget`` padded tokens (but always one row), and is padded to its own longest
    row, rounded up to ``pad_multiple``. Among all ways to cut, it is the one with the fewest
    padded tokens and batches, where a batch counts as a 32nd of the budget, or as less, down to a
    16,384th, where more than :data:`MOST_PADDING` would be padding. The same lengths always give
    the same batches.

    Args:
        lengths: int64[rows of the block]; tokens of each row, at most ``length_limit``.
        rows: int64[n]; numbers of the rows to batch.
        contract: the model's settings.
    """
    order = rows[np.argsort(lengths[rows], kind="stable")]
    sorted_lengths = lengths[order]
    end = len(order)
    for start in _cuts(sorted_lengths, contract):
        while end > start:
            longest = int(sorted_lengths[end - 1])
            bucket, _ = _bucket_of(longest, contract.buckets)
            length = _padded(longest, contract.pad_multiple, bucket.max_length)
            first = max(start, end - _most_rows(length, bucket, contract))
            yield Batch(rows=order[first:end], length=length)
            end = first


def fill(
    batch: Batch,
    tokens: Tokens,
    pad_id: int,
    ids: NDArray[np.int32],
    mask: NDArray[np.int32],
) -> None:
    """Writes a batch's padded ids and its mask in place.

    Args:
        batch: which rows, and how long each becomes.
        tokens: the tokens of the batch's block.
        pad_id: fills the shorter rows.
        ids: int32[len(batch.rows), batch.length], overwritten.
        mask: the same shape; 1 for a token, 0 for padding.
    """
    fill_batch(batch.rows, tokens.offsets, tokens.ids, np.int32(pad_id), ids, mask)


def compile_loops() -> None:
    """Has the loops compiled, which takes seconds where that was not done before."""
    row, one = np.zeros((1, 1), np.int32), np.ones(1, np.int64)
    tokens = Tokens(ids=row[0], offsets=np.array([0, 1]), truncated=np.zeros(1, np.bool_))
    fill(Batch(rows=np.zeros(1, np.int64), length=1), tokens, 0, row, row.copy())
    cut_lengths(one, np.array([0, 1]), one - 1, one, 1, np.array([0, 0]), one.copy())


def _cuts(lengths: NDArray[np.int64], contract: Contract) -> list[int]:
    """Returns where stretches of like rows begin, descending; ``lengths`` are ascending."""
    kinds, begins = np.unique(lengths, return_index=True)
    buckets = [_bucket_of(length, contract.buckets) for length in kinds.tolist()]
    padded = np.array(
        [
            _padded(length, contract.pad_multiple, bucket.max_length)
            for length, (bucket, _) in zip(kinds.tolist(), buckets, strict=True)
        ],
        np.int64,
    )
    # Lengths that are padded to the same one are one.
    new = np.flatnonzero(np.diff(padded, prepend=-1))
    padded, begins, buckets = padded[new], begins[new], [buckets[place] for place in new.tolist()]
    ends = np.append(begins, len(lengths)).astype(np.int64)
    firsts = np.searchsorted(padded, [shorter for _, shorter in buckets], "right")
    caps = np.array(
        [
            _most_rows(length, bucket, contract)
            for length, (bucket, _) in zip(padded.tolist(), buckets, strict=True)
        ],
        np.int64,
    )
    least = int((np.diff(ends) * padded).sum())
    starts = np.empty(len(padded), np.int64)
    costs = np.empty(len(padded) + 1, np.int64)
    most, fewest = (contract.token_budget // part for part in _OVERHEADS)
    overhead = most
    while (
        cut_lengths(padded, ends, firsts, caps, overhead, costs, starts) * (1 - MOST_PADDING)
        > least
        and overhead > fewest
    ):
        overhead = max(fewest, overhead * 3 // 4)
    cuts, stop = [], len(padded)
    while stop:
        stop = int(starts[stop - 1])
        cuts.append(int(ends[stop]))
    return cuts


def _most_rows(length: int, bucket: Bucket, contract: Contract) -> int:
    return min(bucket.max_batch, max(1, contract.token_budget // length))


def _bucket_of(length: int, buckets: Sequence[Bucket]) -> tuple[Bucket, int]:
    """Returns the bucket of a row of ``length`` tokens and where the bucket before it ends."""
    below = -1
    for bucket in buckets:
        if length <= bucket.max_length:
            return bucket, below
        below = bucket.max_length
    raise ValueError(f"a row of {length} tokens is longer than the longest bucket, {below}")


def _padded(longest: int, multiple: int, most: int) -> int:
    # A row with no token at all still needs one (masked) position to be a tensor.
    return min(most, -(-max(1, longest) // multiple) * multiple)
