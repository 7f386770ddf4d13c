"""Ragged tokens -> length-sorted padded batches under a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.contract import Bucket, Contract
from headrace.kernels.batches import fill_batch
from headrace.tokens import Tokens

MOST_PADDING = 0.045  # of a batch; small ones may have more, all together stay below 5 %
_LEAST_PART = 32


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
    row, rounded up to ``pad_multiple``. It ends sooner where its rows would be so unlike that
    more than :data:`MOST_PADDING` of it were padding (beside what the rounding adds), but not with
    less than a 32nd of the budget: small batches cost too. The same lengths always give the same
    batches.

    Args:
        lengths: int64[rows of the block]; tokens of each row, at most ``length_limit``.
        rows: int64[n]; numbers of the rows to batch.
        contract: the model's settings.
    """
    order = rows[np.argsort(lengths[rows], kind="stable")]
    sorted_lengths = lengths[order]
    end = len(order)
    while end:
        longest = int(sorted_lengths[end - 1])
        bucket, shorter = _bucket_of(longest, contract.buckets)
        length = _padded(longest, contract.pad_multiple, bucket.max_length)
        count = min(bucket.max_batch, max(1, contract.token_budget // length))
        # Rows at or below `shorter` belong to the bucket before.
        first_of_bucket = int(np.searchsorted(sorted_lengths[:end], shorter, side="right"))
        start = end - _alike(sorted_lengths[max(end - count, first_of_bucket) : end], contract)
        yield Batch(rows=order[start:end], length=length)
        end = start


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


def compile_fill() -> None:
    """Has :func:`fill` compiled, which takes a second where that was not done before."""
    row = np.zeros((1, 1), np.int32)
    tokens = Tokens(ids=row[0], offsets=np.array([0, 1]), truncated=np.zeros(1, np.bool_))
    fill(Batch(rows=np.zeros(1, np.int64), length=1), tokens, 0, row, row.copy())


def _alike(lengths: NDArray[np.int64], contract: Contract) -> int:
    """Returns how many of the longest of ``lengths``, ascending, make a batch of like rows."""
    rows, longest = len(lengths), int(lengths[-1])
    if rows * longest - int(lengths.sum()) <= MOST_PADDING * rows * longest:
        return rows
    padded = longest * np.arange(1, rows + 1)
    padding = padded - np.cumsum(lengths[::-1])
    least = contract.token_budget // _LEAST_PART
    good = (padding <= MOST_PADDING * padded) | (padded <= least)
    good[0] = True
    return int(np.flatnonzero(good)[-1]) + 1


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
