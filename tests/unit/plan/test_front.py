"""The Pareto front against every legal strategy run: nothing beats its points, and they beat everything else."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import pytest

import simulator as sim
from simulator import catalog
from simulator.errors import Infeasible, InputError
from simulator.plan.front import pareto, pareto_over, undominated
from simulator.plan.limits import Limits
from simulator.plan.space import build_space
from simulator.project.training import Conditions
from simulator.report.front import front_text
from tests.support import a100, dgx, gpt, mixture

RUN = sim.Run(global_batch=16, seq_len=512)
NARROW = {
    "forbid": {"context_kind": ("ulysses", "all-gather"), "recompute": ("full",), "schedule": ("gpipe",)},
    "within": {"cp": (1, 1), "micro_batch": (1, 2), "vp": (1, 1), "etp": (1, 1), "pp": (1, 2), "ep": (1, 2)},
    "allow": {"zero": (0, 1)}, "fix": {"split": "even"},
}  # fmt: skip
DENSE, MIXED = gpt(1024, 8, 16, seq_len=512), mixture(512, 2, 8, experts=4, expert_hidden=1024)


def cluster(devices: int, memory_bytes: float = 80e9):
    whole = dgx(1, replace(a100(), memory_bytes=memory_bytes))
    return replace(whole, devices_per_node=devices, tiers=(replace(whole.tiers[0], size=devices),))


def pairs(nodes: int | None):
    """Nodes of two devices."""
    count, whole = nodes or 1, dgx(2)
    tiers = (replace(whole.tiers[0], size=2), replace(whole.tiers[1], size=2 * count))
    return replace(whole, devices_per_node=2, nodes=count, tiers=tiers if count > 1 else tiers[:1])


@cache
def every(model, devices: int, memory_bytes: float = 80e9, nodes: int = 0):
    """Each fitting strategy of the narrow space as (step time, peak memory)."""
    where = pairs(nodes) if nodes else cluster(devices, memory_bytes)
    space = build_space(model, where, RUN, catalog.load_framework(RUN.framework), Limits(**NARROW))
    answers = [sim.estimate(model, where, RUN, strategy) for strategy, _, _ in space.strategies()]
    return [(a.step_time_s, a.peak_memory_bytes) for a in answers if a.fits]


def beaten(one, others) -> bool:
    """Whether another is clearly better in one metric and no worse in the rest."""
    return any(
        all(b <= a * (1 + 1e-9) for a, b in zip(one, other, strict=True))
        and any(b < a * (1 - 1e-9) for a, b in zip(one, other, strict=True))
        for other in others
    )


@pytest.mark.parametrize(
    ("model", "devices", "memory_bytes"),
    [(DENSE, 4, 80e9), (DENSE, 8, 3.5e9), (MIXED, 2, 80e9), (gpt(512, 7, 8, seq_len=512), 2, 80e9)],
)
def test_the_front_is_that_of_all_strategies_run(model, devices, memory_bytes) -> None:
    rows = every(model, devices, memory_bytes)
    found = pareto(model, cluster(devices, memory_bytes), RUN, step_fraction=0.0, slowest_factor=math.inf, **NARROW)
    points = [point.metrics()[:2] for point in found.points]
    expected = sorted({row for row in rows if not beaten(row, rows)})
    distinct = [row for index, row in enumerate(expected) if not index or row[0] > expected[index - 1][0] * (1 + 1e-9)]
    assert len(points) > 1
    assert [p for point in points for p in point] == pytest.approx([p for row in distinct for p in row], rel=1e-8)
    assert found.complete
    assert found.claim.startswith("exact: ")
    json.dumps(found.to_dict(), allow_nan=False)
    assert points == sorted(points)


def test_a_step_in_memory_leaves_out_only_what_a_near_point_covers() -> None:
    rows = every(DENSE, 8)
    found = pareto(DENSE, cluster(8), RUN, step_fraction=0.2, **NARROW)
    fastest = min(step for step, _ in rows)
    points = [point.metrics()[:2] for point in found.points]
    kept = [row for row in rows if row[0] <= 2.0 * fastest * (1 - 1e-9)]
    assert len(kept) > len(points)
    for step, peak in kept:
        assert any(s <= step * (1 + 1e-9) and m * 0.8 <= peak * (1 + 1e-9) for s, m in points), (step, peak)
    assert all(step <= 2.0 * fastest for step, _ in points)
    assert "within 20 % in memory" in found.claim


def test_a_front_over_counts_weighs_devices_and_dollars() -> None:
    counts = {2: every(DENSE, 2, nodes=1), 4: every(DENSE, 4, nodes=2)}
    paid = Conditions(price_usd_per_device_hour=2.0)
    found = pareto_over(DENSE, pairs, RUN, [4, 2], step_fraction=0.0, slowest_factor=math.inf,
                        conditions=paid, tokens=1e9, **NARROW)  # fmt: skip
    assert {point.estimate.devices for point in found.points} == {2, 4}
    assert undominated([point.metrics() for point in found.points]) == list(range(len(found.points)))
    everything = [(step, peak, devices) for devices, rows in counts.items() for step, peak in rows]
    points = [point.metrics()[:3] for point in found.points]
    for row in everything:
        assert row in points or any(all(a <= b * (1 + 1e-9) for a, b in zip(p, row, strict=True)) for p in points)
    for point in found.points:
        whole = sim.project(DENSE, pairs(point.estimate.devices // 2), RUN, point.strategy, tokens=1e9, conditions=paid)
        assert point.metrics()[3] == pytest.approx(whole.usd)
    assert "devices and dollars" in front_text(found)
    assert list(found.to_frame()["devices"]) == [point["devices"] for point in found.to_dict()["points"]]


def test_equal_rows_count_once_and_only_the_beaten_go() -> None:
    assert undominated([(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.0, 2.0), (3.0, 3.0), (1.0, 4.0)]) == [0, 1, 2]
    assert undominated([]) == []


def test_time_running_out_is_said_and_nothing_at_all_is_an_answer() -> None:
    short = pareto(DENSE, cluster(8), RUN, time_limit_s=0.0, **NARROW)
    assert len(short.points) == 1
    assert not short.complete
    assert "time ran out" in short.claim
    with pytest.raises(Infeasible, match="fits 8 devices"):
        pareto(DENSE, cluster(8, 1e9), RUN, **NARROW)
    for bad in ({"step_fraction": 1.0}, {"step_fraction": -0.1}, {"slowest_factor": 0.5}, {"slowest_factor": math.nan}):
        with pytest.raises(InputError):
            pareto(DENSE, cluster(8), RUN, **bad, **NARROW)
