"""What all rows tell: their number, those without a vector, lengths, ids."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.verify.jobs import BAD, NAMES, TEXTS, vector_of
from headrace.sinks import errors_path


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("factor", "code"), [(3, 0), (3.01, 0), (3.5, 1), (1, 1), (0, 1)])
def test_lengths_that_are_not_1_are_the_references(job, capsys, name, factor, code):
    one = job(TEXTS, name, normalized=False)
    one.vectors *= 3
    one.vectors[[3, 20]] *= factor / 3
    found_code, found = one.write().check()
    assert found_code == code
    wrong = "2 rows with a vector whose length is not the reference's: 3, 20"
    assert (wrong in found["wrong"]) == bool(code)
    right = 28 if code else 30
    said = f"not normalized: {right} of 30 in the sample have the reference's"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("factor", "wrong"),
    [
        (1, []),
        (3, []),
        (2, ["30 rows with a vector whose length is not 1: 0, 1, 2, 3, 4 and 25 more"]),
    ],
)
def test_where_nobody_tells_lengths_are_1_or_the_references(job, factor, wrong):
    one = job(TEXTS, manifest=False)
    one.vectors *= factor
    assert one.write().check("--model", "m")[1]["wrong"] == wrong


def test_lengths_that_nothing_can_be_compared_with_are_not_wrong(job):
    one = job([None, None], normalized=False).write()
    assert one.check()[1]["lengths"] == {"what": "the reference's", "compared": 0, "odd": []}


def test_an_errors_file_that_names_other_lines_is_wrong(job):
    one = job(BAD).write()
    path = errors_path(one.output)
    path.write_text(path.read_text().replace('"line": 23', '"line": 24'))
    code, found = one.check()
    assert code == 1
    assert found["wrong"] == [
        "1 row is in out.npy.errors.jsonl with another line than in the input: 21"
    ]


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
