"""What calibration makes of timings: sums, curves, and the file that other commands read."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from simulator.calibrate.fit import curve, fit_sum, nonnegative_least_squares, spread
from simulator.calibrate.write import toml_text
from simulator.cluster.measured import product_terms


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(8, 30))
def test_least_squares_equals_scipys(seed: int, columns: int, rows: int) -> None:
    dice = np.random.default_rng(seed)
    a, b = dice.random((rows, columns)), dice.normal(size=rows) + 0.5
    expected, distance = nnls(a, b)
    found = nonnegative_least_squares(a, b)
    assert (found >= 0).all()
    assert np.linalg.norm(a @ found - b) == pytest.approx(distance, rel=1e-9)
    assert found == pytest.approx(expected, abs=1e-8)


def test_a_sum_that_made_the_times_is_found_again() -> None:
    truth = {"call_s": 5e-6, "mnk_s": 2e-11, "mk_s": 3e-10, "kn_s": 1e-10, "mn_s": 6e-10}
    shapes = [(48, 96, 112), (208, 1104, 304), (880, 112, 2032), (16, 48, 80), (1520, 368, 720), (80, 3056, 144)]
    rows = []
    for m, n, k in shapes:
        terms = {name: float(value) for name, value in product_terms(m, n, k).items()}
        rows.append((terms, sum(truth[name] * value for name, value in terms.items())))
    found, residuals = fit_sum(rows)
    assert found == pytest.approx(truth, rel=1e-6)
    assert residuals["count"] == len(shapes)
    assert residuals["worst"] < 1e-9


@given(st.lists(st.tuples(st.floats(1.0, 1e9), st.floats(1e-7, 1.0)), min_size=1, max_size=20))
def test_a_curve_never_falls_and_keeps_its_mean(points: list[tuple[float, float]]) -> None:
    found = curve(points)
    sizes, times = [point[0] for point in found], [point[1] for point in found]
    assert sizes == sorted({size for size, _ in points})
    assert all(late >= early * (1 - 1e-12) for early, late in pairwise(times))
    if len(sizes) == len(points):
        assert sum(times) == pytest.approx(sum(seconds for _, seconds in points))


def test_spread_is_the_interquartile_range_over_the_median() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.0 / 3.0)


def test_toml_round_trips(tmp_path: Path) -> None:
    import tomllib

    inner = {"gemm.fp32": {"call_s": 1.25e-6}, "points": [[1.0, 2e-5]]}
    table = {"title": 'a "b"', "count": 3, "rate": 2.0, "inner": inner}
    assert tomllib.loads(toml_text(table)) == table
