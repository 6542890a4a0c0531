"""A step on unequal nodes: stages on their own devices, groups at their slowest members, replicas that wait."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

import simulator as sim
from simulator.breakdown import time_of
from simulator.cluster.members import as_slowest
from simulator.lowered import run_step
from simulator.parallel.step_end import step_end
from simulator.project.energy import SYSTEM_OVER_TDP, mean_power
from simulator.report.text import estimate_text
from simulator.sensitivity import sensitivities
from simulator.spec.hardware import Cluster, Device
from simulator.spec.run import Framework
from simulator.unequal import cost_unequal, run_unequal
from tests.support import dgx, gpt, mixture

PLAIN = Framework(name="plain", launch_s=0.0)
MODEL = gpt(4096, 16, 32)
RUN = sim.Run(global_batch=32, seq_len=2048)
A = dgx(1).device
B = replace(
    A,
    name="twice",
    peak_flops_per_s={name: 2.0 * peak for name, peak in A.peak_flops_per_s.items()},
    memory_bandwidth_bytes_per_s=2.0 * A.memory_bandwidth_bytes_per_s,
)
"""Twice an A100 in everything that computes."""


def nodes(*devices: Device, gbps: tuple[float, ...] = (), cards: tuple[float, ...] = ()) -> Cluster:
    base = dgx(len(devices))
    return replace(
        base,
        node_devices=devices,
        node_tiers=tuple(replace(base.tiers[0], bandwidth_bytes_per_s=1e9 * rate) for rate in gbps),
        node_uplinks=tuple(replace(base.tiers[1], bandwidth_bytes_per_s=1e9 * rate) for rate in cards),
    )


def equal(device: Device, count: int) -> Cluster:
    return replace(dgx(count), device=device)


def cost(cluster: Cluster, *, model: sim.ModelSpec = MODEL, run: sim.Run = RUN, **degrees: object) -> sim.Estimate:
    return sim.estimate(model, cluster, run, sim.Strategy(**degrees), framework=PLAIN)


def task_s(answer: sim.Estimate, stage: int) -> list[float]:
    """Seconds of a stage's forward and of its backward."""
    line = answer.timeline()
    return [float(line.task_s[(line.order.stage == stage) & (line.order.kind == kind)][0]) for kind in (0, 3)]


STRATEGIES = (
    {"tp": 8, "dp": 4, "zero": 1},
    {"tp": 8, "pp": 2, "dp": 2, "zero": 1},
    {"tp": 4, "pp": 4, "dp": 2, "schedule": "dualpipe"},
    {"tp": 4, "pp": 4, "dp": 2, "vp": 2, "schedule": "interleaved"},
    {"tp": 4, "pp": 4, "dp": 2, "vp": 2, "schedule": "zbv", "zero": 1},
    {"tp": 4, "pp": 2, "dp": 4, "zero": 3},
    {"tp": 2, "cp": 2, "pp": 2, "dp": 4, "zero": 2, "order": ("tp", "cp", "ep", "pp", "dp")},
    {"tp": 4, "pp": 4, "dp": 2, "schedule": "gpipe", "recompute": "full", "sequence_parallel": False},
)


@pytest.mark.parametrize("degrees", STRATEGIES)
def test_nodes_listed_one_by_one_but_all_alike_are_an_equal_cluster(degrees: dict[str, object]) -> None:
    one, other = cost(nodes(A, A, A, A), **degrees), cost(equal(A, 4), **degrees)
    assert one.to_dict() == other.to_dict()


@pytest.mark.parametrize("degrees", STRATEGIES)
def test_unequal_lies_between_all_slow_and_all_fast(degrees: dict[str, object]) -> None:
    mixed = nodes(B, A, B, B)
    step_s = cost(mixed, **degrees).step_time_s
    assert step_s <= cost(as_slowest(mixed)[0], **degrees).step_time_s * (1 + 1e-12)
    assert step_s >= cost(equal(B, 4), **degrees).step_time_s * (1 - 1e-12)


@pytest.mark.parametrize("degrees", STRATEGIES)
def test_parts_sum_to_the_step(degrees: dict[str, object]) -> None:
    answer = cost(nodes(B, A, A, B, gbps=(300, 100, 300, 200), cards=(25, 25, 12, 25)), **degrees)
    assert sum(answer.time.parts.values()) == pytest.approx(answer.step_time_s, rel=1e-12)
    assert all(seconds >= 0.0 for seconds in answer.time.parts.values())
    assert len(answer.members) == degrees.get("pp", 1)


