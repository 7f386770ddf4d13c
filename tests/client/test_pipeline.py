"""The whole client but for the network: files in, files out, through a fake transport."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from client.fakes import FakeTransport, vector_of, vectors_of
from headrace import choices, pipeline
from headrace.config import EmbedConfig
from headrace.contract import Bucket, file_hash
from headrace.errors import BadRowError, DamagedInputError, ServerError, UsageError
from headrace.inputs import find_inputs

DIMENSION = 8


@pytest.fixture(scope="session")
def tokenizer_path(model_folder):
    return model_folder / "tokenizer.json"


@pytest.fixture(scope="session")
def reference(tokenizer_path):
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(64)
    return tokenizer


@pytest.fixture
def run(make_contract, tokenizer_path, tmp_path):
    """Runs the pipeline on inputs; returns the report, the damage and the transport."""

    def go(*inputs, output="out.npy", contract=None, transport=None, **changes):
        contract = make_contract(
            tokenizer_hash=file_hash(tokenizer_path), dimension=DIMENSION, **(contract or {})
        )
        fake = transport or FakeTransport(contract)
        connection = SimpleNamespace(
            slots=3,
            contract=contract,
            server="fake:1",
            open_transport=lambda choice, slots=None: (fake, "a test"),
        )
        config = EmbedConfig(
            inputs=tuple(str(each) for each in inputs),
            output=tmp_path / output,
            model="small",
            quiet=True,
            **changes,
        )
        found = find_inputs(config.inputs, format=config.format)
        report, damage = pipeline.run(config, connection, tokenizer_path, found)
        assert fake.closed
        return report, damage, fake

    return go


def want(reference, texts, prompt=""):
    return np.stack([vector_of(reference.encode(prompt + text).ids, DIMENSION) for text in texts])


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.text("ab \té", max_size=60), max_size=40),
    block_rows=st.integers(1, 9),
    block_bytes=st.integers(1, 500),
)
def test_row_i_of_the_output_is_record_i_of_the_input(
    run, reference, tmp_path, texts, block_rows, block_bytes
):
    source = jsonl(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    report, damage, fake = run(
        source, overwrite=True, block_rows=block_rows, block_bytes=block_bytes
    )
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.shape == (len(texts), DIMENSION)
    assert damage is None
    assert report.rows == len(texts)
    assert fake.most_in_flight <= fake.slots
    if texts:
        np.testing.assert_array_equal(vectors, want(reference, texts))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
@pytest.mark.parametrize("on_error", ["null", "skip", "fail"])
def test_a_model_that_gives_nan_is_told_of(
    run, make_contract, monkeypatch, tmp_path, output, on_error, normalized
):
    """As weights that overflow in half precision do, for some rows."""

    def broken(ids, mask, dimension):
        vectors = vectors_of(ids, mask, dimension)
        vectors[mask.sum(1) == 5, 0 if normalized else 3] = np.nan
        return vectors

    monkeypatch.setattr("client.fakes.vectors_of", broken)
    source = jsonl(tmp_path / "in.jsonl", [{"text": text} for text in ("a", "b c d", "e", 7, "f")])
    settings = {"output": output, "on_error": on_error, "normalize": normalized}
    settings["contract"] = {"normalized": normalized}
    if on_error == "fail":
        source = jsonl(source, [{"text": text} for text in ("a", "b c d", "e")])
        with pytest.raises(BadRowError, match=r"row 1 of the run: the model gives NaN for it"):
            run(source, **settings)
        return
    report, _, _ = run(source, **settings)
    assert report.bad_rows == 2
    bad = [json.loads(line) for line in Path(report.errors_file).read_text().splitlines()]
    assert [each["row"] for each in bad] == [1, 3]
    assert "the model gives NaN" in bad[0]["reason"]
    if output == "out.npy":
        gone = np.isnan(np.load(tmp_path / output)).all(1).tolist()
    else:
        gone = pq.read_table(tmp_path / output)["embedding"].is_null().to_pylist()
    assert gone == ([False, True, False, True, False] if on_error == "null" else [False] * 3)


def test_bad_rows_are_kept_as_nan_and_described(run, reference, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n{"text": 5}\n\n{"nothing": 1}\nnot json\n{"text": "b c"}\n')
    report, _, _ = run(source)
    vectors = np.load(tmp_path / "out.npy")
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, True, True, False]
    np.testing.assert_array_equal(vectors[[0, 4]], want(reference, ["a", "b c"]))
    errors = [json.loads(line) for line in Path(report.errors_file).read_text().splitlines()]
    assert [(e["line"], e["row"]) for e in errors] == [(2, 1), (4, 2), (5, 3)]
    assert all(e["file"] == str(source) and e["reason"] for e in errors)
    assert (report.rows, report.bad_rows) == (5, 3)


def test_skip_leaves_bad_rows_out_and_keeps_the_ids(run, reference, tmp_path):
    source = jsonl(
        tmp_path / "in.jsonl",
        [{"id": "x", "text": "a"}, {"id": "y", "text": None}, {"id": "z", "text": "b"}],
    )
    report, _, _ = run(source, output="out.parquet", on_error="skip")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == ["x", "z"]
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist()), want(reference, "ab"))
    assert (report.rows, report.bad_rows) == (2, 1)


def test_skip_keeps_the_record_numbers_of_rows_without_ids(run, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"text": t} for t in ("a", None, "b", 3, "c")])
    run(source, output="out.parquet", on_error="skip", block_rows=2)
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [0, 2, 4]


def test_fail_stops_at_the_first_bad_row_and_leaves_nothing(run, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"text": "a"}, {"text": 1}, {"text": 2}])
    with pytest.raises(BadRowError, match=r"in\.jsonl, line 2: .*number"):
        run(source, on_error="fail")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("records", "settings", "ids", "type_"),
    [
        ([{"id": 7, "text": "a"}, {"id": 8, "text": "b"}], {}, [7, 8], pa.int64()),
        ([{"id": "7", "text": "a"}, {"text": "b"}], {}, ["7", None], pa.string()),
        ([{"text": "a"}, {"id": 1, "text": "b"}], {}, [0, 1], pa.int64()),
        ([{"key": {"n": 3}, "text": "a"}], {"id_field": "key.n"}, [3], pa.int64()),
        ([{"id": 7, "text": "a"}], {"id_type": "string"}, ["7"], pa.string()),
        ([{"text": "a"}], {"id_field": "none"}, [None], pa.string()),
    ],
)
def test_ids(run, tmp_path, records, settings, ids, type_):
    source = jsonl(tmp_path / "in.jsonl", records)
    run(source, output="out.parquet", **settings)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == ids
    assert table.schema.field("id").type == type_


def test_an_id_of_another_type_is_a_bad_row_whose_reason_names_the_remedy(run, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "a"}, {"id": "b", "text": "b"}])
    report, _, _ = run(source, output="out.parquet", block_rows=1)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == [1, None]
    assert table["embedding"].to_pylist()[1] is None
    (error,) = [json.loads(line) for line in Path(report.errors_file).read_text().splitlines()]
    assert error["line"] == 2
    assert "--id-type string" in error["reason"]


@pytest.mark.parametrize(
    ("first", "second", "type_"),
    [
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string(), pa.string()),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int16(), pa.int16(), pa.int16()),
    ],
)
def test_parquet_ids_of_kindred_types_meet_in_the_wider(run, tmp_path, first, second, type_):
    for name, kind in (("a", first), ("b", second)):
        ids = pa.array(["1"] if pa.types.is_dictionary(kind) else [1]).cast(kind)
        pq.write_table(pa.table({"id": ids, "text": ["x"]}), tmp_path / f"{name}.parquet")
    run(tmp_path / "a.parquet", tmp_path / "b.parquet", output="out.parquet")
    column = pq.read_table(tmp_path / "out.parquet")["id"]
    assert column.type == type_
    assert column.cast(pa.string()).to_pylist() == ["1", "1"]


def test_rows_without_ids_among_rows_with_ids_get_none(run, tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"id": "x", "text": "a"}])
    (tmp_path / "b.txt").write_text("b\nc\n")
    run(source, tmp_path / "b.txt", output="out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ["x", None, None]
    run(tmp_path / "b.txt", source, output="two.parquet", id_field="id")
    assert pq.read_table(tmp_path / "two.parquet")["id"].to_pylist() == [None, None, "x"]


def test_an_id_type_of_ones_choice_holds_for_every_format(run, tmp_path):
    pq.write_table(pa.table({"id": [1], "text": ["a"]}), tmp_path / "a.parquet")
    source = jsonl(tmp_path / "b.jsonl", [{"id": "x", "text": "b"}])
    run(tmp_path / "a.parquet", source, output="out.parquet", id_type="string")
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ["1", "x"]


@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
def test_a_damaged_parquet_file_keeps_the_files_before_it(run, tmp_path, output):
    source = jsonl(tmp_path / "a.jsonl", [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}])
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + b"nothing of the kind" + b"PAR1")
    report, damage, _ = run(source, tmp_path / "b.parquet", output=output)
    assert "b.parquet" in str(damage)
    assert report.rows == 2


def test_a_second_run_on_the_same_output_leaves_the_first_ones_files(run, tmp_path):
    from headrace.sinks import Staging

    first = Staging(tmp_path / "out.npy")
    first.path("errors.jsonl").write_text("of the first")
    source = jsonl(tmp_path / "in.jsonl", [{"text": 1}])
    with pytest.raises(UsageError, match="another run"):
        run(source)
    assert first.path("errors.jsonl").read_text() == "of the first"
    first.discard()


def test_parquet_ids_that_have_nothing_in_common_are_refused(run, tmp_path):
    for name, ids in (("a", [1]), ("b", [b"x"])):
        pq.write_table(pa.table({"id": ids, "text": ["x"]}), tmp_path / f"{name}.parquet")
    with pytest.raises(UsageError, match=r"int64.*binary"):
        run(tmp_path / "a.parquet", tmp_path / "b.parquet", output="out.parquet")


def test_a_column_of_nothing_but_nulls_gives_bad_rows(run, tmp_path):
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "in.parquet")
    report, _, _ = run(tmp_path / "in.parquet")
    assert (report.rows, report.bad_rows) == (3, 3)


def test_damage_in_a_row_group_keeps_the_groups_before_it(run, reference, tmp_path):
    texts = [f"text number {row}" for row in range(1000)]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, use_dictionary=False)
    meta = pq.ParquetFile(path).metadata
    data = bytearray(path.read_bytes())
    offset = meta.row_group(6).column(0).data_page_offset
    data[offset + 40 : offset + 200] = b"\xff" * 160
    path.write_bytes(data)
    report, damage, _ = run(path)
    assert f"byte {offset}" in str(damage)
    assert damage.offset == offset
    assert report.rows == 600
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want(reference, texts[:600]))


def test_parquet_in_keeps_the_id_columns_type(run, reference, tmp_path):
    source = tmp_path / "in.parquet"
    pq.write_table(
        pa.table({"id": pa.array([3, 1, 2], pa.int16()), "text": ["a", None, "c"]}), source
    )
    report, _, _ = run(source, output="out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == [3, 1, 2]
    assert table.schema.field("id").type == pa.int16()
    assert table["embedding"].to_pylist()[1] is None
    assert report.bad_rows == 1


def test_damage_keeps_the_rows_before_it(run, reference, tmp_path):
    import zlib

    source = tmp_path / "in.jsonl.gz"
    texts = [f"text {row}" for row in range(2000)]
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    packer = zlib.compressobj(wbits=31)
    source.write_bytes((packer.compress(data) + packer.flush())[:-500])
    report, damage, _ = run(source, block_rows=100)
    assert isinstance(damage, DamagedInputError)
    assert str(source) in str(damage)
    assert report.damage == str(damage)
    vectors = np.load(tmp_path / "out.npy")
    assert 0 < len(vectors) == report.rows < 2000
    np.testing.assert_array_equal(vectors, want(reference, texts[: len(vectors)]))


def test_a_failing_server_leaves_nothing_behind(run, make_contract, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"text": "word " * row} for row in range(60)])
    broken = FakeTransport(make_contract(), fail_at=4)
    with pytest.raises(ServerError, match="planted"):
        run(source, transport=broken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]
    assert broken.closed


def test_prompts(run, reference, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "b"}])
    contract = {"prompts": {"query": "query: ", "document": "passage: "}}
    for changes, text in (
        ({}, ""),
        ({"prompt": "so: "}, "so: "),
        ({"prompt_name": "document"}, "passage: "),
        ({"contract": contract | {"default_prompt": "query"}}, "query: "),
        ({"contract": contract | {"default_prompt": "query"}, "prompt": ""}, ""),
    ):
        report, _, _ = run(source, overwrite=True, **({"contract": contract} | changes))
        assert report.prompt == text
        np.testing.assert_array_equal(
            np.load(tmp_path / "out.npy"), want(reference, ["a", "b"], text)
        )
        assert (repr(text) in report.summary()) == bool(text)
    with pytest.raises(UsageError, match="document, query"):
        run(source, prompt_name="title", contract=contract, output="other.npy")


def test_max_length_counts_truncated_rows(run, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"text": "a b c d"}, {"text": "a b"}])
    report, _, _ = run(source, max_length=4)
    assert report.truncated_rows == 1
    assert np.load(tmp_path / "out.npy")[:, 0].tolist() == [4, 4]
    with pytest.raises(UsageError, match="at most 128"):
        run(source, max_length=129, output="other.npy")


def test_truncate_dim_normalises_again(run, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"text": "a b c d"}])
    run(source, truncate_dim=3)
    vector = np.load(tmp_path / "out.npy")[0]
    assert vector.shape == (3,)
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-6)
    with pytest.raises(UsageError, match="only 8"):
        run(source, truncate_dim=9, output="other.npy")


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"normalize": False}, "--no-normalize"), ({"precision": "bf16"}, "--precision bf16")],
)
def test_what_the_server_cannot_do_is_refused(run, tmp_path, settings, said):
    source = jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    with pytest.raises(UsageError, match=said):
        run(source, **settings)


def test_no_rows_give_an_empty_file(run, tmp_path):
    (tmp_path / "in.jsonl").write_text("\n \n")
    report, _, _ = run(tmp_path / "in.jsonl")
    assert np.load(tmp_path / "out.npy").shape == (0, DIMENSION)
    assert report.rows == 0
    run(tmp_path / "in.jsonl", output="out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_half_precision_output(run, reference, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    run(source, dtype="float16")
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.dtype == np.float16
    np.testing.assert_array_equal(vectors, want(reference, ["a"]).astype(np.float16))


def test_the_progress_moves_within_a_block(make_contract, tokenizer_path):
    from headrace.ahead import Ahead
    from headrace.blocks import IdColumn
    from headrace.feeder import Feeder
    from headrace.inputs import find_inputs as find
    from headrace.progress import Counters
    from headrace.sources import read_blocks
    from headrace.tokenizer import TextTokenizer

    contract = make_contract(dimension=DIMENSION)
    config = EmbedConfig(inputs=("x",), output=Path("x.npy"), model="m")
    counters = Counters()
    feeder = Feeder(
        config,
        contract,
        TextTokenizer(tokenizer_path, max_length=64),
        FakeTransport(contract),
        counters,
    )
    inputs = find([str(Path(__file__).parents[2] / "examples" / "passages.jsonl")])
    blocks = read_blocks(inputs, columns=["text"], block_bytes=1 << 22, block_rows=200)
    prepared = (feeder.prepare(block, IdColumn()) for block in blocks)
    seen = []
    with Ahead(prepared, name="test") as ahead:
        for _ in feeder.run(ahead, lambda: seen.append(counters.bytes_done)):
            pass
    assert seen == sorted(seen)
    assert len(set(seen)) > 20
    assert counters.bytes_done == inputs[0].size


def test_the_report_adds_up(run, reference, tmp_path):
    texts = ["a", "b c d", "e f"]
    source = jsonl(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    report, _, fake = run(source)
    assert report.tokens == sum(len(reference.encode(text).ids) for text in texts)
    assert report.batches == fake.sent
    assert 0 <= report.padding < 1
    assert report.seconds > 0
    read = json.loads(report.to_json())
    assert read["rows"] == 3
    assert read["inputs"] == [str(source)]
    assert "3 rows" in report.summary()


@pytest.mark.parametrize(
    ("most", "dimension", "dtype", "expected"),
    [
        (64, 384, "float32", 1024),
        (1024, 384, "float16", 16384),
        (2048, 384, "float16", 32768),
        (2048, 384, "float32", (32 << 20) // 1536),
        (1024, 1024, "float32", 8192),
        (512, 384, "float16", 8192),
        (1024, 16384, "float32", 1024),
    ],
)
def test_blocks_hold_many_batches_and_bounded_vectors(
    make_contract, most, dimension, dtype, expected
):
    contract = make_contract(dimension=dimension, buckets=(Bucket(max_length=64, max_batch=most),))
    config = EmbedConfig(inputs=("a",), output=Path("a.npy"), model="small", dtype=dtype)
    assert choices.block_rows(config, contract) == expected
    assert choices.block_rows(replace(config, block_rows=7), contract) == 7
    half = replace(config, truncate_dim=dimension // 2)
    assert choices.block_rows(half, contract) >= expected
