"""Every variant of an entry's config against the real server, as far as its backends allow."""

from __future__ import annotations

import shutil

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from headrace.contract import Bucket
from headrace.errors import ServerError
from headrace.transport import connect
from headrace_launcher import repository as repo
from headrace_launcher.repository import Host
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

pytestmark = pytest.mark.server


@pytest.fixture
def contract(make_contract):
    return make_contract(
        name="plan",
        engine="tensorrt",
        engine_version="11.2.1.4",
        capability="9.0",
        dtype="float16",
        precision="fp16",
        buckets=tuple(Bucket(max_length=n, max_batch=min(512, 65536 // n)) for n in (16, 128, 512)),
        token_budget=65536,
    )


def publish(folder, contract, host, tokenizer):
    return repo.publish(
        folder,
        repo.entry_config(contract, host, key="k"),
        tokenizer=tokenizer,
        write_engine=lambda version: (version / "model.plan").write_bytes(b"no plan"),
    )


@pytest.fixture
def tokenizer(model_folder):
    return model_folder / "tokenizer.json"


def refusal(folder, name="plan"):
    with pytest.raises(ServerError) as said:
        Server(find_triton(), folder, [name]).start()
    return str(said.value)


def test_the_native_variant_lacks_only_its_backend(contract, tokenizer, tmp_path):
    entry = publish(tmp_path, contract, Host(backend="tensorrt", plan="p"), tokenizer)
    assert {path.name for path in (entry / "1").iterdir()} == {"model.plan"}
    said = refusal(tmp_path)
    assert "unable to find backend library for backend 'tensorrt'" in said


def test_the_hosted_variant_lacks_only_a_gpu(contract, tokenizer, tmp_path):
    publish(tmp_path, contract, Host(backend="python", plan="p"), tokenizer)
    assert "has kind KIND_GPU but no GPUs are available" in refusal(tmp_path)


def test_the_hosted_variant_says_what_its_machine_lacks(contract, tokenizer, tmp_path):
    """The same on a CPU: Triton takes the rest of the config, and model.py starts."""
    entry = publish(tmp_path, contract, Host(backend="python", plan="p"), tokenizer)
    change(entry, lambda config: setattr(config.instance_group[0], "kind", 2))
    assert "tensorrt is not installed for the Python that Triton runs" in refusal(tmp_path)


def test_triton_takes_all_that_the_native_variant_sets(contract, tokenizer, tmp_path, repository):
    """Batching, graphs, warmup, parameters: with another backend behind them."""
    null = next(repository.glob("*-null"))
    entry = tmp_path / null.name
    shutil.copytree(null, entry)
    fresh = repo.entry_config(contract, Host(backend="tensorrt"), key="k")

    def take(config):
        config.dynamic_batching.CopyFrom(fresh.dynamic_batching)
        config.optimization.CopyFrom(fresh.optimization)
        config.ClearField("model_warmup")
        config.model_warmup.extend(fresh.model_warmup)
        name = "execution_context_allocation_strategy"
        config.parameters[name].string_value = fresh.parameters[name].string_value

    change(entry, take)
    with Server(find_triton(), tmp_path, [null.name]) as server:
        connection = connect(server.endpoints.grpc, [null.name])
        served = connection.client.get_model_config(null.name).config
        connection.close()
    assert served.optimization.eager_batching
    assert served.optimization.cuda.graphs
    assert list(served.dynamic_batching.preferred_batch_size) == [1, 2, 4, 8, 16, 32]
    assert [sample.batch_size for sample in served.model_warmup] == [1, 1, 1]


def test_the_native_config_says_what_a_plan_needs(contract):
    config = repo.entry_config(contract, Host(backend="tensorrt", devices=(0, 2)), key="k")
    assert (config.platform, config.backend) == ("tensorrt_plan", "tensorrt")
    assert config.default_model_filename == "model.plan"
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 1, [0, 2])
    assert list(group.profile) == ["0", "1", "2"]
    assert config.max_batch_size == 512
    strategy = config.parameters["execution_context_allocation_strategy"].string_value
    assert strategy == "ON_PROFILE_CHANGE"
    for sample, length in zip(config.model_warmup, (16, 128, 512), strict=True):
        for data in sample.inputs.values():
            assert (data.data_type, list(data.dims)) == (pb.TYPE_INT32, [length])
        assert sample.inputs["input_ids"].zero_data
        assert sample.inputs["attention_mask"].input_data_file == f"ones-{length}"


def test_the_hosted_config_keeps_batches_on_the_gpu(contract):
    config = repo.entry_config(contract, Host(backend="python"), key="k")
    assert config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "no"
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    assert config.HasField("dynamic_batching")
    assert all(each.allow_ragged_batch for each in config.input)
    for sample, length in zip(config.model_warmup, (16, 128, 512), strict=True):
        assert sample.inputs["input_ids"].zero_data
        assert sample.inputs["attention_mask"].input_data_file == f"ones-{length}"


def change(entry, how):
    path = entry / "config.pbtxt"
    config = text_format.Parse(path.read_text(), pb.ModelConfig())
    how(config)
    path.write_text(text_format.MessageToString(config))