def test_a_stage_takes_what_it_takes_on_equal_devices_of_its_own() -> None:
    mixed, slow, fast = (cost(c, tp=8, pp=4) for c in (nodes(B, B, A, A), equal(A, 4), equal(B, 4)))
    for stage, alone in enumerate((fast, fast, slow, slow)):
        assert task_s(mixed, stage) == task_s(alone, stage)
    assert [row["nodes_by_device"] for row in mixed.members] == [{"twice": 1}, {"twice": 1}, {A.name: 1}, {A.name: 1}]


def test_an_unequal_pipeline_takes_what_its_closed_form_says() -> None:
    """GPipe of unequal stages whose sends block: a flow shop of equal jobs, forwards and then backwards, so the sum of
    all stages once and the longest of them m - 1 times, each way."""
    answer = cost(nodes(B, B, A, A), tp=8, pp=4, schedule="gpipe")
    times = [task_s(answer, stage) for stage in range(4)]
    line = answer.timeline()
    sends = [float(s) for s in (line.arrival_s - line.send_start_s)[line.sends & (line.order.kind == 0)][:1]]
    ahead = [f + (sends[0] if stage < 3 else 0.0) for stage, (f, _) in enumerate(times)]
    back = [b + (sends[0] if stage > 0 else 0.0) for stage, (_, b) in enumerate(times)]
    expected = sum(ahead) + 31 * max(ahead) + sum(back) + 31 * max(back)
    # The first stage's backward is the last task of all; nothing is sent after it.
    assert line.makespan_s == pytest.approx(expected, rel=1e-12)
    assert max(ahead) > 1.3 * ahead[0]


def test_more_layers_on_the_faster_stages_are_faster_and_on_equal_ones_slower() -> None:
    even = {"tp": 8, "pp": 4, "layers_per_stage": (4, 4, 4, 4)}
    leaning = {"tp": 8, "pp": 4, "layers_per_stage": (5, 5, 3, 3)}
    mixed, same = nodes(B, B, A, A), equal(A, 4)
    assert cost(mixed, **leaning).step_time_s < 0.9 * cost(mixed, **even).step_time_s
    assert cost(same, **leaning).step_time_s > cost(same, **even).step_time_s
    turned = {"tp": 8, "pp": 4, "layers_per_stage": (3, 3, 5, 5)}
    assert cost(mixed, **turned).step_time_s > cost(mixed, **even).step_time_s


def test_replicas_run_at_their_own_pace_and_the_step_waits_for_the_slowest() -> None:
    """dp over nodes with one slow one: the slow replica's pipeline, then a reduction that all take part in."""
    one, slow = (cost(c, tp=8, dp=4) for c in (nodes(B, B, A, B), equal(A, 4)))
    assert one.timeline().makespan_s == slow.timeline().makespan_s
    assert one.step_time_s == pytest.approx(slow.step_time_s, rel=1e-12)
    assert one.members[0]["slowest"].startswith(f"node 2 ({A.name}")
    # With a pipeline whose slow halves lie in different replicas, each replica has one slow stage, not two.
    order = ("tp", "cp", "ep", "pp", "dp")
    crossed = cost(nodes(A, B, B, A), tp=8, pp=2, dp=2, order=order)
    both = cost(nodes(A, A, B, B), tp=8, pp=2, dp=2, order=order)
    assert crossed.step_time_s <= both.step_time_s
    assert crossed.timeline().makespan_s < both.timeline().makespan_s


def test_expert_groups_across_unequal_nodes_run_at_the_slower() -> None:
    """ep over both nodes of a pair holds the fast one back at every exchange; within each node it does not."""
    model, run = mixture(layers=16, experts=16), sim.Run(global_batch=64, seq_len=1024)
    mixed = nodes(B, A)
    apart, tied = (cost_unequal(model, mixed, run, sim.Strategy(dp=16, ep=ep), PLAIN) for ep in (8, 16))
    assert [len(step.seats.replicas) for step in (apart, tied)] == [2, 1]
    for ep in (8, 16):
        mixed_s, slow_s = (cost(c, model=model, run=run, dp=16, ep=ep).step_time_s for c in (mixed, equal(A, 2)))
        assert mixed_s <= slow_s * (1 + 1e-12)


def test_a_slow_switch_slows_the_groups_inside_its_node_only() -> None:
    """tp inside nodes: the slow node's stage pays in tp, the others take what they took."""
    mixed = cost(nodes(A, A, A, A, gbps=(300, 300, 60, 300)), tp=8, pp=4)
    even = cost(equal(A, 4), tp=8, pp=4)
    slow = cost(replace(equal(A, 4), tiers=nodes(A, gbps=(60,)).node_tiers + dgx(4).tiers[1:]), tp=8, pp=4)
    assert [task_s(mixed, stage) for stage in (0, 1, 3)] == [task_s(even, stage) for stage in (0, 1, 3)]
    assert task_s(mixed, 2) == task_s(slow, 2)
    assert task_s(mixed, 2)[0] > task_s(even, 2)[0]


