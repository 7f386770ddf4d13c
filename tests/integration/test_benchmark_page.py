"""The page of figures is the one that its command makes, and the README quotes that."""

from __future__ import annotations

import json
import re
from pathlib import Path

from headrace_bench.page import page
from headrace_bench.peers.run import DEFAULT, HEADRACE, MORE
from headrace_bench.stats import Spread

ROOT = Path(__file__).parents[2]
RESULT = json.loads((ROOT / "docs" / "benchmarks.json").read_text(encoding="utf-8"))
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").split("## How fast")[1].split("\n## ")[0]


def test_the_page_is_what_its_command_makes_of_the_json():
    made = page(RESULT, chart="benchmarks.svg", more=MORE)
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == made


def test_the_chart_is_of_the_same_figures():
    drawn = (ROOT / "docs" / "benchmarks.svg").read_text(encoding="utf-8")
    for name, way in RESULT["ways"].items():
        assert name in drawn
        if way["rows_per_second"]:
            assert f">{way['rows_per_second']['median']:,.0f}<" in drawn
    assert RESULT["date"] in drawn


def test_no_speed_is_told_of_what_is_wrong_or_not_tei():
    assert not any(name.startswith("TEI") for name in RESULT["ways"]) or RESULT["details"]["tei"]
    for way in RESULT["ways"].values():
        assert bool(way["rows_per_second"]) == bool(way["rates"] and not way["wrong"])


def test_the_readme_quotes_it():
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+) \|", SECTION, flags=re.MULTILINE))
    measured = {name: way for name, way in RESULT["ways"].items() if way["rows_per_second"]}
    for name, way in measured.items():
        assert rows[name].strip() == Spread(**way["rows_per_second"]).show(), name
    ours = RESULT["ways"][HEADRACE]["times"]
    for other, ratio in ours.items():
        assert f"{ratio['median']:.2f}" in SECTION, other
    assert DEFAULT in ours


def test_the_readme_names_machine_date_and_versions():
    for said in (RESULT["date"], RESULT["hardware"]["processor"], f"{RESULT['texts']['rows']:,}"):
        assert said in SECTION
    for name in ("openvino", "sentence-transformers", "torch"):
        assert RESULT["versions"][name] in SECTION
