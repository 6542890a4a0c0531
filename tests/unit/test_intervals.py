"""Conformal intervals: coverage on exchangeable data, the left-out family, the ladder of regimes, and the file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.intervals import MIN_ROWS, Residual, fits_confidence, interval, read_residuals, write_residuals

DENSE = {"kind": "dense", "device": "d", "bound": "compute", "pipeline": "no", "precision": "bf16"}


def residuals(family: str, values: np.ndarray, **regime: str) -> list[Residual]:
    return [Residual(f"{family}{i}", family, DENSE | regime, float(v)) for i, v in enumerate(values)]


def test_an_unseen_draw_is_covered_nine_times_in_ten() -> None:
    random = np.random.default_rng(7)
    covered = []
    for _ in range(400):
        known = residuals("a", random.normal(0.1, 0.2, 60)) + residuals("b", random.normal(0.1, 0.2, 60))
        low, high = interval(DENSE, known)
        covered.append(low <= math.exp(random.normal(0.1, 0.2)) <= high)
    assert 0.86 <= np.mean(covered) <= 0.96


def test_ends_are_the_order_statistics_of_split_conformal() -> None:
    """99 equal weights: floor(100 * 0.05) = 5th from either end."""
    known = residuals("a", np.arange(1.0, 100.0))
    low, high = interval(DENSE, known)
    assert (math.log(low), math.log(high)) == (pytest.approx(5.0), pytest.approx(95.0))


def test_a_family_and_its_kin_never_widen_their_own_interval() -> None:
    known = residuals("vtrain", np.zeros(50)) + residuals("nvidia_dgxc", np.full(50, 3.0))
    assert interval(DENSE, known, without="nvidia_megatron_bridge") == (1.0, 1.0)
    assert interval(DENSE, known, without="vtrain") == (pytest.approx(math.exp(3)), pytest.approx(math.exp(3)))


def test_families_count_equally() -> None:
    """A family of 900 exact rows does not hide that half of the families are far off."""
    known = residuals("large", np.zeros(900)) + residuals("small", np.linspace(1.0, 2.0, 20))
    assert interval(DENSE, known)[1] > math.exp(1.5)


def test_the_narrowest_regime_with_enough_rows_is_used() -> None:
    rows = MIN_ROWS // 2
    mixture = residuals("a", np.full(rows, 1.0), kind="moe") + residuals("b", np.full(rows, 1.0), kind="moe")
    known = mixture + residuals("c", np.zeros(200))
    assert interval(DENSE | {"kind": "moe"}, known)[0] == pytest.approx(math.e)
    assert interval(DENSE | {"kind": "moe"}, mixture[1:] + residuals("c", np.zeros(200)))[0] == 1.0


def test_without_residuals_the_interval_is_unbounded() -> None:
    assert interval(DENSE, []) == (0.0, math.inf)


def test_the_file_round_trips(tmp_path: Path) -> None:
    known = tuple(residuals("a", np.array([0.25, -0.5])))
    path = tmp_path / "residuals.csv"
    write_residuals(path, known, "from a test")
    assert path.read_text().startswith("# from a test\n")
    assert read_residuals(path) == known


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "run_id,family,kind,device,bound,pipeline,precision,log_ratio\nr,f,k,d,b,p,q,x\n"],
)
def test_a_bad_file_is_an_input_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "residuals.csv"
    path.write_text(text)
    if not text:
        assert read_residuals(path) == ()
        return
    with pytest.raises(InputError, match="not a table of residuals"):
        read_residuals(path)


def peaks(family: str, ratios: list[float]) -> list[Residual]:
    return [Residual(f"{family}{i}", family, DENSE, None, math.log(r)) for i, r in enumerate(ratios)]


def test_the_confidence_of_a_verdict_is_the_share_of_families_peaks_on_its_side() -> None:
    """Two families weigh 1/2 each whatever their rows; six rows and one unseen: 6/7 of all.

    70 of 80 GB leaves room for a factor 1.14: half of a's peaks and all of b's are within. 90 of 80 GB fits only where
    the peak is below 0.889 of the prediction: none of a's, a quarter of b's.
    """
    known = peaks("a", [1.0, 1.3]) + peaks("b", [0.8, 1.0, 1.0, 1.1])
    assert fits_confidence(70e9, 80e9, known) == pytest.approx(6 / 7 * (0.5 * 0.5 + 0.5))
    assert fits_confidence(90e9, 80e9, known) == pytest.approx(6 / 7 * (1 - 0.5 * 0.25))
    assert fits_confidence(70e9, 80e9, known, without="a") == pytest.approx(4 / 5)


def test_a_verdict_is_surer_the_farther_the_peak_is_from_the_limit() -> None:
    known = peaks("a", [0.9, 0.95, 1.0, 1.05, 1.1])
    within = [fits_confidence(used, 80e9, known) for used in (79e9, 75e9, 70e9, 40e9)]
    beyond = [fits_confidence(used, 80e9, known) for used in (81e9, 85e9, 90e9, 120e9)]
    assert within == sorted(within)
    assert beyond == sorted(beyond)
    assert fits_confidence(79e9, 80e9, []) == 0.5


def test_step_times_and_peaks_are_read_back_apart(tmp_path: Path) -> None:
    held = [*residuals("a", np.array([0.25])), *peaks("b", [math.e])]
    write_residuals(tmp_path / "r.csv", held, "hand-made")
    assert [(r.log_ratio, r.log_peak_ratio) for r in read_residuals(tmp_path / "r.csv")] == [(0.25, None), (None, 1.0)]