def test_a_send_between_unlike_nodes_runs_at_the_slower_end() -> None:
    """The third node's network cards have a quarter of the rate: the sends to it and from it, and no other."""
    mixed = cost(nodes(A, A, A, A, cards=(25, 25, 6.25, 25)), tp=8, pp=4)
    even = cost(equal(A, 4), tp=8, pp=4)
    thin = replace(dgx(4).tiers[1], bandwidth_bytes_per_s=6.25e9)
    slow = cost(replace(equal(A, 4), tiers=(dgx(4).tiers[0], thin)), tp=8, pp=4)

    def sends(answer: sim.Estimate) -> list[float]:
        line = answer.timeline()
        spent = line.arrival_s - line.send_start_s
        return [float(spent[(line.order.stage == s) & (line.order.kind == 0)][0]) for s in range(3)]

    assert sends(mixed) == pytest.approx([sends(even)[0], sends(slow)[1], sends(slow)[2]], rel=1e-9)
    assert sends(slow)[0] > 1.5 * sends(even)[0]


@pytest.mark.parametrize("zero", [0, 1])
def test_gradients_are_reduced_at_the_slowest_card_of_the_replicas(zero: int) -> None:
    """One thin node: its replicas' reduction takes what it takes where all are thin; everything else is untouched."""
    thin = replace(equal(A, 4), tiers=(dgx(4).tiers[0], replace(dgx(4).tiers[1], bandwidth_bytes_per_s=6.25e9)))
    strategy = {"tp": 8, "dp": 4, "zero": zero, "overlap_grad_reduce": False, "overlap_param_gather": False}
    mixed, slow, even = (cost(c, **strategy) for c in (nodes(A, A, A, A, cards=(25, 25, 6.25, 25)), thin, equal(A, 4)))
    assert mixed.time.parts["dp"] == pytest.approx(slow.time.parts["dp"], rel=1e-12)
    assert mixed.time.parts["dp"] > 2 * even.time.parts["dp"]
    assert {name: mixed.time.parts[name] for name in ("gemm", "tp")} == {
        name: even.time.parts[name] for name in ("gemm", "tp")
    }  # fmt: skip


def test_two_replicas_meet_only_at_the_end() -> None:
    """By hand: pp 2 inside each replica, one replica on fast and one on slow nodes. The slow one's pipeline is that of
    a cluster of its own; both then reduce together."""
    order = ("tp", "cp", "ep", "pp", "dp")
    strategy = {"tp": 8, "pp": 2, "dp": 2, "order": order}
    mixed, slow = cost(nodes(B, B, A, A), **strategy), cost(equal(A, 4), **strategy)
    assert mixed.timeline().makespan_s == slow.timeline().makespan_s
    step = cost_unequal(MODEL, nodes(B, B, A, A), RUN, sim.Strategy(**strategy), PLAIN)
    assert [len(replica) for replica in step.seats.replicas] == [2, 2]
    assert mixed.step_time_s == pytest.approx(slow.step_time_s, rel=1e-9)


def test_memory_is_held_against_each_stages_own_device() -> None:
    """The first stage holds most micro-batches in flight: it does not fit on a device on which the third does."""
    need = [row["total"] for row in cost(equal(A, 4), tp=8, pp=4).memory.per_stage]
    assert need[0] > need[2]
    small = replace(A, name="small", memory_bytes=(need[0] + need[2]) / 2)
    first, third = (cost(c, tp=8, pp=4) for c in (nodes(small, A, A, A), nodes(A, A, small, A)))
    assert not first.fits
    assert third.fits
    assert first.device_memory_bytes == small.memory_bytes
    assert first.peak_memory_bytes == pytest.approx(need[0])
    assert third.memory.limits_bytes == (A.memory_bytes, A.memory_bytes, small.memory_bytes, A.memory_bytes)


def test_both_copies_of_a_model_held_twice_run_on_their_own_devices() -> None:
    """DualPipe holds stage 0 on the first and on the last rank: the copies take different times."""
    answer = cost(nodes(B, A, A, B), tp=4, pp=4, dp=2, schedule="dualpipe")
    line = answer.timeline()
    forwards = (line.order.kind == 0) & (line.order.stage == 0) & ~line.paired
    assert {int(rank) for rank in line.order.rank[forwards]} <= {0, 3}
    one_sided = cost(nodes(B, B, A, A), tp=4, pp=4, dp=2, schedule="dualpipe").timeline()
    first = (one_sided.order.kind == 0) & (one_sided.order.stage == 0)
    fast_s, slow_s = (float(one_sided.task_s[first & (one_sided.order.rank == rank)][0]) for rank in (0, 3))
    assert slow_s > 1.5 * fast_s


