"""Keys and tokens stand in no error, no name, no report."""

from __future__ import annotations

import traceback
import types

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from headrace import paths
from headrace.errors import LONGEST, HeadraceError, UsageError, tidy
from headrace.inputs import find_inputs


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain/a@b:c?.txt", "plain/a@b:c?.txt"),
        ("s3://bucket/a@b.txt", "s3://bucket/a@b.txt"),
        ("s3://KEY:SECRET@bucket/x/*.jsonl", "s3://bucket/x/*.jsonl"),
        ("s3://KEY@bucket/x", "s3://bucket/x"),
        ("s3://KEY:SEC@RET@bucket/a@b", "s3://bucket/a@b"),
        ("s3://KEY:SEC/RET@bucket/x", "s3://bucket/x"),
        ("s3://KEY:SE?CRET@bucket/x?secret_key=SECRET", "s3://bucket/x"),
        ("s3://host:9000/x@y?access_key=KEY&secret_key=SECRET", "s3://host:9000/x@y"),
        ("hdfs://user:SECRET@host:1/x", "hdfs://host:1/x"),
        ("s3://" + "a:" * 50_000, "s3://" + "a:" * 50_000),
    ],
    ids=lambda text: text[:40],
)
def test_what_is_shown_of_a_uri(given, shown):
    assert paths.shown(given) == shown


@pytest.mark.parametrize(
    "given",
    [
        "s3://KEYKEY:SECRETKEY@/x",
        "s3://KEYKEY:SECRET/KEY@bucket/x",
        "s3://KEYKEY:SECRET KEY@buck et/x",
        "s3://KEYKEY:SECRETKEY@bucket/x?bogus=1",
        "s3://bucket/x?secret_key=SECRETKEY",
        "nosuch://KEYKEY:SECRETKEY@bucket/x?password=SECRETKEY",
        "file:///no/such/file?password=SECRETKEY",
    ],
)
def test_errors_and_tracebacks_quote_no_key(given):
    with pytest.raises(HeadraceError) as caught:
        find_inputs([given])
    told = "".join(traceback.format_exception(caught.value))
    quoted = "\n".join(line for line in told.splitlines() if "find_inputs(" not in line)
    for secret in ("KEYKEY", "SECRET"):
        assert secret not in str(caught.value)
        assert secret not in quoted
    assert caught.value.__cause__ is None


def opens(monkeypatch, from_uri):
    """Has URIs opened by a function."""
    names = {name: getattr(pafs, name) for name in dir(pafs) if name[0].isupper()}
    fake = types.SimpleNamespace(**names | {"FileSystem": types.SimpleNamespace(from_uri=from_uri)})
    monkeypatch.setattr(paths, "pafs", fake)


@pytest.mark.parametrize("kind", [pa.ArrowInvalid, OSError, PermissionError, NotImplementedError])
def test_whatever_arrow_quotes(monkeypatch, kind):
    given = "s3://KEYKEY:SEC%2FRET@bucket/x?secret_key=a%2Bbcdef&region=eu-west"

    def refuse(_):
        raise kind(f"cannot open {given}: the key SEC/RET of KEYKEY, a+bcdef, in eu-west")

    opens(monkeypatch, refuse)
    with pytest.raises(HeadraceError) as caught:
        find_inputs([given])
    message = str(caught.value)
    assert message.startswith("s3://bucket/x: ")
    for secret in ("KEYKEY", "SEC/RET", "SEC%2FRET", "a+bcdef", "a%2Bbcdef"):
        assert secret not in message


def test_the_names_of_inputs_hold_no_key(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a\n")
    local = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    opens(monkeypatch, lambda _: (local, ""))
    for given in (
        "s3://KEY:SECRET@/?secret_key=SECRET",
        "s3://KEY:SECRET@/*.txt?secret_key=SECRET",
    ):
        (found,) = find_inputs([given])
        assert "KEY" not in found.name
        assert "SECRET" not in repr(found)
        assert found.name.startswith("s3:")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("at s3://a:b@c/d: no", "at s3://***@c/d: no"),
        ("x?a=1&secret_key=b c", "x?a=1&secret_key=*** c"),
        ("the token hf_abcdefghijklmnopqrst is", "the token *** is"),
        ("Authorization: Bearer abcdef012345.x", "Authorization: Bearer ***"),
        ("a\nb\r\x1b[2J\u202ec", "a\\nb\\r\\x1b[2J\\u202ec"),
    ],
)
def test_the_net_below(message, shown):
    assert tidy(message) == shown
    assert str(UsageError(message)) == shown


@pytest.mark.parametrize("text", ["x", "://", "?key", "hf_", "a:", "bearer ", "://a@", "&token="])
def test_long_messages_are_cut_and_cost_little(text):
    assert len(str(UsageError(text * 200_000))) <= LONGEST
