"""The command: what it refuses, and the real model."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

import headrace
from bench.verify.jobs import BAD, MODEL, TEXTS, fake
from headrace.errors import EXIT_ENVIRONMENT, MachineError, MissingDependencyError, UsageError
from headrace.sinks import errors_path, manifest_path
from headrace_bench.verify import run as verify
from headrace_bench.verify.reference import Asked, open_reference


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
