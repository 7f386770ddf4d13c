"""The null engine of the hosted model, without Triton."""

from __future__ import annotations

import numpy as np
import pytest

from client.fakes import as_halves, vectors_of
from headrace_launcher.hosted.null import NullEngine


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("dimension", [1, 2, 3, 20, 384])
def test_nothing_of_one_request_is_left_in_the_next(dimension, dtype):
    buckets = [{"max_length": 16, "max_batch": 50}, {"max_length": 512, "max_batch": 20}]
    settings = {"dimension": dimension, "buckets": buckets, "dtype": dtype}
    settings["vocab_size"] = 250_000
    engine = NullEngine(settings)
    random = np.random.default_rng(2)
    answers = []
    for _ in range(60):
        rows, length = int(random.integers(1, 51)), int(random.integers(1, 513))
        ids = random.integers(0, 250_000, (rows, length)).astype(np.int32)
        mask = (np.arange(length) < random.integers(0, length + 1, (rows, 1))).astype(np.int32)
        engine.submit(ids, mask, lambda vectors, error: answers.append((vectors.copy(), error)))
        vectors, error = answers.pop()
        assert error is None
        assert vectors.dtype == dtype
        want = vectors_of(ids, mask, dimension)
        if dtype == "float16":
            want = as_halves(want)
        np.testing.assert_array_equal(vectors, want)
    engine.close()


@pytest.mark.parametrize(("vocabulary", "length"), [(40, 3), (100, 16), (256, 128)])
def test_a_small_vocabulary_is_summed_up_as_well(vocabulary, length):
    settings = {"dimension": 8, "dtype": "float32", "vocab_size": vocabulary}
    settings["buckets"] = [{"max_length": length, "max_batch": 2}]
    engine = NullEngine(settings)
    ids = np.full((2, length), vocabulary - 1, np.int32)
    answers = []
    engine.submit(ids, np.ones_like(ids), lambda *answer: answers.append(answer))
    np.testing.assert_array_equal(answers[0][0], vectors_of(ids, np.ones_like(ids), 8))
