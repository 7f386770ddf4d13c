"""The engines of the hosted model, without Triton and without a GPU."""

from __future__ import annotations

import ctypes
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from client.fakecuda import FakeDriver
from client.fakes import as_halves, vectors_of
from headrace_launcher.engines import buildplan
from headrace_launcher.hosted import gpu
from headrace_launcher.hosted.device import Exported, imported
from headrace_launcher.hosted.engine import DeviceArray
from headrace_launcher.hosted.gpu import GpuEngine, TensorRtEngine
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


class Sums(GpuEngine):
    """Computes on the fake driver's memory: each vector holds its row's sum of ids."""

    def enqueue(self, buffers, rows, length, stream):
        if length == 7:
            raise RuntimeError("seven")

        def compute():
            ids, mask = (
                np.frombuffer(
                    (ctypes.c_ubyte * (rows * length * 4)).from_address(address), np.int32
                ).reshape(rows, length)
                for address in (buffers.ids, buffers.mask)
            )
            raw = (ctypes.c_ubyte * (rows * 4 * 4)).from_address(buffers.vectors)
            vectors = np.frombuffer(raw, np.float32).reshape(rows, 4)
            vectors[:] = (ids * mask).sum(1, keepdims=True)

        self.driver._driver.later[buffers.done] = compute

    def release(self):
        self.driver._driver.calls.append("release")


class LazyDriver(FakeDriver):
    """Computes when a batch's event is waited for, not before."""

    def __init__(self):
        super().__init__()
        self.later = {}

    def _cuEventSynchronize(self, event):
        super()._cuEventSynchronize(event)
        self.later.pop(event)()


@pytest.fixture
def sums(monkeypatch):
    driver = LazyDriver().install(monkeypatch)
    settings = {"dimension": 4, "dtype": "float32", "vocab_size": 100}
    settings["buckets"] = [{"max_length": 16, "max_batch": 8}, {"max_length": 64, "max_batch": 8}]
    engine = Sums(settings, 0)
    engine.fake = driver
    yield engine
    assert not driver.alive


def test_batches_are_computed_in_memory_of_the_engines_own(sums):
    random = np.random.default_rng(1)
    wanted, answers = [], []

    def answer(vectors, error):
        raw = (ctypes.c_ubyte * (vectors.shape[0] * 4 * 4)).from_address(vectors.address)
        answers.append((error, np.frombuffer(raw, np.float32).reshape(vectors.shape).copy()))
        time.sleep(0.001)  # so that the buffers run out

    for turn in range(50):
        rows, length = int(random.integers(1, 9)), int(random.integers(8, 65))
        ids = random.integers(0, 100, (rows, length)).astype(np.int32)
        mask = random.integers(0, 2, (rows, length)).astype(np.int32)
        wanted.append((ids * mask).sum(1))
        if turn % 2:  # as Triton gives what lies on a GPU
            given = [DeviceArray(a.ctypes.data, a.shape, a.dtype, 0) for a in (ids, mask)]
        else:
            given = [ids, np.asfortranarray(mask)]
        sums.submit(*given, answer)
        ids[:], mask[:] = -1, -1  # the request's memory goes when submit returns
    with pytest.raises(RuntimeError, match="seven"):
        sums.submit(np.ones((1, 7), np.int32), np.ones((1, 7), np.int32), answer)
    sums.close()
    assert len(answers) == 50
    for (error, vectors), sums_of_rows in zip(answers, wanted, strict=True):
        assert error is None
        np.testing.assert_array_equal(vectors, np.repeat(sums_of_rows[:, None], 4, 1))
    freed = [name for name in sums.fake.calls if name in {"release", "cuMemFree"}]
    assert freed[0] == "release"
    assert len(freed) == 1 + 9


def test_a_gpu_that_fails_is_told_to_the_one_who_asked(sums):
    answers = []
    event = sums._events[0]
    sums.fake.fail = {"cuEventSynchronize"}
    ids = np.ones((1, 8), np.int32)
    for _ in range(5):
        sums.submit(ids, ids, lambda *answer: answers.append(answer))
    sums.close()
    assert [vectors for vectors, _ in answers] == [None] * 5
    assert all("cuEventSynchronize" in str(error) for _, error in answers)
    sums.fake.later.pop(event)


def test_an_answer_that_fails_takes_no_buffer_and_no_other_batch_along(sums):
    ids = np.ones((1, 8), np.int32)
    told = []

    def gone(vectors, error):
        told.append(error)
        raise RuntimeError("the client's memory is gone")

    for _ in range(7):
        sums.submit(ids, ids, gone)
    answers = []
    sums.submit(ids, ids, lambda vectors, error: answers.append((vectors.shape, error)))
    sums.close()
    assert answers == [((1, 4), None)]
    assert len(told) == 14  # each was told of its own failure, too


