"""Scaling curves are the plans of their counts; the fewest devices are the first count tried that is in time."""

from __future__ import annotations

from dataclasses import replace

import pytest

import simulator as sim
from simulator.errors import Infeasible, InputError
from simulator.plan.counts import counts_of
from simulator.plan.scaling import fewest_devices, knee_index, scaling
from simulator.project.training import Conditions
from simulator.report.scaling import deadline_text, scaling_text
from tests.support import a100, dgx, gpt

MODEL, RUN = gpt(1024, 8, 16, seq_len=512), sim.Run(global_batch=64, seq_len=512)
NARROW = {
    "forbid": {"context_kind": ("ulysses", "all-gather"), "sequence_parallel": (False,), "recompute": ("full",)},
    "within": {"cp": (1, 1), "vp": (1, 1)}, "limit": 1,
}  # fmt: skip
PAID = Conditions(price_usd_per_device_hour=2.0)


def clusters(nodes: int | None):
    return dgx(nodes or 1)


def test_counts_double_or_step_and_every_bad_part_is_said() -> None:
    assert counts_of("8..64") == (8, 16, 32, 64)
    assert counts_of("8..40") == (8, 16, 32, 40)
    assert counts_of("32..64:16, 8") == (8, 32, 48, 64)
    for bad in ("8...16", "16..8", "0..8", "8..64:0", "eight", "", "-8"):
        with pytest.raises(InputError, match=r"Write 256\.\.16384"):
            counts_of(bad)
    with pytest.raises(InputError, match="more than 200"):
        counts_of("1..999999999:1")


def test_the_knee_is_the_last_count_worth_four_fifths_of_the_best() -> None:
    assert knee_index([90.0, 100.0, 80.0, 79.9]) == 2
    assert knee_index([100.0, 50.0, 85.0, 10.0]) == 2
    assert knee_index([100.0]) == 0


def test_every_point_of_a_strong_curve_is_the_plan_of_its_count() -> None:
    curve = scaling(MODEL, clusters, RUN, [32, 8, 16], conditions=PAID, tokens=1e9, **NARROW)
    assert [point.devices for point in curve.points] == [8, 16, 32]
    rates = []
    for point in curve.points:
        alone = sim.plan(MODEL, dgx(point.nodes), RUN, **NARROW)
        assert point.plan.proof.optimal
        assert point.estimate.step_time_s == alone[0].estimate.step_time_s
        whole = sim.project(MODEL, dgx(point.nodes), RUN, alone[0].strategy, tokens=1e9, conditions=PAID)
        assert (point.bill.days, point.bill.usd) == (whole.days, whole.usd)
        rates.append(64 * 512 / alone[0].estimate.step_time_s)
    each = [rates[0] / 8, rates[1] / 16, rates[2] / 32]
    assert curve.efficiencies() == pytest.approx([rate / max(each) for rate in each])
    added = [(rates[1] - rates[0]) / 8 / each[0], (rates[2] - rates[1]) / 16 / each[1]]
    assert curve.marginals()[0] is None
    assert curve.marginals()[1:] == pytest.approx(added)
    assert curve.best.devices == 32
    cheapest = min(curve.points, key=lambda point: point.bill.usd)
    assert scaling(MODEL, clusters, RUN, [8, 16, 32], conditions=PAID, tokens=1e9, objective="dollars",
                   **NARROW).best.devices == cheapest.devices  # fmt: skip
    document = curve.to_dict()
    assert [point["devices"] for point in document["points"]] == [8, 16, 32]
    assert list(curve.to_frame()["step_time_s"]) == [point.estimate.step_time_s for point in curve.points]
    assert "Strong scaling" in scaling_text([curve])


def test_a_weak_curve_holds_the_batch_per_device() -> None:
    curve = scaling(MODEL, clusters, RUN, [8, 24], kind="weak", **NARROW)
    assert [point.global_batch for point in curve.points] == [64, 192]
    alone = sim.plan(MODEL, dgx(3), replace(RUN, global_batch=192), **NARROW)
    assert curve.points[1].estimate.step_time_s == alone[0].estimate.step_time_s
    with pytest.raises(InputError, match="no whole number of sequences"):
        scaling(MODEL, clusters, sim.Run(global_batch=3, seq_len=512), [16, 24], kind="weak", **NARROW)


def test_a_count_without_a_strategy_is_a_refusal_and_none_at_all_an_answer() -> None:
    def small(nodes: int | None):
        return dgx(nodes or 1, replace(a100(), memory_bytes=2.4e9))

    large = gpt(2048, 16, 16, seq_len=512)
    curve = scaling(large, small, RUN, [8, 32], **NARROW)
    assert [point.plan is None for point in curve.points] == [True, False]
    assert "fits 8 devices" in curve.points[0].refused[0]
    assert "refused" in curve.to_dict()["points"][0]
    with pytest.raises(Infeasible, match="8 devices"):
        scaling(large, small, RUN, [8], **NARROW)
    # What is wrong at one count only is a refusal there; what is wrong at all of them is the user's error.
    assert scaling(MODEL, clusters, RUN, [8, 16], fix={"dp": 16}, limit=1).points[0].refused
    with pytest.raises(InputError, match=r"no field|cannot be limited"):
        scaling(MODEL, clusters, RUN, [8, 16], fix={"dpp": 16}, limit=1)


def test_counts_are_whole_nodes_and_time_is_shared() -> None:
    with pytest.raises(InputError, match=r"12 devices are no whole nodes of 8.*16 is the nearest") as caught:
        scaling(MODEL, clusters, RUN, [8, 12, 20], **NARROW)
    assert len(caught.value.problems) == 2
    short = scaling(MODEL, clusters, RUN, [8, 16], time_limit_s=0.0, **NARROW)
    assert not any(point.plan.proof.optimal for point in short.points)
    assert "not proven at 8, 16" in scaling_text([short])


def test_the_fewest_devices_are_the_first_count_in_time() -> None:
    days = {
        nodes * 8: sim.plan(MODEL, dgx(nodes), RUN, tokens=1e11, **NARROW)[0].bill.days for nodes in range(1, 9)
    }
    deadline = 86400 * (days[24] + days[32]) / 2
    found = fewest_devices(MODEL, clusters, RUN, deadline, list(days), tokens=1e11, **NARROW)
    expected = min(count for count, taken in days.items() if taken * 86400 <= deadline)
    assert found.point.devices == expected
    assert [point.devices for point in found.tried] == [count for count in days if count <= expected]
    assert all(f"{point.devices:,}" in found.claim for point in found.tried)
    # Without counts: doublings, then the eighths of the last step; every smaller one tried is too late.
    free = fewest_devices(MODEL, clusters, RUN, deadline, tokens=1e11, **NARROW)
    tried = [point.devices for point in free.tried]
    assert {8, 16, free.point.devices} <= set(tried)
    assert free.point.devices == min(count for count in tried if days.get(count, 0.0) * 86400 <= deadline)
    assert all(point.bill.days * 86400 > deadline for point in free.tried if point.devices < free.point.devices)
    assert "in time" in deadline_text(free)
    assert free.to_dict()["tried"][0]["in_time"] is False


def test_a_deadline_that_nothing_meets_is_answered_with_the_quickest() -> None:
    with pytest.raises(Infeasible, match=r"counts tried \(8, 16\).*\n.*quickest is 16 devices"):
        fewest_devices(MODEL, clusters, RUN, 60.0, [8, 16], tokens=1e12, **NARROW)
    with pytest.raises(InputError, match="not positive"):
        fewest_devices(MODEL, clusters, RUN, 0.0, [8], **NARROW)