def test_the_end_of_the_step_is_the_slowest_members() -> None:
    """The optimizer moves bytes at its own device's bandwidth, and a stage waits for its slowest rank."""
    strategy = sim.Strategy(tp=8, pp=2, dp=2, zero=1)
    step = cost_unequal(MODEL, nodes(B, B, A, B), RUN, strategy, PLAIN)
    ran = run_unequal(step)
    slow, fast = (run_step(MODEL, equal(d, 4), RUN, strategy, PLAIN) for d in (A, B))
    assert float(ran.ends[0].optimizer_s) == float(fast.ends[0].optimizer_s)
    assert float(ran.ends[1].optimizer_s) == float(slow.ends[1].optimizer_s)
    assert time_of(ran, strategy).total_s <= time_of(slow, strategy).total_s
    seats = step.seats.seats(1)
    alone = [step_end(step.program.stages[1:], step.costs[seat][1:], step.settings[seat]) for seat in seats]
    assert float(ran.ends[1].gather_s) == max(float(end.gather_s) for end in alone)


def test_mfu_is_of_all_peaks_together() -> None:
    mixed, even = cost(nodes(B, B, A, A), tp=8, pp=4), cost(equal(A, 4), tp=8, pp=4)
    ratio = (mixed.mfu * mixed.step_time_s) / (even.mfu * even.step_time_s)
    assert ratio == pytest.approx(1 / 1.5)


def test_notes_name_the_members_of_every_stage() -> None:
    notes = cost(nodes(B, B, B, A, gbps=(300, 300, 300, 100)), tp=8, pp=2, dp=2).notes
    assert "Pipeline rank 0 is on nodes 2 of twice; " in " ".join(notes)
    named = next(note for note in notes if note.startswith("Pipeline rank 1"))
    assert f"waits for node 3 ({A.name}, " in named
    assert "exchanges within nodes as node 3" in named
    assert any("all devices' peaks" in note for note in notes)


def test_the_table_names_them_too() -> None:
    """Equal neighbours share a row; the rank that holds both kinds says which node it waits for."""
    text = estimate_text(cost(nodes(B, B, B, B, B, B, A, B), tp=8, pp=4, dp=2))
    (first,) = (line for line in text.splitlines() if line.startswith(" 0 to 2"))
    assert "2 twice" in first
    (last,) = (line for line in text.splitlines() if line.startswith(" 3 ") and f"1 {A.name}" in line)
    assert "node 6" in last
    assert "Unequal nodes by pipeline rank" not in estimate_text(cost(equal(A, 4), tp=8, pp=4))


def test_provenance_holds_every_device() -> None:
    said = [entry.what for entry in cost(nodes(B, B, A, A), tp=8, pp=4).provenance]
    assert [what for what in said if what.startswith("device ")] == ["device twice", f"device {A.name}"]


def test_tasks_of_the_deciding_replica_follow_each_other() -> None:
    line = cost(nodes(B, A, A, B), tp=8, pp=2, dp=2, order=("tp", "cp", "ep", "pp", "dp")).timeline()
    for first, last in pairwise(line.order.rank_start.tolist()):
        assert (line.start_s[first + 1 : last] >= line.end_s[first : last - 1] - 1e-12).all()


def test_sensitivities_change_every_nodes_hardware() -> None:
    """A tenth more of every peak buys the same on nodes said one by one as on equal ones."""
    strategy = sim.Strategy(tp=8, pp=2, dp=2)
    run, model = sim.Run(global_batch=16, seq_len=1024), gpt(2048, 4, 16)
    one, other = (
        {each.change: each.step_time_s for each in sensitivities(model, c, run, strategy, framework=PLAIN)
         if each.kind == "hardware"}
        for c in (nodes(A, A, A, A, gbps=(300,) * 4, cards=(25,) * 4), equal(A, 4))
    )  # fmt: skip
    assert one == other
    assert min(one.values()) < cost(equal(A, 4), model=model, run=run, tp=8, pp=2, dp=2).step_time_s


def test_a_mixed_cluster_costs_and_draws_its_devices_mean() -> None:
    known = [replace(A, name=name, tdp_watts=watts) for name, watts in (("small", 300.0), ("large", 700.0))]
    power = mean_power(known)
    assert power is not None
    assert power.watts == pytest.approx(SYSTEM_OVER_TDP * 500.0)
    assert mean_power([known[0], replace(A, tdp_watts=0.0)]) is None
