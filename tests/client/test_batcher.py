from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batcher import fill, plan_batches
from headrace.contract import Bucket
from headrace.kernels.batches import cut_lengths
from headrace.tokens import Tokens

LENGTHS = st.lists(st.integers(0, 128), max_size=200)


def ragged(rows):
    lengths = [len(row) for row in rows]
    flat = [token for row in rows for token in row]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Tokens(np.array(flat, np.int32), offsets, np.zeros(len(rows), bool))


@pytest.fixture(scope="module")
def contract():
    from headrace.contract import Contract

    return Contract(
        name="m",
        model_id="m",
        revision="",
        weights_hash="",
        tokenizer_hash="",
        max_length=128,
        vocab_size=100,
        pad_id=7,
        pad_multiple=4,
        pooling="mean",
        normalized=True,
        dimension=4,
        precision="fp32",
        dtype="float32",
        buckets=(
            Bucket(max_length=16, max_batch=8),
            Bucket(max_length=50, max_batch=6),
            Bucket(max_length=128, max_batch=4),
        ),
        token_budget=256,
        in_flight=2,
        engine="null",
        engine_version="1",
    )


@settings(deadline=None)  # the first call compiles
@given(lengths=LENGTHS, data=st.data())
def test_every_chosen_row_is_in_one_batch_that_obeys_the_contract(contract, lengths, data):
    lengths = np.array(lengths, np.int64)
    chosen = np.flatnonzero(
        data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    )
    batches = list(plan_batches(lengths, chosen, contract))
    assert sorted(row for batch in batches for row in batch.rows) == list(chosen)
    limits = [-1, 16, 50, 128]
    for batch in batches:
        longest = int(lengths[batch.rows].max())
        assert longest <= batch.length < max(1, longest) + contract.pad_multiple
        assert len(batch.rows) == 1 or len(batch.rows) * batch.length <= contract.token_budget
        inside = next(i for i in range(3) if limits[i] < longest <= limits[i + 1])
        assert batch.length <= limits[inside + 1]
        assert len(batch.rows) <= contract.buckets[inside].max_batch
        assert int(lengths[batch.rows].min()) > limits[inside]


@settings(deadline=None)
@given(lengths=LENGTHS)
def test_the_same_lengths_give_the_same_batches_the_longest_first(contract, lengths):
    lengths = np.array(lengths, np.int64)
    rows = np.arange(len(lengths))
    first = list(plan_batches(lengths, rows, contract))
    again = list(plan_batches(lengths, rows, contract))
    assert [(b.length, b.rows.tolist()) for b in first] == [
        (b.length, b.rows.tolist()) for b in again
    ]
    assert [b.length for b in first] == sorted((b.length for b in first), reverse=True)


def test_a_row_longer_than_the_longest_bucket_is_refused(contract):
    with pytest.raises(ValueError, match="129 tokens"):
        list(plan_batches(np.array([129]), np.array([0]), contract))


@settings(deadline=None)  # the first call compiles
@given(rows=st.lists(st.lists(st.integers(1, 99), max_size=30), min_size=1, max_size=40))
def test_fill_pads_each_row_on_the_right(contract, rows):
    tokens = ragged(rows)
    for batch in plan_batches(tokens.lengths, np.arange(len(rows)), contract):
        shape = (len(batch.rows), batch.length)
        ids, mask = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
        fill(batch, tokens, 7, ids, mask)
        for row, got, seen in zip(batch.rows, ids.tolist(), mask.tolist(), strict=True):
            want = rows[row]
            rest = batch.length - len(want)
            assert got == want + [7] * rest
            assert seen == [1] * len(want) + [0] * rest


def test_padding_of_many_rows_of_mixed_lengths_stays_small(make_contract):
    random = np.random.default_rng(5)
    lengths = np.clip(random.lognormal(3.8, 0.6, 16384), 3, 256).astype(np.int64)
    contract = make_contract(
        buckets=tuple(Bucket(max_length=n, max_batch=64) for n in (16, 32, 64, 128, 256)),
        token_budget=8192,
    )
    batches = list(plan_batches(lengths, np.arange(len(lengths)), contract))
    padded = sum(len(b.rows) * b.length for b in batches)
    assert 1 - lengths.sum() / padded < 0.05


@settings(deadline=None)
@given(
    rows=st.dictionaries(st.integers(1, 60), st.integers(1, 9), min_size=1, max_size=7),
    bucket=st.integers(0, 60),
    overhead=st.integers(0, 300),
)
def test_no_other_way_to_cut_costs_less(rows, bucket, overhead):
    lengths = np.array(sorted(rows), np.int64)
    counts = [rows[length] for length in lengths.tolist()]
    ends = np.cumsum([0, *counts])
    inside = int(np.searchsorted(lengths, bucket, "right"))  # the first of the second bucket
    firsts = np.where(np.arange(len(lengths)) < inside, 0, inside)
    caps = np.maximum(1, 100 // lengths)
    costs, starts = np.zeros(len(lengths) + 1, np.int64), np.zeros(len(lengths), np.int64)
    padded = cut_lengths(lengths, ends, firsts, caps, overhead, costs, starts)

    def cost(cuts):
        total = tokens = 0
        for first, stop in pairwise(cuts):
            if firsts[stop - 1] > first:
                return None
            many = sum(counts[first:stop])
            tokens += many * lengths[stop - 1]
            total += -(-many // caps[stop - 1]) * overhead
        return tokens + total, tokens

    places = range(1, len(lengths))
    ways = [
        cost([0, *chosen, len(lengths)])
        for many in range(len(lengths))
        for chosen in combinations(places, many)
    ]
    least = min(way for way in ways if way)
    assert costs[-1] == least[0]
    cuts = [len(lengths)]
    while cuts[0]:
        cuts.insert(0, int(starts[cuts[0] - 1]))
    assert cost(cuts) == (costs[-1], padded)


@pytest.mark.parametrize("pad_multiple", [1, 8])
@pytest.mark.parametrize(
    "draw",
    [
        lambda random, n: random.lognormal(3, 1, n),
        lambda random, n: random.geometric(0.1, n),
        lambda random, n: random.uniform(3, 10, n),
        lambda random, n: np.where(random.random(n) < 0.02, 250, random.uniform(5, 20, n)),
    ],
    ids=["lognormal", "geometric", "short", "few long"],
)
def test_padding_stays_below_a_twentieth_beside_the_rounding(make_contract, draw, pad_multiple):
    contract = make_contract(
        pad_multiple=pad_multiple,
        token_budget=1 << 16,
        buckets=(Bucket(max_length=64, max_batch=1024), Bucket(max_length=256, max_batch=1024)),
    )
    lengths = np.clip(draw(np.random.default_rng(1), 16384), 2, 256).astype(np.int64)
    padded = 0
    for batch in plan_batches(lengths, np.arange(len(lengths)), contract):
        padded += len(batch.rows) * batch.length
        assert batch.length - lengths[batch.rows].max() < pad_multiple
    rounded = -(-lengths // pad_multiple) * pad_multiple
    assert 1 - rounded.sum() / padded < 0.05
