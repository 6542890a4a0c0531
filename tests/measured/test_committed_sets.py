"""The committed measured sets are scored again: predictions of today's code stay as near as their report says."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.measure.score import Scored, score, summary
from simulator.measure.table import read_table

BOUNDS = {"single process": 0.08, "several ranks": 0.15, "overhead": 0.30}
"""Mean absolute errors at the speed that the reference kernels had; validation/measured/REPORT.md has the figures."""


def _scored(folder: Path) -> list[Scored]:
    return score(read_table(folder / "steps.csv"), folder / "machine.toml")


@pytest.fixture(scope="module")
def sets(root: Path) -> dict[str, list[Scored]]:
    found = sorted((root / "validation" / "measured").glob("*/steps.csv"))
    return {path.parent.name: _scored(path.parent) for path in found}


def test_two_sets_from_two_times_are_kept(sets: dict[str, list[Scored]]) -> None:
    assert len(sets) >= 2
    assert max(len(scored) for scored in sets.values()) >= 60


def test_errors_stay_within_what_the_report_says(sets: dict[str, list[Scored]]) -> None:
    for name, scored in sets.items():
        for kind, figures in summary(scored)["by_class"].items():
            assert figures["drifted_mean"] < BOUNDS[kind], (name, kind)
            assert figures["one_rate_mean"] > 2 * figures["drifted_mean"], (name, kind)
