"""Rows of several requests, computed together, and each request answered with its own."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_launcher.hosted.engine import DeviceArray
from headrace_launcher.hosted.joining import Asked, Shapes, join

SETTINGS = {
    "buckets": [{"max_length": 4, "max_batch": 5}, {"max_length": 10, "max_batch": 3}],
    "token_budget": 20,
    "pad_multiple": 1,
    "pad_id": 9,
}


def vectors_of(ids, mask):
    """What an engine gives that computes: of each row the tokens\' sum, and how many."""
    return np.stack([(ids * mask).sum(1), mask.sum(1)], 1).astype(np.float32)


class Request:
    def __init__(self, lengths, width, seed=0, alone=False):
        chance = np.random.default_rng(seed)
        self.ids = chance.integers(1, 100, (len(lengths), width)).astype(np.int32)
        self.mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
        self.alone = alone
        self.answers = []

    @property
    def asked(self):
        return Asked(self.ids, self.mask, self._answer, self.alone)

    def _answer(self, vectors, error):
        self.answers.append((None if vectors is None else vectors.copy(), error))

    def check(self):
        ((vectors, error),) = self.answers
        assert error is None
        np.testing.assert_array_equal(vectors, vectors_of(self.ids, self.mask))


def batches(requests, **changes):
    return list(join([each.asked for each in requests], Shapes.of(SETTINGS | changes)))


def compute(found, order=None):
    for at in order if order is not None else range(len(found)):
        ids, mask, answer = found[at]
        answer(vectors_of(ids, mask), None)


@given(
    requests=st.lists(
        st.tuples(st.lists(st.integers(0, 10), min_size=1, max_size=7), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    multiple=st.sampled_from([1, 4, 8]),
    seed=st.integers(0, 99),
)
def test_every_request_gets_its_own_rows(requests, multiple, seed):
    made = [Request(lengths, 10, seed + at, alone) for at, (lengths, alone) in enumerate(requests)]
    found = batches(made, pad_multiple=multiple)
    for ids, mask, _ in found[: len(found) - sum(alone for _, alone in requests)]:
        rows, length = ids.shape
        assert rows <= (5 if length <= 4 else 3)
        assert rows * (4 if length <= 4 else 10) <= 20 or rows == 1
        assert length in {4, 10} or length % multiple == 0
        assert mask.shape == ids.shape
    order = np.random.default_rng(seed).permutation(len(found))
    compute(found, order.tolist())
    for each in made:
        each.check()


def test_rows_of_one_length_are_computed_together_whatever_they_were_padded_to():
    one, other = Request([3, 2], 4, 1), Request([4], 10, 2)
    ((ids, mask, answer),) = batches([one, other])
    assert ids.shape == (3, 4)
    answer(vectors_of(ids, mask), None)
    one.check(), other.check()


def test_padding_is_the_models_and_rows_are_no_longer_than_their_own():
    one, other = Request([1], 10, 1), Request([3], 3, 2)
    ((ids, mask, _),) = batches([one, other])
    assert ids.shape == (2, 3)
    np.testing.assert_array_equal(mask, [[1, 0, 0], [1, 1, 1]])
    wide = Request([1], 1, 1)
    ((ids, _, _),) = batches([wide, other])
    np.testing.assert_array_equal(ids[0, 1:], [9, 9])


def test_what_says_alone_stays_alone_and_comes_last():
    alone, joined = Request([2, 2], 7, 1, alone=True), Request([2], 4, 2)
    first, last = batches([alone, joined])
    assert first[0].shape == (1, 2)
    assert last[0] is alone.ids


def test_what_lies_on_a_gpu_stays_alone():
    there = DeviceArray(4096, (2, 4), np.dtype(np.int32), 0)
    asked = Asked(there, there, lambda *_: None, alone=False)
    ((ids, mask, _),) = join([asked], Shapes.of(SETTINGS))
    assert ids is mask is there


def test_an_error_of_one_batch_is_told_to_all_that_had_rows_in_it_once():
    one, other, spared = Request([2, 9], 10, 1), Request([2], 4, 2), Request([8], 10, 3)
    (_, _, small), (ids, mask, large) = batches([one, other, spared])
    small(None, RuntimeError("broken"))
    assert not one.answers  # its other row is still out
    large(vectors_of(ids, mask), None)
    assert [str(each.answers[0][1]) for each in (one, other)] == ["broken", "broken"]
    assert len(one.answers) == len(other.answers) == 1
    spared.check()


def test_answers_may_come_from_several_threads():
    requests = [Request([2, 9, 3, 8, 10], 10, seed) for seed in range(20)]
    found = batches(requests)
    threads = [threading.Thread(target=compute, args=([each],)) for each in found]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for each in requests:
        each.check()


@pytest.mark.parametrize("holes", [[[0, 1, 1, 0]], [[1, 0, 0, 1]]])
def test_masks_with_holes_keep_all_up_to_their_last_token(holes):
    request = Request([4], 4)
    request.mask = np.array(holes, np.int32)
    ((ids, mask, _),) = batches([request])
    assert ids.shape == (1, 3 if holes[0][3] == 0 else 4)
    np.testing.assert_array_equal(mask[0], holes[0][: ids.shape[1]])
