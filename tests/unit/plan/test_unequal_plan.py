"""Plans on unequal nodes: layers by speed against every split, and strategies costed where they run."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

import simulator as sim
from simulator.cluster.members import as_fastest, as_slowest
from simulator.errors import Infeasible
from simulator.plan.question import Question
from simulator.plan.unequal import layers_by_speed
from simulator.spec.hardware import Cluster, Device
from simulator.spec.run import Framework
from tests.support import dgx, gpt

PLAIN = Framework(name="plain", launch_s=0.0)
MODEL, WIDE = gpt(2048, 8, 16), gpt(4096, 11, 32, vocab=8192)
RUN, MANY = sim.Run(global_batch=32, seq_len=1024), sim.Run(global_batch=128, seq_len=1024)
A = dgx(1).device
B = replace(
    A,
    name="thrice",
    peak_flops_per_s={name: 3.0 * peak for name, peak in A.peak_flops_per_s.items()},
    memory_bandwidth_bytes_per_s=3.0 * A.memory_bandwidth_bytes_per_s,
)
FEW = {"tp": (1, 2), "micro_batch": (1,), "recompute": ("none", "full"), "schedule": ("1f1b",), "zero": (1,)}


def nodes(*devices: Device) -> Cluster:
    return replace(dgx(len(devices)), node_devices=devices)


def split_of(cluster: Cluster, strategy: sim.Strategy, model: sim.ModelSpec = MODEL) -> tuple[int, ...]:
    answer = sim.estimate(model, cluster, MANY, strategy, framework=PLAIN)
    return layers_by_speed(Question(model=model, cluster=cluster, run=MANY, framework=PLAIN), strategy, answer)


@pytest.mark.parametrize(
    ("schedule", "devices"), [("1f1b", (B, A, A, B)), ("zb-h1", (A, B, A, A))]
)
def test_layers_by_speed_are_as_good_as_the_best_of_all_splits(devices: tuple[Device, ...], schedule: str) -> None:
    """Every way to deal 11 layers to 4 stages, run by the engine: the slowest stage decides nearly all of it."""
    strategy = sim.Strategy(pp=4, dp=8, schedule=schedule)
    cluster = nodes(*devices)

    def step_s(split: tuple[int, ...]) -> float:
        return sim.estimate(WIDE, cluster, MANY, replace(strategy, layers_per_stage=split), framework=PLAIN).step_time_s

    every = [split for split in product(range(1, 7), repeat=4) if sum(split) == 11]
    best_s = min(map(step_s, every))
    found = split_of(cluster, strategy, WIDE)
    assert step_s(found) <= 1.03 * best_s
    assert step_s(found) < 0.9 * step_s((3, 3, 3, 2))


def test_a_small_device_holds_fewer_layers_than_its_speed_asks_for() -> None:
    """The fast nodes' memory holds little more than the even split: they take no more than fits."""
    strategy = sim.Strategy(pp=4, dp=8)
    free = split_of(nodes(B, B, A, A), strategy, WIDE)
    need = sim.estimate(WIDE, nodes(B, B, A, A), MANY, strategy, framework=PLAIN).memory.per_stage
    small = replace(B, memory_bytes=1.02 * need[0]["total"])
    tight = split_of(nodes(small, small, A, A), strategy, WIDE)
    assert sum(free) == sum(tight) == 11
    assert free[0] > 3 >= tight[0]


def test_stages_with_copies_on_two_ranks_go_by_the_slower() -> None:
    """DualPipe holds stage s on ranks s and 3 - s: with one fast half every stage has a slow copy."""
    strategy = sim.Strategy(tp=4, pp=4, dp=2, schedule="dualpipe")
    one_sided = split_of(nodes(B, B, A, A), strategy)
    assert one_sided == split_of(nodes(A, A, A, A), strategy)
    inner = split_of(nodes(A, B, B, A), strategy)
    assert inner[1] + inner[2] > inner[0] + inner[3]


def test_a_plan_lays_more_layers_on_fast_nodes_and_beats_the_slowest_everywhere() -> None:
    cluster = nodes(B, A)
    found = sim.plan(MODEL, cluster, RUN, limit=3, allow=FEW, framework=PLAIN)
    slow = sim.plan(MODEL, as_slowest(cluster)[0], RUN, limit=1, allow=FEW, framework=PLAIN)
    fast = sim.plan(MODEL, as_fastest(cluster), RUN, limit=1, allow=FEW, framework=PLAIN)
    best = found[0]
    assert fast[0].estimate.step_time_s < best.estimate.step_time_s < slow[0].estimate.step_time_s
    assert best.strategy.pp == 2
    assert best.strategy.layers_per_stage[0] > best.strategy.layers_per_stage[1]
    gap = 1.0 - fast[0].estimate.step_time_s / best.estimate.step_time_s
    assert found.proof.gap == pytest.approx(gap)
    assert not found.proof.optimal
    assert [each.estimate.step_time_s for each in found] == sorted(each.estimate.step_time_s for each in found)
    for each in found:
        again = sim.estimate(MODEL, cluster, RUN, each.strategy, framework=PLAIN)
        assert again.step_time_s == each.estimate.step_time_s
    assert "Unequal nodes" in found.notes[0]


def test_limits_hold_for_what_is_costed_on_the_nodes() -> None:
    cluster = nodes(B, A)
    found = sim.plan(MODEL, cluster, RUN, limit=9, allow={**FEW, "split": ("even",)}, fix={"pp": 2}, framework=PLAIN)
    assert {each.strategy.pp for each in found} == {2}
    assert {each.strategy.layers_per_stage for each in found} == {()}
    assert {each.strategy.zero for each in found} == {1}
    assert {each.strategy.tp for each in found} <= {1, 2}


def test_nodes_listed_but_alike_are_planned_with_a_proof() -> None:
    one, other = (sim.plan(MODEL, c, RUN, limit=2, allow=FEW, framework=PLAIN) for c in (nodes(A, A), dgx(2)))
    assert [each.strategy for each in one] == [each.strategy for each in other]
    assert one.proof.optimal


def test_a_node_too_small_for_its_even_share_gets_what_it_holds() -> None:
    """Half of the layers do not fit on the small node, whichever way; fewer of them do."""
    limits = {**FEW, "tp": (8,), "pp": (2,)}
    strategy = sim.Strategy(tp=8, pp=2, zero=1, recompute="full")
    need = sim.estimate(WIDE, dgx(2), RUN, strategy, framework=PLAIN).memory.per_stage
    small = replace(A, name="small", memory_bytes=0.9 * min(rank["total"] for rank in need))
    with pytest.raises(Infeasible):
        sim.plan(WIDE, nodes(small, small), RUN, allow=limits, framework=PLAIN)
    found = sim.plan(WIDE, nodes(A, small), RUN, limit=1, allow=limits, framework=PLAIN)
    assert found[0].strategy.layers_per_stage[0] > found[0].strategy.layers_per_stage[1]
    assert found[0].estimate.memory.per_stage[1]["total"] <= small.memory_bytes


def test_what_fits_nowhere_is_infeasible() -> None:
    tiny = [replace(device, memory_bytes=1.01e9) for device in (A, B)]
    with pytest.raises(Infeasible):
        sim.plan(MODEL, nodes(*tiny), RUN, allow=FEW, framework=PLAIN)
