"""How an output was made is told by its manifest, or by the command line."""

from __future__ import annotations

import json
import shutil

import pytest

from bench.verify.jobs import BAD, TEXTS, fake
from headrace.errors import MachineError, UsageError
from headrace.manifest import line_of
from headrace.sinks import manifest_path
from headrace_bench.verify.reference import Asked


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


def test_a_manifest_need_not_tell_the_model(job):
    one = job(TEXTS, prompt="p").write()
    path = manifest_path(one.output)
    head = json.loads(path.read_text().splitlines()[0])
    del head["job"]["model"], head["crc"]
    path.write_text(line_of(head) + "\n")
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
    assert (code, places) == (1, {3: "1.jsonl, line 5", 20: "2.jsonl, line 11"})
