"""Goodput against a simulation that knows none of the formulas, the Lambert function and hand counts."""

from __future__ import annotations

import math
import random
from statistics import NormalDist, mean, stdev

import pytest
from scipy.special import lambertw
from scipy.stats import poisson

from simulator.errors import InputError
from simulator.project.goodput import (
    DEVICE_MTBF_S,
    daly_interval_s,
    first_order_loss,
    goodput,
    job_mtbf_s,
    optimal_interval_s,
    share_waiting,
    spares_for,
    spread_slowdown,
    young_interval_s,
)

HOUR = 3600.0


def simulated(
    mtbf_s: float, work_s: float, save_s: float, recovery_s: float, lag_s: float, *, segments: int, seed: int
) -> dict[str, float]:
    """Play a job of so many segments, failure by failure; shares of the wall clock by what was done in it."""
    draw = random.Random(seed)
    spent = dict.fromkeys(("useful", "saving", "redoing", "recovering"), 0.0)
    left = draw.expovariate(1.0 / mtbf_s)

    def survives(span_s: float) -> float | None:
        """None when the span passes without a failure, else the time until it fails."""
        nonlocal left
        if left > span_s:
            left -= span_s
            return None
        passed, left = left, draw.expovariate(1.0 / mtbf_s)
        return passed

    def recover() -> None:
        """Recovery, then the work done after the last safe checkpoint was begun: either can fail too."""
        while True:
            failed = survives(recovery_s)
            spent["recovering"] += recovery_s if failed is None else failed
            if failed is None:
                failed = survives(lag_s)
                spent["redoing"] += lag_s if failed is None else failed
                if failed is None:
                    return

    for _ in range(segments):
        while (failed := survives(work_s + save_s)) is not None:
            spent["redoing"] += failed
            recover()
        spent["useful"] += work_s
        spent["saving"] += save_s
    total = sum(spent.values())
    return {name: seconds / total for name, seconds in spent.items()}


@pytest.mark.parametrize(
    ("mtbf_s", "work_s", "save_s", "recovery_s", "lag_s"),
    [(3.09 * HOUR, 943.0, 40.0, 600.0, 0.0), (HOUR, 1800.0, 300.0, 900.0, 0.0), (2 * HOUR, 600.0, 2.0, 300.0, 240.0)],
)
def test_shares_agree_with_a_simulation_within_its_noise(
    mtbf_s: float, work_s: float, save_s: float, recovery_s: float, lag_s: float
) -> None:
    played = [simulated(mtbf_s, work_s, save_s, recovery_s, lag_s, segments=4000, seed=seed) for seed in range(12)]
    answer = goodput(job_mtbf_s=mtbf_s, save_s=save_s, recovery_s=recovery_s, lag_s=lag_s, interval_s=work_s)
    for name in ("useful", "saving", "redoing", "recovering"):
        values = [run[name] for run in played]
        noise = stdev(values) / math.sqrt(len(values))
        expected = getattr(answer, f"{name}_fraction")
        # The formula books a recovery that lag cut short wholly by its shares of the time; useful work is exact.
        slack = 0.03 * expected if lag_s and name in ("redoing", "recovering") else 0.0
        assert mean(values) == pytest.approx(expected, abs=4.0 * noise + slack), name


@pytest.mark.parametrize("cost", [1e-9, 1e-4, 3.6e-3, 0.1, 1.0, 5.0])
def test_the_exact_optimum_is_lamberts(cost: float) -> None:
    exact = 1.0 + lambertw(-math.exp(-1.0 - cost)).real
    assert optimal_interval_s(cost * HOUR, HOUR) == pytest.approx(exact * HOUR, rel=1e-6)


@pytest.mark.parametrize("save_s", [1.0, 40.0, 300.0, 2000.0])
def test_no_other_interval_gives_more(save_s: float) -> None:
    best = goodput(job_mtbf_s=3 * HOUR, save_s=save_s, recovery_s=600.0)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        other = goodput(job_mtbf_s=3 * HOUR, save_s=save_s, recovery_s=600.0, interval_s=best.interval_s * factor)
        assert other.useful_fraction < best.useful_fraction


