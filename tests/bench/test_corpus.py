"""The benchmark's texts: real, distinct, the same each time."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest

from headrace.errors import UsageError
from headrace_bench import corpus


def test_paragraphs_are_distinct_lines_of_some_length():
    texts = corpus.take(300)
    assert len(set(texts)) == 300
    assert all(len(text) >= corpus.LEAST_CHARACTERS for text in texts)
    assert all(text == " ".join(text.split()) for text in texts)


def test_another_process_takes_the_same():
    code = "from headrace_bench import corpus; print(*corpus.take(300), sep='\\n')"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONUTF8": "1"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].decode().splitlines() == corpus.take(300)


@pytest.fixture
def few(tmp_path, monkeypatch):
    """An installation of three files, one of which cannot be parsed."""
    long = "a paragraph that is long enough to be taken, number"
    (tmp_path / "a.py").write_text(f'"""{long} one.\n\n{long}\n   two.\n\nshort\n"""\n')
    (tmp_path / "b.py").write_text("def wrong(:\n")
    (tmp_path / "c.py").write_text(f'def f():\n    """{long} one.\n\n    {long} three é."""\n')
    files = sorted(tmp_path.glob("*.py"))
    monkeypatch.setattr(corpus, "_files", lambda: iter(files))
    return [f"{long} {number}" for number in ("one.", "two.", "three é.")]


def test_paragraphs_are_joined_and_repetitions_and_broken_files_left_out(few):
    assert list(corpus.paragraphs()) == few


def test_other_processes_find_the_same(few, monkeypatch):
    monkeypatch.setattr(corpus, "FILES_HERE", 1)
    assert list(corpus.paragraphs()) == few
    texts = corpus.paragraphs()
    assert [next(texts), next(texts)] == few[:2]
    texts.close()  # before the last: the processes end


NESTED = """
class A:
    if True:
        def f(): ...
    else:
        async def g(): ...
    try:
        with a, b:
            def h():
                def i(): ...
    except* E:
        class B: ...
    finally:
        for x in (lambda: y):
            def j(): ...
        else:
            def k(): ...
match m:
    case [1]:
        def l(): ...
    case {}:
        while x if y else z:
            def m(): ...
def n(): ...
"""


def test_documented_nodes_come_in_the_order_of_walk():
    tree = ast.parse(NESTED)
    walked = [node for node in ast.walk(tree) if isinstance(node, corpus._DOCUMENTED)]
    assert len(walked) == 12
    assert list(corpus._documented(tree)) == walked


def test_too_few_paragraphs_are_an_error(few):
    assert corpus.take(3) == few
    with pytest.raises(UsageError, match="only 3 paragraphs are installed, 4 were asked for"):
        corpus.take(4)


def test_jsonl_holds_the_texts_in_order(tmp_path):
    texts = ['with "quotes" and \\', "ünïcode 漢字 🙂", "line\nbreak\u2028and separator", ""]
    corpus.write_jsonl(texts, tmp_path / "texts.jsonl")
    data = (tmp_path / "texts.jsonl").read_bytes()
    records = [json.loads(line) for line in data.split(b"\n")[:-1]]
    assert records == [{"id": index, "text": text} for index, text in enumerate(texts)]
