"""Comparisons add up; sensitivities are the estimates of the changed inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest

import simulator as sim
from simulator.errors import InputError
from simulator.plan.compare import compare
from simulator.report.plan import sensitivity_text
from simulator.sensitivity import sensitivities
from simulator.units import format_bytes
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


def test_every_legal_step_of_the_options_is_the_estimate_of_that_strategy() -> None:
    rows = {row.change: row for row in sensitivities(MODEL, CLUSTER, RUN, ONE)}
    for change, fields in (
        ("schedule 1f1b -> zb-h1", {"schedule": "zb-h1"}),
        ("order tp-cp-ep-dp-pp -> tp-cp-ep-pp-dp", {"order": ("tp", "cp", "ep", "pp", "dp")}),
        ("sequence parallelism on -> off", {"sequence_parallel": False}),
    ):
        alone = sim.estimate(MODEL, CLUSTER, RUN, replace(ONE, **fields))
        assert rows[change].step_time_s == alone.step_time_s
        assert rows[change].peak_memory_bytes == alone.peak_memory_bytes
    assert not any(change.startswith("schedule") and "interleaved" in change for change in rows), "vp 1 cannot"
    assert not any(change.startswith("context") for change in rows), "there is no context parallelism to exchange"


def test_where_a_step_does_not_fit_the_changes_that_make_it_fit_stand_first() -> None:
    large, where = gpt(8192, 32, 64), dgx(2)
    tight = sim.Strategy(tp=2, pp=2, dp=4)
    base = sim.estimate(large, where, sim.Run(global_batch=16), tight)
    assert not base.fits
    rows = sensitivities(large, where, sim.Run(global_batch=16), tight)
    assert {row.fits for row in rows} == {True, False}
    text = sensitivity_text(base, rows)
    assert f"does not fit by {format_bytes(base.peak_memory_bytes - base.device_memory_bytes)}" in text
    table = text[text.index("What one change") :]
    first = table.index(next(row.change for row in rows if row.fits))
    assert first < table.index(next(row.change for row in rows if not row.fits))
    assert "of pipeline rank" in text
