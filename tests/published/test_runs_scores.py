"""Predictions against published runs: the aims that hold, and that nearly every row can be expressed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from simulator.validate.configure import configure
from simulator.validate.facts import CatalogFacts, estimator
from simulator.validate.models import Skip
from simulator.validate.runs import read_runs
from simulator.validate.score import score

RUNS = Path(__file__).parents[2] / "validation" / "runs"


@pytest.mark.parametrize(
    ("family", "mean", "worst"),
    [
        ("korthikanti", 0.04, 0.09),  # arXiv 2205.05198 tables 3 and 5
        ("megatron_lm", 0.05, 0.11),  # arXiv 2104.04473 table 1
    ],
)
def test_the_classic_tables(family: str, mean: float, worst: float) -> None:
    scores = score(read_runs([RUNS / f"{family}.csv"]), estimator, CatalogFacts())
    figures = scores.by_family()[family]
    assert figures["skipped"] == 0
    assert figures["mean"] <= mean
    assert figures["worst"] <= worst
    assert figures["mean"] < figures["constant"]["mean"]


def test_at_least_95_percent_of_each_family_become_strategies() -> None:
    facts = CatalogFacts()
    rows, skipped = Counter[str](), Counter[str]()
    for row in read_runs(sorted(RUNS.glob("*.csv"))):
        family = "nvidia" if row.family in ("mcore_moe_report", "moe_modelzoo", "nemo_automodel") else row.family
        rows[family] += 1
        skipped[family] += isinstance(configure(row, facts), Skip)
    assert {family for family, count in rows.items() if skipped[family] > 0.05 * count} == set()