def test_daly_is_nearer_the_optimum_than_young() -> None:
    exact = optimal_interval_s(300.0, 3 * HOUR)
    young, daly = young_interval_s(300.0, 3 * HOUR), daly_interval_s(300.0, 3 * HOUR)
    assert abs(daly - exact) < 0.1 * abs(young - exact)
    assert daly_interval_s(7 * HOUR, 3 * HOUR) == 3 * HOUR


def test_llama_3_worked_figures() -> None:
    mtbf_s = job_mtbf_s(DEVICE_MTBF_S["llama3"], 16_384)
    assert mtbf_s / HOUR == pytest.approx(3.09, abs=0.005)
    assert DEVICE_MTBF_S["llama3"] / HOUR == pytest.approx(50.7e3, rel=1e-3)
    quick, slow = young_interval_s(40.0, mtbf_s), young_interval_s(300.0, mtbf_s)
    assert quick == pytest.approx(943, abs=1)
    assert slow / 60 == pytest.approx(43, abs=0.1)
    assert first_order_loss(quick, 40.0, mtbf_s) == pytest.approx(0.085, abs=5e-4)
    assert first_order_loss(slow, 300.0, mtbf_s) == pytest.approx(0.23, abs=5e-3)


def test_shares_sum_to_one_with_everything_at_once() -> None:
    times = {"job_mtbf_s": 5 * HOUR, "save_s": 20.0, "recovery_s": 400.0, "lag_s": 100.0}
    answer = goodput(**times, slowdown_factor=1.03, waiting_fraction=0.1)
    parts = ("useful", "saving", "redoing", "recovering", "waiting", "straggling")
    assert sum(getattr(answer, f"{part}_fraction") for part in parts) == pytest.approx(1.0, abs=1e-12)
    assert answer.useful_fraction + answer.straggling_fraction == pytest.approx(1.03 * answer.useful_fraction)
    assert answer.failures_per_day == pytest.approx(4.8)


def test_saving_at_no_cost_leaves_only_recovery() -> None:
    answer = goodput(job_mtbf_s=HOUR, save_s=0.0, recovery_s=360.0)
    assert answer.useful_fraction == pytest.approx(math.exp(-0.1))
    assert answer.redoing_fraction == 0.0


def test_a_job_that_fails_faster_than_it_saves_gets_nowhere() -> None:
    answer = goodput(job_mtbf_s=1.0, save_s=5000.0, recovery_s=10.0)
    assert (answer.useful_fraction, answer.redoing_fraction) == (0.0, 1.0)


@pytest.mark.parametrize(("nodes", "spare"), [(128, 0), (128, 3), (2048, 16), (125_000, 400)])
def test_waiting_for_nodes_is_the_tail_of_poisson(nodes: int, spare: int) -> None:
    node_mtbf_s, repair_s = 6.3e3 * HOUR, 24 * HOUR
    expected = poisson.sf(spare, nodes * repair_s / node_mtbf_s)
    assert share_waiting(nodes, spare, node_mtbf_s, repair_s) == pytest.approx(expected, abs=1e-12)


def test_spares_are_the_fewest_that_suffice() -> None:
    spare = spares_for(2048, 6.3e3 * HOUR, 24 * HOUR, 0.01)
    assert share_waiting(2048, spare, 6.3e3 * HOUR, 24 * HOUR) <= 0.01
    assert share_waiting(2048, spare - 1, 6.3e3 * HOUR, 24 * HOUR) > 0.01


def test_a_step_waits_for_the_slowest_of_its_devices() -> None:
    draw = random.Random(3)
    slowest = mean(max(draw.gauss(1.0, 0.02) for _ in range(64)) for _ in range(4000))
    assert spread_slowdown(0.02, 64) == pytest.approx(slowest, abs=2e-3)
    assert spread_slowdown(0.02, 1) == 1.0
    assert spread_slowdown(0.0, 1024) == 1.0
    # Blom's quantile for two is 0.59; the exact expectation 1 / sqrt(pi) = 0.564.
    assert spread_slowdown(1.0, 2) - 1.0 == pytest.approx(NormalDist().inv_cdf(1.625 / 2.25))


@pytest.mark.parametrize(
    "bad", [{"job_mtbf_s": 0.0}, {"save_s": -1.0}, {"recovery_s": math.nan}, {"interval_s": 0.0}]
)
def test_times_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        goodput(**{"job_mtbf_s": HOUR, "save_s": 10.0, "recovery_s": 10.0, **bad})
