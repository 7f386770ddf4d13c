import json
import math
import re

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace import jsonlines
from headrace.blocks import Block, find_lines
from headrace.errors import HeadraceError
from headrace.records import detect_id_type, parse


def block_of(data, kind="jsonl", rows=None, first_line=1):
    if rows is None:
        rows = len(find_lines(data, kind).starts) if isinstance(data, bytes) else data.num_rows
    return Block(
        index=0,
        file="f",
        format=kind,
        data=data,
        first_row=0,
        first_line=first_line,
        rows=rows,
        bytes_done=0,
    )


def read(data, kind="jsonl", text="text", ids=None, id_type="int64", first_line=1):
    """Returns texts, ids and [(row, line, reason)] of a block."""
    block = block_of(data, kind, first_line=first_line)
    records = parse(block, text_field=text, id_field=ids, id_type=id_type)
    assert records.texts.type == pa.string()
    assert records.texts.null_count == 0
    records.texts.validate(full=True)
    if ids is not None:
        assert len(records.ids) == block.rows
    bad = [(one.row, one.line, one.reason) for one in records.bad]
    return records.texts.to_pylist(), records.ids and records.ids.to_pylist(), bad


def reason(line, **options):
    """Returns what is wrong with the one bad row between two good ones."""
    good = b'{"text": "good", "m": {"text": "good"}}'
    texts, _, bad = read(b"\n".join([good, line, b"", good]), **options)
    assert texts == ["good", "", "good"]
    ((row, number, why),) = bad
    assert (row, number) == (1, 2)
    assert "\n" not in why
    return why


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "a"', "not valid JSON: Expecting ',' delimiter at column 13"),
        (b'{"text": "a"}}', "not valid JSON: Extra data at column 14"),
        (b'{"text": "a"}{"text": "b"}', "not valid JSON: Extra data at column 14"),
        (b"{'text': 'a'}", "not valid JSON"),
        (b'{"text": "a",}', "not valid JSON"),
        (b'{"text": "a\tb"}', "not valid JSON: Invalid control character"),
        (b'{"text": "a\0b"}', "not valid JSON: Invalid control character"),
        (b'{"text": "a"}\0', "not valid JSON"),
        (b'{"text": "a", "x": "\xff"}', "invalid UTF-8 at byte 21"),
        (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8 at byte 11"),
        (b'\xef\xbb\xbf{"text": "a"}', "not valid JSON"),
        (b"garbage", "not valid JSON: Expecting value at column 1"),
        (b'{"other": 1}', "no field 'text'"),
        (b'{"text": null}', "field 'text' is null"),
        (b'{"text": 5}', "field 'text' is a number, not a string"),
        (b'{"text": NaN}', "field 'text' is a number, not a string"),
        (b'{"text": true}', "field 'text' is a boolean, not a string"),
        (b'{"text": ["a"]}', "field 'text' is an array, not a string"),
        (b'{"text": {"a": 1}}', "field 'text' is an object, not a string"),
        (b'{"text": %s}' % (b"9" * 5000), "field 'text' is a number, not a string"),
        (b'["text"]', "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_rows(line, why):
    assert reason(line).startswith(why)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{}", "no field 'm'"),
        (b'{"m": {}}', "no field 'm.text'"),
        (b'{"m": null}', "field 'm' is null"),
        (b'{"m": "x"}', "field 'm' is a string, not an object"),
        (b'{"m": {"text": null}}', "field 'm.text' is null"),
        (b'{"m": {"text": 1}}', "field 'm.text' is a number, not a string"),
        (b'{"m.text": "x"}', "no field 'm'"),
    ],
)
def test_bad_rows_of_a_path(line, why):
    assert reason(line, text="m.text") == why


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (rb'{"text": "\u00e9\n\/ \ud83d\ude00 \u0000."}', "é\n/ 😀 \0."),
        (rb'{"text": "a\ud800b\udc00c"}', "a\ufffdb\ufffdc"),
        (rb'{"text": "\udc00\ud800"}', "\ufffd\ufffd"),
        (rb'{"text": "a", "x": "\ud800"}', "a"),
        (b'{"text": "a", "text": "b"}', "b"),
        (b'{"text": 1, "text": "b"}', "b"),
        (b'{"text": "a", "x": %s, "y": 1e999}' % (b"9" * 5000), "a"),
        (b'{"text": "a", "x": NaN, "y": [-Infinity]}', "a"),
        (b'{"text": "a", "x": -NaN, "y": [Inf]}', "a"),
        (b'{"text": "a", "x": %s%s}' % (b"[" * 50_000, b"]" * 50_000), "a"),
        (b'\t {"text": "a"} \t', "a"),
        (rb'{"te\u0078t": "a"}', "a"),
        (b'{"text": ""}', ""),
    ],
)
def test_good_rows(line, text):
    for data in (line, line + b"\r\n", b'{"text": "x"}\n' + line, b"oops\n" + line):
        texts, _, bad = read(data)
        assert texts[-1] == text
        assert len(bad) == data.startswith(b"oops")


