"""What the command lines of the benchmarks share."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from headrace_bench.options import settings


def test_settings_are_told_without_secrets():
    options = Namespace(
        input="s3://KEY:SECRET@bucket/x?region=r",
        tei=["docker", "http://user:SECRET@h:1/"],
        output=Path("a/b"),
        rows=3,
        seed=None,
        arguments=["SECRET"],
        name="peers",
    )
    assert settings(options) == {
        "input": "s3://bucket/x",
        "tei": ["docker", "http://h:1/"],
        "output": "a/b",
        "rows": 3,
        "seed": None,
    }