class FakeTrt:
    """As much of TensorRT as the engine calls; notes the calls in turn."""

    __version__ = "11.2.1.4"
    WARNING = 1

    class ExecutionContextAllocationStrategy:
        USER_MANAGED = "user managed"

    class Logger:
        WARNING = 1

        def __init__(self, level):
            pass

    def __init__(self, lengths):
        self.lengths = lengths
        self.calls = []
        self.lack = None
        self.num_optimization_profiles = len(lengths)
        self.device_memory_size_v2 = 1 << 20

    def Runtime(self, logger):
        return self

    def deserialize_cuda_engine(self, plan):
        return None if plan == b"another GPU's" else self

    def create_execution_context(self, strategy):
        assert strategy == "user managed"
        return None if self.lack == "memory" else Context(self)


class Context:
    def __init__(self, trt):
        self.trt = trt
        self.steps = []

    def set_optimization_profile_async(self, index, stream):
        self.least, self.most = (0, *self.trt.lengths)[index] + 1, self.trt.lengths[index]
        self.steps.append("profile")
        return True

    def set_device_memory(self, memory, size):
        assert self.steps == ["profile"]
        assert size == self.trt.device_memory_size_v2
        self.steps.append("memory")

    def set_input_shape(self, name, shape):
        self.steps.append((name, shape))
        return self.least <= shape[1] <= self.most

    def set_tensor_address(self, name, address):
        return bool(address)

    def execute_async_v3(self, stream):
        self.trt.calls.append((self.most, self.steps[-1][1]))
        return self.trt.lack != "kernel"


@pytest.fixture
def plan(monkeypatch, tmp_path):
    """A TensorRT engine on the fake driver with a fake library."""
    driver = FakeDriver().install(monkeypatch)
    trt = FakeTrt([16, 64, 128])
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    (tmp_path / "model.plan").write_bytes(b"plan")
    settings = {"engine": "tensorrt", "engine_version": trt.__version__, "capability": "9.0"}
    settings |= {"dimension": 4, "dtype": "float16"}
    settings["buckets"] = [{"max_length": n, "max_batch": 8} for n in trt.lengths]
    return SimpleNamespace(trt=trt, driver=driver, folder=tmp_path, settings=settings)


def test_each_batch_runs_in_the_context_of_its_profile(plan):
    engine = TensorRtEngine(plan.folder, plan.settings, 0)
    answers = []
    for length in (1, 16, 17, 64, 65, 128):
        ids = np.ones((3, length), np.int32)
        engine.submit(ids, ids, lambda vectors, error: answers.append((vectors.shape, error)))
    engine.close()
    assert answers == [((3, 4), None)] * 6
    assert plan.trt.calls == [
        *((16, (3, n)) for n in (1, 16)),
        *((64, (3, n)) for n in (17, 64)),
        *((128, (3, n)) for n in (65, 128)),
    ]
    assert not plan.driver.alive


def test_what_tensorrt_refuses_is_told(plan):
    engine = TensorRtEngine(plan.folder, plan.settings, 0)
    ids = np.ones((3, 8), np.int32)
    plan.trt.lack = "kernel"
    for _ in range(5):
        with pytest.raises(RuntimeError, match="did not take a batch of 3 rows of 8 tokens"):
            engine.submit(ids, ids, lambda *_: None)
    engine.close()
    plan.trt.lack = "memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        TensorRtEngine(plan.folder, plan.settings, 0)
    (plan.folder / "model.plan").write_bytes(b"another GPU's")
    with pytest.raises(RuntimeError, match=r"for compute capability 9\.0; build it again"):
        TensorRtEngine(plan.folder, plan.settings, 0)


@pytest.mark.parametrize("dtype", ["int32", "float16", "float32"])
def test_dlpack_says_where_an_array_lies(dtype):
    array = np.arange(12).astype(dtype).reshape(3, 4)
    found = imported(array)  # NumPy shows it as Triton's stub does
    assert (found.address, found.shape, found.dtype) == (array.ctypes.data, (3, 4), array.dtype)
    part = imported(array[1:])
    assert (part.address, part.shape) == (array[1:].ctypes.data, (2, 4))
    again = DeviceArray(found.address, found.shape, found.dtype, 3)
    exported = Exported(again)
    assert exported.__dlpack_device__() == (2, 3)
    assert imported(exported) == again


def test_a_plan_of_another_version_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.2.1.4"))
    settings = {"engine": "tensorrt", "engine_version": "10.13.3", "capability": "9.0"}
    with pytest.raises(RuntimeError, match=r"built by tensorrt 10\.13\.3.*this is 11\.2\.1\.4"):
        TensorRtEngine(tmp_path, settings, 0)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)
    with pytest.raises((RuntimeError, ImportError), match="tensorrt"):
        TensorRtEngine(tmp_path, settings, 0)


def test_what_hosts_a_plan_knows_the_libraries_that_build_one():
    assert gpu._MODULES == buildplan.LIBRARIES  # it can import nothing of headrace