def test_objects_that_do_not_keep_to_lines():
    assert read(b'{"text":"a"}{"text":"b"}\n{"text":\n"c"}\n{"text":"d"}')[0] == ["", "", "", "d"]
    assert read(b'{"text":"a"}{"text":"b"}\n{"text":"c", "x": {\n}}')[0] == ["", "", ""]
    assert read(b'{"text":"a"}{"x":{}\n}\n{"text":"c"}')[0] == ["", "", "c"]


def test_lines_of_bad_rows():
    texts, _, bad = read(b'\n\n{"text": "a"}\n \t\r\nx\n\n{}\n', first_line=100)
    assert texts == ["a", "", ""]
    assert [(row, line) for row, line, _ in bad] == [(1, 104), (2, 106)]


def test_large_blocks_with_few_bad_rows():
    lines = [b'{"text": "%d", "id": %d}' % (i, i) for i in range(70_000)]
    for i in (0, 255, 256, 30_000, 65_535, 65_536, 69_999):
        lines[i] = [b"{", b'{"text": null, "id": %d}' % i, b'{"id": %d}' % i][i % 3]
    texts, ids, bad = read(b"\n".join(lines), ids="id")
    broken = {row for row, _, _ in bad}
    assert broken == {0, 255, 256, 30_000, 65_535, 65_536, 69_999}
    assert texts == ["" if i in broken else str(i) for i in range(70_000)]
    assert ids == [None if lines[i] == b"{" else i for i in range(70_000)]


