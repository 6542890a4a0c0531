"""Figures against scipy, brute force and hand counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import kendalltau

from simulator.validate.metrics import (
    constant_errors,
    coverage,
    error_summary,
    kendall_tau,
    ranking_summary,
    top_pick_loss,
    verdict_summary,
)


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipys(seed: int) -> None:
    random = np.random.default_rng(seed)
    first, second = random.integers(0, 8, 20).tolist(), random.integers(0, 8, 20).tolist()
    assert kendall_tau(first, second) == pytest.approx(kendalltau(first, second).statistic, abs=1e-12)


def test_tau_of_ties_is_none() -> None:
    assert kendall_tau([1, 1], [1, 2]) is None
    assert kendall_tau([1], [1]) is None


@pytest.mark.parametrize("seed", range(5))
def test_the_constant_is_the_best_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    ideal, measured = random.uniform(1, 2, 25), random.uniform(2, 9, 25)
    ours = np.abs(constant_errors(ideal.tolist(), measured.tolist())).mean()
    grid = min(np.abs(k * ideal / measured - 1).mean() for k in np.linspace(0.5, 10, 4000))
    fine = minimize_scalar(lambda k: np.abs(k * ideal / measured - 1).mean(), bounds=(0.5, 10), method="bounded")
    assert ours <= grid + 1e-12
    assert ours <= fine.fun + 1e-9


def test_top_pick_and_ranking() -> None:
    assert top_pick_loss([3.0, 1.0, 2.0], [1.0, 1.5, 2.0]) == pytest.approx(0.5)
    summary = ranking_summary([([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0], [2.0, 1.0]), ([1.0], [1.0])])
    assert summary == {"sets": 2, "runs": 4, "tau": 0.0, "top_pick_loss": 0.5, "top_pick_loss_worst": 1.0}
    assert ranking_summary([]) == {"sets": 0}


def test_verdicts_are_counted_by_hand() -> None:
    """Four runs, of which two ran out of memory; one of those was foreseen, and one that ran was called too large."""
    summary = verdict_summary([True, False, True, False], [True, True, False, False])
    assert summary["precision"] == 0.5
    assert summary["recall"] == 0.5
    assert summary["accuracy"] == 0.5
    sure = verdict_summary([True, False, True], [True, True, False], [0.9, 0.8, 0.5])
    assert (sure["sure"], sure["sure_accuracy"], sure["confidence"]) == (2, 0.5, pytest.approx(2.2 / 3))
    assert verdict_summary([True], [True]) == {
        "rows": 1, "out_of_memory": 0, "said_out_of_memory": 0, "precision": None, "recall": None, "accuracy": 1.0,
        "confidence": None, "sure": 0, "sure_accuracy": None,
    }  # fmt: skip


def test_empty_groups_have_no_figures() -> None:
    assert error_summary([]) == {"rows": 0}
    assert constant_errors([], []) == []
    assert coverage([], [], []) == {"rows": 0}


def test_coverage_counts_both_ends() -> None:
    assert coverage([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [1.0, 2.0, 3.0])["covered"] == pytest.approx(2 / 3)
