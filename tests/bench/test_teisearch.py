"""How TEI is asked so that it is fastest: on simulated servers, and on one that answers."""

from __future__ import annotations

import numpy as np
import pytest

from bench.teistandin import DIMENSION, StandIn
from headrace_bench.tei import way as tei
from headrace_bench.tei.driver import Driven
from headrace_bench.tei.way import TeiWay


class Simulated:
    """In place of :func:`drive`: servers that work on so many requests at a time, in no time."""

    def __init__(self, *, request, row, workers, busiest=lambda load: 0.5):
        self.request, self.row, self.workers, self.busiest = request, row, workers, busiest
        self.loads, self.seconds = [], 0.0

    def __call__(self, load):
        requests = -(-len(load.rows) // load.batch_size)
        at_once = min(self.workers, load.concurrency, requests)
        seconds = requests * (self.request + self.row * load.batch_size) / at_once
        self.loads.append(load)
        self.seconds += seconds
        return Driven(
            seconds=seconds,
            requests=requests,
            retries=0,
            cpu_seconds=0.1,
            busiest=self.busiest(load),
            rows=np.empty(0, np.int64),
            vectors=np.empty((0, DIMENSION), np.float32),
        )


@pytest.fixture
def simulate(monkeypatch):
    def make(rows, told=None, **costs):
        server = Simulated(**costs)
        monkeypatch.setattr(tei, "drive", server)
        told = {"max_client_batch_size": 1024, "max_concurrent_requests": 512} | (told or {})
        with StandIn(info=told) as stand_in:
            return server, TeiWay([stand_in.url], ["a"] * rows, DIMENSION)

    return make


def test_requests_are_made_larger_and_more_until_it_is_no_faster(simulate):
    server, way = simulate(400_000, request=0.02, row=0.0001, workers=8)
    way.search()
    # 8 requests of 1024 rows, each in 0.12 s.
    assert way.table[way.batch_size, way.concurrency] > 0.99 * 8 * 1024 / 0.1224
    assert way.batch_size == 1024
    assert way.concurrency >= 8
    assert way.saturated
    assert {size for size, _ in way.table} == {1, 8, 32, 128, 512, 1024}
    assert [(1024, 2**power) in way.table for power in range(5)] == [True] * 5
    for load in server.loads[1:]:
        assert len(load.rows) >= min(2 * load.batch_size * load.concurrency, 400_000)


def test_with_too_few_rows_it_is_not_called_saturated(simulate):
    _, way = simulate(3000, request=0.0002, row=0.00001, workers=500)
    way.search()
    assert not way.saturated
    assert all(size * concurrency <= 3000 for size, concurrency in list(way.table)[1:])


def test_a_slow_server_is_not_asked_for_more_than_it_can_do_in_time(simulate):
    server, way = simulate(100_000, request=0.01, row=0.02, workers=1)  # 50 rows a second
    way.search()
    assert way.saturated
    assert server.seconds < 120
    assert way.table[way.batch_size, way.concurrency] > 45


def test_more_processes_are_taken_where_one_is_busy(simulate):
    server, way = simulate(
        20_000,
        request=0.02,
        row=0.0001,
        workers=8,
        busiest=lambda load: 0.95 if load.processes < 4 and load.concurrency >= 4 else 0.5,
    )
    way._cores = 8
    way.search()
    assert max(load.processes for load in server.loads) >= 4
    assert server.loads[-1].processes <= 8


def test_larger_requests_are_found_and_saturation_where_one_works_at_a_time():
    # One worker, 5 ms a request and nothing a row: more in flight is hardly faster.
    told = {"max_client_batch_size": 8, "max_concurrent_requests": 16}
    with StandIn(request_seconds=0.005, info=told) as server:
        way = TeiWay([server.url], [str(row) for row in range(64)], DIMENSION, seconds=0.1)
        way.search()
        assert way.batch_size == 8
        assert way.saturated
        assert {size for size, _ in way.table} == {1, 8}
        ones = max(rate for (size, _), rate in way.table.items() if size == 1)
        assert way.table[8, way.concurrency] > 2 * ones
        assert max(concurrency for _, concurrency in way.table) <= 16
        assert way.rates == []
        server.forget()
        way.measure()
        assert max(server.sizes) == 8


def test_where_more_in_flight_is_not_allowed_it_is_not_called_saturated():
    told = {"max_concurrent_requests": 1, "max_client_batch_size": 1}
    with StandIn(info=told) as server:
        way = TeiWay([server.url], [str(row) for row in range(40)], DIMENSION, seconds=0.02)
        assert way.batch_sizes == [1]
        assert way.most_in_flight == 1
        way.search()
        assert not way.saturated
        assert (1, 1) in way.table


def test_the_least_limit_of_several_holds():
    with StandIn() as stand_in, StandIn(info={"max_client_batch_size": 1000}) as other:
        way = TeiWay([other.url], ["a"], DIMENSION)
        assert way.batch_sizes == [1, 8, 32, 128, 512, 1000]
        both = TeiWay([other.url, stand_in.url], ["a"], DIMENSION)
        assert both.batch_sizes == [1, 8, 32]
        assert both.most_in_flight == 32