def test_long_line():
    text = "é" * 5_000_000
    assert read(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n{}")[0] == [text, ""]


KEYS = st.sampled_from(["text", "id", "m", "x", "é"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
RECORD = st.dictionaries(KEYS, JSON, max_size=4) | st.fixed_dictionaries(
    {
        "text": st.text(max_size=9),
        "id": st.integers(),
        "m": st.fixed_dictionaries({"text": st.text()}),
    }
)
LINE = st.builds(
    lambda record, escape, space: (
        space + json.dumps(record, ensure_ascii=escape).encode("utf-8", "surrogatepass")
    ),
    RECORD,
    st.booleans(),
    st.sampled_from([b"", b"", b" ", b"\r"]),
)
TOKENS = [
    *(bytes([byte]) for byte in b'{}[]",:\\ \t\r\n\0-+.eE019"}'),
    *(b"\xff", b"\xc3", b"\xc3\xa9", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\\udc00"),
    *(b"NaN", b"Inf", b"Infinity", b"-NaN", b"null", b"true", b"nul", b"9" * 25, b"1e999"),
    *(b'"text":', b'"text":"a",', b'"id":7,', b'"m":{"text":"b"},', b"{}", b"\\u0000", b"//"),
]


@st.composite
def damaged(draw):
    """JSON lines with some bytes taken out, put in or replaced."""
    data = bytearray(b"\n".join(draw(st.lists(LINE, min_size=1, max_size=6))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.sampled_from(TOKENS))
    return bytes(data)


MISFIT = object()  # an id that the column's type cannot hold


def outcome(data, ids, id_type, text):
    return read(data, text=text, ids=ids, id_type=id_type)


OPTIONS = [
    (None, "int64", "text"),
    ("id", "int64", "text"),
    ("id", "string", "text"),
    ("m.id", "string", "m.text"),
    ("m", "string", "m.text"),
]


@given(damaged(), st.sampled_from(OPTIONS))
@example(b'{"text":"a"}{"text":"b"}\n{"text":\n"c"}', OPTIONS[0])
@example(b'{"text":"a","x":Inf}\n{"x":Inf,"id":1}', OPTIONS[1])
@example(b'{"text":"a","id":-0}\n{"text":"a","id":00}\n{"text":"a","id":1.0}', OPTIONS[2])
@settings(deadline=None, max_examples=600)
def test_fast_and_slow_agree(data, options):
    with pytest.MonkeyPatch.context() as patch:
        expected = outcome(data, *options)
        patch.setattr(jsonlines, "_AFTER_OTHER", (1, 2))
        assert outcome(data, *options) == expected
        patch.setattr(jsonlines.JsonReader, "_read_flat", lambda *_: pa.array([], pa.string()))
        for groups in ((), (1,), (2,), (3, 2)):
            patch.setattr(jsonlines, "_GROUPS", groups)
            assert outcome(data, *options) == expected


@given(damaged())
@settings(deadline=None, max_examples=500)
def test_rows_do_not_depend_on_their_block(data):
    texts, _, bad = read(data)
    reasons = {row: why for row, _, why in bad}
    lines = [line for line in data.split(b"\n") if line.strip(b" \t\r")]
    assert len(texts) == len(lines)
    for row, line in enumerate(lines):
        assert read(line.strip(b" \t\r"))[0] == [texts[row]]
        assert [why for _, _, why in read(line)[2]] == ([reasons[row]] if row in reasons else [])


@given(damaged())
@settings(deadline=None, max_examples=500)
def test_agrees_with_json_of_python(data):
    texts, _, bad = read(data)
    broken = {row for row, _, _ in bad}
    lines = [line for line in data.split(b"\n") if line.strip(b" \t\r")]
    for row, line in enumerate(lines):
        if re.search(rb"-NaN|Inf(?!inity)", line):
            continue  # pyarrow takes these for numbers
        try:
            text = json.loads(line.decode())["text"]
            text = text if isinstance(text, str) else None
        except (ValueError, KeyError, TypeError):
            text = None
        assert (row in broken) == (text is None)
        assert texts[row] == re.sub("[\ud800-\udfff]", "\ufffd", text or "")


@pytest.mark.parametrize(
    ("value", "as_int", "as_string"),
    [
        (b"7", 7, "7"),
        (b"-0", 0, "0"),
        (b"null", None, None),
        (b"9223372036854775807", 2**63 - 1, "9223372036854775807"),
        (b"-9223372036854775808", -(2**63), "-9223372036854775808"),
        (b"9223372036854775808", MISFIT, "9223372036854775808"),
        (b"1.50", MISFIT, "1.50"),
        (b"1e2", MISFIT, "1e2"),
        (b"NaN", MISFIT, "NaN"),
        (b"true", MISFIT, "true"),
        (b'"a\\ud800"', MISFIT, "a\ufffd"),
        (b'"7"', MISFIT, "7"),
        (b"{}", MISFIT, MISFIT),
    ],
)
def test_ids(value, as_int, as_string):
    data = b'{"text": "a", "id": 1}\n{"text": "b", "id": %s}\n{"text": 5, "id": %s}\n{}\nx'
    data %= (value, value)
    for id_type, expected, one in (("int64", as_int, 1), ("string", as_string, "1")):
        texts, ids, bad = read(data, ids="id", id_type=id_type)
        if expected is MISFIT:
            # The row stays, without an id and without a text, and its reason says why.
            assert texts == ["a", "", "", "", ""]
            assert ids == [one, None, None, None, None]
            assert len(bad) == 4
            assert any("field 'id' is" in str(each) for each in bad)
        else:
            assert texts == ["a", "b", "", "", ""]
            assert ids == [one, expected, expected, None, None]
            assert len(bad) == 3


def test_ids_of_a_path_and_the_text_itself():
    data = b'{"text": "a", "m": {"id": 1}}\n{"text": "b", "m": null}\n{"text": "c", "m": 5}'
    assert read(data, ids="m.id")[1] == [1, None, None]
    assert read(data, ids="text", id_type="string")[1] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"id": 1}\n{"id": null}\n{}\n{"id": 2}', "int64"),
        (b'x\n\n{"id": 1}', "int64"),
        (b'{"id": null}\n{"id": 1}', "int64"),
        (b'{"id": 1}\n{"id": "a"}', "string"),
        (b'{"id": 9223372036854775808}', "string"),
        (b'{"id": 1.5}', "string"),
        (b'{"id": true}', "string"),
        (b'{"id": null}', "string"),
        (b'{"text": "a"}\n{"id": 1}', None),
        (b"x", None),
        (b"", None),
    ],
)
def test_detect_id_type(data, expected):
    assert detect_id_type(block_of(data), "id") == expected


def test_detect_id_type_of_other_formats():
    assert detect_id_type(block_of(b"1", "text"), "id") is None


def test_undecided_id_type():
    with pytest.raises(ValueError, match="detect_id_type"):
        read(b"{}", ids="id", id_type="auto")


def test_wrong_count_is_an_internal_error():
    block = block_of(b"a\nb\n", "text", rows=3)
    with pytest.raises(HeadraceError, match="internal error: 2 rows of 3"):
        parse(block, text_field="text", id_field=None, id_type="auto")


def test_text():
    data = b"a\n\nb\r\n\r\n\xc3\xa9\0 \r\r\n\rlast\r"
    assert read(data, "text") == (["a", "", "b", "", "é\0 \r", "\rlast\r"], None, [])
    assert read(b"\n", "text")[0] == [""]


def test_text_that_is_not_utf8():
    texts, _, bad = read(b"a\xc3\n\xa9b\nok\n\xff", "text", first_line=10)
    assert texts == ["", "", "ok", ""]
    assert bad == [
        (0, 10, "invalid UTF-8 at byte 2"),
        (1, 11, "invalid UTF-8 at byte 1"),
        (3, 13, "invalid UTF-8 at byte 1"),
    ]


@given(
    st.lists(st.sampled_from([b"a", b"\xc3\xa9", b"\xc3", b"\n", b"\r", b"\r\n", b"\0"])).map(
        b"".join
    )
)
@settings(deadline=None)
def test_text_against_a_plain_reader(data):
    lines = data.split(b"\n")
    last = lines.pop()
    lines = [line.removesuffix(b"\r") for line in lines] + ([last] if last else [])
    texts, _, bad = read(data, "text")
    broken = {row for row, _, _ in bad}
    assert len(texts) == len(lines)
    for row, line in enumerate(lines):
        assert texts[row] == ("" if row in broken else line.decode())
        assert (row in broken) == ("\ufffd" in line.decode("utf-8", "replace"))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet(kind):
    raw = pa.array([b"x", b"a", None, b"\xff", b"\xc3", b"\xc3\xa9"])
    if kind == pa.large_string():
        raw = raw.cast(pa.large_binary())
    batch = pa.record_batch({"m.text": raw.view(kind), "id": [math.pi, 1, None, 2, 3, 4]})
    texts, ids, bad = read(batch.slice(1), "parquet", text="m.text", ids="id")
    assert texts == ["a", "", "", "", "é"]
    assert ids == [1, None, 2, 3, 4]
    assert bad == [
        (1, None, "column 'm.text' is null"),
        (2, None, "invalid UTF-8 at byte 1"),
        (3, None, "invalid UTF-8 at byte 1"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b'{"n": 01, "text": "a"}',
        b'{"n": -, "text": "a"}',
        b'{"n": 1., "text": "a"}',
        b'{"a\tb": 1, "text": "a"}',
        b'{"text": "a long text with a \x01 in its middle, beyond eight bytes"}',
        b'{"text": "\\udc00 low alone"}',
        b'{"text": "\\ud800\\ud800"}',
        b'{"text": "\\u12g4"}',
        b'{"text": "a" "b"}',
        b'{"text": "a",}',
        b'{"text": "a"} x}',
        b'{"text": "a", "text": "b"}',
        b'{"text": tru}',
    ],
)
def test_what_is_not_flat_or_not_valid_is_left_to_others(line):
    """The compiled reader takes nothing of it; what then becomes of it others decide."""
    good = b'{"id": -1.5e+3, "text": "good"}'
    reader = jsonlines.JsonReader(
        block_of(good + b"\n" + line + b"\n"), "text", None, string_ids=False
    )
    assert reader._read_flat(0).to_pylist() == ["good"]


ESCAPES = ["\\", "\\u00e9", "\\ud83d\\ude00", "\\udc00", "\\n", "\\x"]
SIGNS = ['"', "\x01", "\t", " ", ",", ":", "{", "}", "[", "]", "\r"]
VALUES = ["0", "01", "-", "1e5", "2.", "true", "null"]
TEXT = ["é", "😀", "text", "a", "eight bytes and more of plain text "]
PIECES = st.sampled_from(
    ['{"text": "', '"}', '"text": "a"', '"id": ', *ESCAPES, *SIGNS, *VALUES, *TEXT]
)


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(PIECES, max_size=9), closed=st.booleans())
def test_what_is_read_as_flat_is_what_python_reads(pieces, closed):
    line = '{"text": "' + "".join(pieces) + ('"}' if closed else "")
    reader = jsonlines.JsonReader(block_of(line.encode()), "text", None, string_ids=False)
    found = reader._read_flat(0).to_pylist()
    if found:
        value = json.loads(line, parse_constant=pytest.fail)
        assert found == [value["text"]]
