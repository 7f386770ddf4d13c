"""What the gateway sends together, and large bodies that others need not wait for."""

from __future__ import annotations

import asyncio
import gc
import itertools

import pytest

from headrace_launcher.gateway import requests
from headrace_launcher.gateway.backend import parts_of
from headrace_launcher.gateway.problems import Problem
from headrace_launcher.gateway.requests import EmbedRequest, Reader


def test_parts_have_no_more_tokens_than_the_engine_computes_at_once(make_contract):
    contract = make_contract(max_length=64, token_budget=512)
    sizes = [4] * 200 + [100] * 50 + [1000] * 20  # bytes: some 2, 26 and, cut, 64 tokens
    parts = parts_of(range(len(sizes)), sizes, contract)
    assert [row for part in parts for row in part] == list(range(len(sizes)))
    longest = [min(sizes[part[-1]] // 4 + 1, 64) for part in parts]
    most = min(64, contract.max_batch)
    for part, tokens in zip(parts, longest, strict=True):
        assert len(part) == 1 or len(part) * tokens <= 512
        assert len(part) <= most
    assert any(len(part) == most for part in parts)
    assert len(parts[-1]) <= 512 // 64


def read(reader, body):
    return reader.read(body, EmbedRequest, field="inputs", most=3, status=422)


@pytest.mark.parametrize("body", [b'{"inputs": ["a", "b"]}', b'{"inputs": [1'])
def test_large_bodies_are_read_one_at_a_time_and_others_have_their_turn(monkeypatch, body):
    monkeypatch.setattr(requests, "_LARGE", 10)
    order, plain = [], requests.read

    def noting(*words, **more):
        order.append(("read", gc.isenabled()))
        return plain(*words, **more)

    async def tick():
        for _ in range(50):
            order.append(("tick", gc.isenabled()))
            await asyncio.sleep(0)

    async def run():
        reader = Reader()
        asked = [read(reader, body) for _ in range(3)]
        return await asyncio.gather(tick(), *asked, return_exceptions=True)

    monkeypatch.setattr(requests, "read", noting)
    _, *found = asyncio.run(run())
    if body.endswith(b"}"):
        assert [inputs for _, inputs in found] == [["a", "b"]] * 3
    else:
        assert all(isinstance(each, Problem) and each.status == 422 for each in found)
    places = [at for at, (what, _) in enumerate(order) if what == "read"]
    assert len(places) == 3
    assert all(other - one > 1 for one, other in itertools.pairwise(places))
    # While one is read the collector is off, and only then.
    assert {what for what, collecting in order if not collecting} == {"read"}
    assert gc.isenabled()


def test_small_bodies_wait_for_nobody():
    async def run():
        reader = Reader()
        async with reader._turn:
            return await read(reader, b'{"inputs": "a"}')

    assert asyncio.run(run())[1] == ["a"]
