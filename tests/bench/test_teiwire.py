"""Requests to TEI and its answers, as bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headrace_bench.tei.wire import (
    Requests,
    WrongAnswerError,
    parse,
    quote,
    read_answer,
    write_requests,
)


@pytest.mark.parametrize("most_bytes", [2_000_000, 120])
def test_requests_hold_each_row_once_in_order(tmp_path, most_bytes):
    texts = ['"', "ä\n", "", "y" * 300, *(str(row) * row for row in range(40))]
    rows = np.arange(len(texts))[::-1].copy()
    quoted = [quote(text) for text in texts]
    wanted = rows % 3 == 0
    many = write_requests(tmp_path, quoted, rows, wanted, batch_size=7, most_bytes=most_bytes)
    requests = Requests(tmp_path)
    assert len(requests) == many
    bodies = [requests.body(number) for number in range(many)]
    found = [parse(body) for body in bodies]
    assert [text for each in found for text in each["inputs"]] == [texts[row] for row in rows]
    assert all(set(each) == {"inputs", "truncate", "normalize"} for each in found)
    sizes = [len(each["inputs"]) for each in found]
    assert sizes == [requests.count(number) for number in range(many)]
    assert max(sizes) == (7 if most_bytes > 1000 else max(sizes))
    assert all(
        len(body) <= most_bytes or size == 1 for body, size in zip(bodies, sizes, strict=True)
    )
    kept = [requests.rows(number)[requests.wanted(number)] for number in range(many)]
    assert np.concatenate(kept).tolist() == rows[wanted].tolist()


def body_of(vectors):
    return json.dumps(vectors, separators=(",", ":")).encode()


RIGHT = [[0.5, -1e-7], [1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("wanted", [[], [0, 2]])
@pytest.mark.parametrize("body", [body_of(RIGHT), json.dumps(RIGHT, indent=1).encode()])
def test_a_right_answer_is_read(wanted, body):
    found = read_answer(body, 3, 2, np.array(wanted, np.int64))
    assert found.tolist() == np.array(RIGHT, np.float32)[wanted].tolist()
    assert found.dtype == np.float32


@pytest.mark.parametrize("wanted", [[], [0]])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>", "is not JSON"),
        (b"", "is not JSON"),
        (b"[[1,2],[3,4],[5,6]", "is not JSON"),
        (b'{"error":"x"}', "not a list"),
        (body_of(RIGHT[:2]), "has 2 vectors, not 3"),
        (body_of([*RIGHT, [1, 2]]), "has 4 vectors, not 3"),
        (body_of([[1, 2], [1], [1, 2, 3]]), "a vector of 1 numbers in place 1, not one of 2"),
        (body_of([[1, 2, 3], [1], [1, 2]]), "a vector of 3 numbers in place 0"),
        (body_of([[1, 2], None, [1, 2]]), "no vector in place 1"),
        (body_of([[1, 2], [1, None], [1, 2]]), "null or not finite in place 1"),
        (b"[[1,2],[3,4],[5,NaN]]", "not (JSON|finite)"),
        (body_of([[1, 2], ["x", 1], [1, 2]]), "something else than numbers"),
    ],
)
def test_a_wrong_answer_is_noticed_wanted_or_not(wanted, body, words):
    with pytest.raises(WrongAnswerError, match=words):
        read_answer(body, 3, 2, np.array(wanted, np.int64))
