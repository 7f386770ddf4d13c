"""The ceiling, on stand-ins for the engines."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from headrace_bench.peers import ways as peerways
from headrace_launcher.hosted.engine import DeviceArray


def test_what_the_ceiling_does_not_answer_is_no_vector(make_contract, tmp_path, monkeypatch):
    """Vectors of an earlier run must not stand in for those that are missing."""
    batches = [SimpleNamespace(rows=np.array([n]), ids=np.full((1, 4), n)) for n in range(3)]
    for each in batches:
        each.mask = np.ones_like(each.ids)
    answering = [True]

    class Queue:
        def __init__(self, model):
            pass

        def set_callback(self, keep):
            self.keep = keep

        def start_async(self, inputs, rows, share_inputs):
            vectors = np.repeat(inputs["input_ids"][:, :1], 8, axis=1)
            if answering[0] or rows[0] != 1:
                tensor = SimpleNamespace(data=vectors)
                self.keep(SimpleNamespace(get_output_tensor=lambda at: tensor), rows)

        def wait_all(self):
            pass

    openvino = SimpleNamespace(
        Core=lambda: SimpleNamespace(compile_model=lambda *_: None), AsyncInferQueue=Queue
    )
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    work = SimpleNamespace(texts=["x"] * 3, batches=batches)
    entry = SimpleNamespace(contract=make_contract(engine="openvino"), folder=tmp_path)
    way = peerways.CeilingWay(work, entry, np.arange(3), gpus=1)
    assert way.first()[:, 0].tolist() == [0, 1, 2]
    answering[0] = False
    assert np.isnan(way.measure()[1][:, 0]).tolist() == [False, True, False]


def test_tensorrt_is_fed_and_its_vectors_are_fetched(make_contract, tmp_path, monkeypatch):
    """On arrays in this process's memory, which stand in for a GPU's."""

    class Engine:
        made: ClassVar[list] = []

        def __init__(self, folder, settings, device):
            self.settings, self.device, self.batches, self.closed = settings, device, 0, False
            self.driver = SimpleNamespace(call=self._call)
            self.made.append(self)

        def _call(self, name, to, address, size):
            assert name == "cuMemcpyDtoH"
            ctypes.memmove(to, address, size)

        def submit(self, ids, mask, answer):
            self.batches += 1
            found = np.repeat(ids[:, :1], 8, axis=1).astype(np.float16)
            answer(DeviceArray(found.ctypes.data, found.shape, found.dtype, 0), None)

        def close(self):
            self.closed = True

    monkeypatch.setattr(peerways, "TensorRtEngine", Engine)
    contract = make_contract(engine="tensorrt", precision="fp16")
    batches = [
        SimpleNamespace(rows=np.array([3 * n + 2, 3 * n, 3 * n + 1]), ids=np.full((3, 4), n))
        for n in range(4)
    ]
    for each in batches:
        each.mask = np.ones_like(each.ids)
    work = SimpleNamespace(texts=["x"] * 12, batches=batches)
    entry = SimpleNamespace(contract=contract, folder=tmp_path)
    way = peerways.CeilingWay(work, entry, np.array([0, 5, 11]), gpus=2)
    rate, vectors = way.measure()
    assert rate > 0
    assert vectors[:, 0].tolist() == [0, 1, 3]
    assert sum(engine.batches for engine in Engine.made) == 4
    assert [engine.device for engine in Engine.made] == [0, 1]
    assert all(engine.closed for engine in Engine.made)
    assert Engine.made[0].settings["engine"] == "tensorrt"
    assert way.first().shape == (3, 8)
    assert sum(engine.batches for engine in Engine.made[2:]) == 3

    def failing(self, ids, mask, answer):
        answer(None, RuntimeError("illegal address"))

    monkeypatch.setattr(Engine, "submit", failing)
    with pytest.raises(RuntimeError, match="illegal address"):
        way.measure()
    assert all(engine.closed for engine in Engine.made)
