"""sentence-transformers' best batch size, and backends that are not what they seem."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from headrace_bench import library


class Timed:
    """A model that takes a planned time a batch size, and a memory that ends somewhere."""

    where = "somewhere"

    def __init__(self, monkeypatch, seconds, most=10**9):
        self.now, self.seconds, self.most = 0.0, seconds, most
        self.asked = []
        monkeypatch.setattr(library.time, "perf_counter", lambda: self.now)

    def empty_cache(self):
        self.now += 1000.0  # others' time

    def encode(self, texts, size):
        if size > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        self.asked.append((len(texts), size))
        self.now += self.seconds.get(size, 100.0)
        return np.zeros((len(texts), 2), np.float32)


def searched(model, sizes, rows=10_000):
    way = library.SentenceTransformersWay(model, ["t"] * rows, np.array([0, 5]), sizes)
    assert way.first().shape == (2, 2)
    return way


def test_the_batch_size_is_the_fastest(monkeypatch):
    model = Timed(monkeypatch, {8: 3.0, 16: 2.0, 512: 4.0})
    way = searched(model, (8, 16, 512))
    assert way.batch_size == 16
    assert way.search == {8: 2048 / 3, 16: 1024.0, 512: 512.0}
    # Enough rows that the largest makes some batches; each size as often as the others.
    assert [each for each in model.asked if each[0] == 2048] == [
        (2048, s) for s in (8, 16, 512)
    ] * 2
    assert way.what == "somewhere, batch size 16, in memory"
    rate, vectors = way.measure()
    assert (rate, vectors.shape) == (10_000 / 2.0, (2, 2))


def test_sizes_that_do_not_fit_are_not_tried_on(monkeypatch):
    way = searched(Timed(monkeypatch, {64: 3.0, 128: 2.0}, most=128), (64, 128, 256, 512))
    assert (way.batch_size, list(way.search)) == (128, [64, 128])
    with pytest.raises(RuntimeError, match="out of memory"):
        searched(Timed(monkeypatch, {}, most=4), (64, 128))


def test_as_it_comes_nothing_is_searched(monkeypatch):
    way = searched(Timed(monkeypatch, {}), (32,))
    assert (way.batch_size, way.search) == (32, {})


def test_onnx_is_not_measured_on_a_cpu_where_there_are_gpus(monkeypatch, tmp_path):
    runtime = SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setitem(sys.modules, "optimum", SimpleNamespace(onnxruntime=None))
    monkeypatch.setitem(sys.modules, "optimum.onnxruntime", SimpleNamespace())
    given = {"device": "cuda"}
    with pytest.raises(ImportError, match="no CUDAExecutionProvider"):
        library.SentenceTransformers(tmp_path, library.BACKENDS["ONNX"], **given)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"headrace\[peers\]"):
        library.SentenceTransformers(tmp_path, library.BACKENDS["ONNX"], **given)
