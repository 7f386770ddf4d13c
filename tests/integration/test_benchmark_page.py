"""The page of figures is the one that its command makes, and the README quotes that."""

from __future__ import annotations

import json
import re
from pathlib import Path

from headrace_bench.page import page
from headrace_bench.peers.run import HEADRACE, MORE
from headrace_bench.stats import Spread, pairwise, spread

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


def test_no_speed_is_told_of_what_is_wrong_and_nothing_is_called_tei_that_was_not_asked():
    for name, way in RESULT["ways"].items():
        assert (way["rows_per_second"] is None) == bool(way["wrong"] or way["missing"]), name
        assert not name.startswith("TEI") or RESULT["details"]["tei"]


def test_the_readme_quotes_it():
    rows = {
        name: (rate, ratio.strip())
        for name, rate, ratio in re.findall(
            r"^\| ([^|]+?) \| ([^|]+?) \|([^|]*)\|$", SECTION, flags=re.MULTILINE
        )
    }
    ways, ours = RESULT["ways"], RESULT["ways"][HEADRACE]["rates"]
    for name in [name for name, way in ways.items() if way["rows_per_second"]]:
        others = [] if name in RESULT["ours"] else ways[name]["rates"]
        ratio = spread(pairwise(ours, others)).show(2) if others else ""
        assert rows[name] == (Spread(**ways[name]["rows_per_second"]).show(), ratio)
    share = ways[HEADRACE]["times"]["OpenVINO alone"]["median"]
    assert f"headrace has {share:.2f} of what OpenVINO does alone" in SECTION


def test_the_readme_names_machine_date_and_versions():
    for said in (RESULT["date"], RESULT["hardware"]["processor"], f"{RESULT['texts']['rows']:,}"):
        assert said in SECTION
    for name in ("openvino", "sentence-transformers", "torch"):
        assert RESULT["versions"][name] in SECTION
