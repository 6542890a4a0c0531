"""Comparisons add up; sensitivities are the estimates of the changed inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest

import simulator as sim
from simulator.errors import InputError
from simulator.plan.compare import compare
from simulator.sensitivity import sensitivities
from tests.support import dgx, gpt

MODEL, CLUSTER, RUN = gpt(1024, 8, 16), dgx(2), sim.Run(global_batch=64)
ONE = sim.Strategy(tp=2, pp=2, dp=4, zero=1)


def test_the_parts_of_a_comparison_sum_to_the_difference() -> None:
    first = sim.estimate(MODEL, CLUSTER, RUN, ONE)
    second = sim.estimate(MODEL, CLUSTER, RUN, replace(ONE, recompute="full"))
    answer = compare(first, second.to_dict())
    assert sum(answer.time_s.values()) == pytest.approx(second.step_time_s - first.step_time_s, rel=1e-9)
    saved = second.peak_memory_bytes - first.peak_memory_bytes
    assert sum(answer.memory_bytes.values()) == pytest.approx(saved, rel=1e-9)
    assert answer.strategy == {"recompute": ("none", "full")}
    with pytest.raises(InputError, match="no estimate"):
        compare(first, {"model": "gpt"})


def test_a_sensitivity_is_the_estimate_of_the_changed_input() -> None:
    rows = {row.change: row for row in sensitivities(MODEL, CLUSTER, RUN, ONE)}
    base = sim.estimate(MODEL, CLUSTER, RUN, ONE)
    full = sim.estimate(MODEL, CLUSTER, RUN, replace(ONE, recompute="full"))
    assert rows["recompute none -> full"].step_time_s == full.step_time_s
    wider = sim.estimate(MODEL, CLUSTER, RUN, replace(ONE, tp=4, dp=2))
    assert rows["tp 2 -> 4"].gain_fraction == pytest.approx(1 - wider.step_time_s / base.step_time_s)
    assert all(row.gain_fraction >= -1e-9 for row in rows.values() if row.kind == "hardware")
    assert rows["matrix peak +10 %"].gain_fraction < 0.1
