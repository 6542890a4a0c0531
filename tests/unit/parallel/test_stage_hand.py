"""A stage's micro-batch, the end of its step and its traffic, added up by hand from single collectives and copies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.arch.layer import Segment
from simulator.arch.operations import Collective, Gemm, Operation, Pointwise, Saved, Weight
from simulator.arch.shard import Shard
from simulator.cluster.device import pointwise_time_s
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.errors import Complaints
from simulator.parallel import recompute
from simulator.parallel.lower import Program, Stage
from simulator.parallel.offload import check_offload
from simulator.parallel.recompute import Policy
from simulator.parallel.setting import Setting, groups_of
from simulator.parallel.stage_cost import (
    StageCost,
    add_phases,
    backward_s,
    held_kind,
    prefetched_s,
    slowest_of,
    stage_cost,
    stage_costs,
    stage_kind,
    with_part,
)
from simulator.parallel.step_end import StepEnd, slowest_end, step_end
from simulator.parallel.timing import PhaseTime, SegmentTime, exposed_s
from simulator.parallel.traffic import stage_collectives, traffic_bytes
from simulator.spec.kernels import KernelModel, MeasuredKernels
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from tests.support import dgx
from tests.unit.arch.hand import kernels

CLUSTER = replace(dgx(4), host_memory_bytes_per_s=200e9, host_link_bytes_per_s=25e9)
RUN = Run(global_batch=64, precision="bf16", optimizer="adam")
PLAIN = Framework(name="plain", bucket_bytes=0.0)
MEGA = 10**6


def _setting(strategy: Strategy, framework: Framework = PLAIN, **changes: Any) -> Setting:
    return Setting(run=RUN, strategy=strategy, framework=framework, cluster=CLUSTER,
                   groups=groups_of(CLUSTER, strategy), **changes)  # fmt: skip


def _phase(seconds: float, hidden: float = 0.0, kernels: float = 1, experts: float = 0) -> PhaseTime:
    return PhaseTime(parts={"gemm": seconds}, hidden={"tp": hidden}, kernels=kernels, experts_kernels=experts)


def _segment(name: str, elements: float, *, layer: bool = True) -> Segment:
    held = Operation(name=name, weights=(Weight(name="w", elements=elements),))
    return Segment(name=name, operations=(held,), input_bytes=100.0, recomputable=layer)


LAYER, END = _segment("layer", 40 * MEGA), _segment("end", 20 * MEGA, layer=False)
TIMES = {
    name: SegmentTime(forward=_phase(each, 0.25, 5, 1), input_grad=_phase(2 * each, 0.5, 7, 2),
                      weight_grad=_phase(3 * each, 0.125, 11, 3), recompute=_phase(5 * each, 0.0, 13, 4))
    for name, each in (("layer", 1.0), ("end", 10.0))
}  # fmt: skip
STAGE = Stage(index=0, parts=((END, 1), (LAYER, 4)), boundary_bytes=1000.0)
HELD = 180 * MEGA


def test_phases_add_up_count_times() -> None:
    one = PhaseTime(parts={"gemm": 2.0, "tp": 1.0}, hidden={"tp": 3.0}, kernels=5, experts_kernels=1)
    two = PhaseTime(parts={"gemm": 7.0}, hidden={"ep": 11.0}, kernels=13)
    found = add_phases([(one, 2), (two, 3)])
    assert (found.parts, found.hidden) == ({"gemm": 25.0, "tp": 2.0}, {"tp": 6.0, "ep": 33.0})
    assert (found.kernels, found.experts_kernels, found.total_s) == (49, 2, 27.0)
    grown = with_part(one, "dp", 4.0, hidden_s=0.5, kernels=6)
    assert (grown.parts, grown.hidden) == ({"gemm": 2.0, "tp": 1.0, "dp": 4.0}, {"tp": 3.0, "dp": 0.5})
    assert (grown.kernels, grown.experts_kernels) == (11, 1)
    assert with_part(one, "tp", 4.0).parts == {"gemm": 2.0, "tp": 5.0}
    assert (with_part(one, "tp", 4.0).kernels, with_part(one, "tp", 4.0).hidden["tp"]) == (5, 3.0)


def test_a_stage_is_its_segments_and_what_it_runs_again() -> None:
    cost = stage_cost(STAGE, TIMES, 1, _setting(Strategy(recompute="full")))
    assert [phase.total_s for phase in (cost.forward, cost.input_grad, cost.weight_grad, cost.recompute)] == [
        14, 28, 42, 70]  # fmt: skip
    assert [phase.kernels for phase in (cost.forward, cost.input_grad, cost.weight_grad, cost.recompute)] == [
        25, 35, 55, 65]  # fmt: skip
    assert backward_s(cost) == 140
    # Two of the four layers; the end's recomputed operations are timed as they are.
    some = stage_cost(STAGE, TIMES, 1, _setting(Strategy(recompute="full", recompute_layers=2)))
    assert some.recompute.total_s == 50 + 2 * 5


@pytest.mark.parametrize(("pp", "micro_batches", "alone"), [(1, 8, 1 / 8), (4, 16, 1 / 4), (4, 2, 1.0)])
def test_exchanges_of_experts_show_in_passes_without_a_partner(pp: int, micro_batches: int, alone: float) -> None:
    """4 layers whose exchanges hide 0.5 s forward and 0.25 s back beside others'; what hides on tp stays."""

    def phase(shown: float, hidden: float) -> PhaseTime:
        return PhaseTime(parts={"gemm": 1.0, "ep": shown}, hidden={"tp": 0.5, "ep": hidden}, kernels=1)

    each = SegmentTime(forward=phase(0.125, 0.5), input_grad=phase(0.0625, 0.25), weight_grad=_phase(1.0),
                       recompute=_phase(1.0))  # fmt: skip
    stage = Stage(index=0, parts=((LAYER, 4),), boundary_bytes=0.0)
    found = stage_cost(stage, {"layer": each}, micro_batches, _setting(Strategy(pp=pp)))
    assert found.forward.parts["ep"] == pytest.approx(0.5 + 2.0 * alone)
    assert found.input_grad.parts["ep"] == pytest.approx(0.25 + 1.0 * alone)
    assert found.forward.hidden == pytest.approx({"tp": 2.0, "ep": 2.0 * (1 - alone)})
    column = stage_cost(stage, {"layer": each}, np.array([micro_batches, 10**9]), _setting(Strategy(pp=pp)))
    assert column.forward.parts["ep"] == pytest.approx([0.5 + 2.0 * alone, 0.5], abs=1e-6)


def test_the_slowest_of_some_gives_each_direction_its_own() -> None:
    ahead = StageCost(forward=_phase(9.0), input_grad=_phase(1.0), weight_grad=_phase(1.0), recompute=_phase(1.0))
    behind = StageCost(forward=_phase(1.0), input_grad=_phase(2.0), weight_grad=_phase(3.0), recompute=_phase(4.0))
    found = slowest_of([behind, ahead])
    assert (found.forward, found.input_grad, found.recompute) == (ahead.forward, behind.input_grad, behind.recompute)
    assert slowest_of([ahead]) is ahead


def test_several_micro_batches_add_their_gradients_up() -> None:
    """fp32 sums beside bf16 gradients, fused: 4 + 4 - 2 bytes of each parameter."""
    plain = _setting(Strategy(), replace(PLAIN, bucket_bytes=1.0))
    one, two = (stage_cost(STAGE, TIMES, count, plain) for count in (1, 2))
    added = pointwise_time_s(CLUSTER.device, 6.0 * HELD)
    assert one.weight_grad.parts == {"gemm": 42.0}
    assert two.weight_grad.parts == {"gemm": 42.0, "pointwise": pytest.approx(added)}
    assert two.weight_grad.kernels == one.weight_grad.kernels
    many = stage_cost(STAGE, TIMES, np.array([1, 8]), plain)
    assert many.weight_grad.parts["pointwise"] == pytest.approx([0.0, added])


def _collective(kind: str, each: float, group: Group, pieces: int = 4) -> float:
    return pieces * float(collective_time_s(CLUSTER, kind, each * HELD / pieces, group))


def test_zero_2_scatters_layer_by_layer() -> None:
    setting = _setting(Strategy(dp=16, zero=2))
    cost = stage_cost(STAGE, TIMES, 1, setting)
    scatter = _collective("reduce_scatter", 4.0, Group(16))
    assert cost.input_grad.parts["dp"] == pytest.approx(scatter)
    assert cost.input_grad.hidden["dp"] == pytest.approx(0.0, abs=1e-12)
    assert cost.input_grad.kernels == 35 + 4
    assert "dp" not in cost.forward.parts
    hidden = stage_cost(STAGE, TIMES, 1, _setting(Strategy(dp=16, zero=2, overlap_grad_reduce=True)))
    # Prefetched one layer ahead: a quarter, and of the rest what three quarters of 70 s do not cover.
    shown = scatter / 4 + 0.15 * 3 / 4 * scatter
    assert hidden.input_grad.parts["dp"] == pytest.approx(shown)
    assert hidden.input_grad.hidden["dp"] == pytest.approx(scatter - shown)


@pytest.mark.parametrize("kept", [False, True])
def test_zero_3_gathers_ahead_and_again_unless_kept(kept: bool) -> None:
    strategy = Strategy(dp=16, zero=3, reshard_after_forward=not kept)
    cost = stage_cost(STAGE, TIMES, 1, _setting(strategy))
    gather, scatter = _collective("all_gather", 2.0, Group(16)), _collective("reduce_scatter", 4.0, Group(16))
    assert cost.forward.parts["dp"] == pytest.approx(gather)
    assert cost.input_grad.parts["dp"] == pytest.approx(scatter + (0 if kept else gather))
    assert (cost.forward.kernels, cost.input_grad.kernels) == (25 + 4, 35 + 8)
    # Gathers alone are overlapped: beside 14 s forward, 70 s backward.
    ahead = stage_cost(STAGE, TIMES, 1, _setting(replace(strategy, overlap_param_gather=True)))
    shown = (1 / 4 + 0.15 * 3 / 4) * gather
    assert ahead.forward.parts["dp"] == pytest.approx(shown)
    assert ahead.forward.hidden["dp"] == pytest.approx(gather - shown)
    assert ahead.input_grad.parts["dp"] == pytest.approx(scatter + (0 if kept else shown))
    assert ahead.input_grad.hidden["dp"] == pytest.approx(0 if kept else gather - shown, abs=1e-12)


def test_prefetching_shows_the_first_piece_and_what_sticks_out() -> None:
    assert prefetched_s(8.0, 4.0, 4) == 2 + (6 - 3)
    assert prefetched_s(8.0, 400.0, 4) == pytest.approx(2 + 0.15 * 6)
    assert prefetched_s(8.0, 4.0, 1) == 8


@pytest.mark.parametrize(
    ("copies", "zero", "kept", "ahead", "back"),
    [("both", 3, False, 4, 4 + 6), ("both", 3, True, 4, 6), ("both", 2, False, 0, 6), ("gradients", 3, False, 0, 12),
     ("gradients", 2, False, 0, 12), ("none", 3, False, 0, 0)],
)  # fmt: skip
def test_copies_around_gathers_and_scatters_go_layer_by_layer(
    copies: str, zero: int, kept: bool, ahead: float, back: float
) -> None:
    """Bytes of each parameter: gathered ones copied out 2 + 2, gradients in 2 + 4; or joined 2 + 2, divided 4 + 4."""
    strategy = Strategy(dp=16, zero=zero, reshard_after_forward=not kept)
    cost = stage_cost(STAGE, TIMES, 1, _setting(strategy, replace(PLAIN, sharded_copies=copies)))
    plain = stage_cost(STAGE, TIMES, 1, _setting(strategy))
    for found, without, each in ((cost.forward, plain.forward, ahead), (cost.input_grad, plain.input_grad, back)):
        copied = 4 * pointwise_time_s(CLUSTER.device, each * HELD / 4) if each else 0.0
        assert found.total_s - without.total_s == pytest.approx(copied, rel=1e-6)
        assert found.kernels - without.kernels == (4 if each else 0)


def test_shards_on_the_host_come_over_their_link_before_every_gather() -> None:
    strategy = Strategy(dp=16, zero=3, offload="parameters")
    here = replace(strategy, offload="none")
    cost, plain = (stage_cost(STAGE, TIMES, 1, _setting(each)) for each in (strategy, here))
    moved = 2.0 * HELD / 16 / 25e9
    assert cost.forward.parts["dp"] - plain.forward.parts["dp"] == pytest.approx(moved)
    assert cost.input_grad.parts["dp"] - plain.input_grad.parts["dp"] == pytest.approx(moved)
    once = replace(strategy, reshard_after_forward=False)
    cost, plain = (stage_cost(STAGE, TIMES, 1, _setting(each)) for each in (once, replace(once, offload="none")))
    assert cost.input_grad.parts["dp"] == pytest.approx(plain.input_grad.parts["dp"])


def test_a_stage_without_layers_is_one_piece() -> None:
    only = Stage(index=1, parts=((END, 1),), boundary_bytes=0.0)
    cost = stage_cost(only, TIMES, 1, _setting(Strategy(dp=16, zero=2)))
    expected = float(collective_time_s(CLUSTER, "reduce_scatter", 80e6, Group(16)))
    assert cost.input_grad.parts["dp"] == pytest.approx(expected)


def _program(stages: tuple[Stage, ...], micro_batches: int = 8) -> Program:
    return Program(stages=stages, segments=(LAYER, END), kernels=kernels(), shard=Shard(micro_batch=1, seq_len=1),
                   micro_batches=micro_batches)  # fmt: skip


def test_equal_stages_are_costed_once_and_unequal_ones_apart() -> None:
    work = Segment(name="w", operations=(Operation(name="w", forward=(Pointwise(bytes=1e8),), modules=("m",)),),
                   input_bytes=1.0)  # fmt: skip
    stages = tuple(Stage(index=i, parts=((work, count),), boundary_bytes=1.0) for i, count in enumerate((2, 2, 3)))
    first, second, third = stage_costs(_program(stages), _setting(Strategy(pp=3, recompute="full")))
    assert first is second
    assert third.forward.total_s == pytest.approx(1.5 * first.forward.total_s)
    assert first.recompute.total_s == first.forward.total_s == pytest.approx(2 * pointwise_time_s(CLUSTER.device, 1e8))
    named = Strategy(pp=3, recompute="full", recompute_layers=(1, 2, 3))
    first, second, third = stage_costs(_program(stages), _setting(named))
    assert second.recompute.total_s == pytest.approx(2 * first.recompute.total_s)
    assert stage_kind(stages[0], named) != stage_kind(stages[1], named)
    assert stage_kind(stages[0], Strategy()) == stage_kind(stages[1], Strategy()) != stage_kind(stages[2], Strategy())


def test_stages_of_equal_counts_hold_their_own_segments() -> None:
    """One pass of 100 MB and one of 300 MB: the same count of another segment costs three times as much."""
    one, three = (Segment(name=name, operations=(Operation(name=name, forward=(Pointwise(bytes=moved),)),),
                          input_bytes=1.0) for name, moved in (("one", 1e8), ("three", 3e8)))  # fmt: skip
    stages = tuple(Stage(index=i, parts=((each, 2),), boundary_bytes=1.0) for i, each in enumerate((one, three)))
    costs = stage_costs(_program(stages), _setting(Strategy(pp=2)))
    expected = [2 * float(pointwise_time_s(CLUSTER.device, moved)) for moved in (1e8, 3e8)]
    assert [cost.forward.total_s for cost in costs] == pytest.approx(expected)
    assert held_kind(stages[0]) != held_kind(stages[1])


COST = StageCost(forward=_phase(3.0), input_grad=_phase(5.0), weight_grad=_phase(7.0), recompute=_phase(11.0))


def _end(strategy: Strategy, framework: Framework = PLAIN, *, cost: StageCost = COST) -> StepEnd:
    return step_end([STAGE], [cost], _setting(strategy, framework))


def _reduced(kind: str, each: float, count: int = 1, ranks: int = 16) -> float:
    return count * float(collective_time_s(CLUSTER, kind, each * HELD / count, Group(ranks)))


def test_the_end_of_a_step_reduces_updates_and_gathers() -> None:
    none, one = _end(Strategy(dp=16)), _end(Strategy(dp=16, zero=1))
    assert (none.reduce_s, none.gather_s, none.hidden_s) == (pytest.approx(_reduced("all_reduce", 4.0)), 0, 0)
    assert (one.reduce_s, one.gather_s) == pytest.approx((_reduced("reduce_scatter", 4.0), _reduced("all_gather", 2.0)))
    assert (one.reduce_hidden_s, one.gather_hidden_s, one.reduce_count) == (0, 0, 1)
    assert one.total_s == pytest.approx(one.reduce_s + one.optimizer_s + one.gather_s)
    # Zeroed in full; norm and update 4 + 4, states 24, parameter 4 + 2: of one rank's share.
    moved = HELD * 4 + HELD / 16 * 38
    assert one.optimizer_s == pytest.approx(pointwise_time_s(CLUSTER.device, moved, kernels=8))
    slow = _setting(Strategy(dp=16, zero=1), replace(PLAIN, fused_optimizer=False))
    passes = pointwise_time_s(CLUSTER.device, HELD * 4 + HELD / 16 * (38 + 48), kernels=40)
    assert _end(Strategy(dp=16, zero=1), slow.framework).optimizer_s == pytest.approx(passes)


@pytest.mark.parametrize("bucket_bytes", [90e6, 100e6, 1e12])
def test_overlapped_buckets_leave_the_last_one(bucket_bytes: float) -> None:
    """720 MB of gradients and 360 MB of parameters; the backward is 23 s, the forward 3 s."""
    framework = replace(PLAIN, bucket_bytes=bucket_bytes, overlap_grad_reduce=True, overlap_param_gather=True)
    found = _end(Strategy(dp=16, zero=1), framework)
    for kind, each, shown, hidden, cover in (
        ("reduce_scatter", 4.0, found.reduce_s, found.reduce_hidden_s, 23.0),
        ("all_gather", 2.0, found.gather_s, found.gather_hidden_s, 3.0),
    ):
        buckets = -(-int(each * HELD) // int(bucket_bytes))
        total = _reduced(kind, each, buckets)
        late = total / buckets
        assert shown == pytest.approx(late + exposed_s(total - late, cover))
        assert shown + hidden == pytest.approx(total)
    assert found.reduce_count == {90e6: 8, 100e6: 8, 1e12: 1}[bucket_bytes]


def test_a_short_backward_covers_little() -> None:
    short = StageCost(forward=_phase(1e-6), input_grad=_phase(1e-6), weight_grad=_phase(2e-6), recompute=_phase(4e-6))
    framework = replace(PLAIN, bucket_bytes=100e6, overlap_grad_reduce=True, overlap_param_gather=True)
    found = _end(Strategy(dp=16, zero=1), framework, cost=short)
    assert found.reduce_s == pytest.approx(_reduced("reduce_scatter", 4.0, 8) - 7e-6, rel=1e-9)
    assert found.gather_s == pytest.approx(_reduced("all_gather", 2.0, 4) - 1e-6, rel=1e-9)


def test_replicated_gradients_are_summed_over_tp() -> None:
    norm = Segment(name="n", operations=(Operation(name="n", weights=(Weight(
        name="n", elements=MEGA, sequence_replicated=True),)),), input_bytes=1.0)  # fmt: skip
    strategy = Strategy(tp=8, dp=4)
    found = step_end([Stage(index=0, parts=((norm, 1),), boundary_bytes=0.0)], [COST], _setting(strategy))
    replicas = float(collective_time_s(CLUSTER, "all_reduce", 4e6, groups_of(CLUSTER, strategy)["dp_cp"]))
    assert found.reduce_s == pytest.approx(replicas + float(collective_time_s(CLUSTER, "all_reduce", 4e6, Group(8))))


@pytest.mark.parametrize(
    ("copies", "zero", "each"),
    [("none", 1, 0), ("both", 1, 6), ("gradients", 1, 12), ("flattened", 0, 24), ("flattened", 1, 0), ("both", 0, 0)],
)
def test_copies_around_the_reduction_of_a_step(copies: str, zero: int, each: float) -> None:
    """bf16 gradients sent in fp32: chunked 2 + 4; joined 2 + 2 and divided 4 + 4; flattened, divided, copied back."""
    framework = replace(PLAIN, sharded_copies=copies)
    added = _end(Strategy(dp=16, zero=zero), framework).reduce_s - _end(Strategy(dp=16, zero=zero)).reduce_s
    copied = 0.0 if copies == "none" else float(pointwise_time_s(CLUSTER.device, each * HELD))
    assert added == pytest.approx(copied, rel=1e-6, abs=1e-12)
    assert _end(Strategy(zero=zero), framework).reduce_s == 0
    assert _end(Strategy(cp=2, zero=zero), framework).reduce_s > _end(Strategy(cp=2, zero=zero)).reduce_s or not copied


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("kind", "zero"), [("optimizer", 1), ("parameters", 3)])
def test_offloaded_states_are_updated_by_the_host(kind: Any, zero: int, overlap: bool) -> None:
    """11.25 M parameters per rank: 22.5 MB over the link either way; 8 ranks' at 4 + 24 + 2 bytes from the memory."""
    framework = replace(PLAIN, overlap_grad_reduce=overlap)
    found = _end(Strategy(dp=16, zero=zero, offload=kind), framework)
    plain = _end(Strategy(dp=16, zero=zero), framework)
    link = 2 * HELD / 16 / 25e9
    update = HELD / 16 * 8 * 30 / 200e9
    assert found.optimizer_s == pytest.approx(update + (link if kind == "optimizer" else 0))
    assert found.reduce_s - plain.reduce_s == pytest.approx(0.15 * link if overlap else link)
    assert found.reduce_hidden_s - plain.reduce_hidden_s == pytest.approx(0.85 * link if overlap else 0.0, abs=1e-12)
    assert found.gather_s == pytest.approx(plain.gather_s)


def test_whole_tensors_have_at_least_one_collective_per_owner() -> None:
    owners = replace(PLAIN, zero_whole_tensors=True)
    assert _end(Strategy(dp=16, zero=1), owners).reduce_s == pytest.approx(_reduced("reduce", 4.0, 16))
    assert _end(Strategy(dp=16, zero=1), owners).reduce_count == 16
    small = replace(owners, bucket_bytes=30e6)
    assert _end(Strategy(dp=16, zero=1), small).reduce_count == 24


def test_the_slowest_end_takes_each_part_from_its_slowest_rank() -> None:
    names = ("reduce_s", "optimizer_s", "gather_s", "reduce_hidden_s", "gather_hidden_s", "reduce_count")
    ends = [
        StepEnd(**dict(zip(names, values, strict=True)))
        for values in ((5.0, 1.0, 1.0, 2.0, 3.0, 4), (1.0, 6.0, 1.0, 7.0, 8.0, 9), (2.0, 2.0, 9.0, 1.0, 0.5, 2))
    ]
    assert slowest_end(ends) == StepEnd(reduce_s=5.0, optimizer_s=6.0, gather_s=9.0, reduce_hidden_s=2.0,
                                        gather_hidden_s=0.5, reduce_count=4)  # fmt: skip
    assert (slowest_end(ends).hidden_s, slowest_end(ends).total_s) == (2.5, 20.0)
    assert StepEnd(**dict.fromkeys(names[:5], 0.0)).reduce_count == 1


def test_settings_choose_overlap_links_and_groups() -> None:
    both = replace(PLAIN, overlap_grad_reduce=True, overlap_param_gather=True)
    reduces = [_setting(Strategy(overlap_grad_reduce=own), both).overlaps_grad_reduce for own in (None, False, True)]
    gathers = [_setting(Strategy(overlap_param_gather=own), both).overlaps_param_gather for own in (None, False, True)]
    assert reduces == gathers == [True, False, True]
    neither = _setting(Strategy())
    assert [neither.overlaps_grad_reduce, neither.overlaps_param_gather] == [False, False]
    other = dgx(2)
    setting = _setting(Strategy(), links={"tp": other})
    assert (setting.felt_by("tp"), setting.felt_by("dp")) == (other, CLUSTER)
    plain = groups_of(CLUSTER, Strategy(tp=2, cp=2, dp=8))
    assert (plain["shard"], plain["replicas"]) == (plain["dp_cp"], Group(1))
    shared = groups_of(CLUSTER, Strategy(tp=2, cp=2, dp=8, shard_group=2))
    assert (shared["shard"].size, shared["shard"].stride) == (4, 2)
    assert (shared["replicas"].size, shared["replicas"].stride) == (4, 8)


SEND = Collective(kind="all_reduce", axis="tp", bytes=1000.0)
MOE = Collective(kind="all_to_all", axis="ep", bytes=400.0)
BUSY = Segment(name="busy", input_bytes=1.0, operations=(
    Operation(name="a", forward=(SEND, Gemm(m=1, n=1, k=1)), input_grad=(SEND, MOE), weights=(
        Weight(name="w", elements=80), Weight(name="n", elements=20, sequence_replicated=True)), modules=("m",)),
    Operation(name="b", forward=(MOE,), weight_grad=(SEND,),
              weights=(Weight(name="e", elements=60, sharing="expert"),)),
))  # fmt: skip


def test_collectives_of_a_stage_run_again_where_they_are_recomputed() -> None:
    parts = [(BUSY, 3)]
    assert stage_collectives(parts, Strategy()) == [(SEND, 3), (SEND, 3), (MOE, 3), (MOE, 3), (SEND, 3)]
    again = Strategy(recompute="modules", recompute_modules=("m",))
    assert stage_collectives(parts, again) == [(SEND, 3)] * 3 + [(MOE, 3)] * 2 + [(SEND, 3)]
    assert len(stage_collectives(parts, Strategy(recompute="full"))) == 7


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_rank_sends_what_its_collectives_put_on_the_wire(zero: int) -> None:
    """8 micro-batches of 3 + 1 segments on two of three stages: tp 4, ep 4, dp 8 (experts on 8 ranks of it)."""
    stages = (Stage(index=0, parts=((BUSY, 3),), boundary_bytes=100.0),
              Stage(index=1, parts=((BUSY, 1),), boundary_bytes=70.0),
              Stage(index=2, parts=((BUSY, 1),), boundary_bytes=0.0))  # fmt: skip
    strategy = Strategy(tp=4, pp=3, dp=8, ep=4, zero=zero)
    cluster = dgx(12)
    setting = Setting(run=RUN, strategy=strategy, framework=PLAIN, cluster=cluster,
                      groups=groups_of(cluster, strategy))  # fmt: skip
    found = traffic_bytes(_program(stages), stages[:2], setting)
    replicated = 2 * 3 / 4 * 4 * 20 * 4
    assert found["tp"] == pytest.approx(8 * 4 * 3 * 2 * 3 / 4 * 1000 + replicated)
    assert found["ep"] == pytest.approx(8 * 4 * 2 * 3 / 4 * 400)
    # First stage: one neighbour, 100 bytes; second: two, of which each is reckoned with its own output.
    assert found["pp"] == pytest.approx(8 * 100 + 2 * 8 * 70)
    own, experts = 4 * 100 * 7 / 8, 4 * 60 * 7 / 8
    sent = {0: 2 * 4, 1: 4 + 2, 2: 8 * 4 + 2, 3: 8 * (2 + 2 + 4)}[zero]
    assert found["dp"] == pytest.approx((own + experts) * sent)
    last = traffic_bytes(_program(stages), stages[2:], setting)
    assert last["pp"] == pytest.approx(8 * 70)
    alone = replace(strategy, pp=1)
    assert "pp" not in traffic_bytes(_program(stages[:1]), stages[:1], replace(setting, strategy=alone))


SAVING = Segment(name="layer", input_bytes=64.0, operations=(
    Operation(name="a", saves=(Saved(name="a", bytes=10.0), Saved(name="b", bytes=20.0, boundary=True)),
              modules=("core_attn",)),
    Operation(name="b", saves=(Saved(name="c", bytes=40.0),), modules=("mlp",)),
))  # fmt: skip


def test_recomputation_keeps_what_it_does_not_make_again() -> None:
    kinds: tuple[Any, ...] = ("none", "full", "selective", "modules")
    policy = {kind: recompute.policy_of(Strategy(recompute=kind, recompute_modules=("mlp",))) for kind in kinds}
    selective, mlp = Policy(modules=frozenset({"core_attn"})), Policy(modules=frozenset({"mlp"}))
    assert policy == {"none": Policy(), "full": Policy(full=True), "selective": selective, "modules": mlp}
    kept = {kind: recompute.saved_bytes(SAVING, each) for kind, each in policy.items()}
    assert kept == {"none": 70, "full": 64, "selective": 60, "modules": 30}
    away = recompute.policy_of(Strategy(recompute="full", offload_inputs=True))
    assert recompute.saved_tensors(SAVING, away) == ()
    assert recompute.saved_tensors(SAVING, policy["full"]) == (Saved(name="layer.input", bytes=64.0, boundary=True),)
    again = {kind: [o.name for o in recompute.recomputed_operations(SAVING, each)] for kind, each in policy.items()}
    assert again == {"none": [], "full": ["a", "b"], "selective": ["a"], "modules": ["b"]}
    end = replace(SAVING, recomputable=False)
    assert recompute.recomputed_operations(end, policy["full"]) == ()
    assert (recompute.saved_bytes(end, policy["full"]), recompute.saved_bytes(end, away)) == (70, 70)


def test_the_first_layers_of_a_stage_are_recomputed() -> None:
    other = replace(SAVING, name="other")
    stage = Stage(index=1, parts=((END, 1), (SAVING, 3), (other, 2)), boundary_bytes=0.0)

    def parts(**changes: Any) -> list[tuple[str, Any, Any]]:
        found = recompute.recomputed_parts(stage, Strategy(recompute="full", **changes))
        return [(segment.name, again, rest) for segment, again, rest in found]

    assert parts() == [("end", 1, 0), ("layer", 3, 0), ("other", 2, 0)]
    assert parts(recompute_layers=2) == [("end", 1, 0), ("layer", 2, 1), ("other", 0, 2)]
    assert parts(recompute_layers=4, pp=2) == [("end", 1, 0), ("layer", 3, 0), ("other", 1, 1)]
    assert parts(recompute_layers=(1, 4), pp=2) == [("end", 1, 0), ("layer", 3, 0), ("other", 1, 1)]
    assert recompute.recomputed_layers(Strategy(), stage) == 5
    assert recompute.recomputed_layers(Strategy(recompute="full", recompute_layers=3), stage) == 3
    column = replace(Strategy(), recompute_layers=np.array([0, 2]))
    assert recompute.recomputed_layers(column, stage).tolist() == [5, 2]
    assert [(again.tolist(), rest.tolist()) for _, again, rest in recompute.recomputed_parts(stage, column)[1:]] == [
        ([3, 2], [0, 1]), ([2, 0], [0, 2])]  # fmt: skip


def test_calibrated_devices_time_each_kernel_by_its_name() -> None:
    """One second for a copy, 10 for adding up, 100 for an optimizer step, 1,000 for anything else: of any size."""
    curves = {name: ((1.0, seconds), (1e15, seconds)) for name, seconds in
              (("copy", 1.0), ("accumulate", 10.0), ("optimizer", 100.0), ("plain", 1000.0))}  # fmt: skip
    own = KernelModel(constants=CLUSTER.device.kernels.constants, provenance="fitted",
                      measured=MeasuredKernels(sums={}, curves=curves))  # fmt: skip
    cluster = replace(CLUSTER, device=replace(CLUSTER.device, kernels=own))
    strategy = Strategy(dp=16, zero=3)
    setting = replace(_setting(strategy, replace(PLAIN, sharded_copies="both")), cluster=cluster)
    cost = stage_cost(STAGE, TIMES, 2, setting)
    assert cost.weight_grad.parts["pointwise"] == pytest.approx(10.0)
    assert (cost.forward.parts["pointwise"], cost.input_grad.parts["pointwise"]) == pytest.approx((4.0, 4.0))
    once = replace(setting, strategy=Strategy(dp=16, zero=1))
    end, plain = (step_end([STAGE], [COST], each) for each in (once, replace(once, framework=PLAIN)))
    assert (end.reduce_s - plain.reduce_s, end.optimizer_s) == pytest.approx((1.0, 100.0))


def test_gradients_run_on_the_links_that_their_group_feels() -> None:
    """Links of half the rate between nodes, felt by the ranks that share one sharded copy alone."""
    inside, between = CLUSTER.tiers
    slow = replace(CLUSTER, tiers=(inside, replace(between, bandwidth_bytes_per_s=between.bandwidth_bytes_per_s / 2)))
    strategy = Strategy(dp=16, zero=1)
    felt = step_end([STAGE], [COST], _setting(strategy, links={"shard": slow}))
    assert felt.reduce_s == pytest.approx(float(collective_time_s(slow, "reduce_scatter", 4.0 * HELD, Group(16))))
    layers = stage_cost(STAGE, TIMES, 1, _setting(replace(strategy, zero=2), links={"shard": slow}))
    each = float(collective_time_s(slow, "reduce_scatter", HELD, Group(16)))
    assert layers.input_grad.parts["dp"] == pytest.approx(4 * each)
    big = replace(SEND, bytes=8e8)
    summed = Segment(name="w", operations=(Operation(name="w", forward=(big,)),), input_bytes=1.0)
    stages = (Stage(index=0, parts=((summed, 1),), boundary_bytes=0.0),)
    (cost,) = stage_costs(_program(stages), _setting(Strategy(tp=16), links={"tp": slow}))
    there, here = (float(collective_time_s(each, "all_reduce", 8e8, Group(16))) for each in (slow, CLUSTER))
    assert cost.forward.parts["tp"] == pytest.approx(there)
    assert there > 1.2 * here


def test_reductions_of_whole_tensors_do_not_hide_where_only_gathers_do() -> None:
    owners = replace(PLAIN, zero_whole_tensors=True, overlap_param_gather=True)
    cost = stage_cost(STAGE, TIMES, 1, _setting(Strategy(dp=16, zero=2), owners))
    reduced = _collective("reduce", 4.0, Group(16))
    assert cost.input_grad.parts["dp"] == pytest.approx(reduced)


def test_two_stages_pass_one_activation_and_one_gradient() -> None:
    stages = (Stage(index=0, parts=((BUSY, 1),), boundary_bytes=100.0),
              Stage(index=1, parts=((BUSY, 1),), boundary_bytes=0.0))  # fmt: skip
    strategy = Strategy(tp=4, pp=2, dp=4)
    setting = _setting(strategy)
    for stage in stages:
        assert traffic_bytes(_program(stages), [stage], setting)["pp"] == pytest.approx(8 * 100)


@pytest.mark.parametrize(
    ("offload", "zero", "host", "link", "said"),
    [("none", 0, 0.0, 0.0, []), ("optimizer", 1, 1.0, 1.0, []), ("parameters", 3, 1.0, 1.0, []),
     ("optimizer", 0, 1.0, 1.0, ["Use zero = 1."]), ("parameters", 2, 1.0, 1.0, ["Use zero = 3."]),
     ("optimizer", 1, 0.0, 1.0, ["host_link"]), ("optimizer", 1, 1.0, 0.0, ["host_link"]),
     ("parameters", 0, 0.0, 0.0, ["Use zero = 3.", "host_link"])],
)  # fmt: skip
def test_offloading_needs_zero_and_a_host_that_is_known(
    offload: Any, zero: int, host: float, link: float, said: list[str]
) -> None:
    complaints = Complaints()
    cluster = replace(CLUSTER, host_memory_bytes_per_s=host, host_link_bytes_per_s=link)
    check_offload(cluster, Strategy(zero=zero, offload=offload), complaints)
    assert [problem.where for problem in complaints.problems] == ["offload"] * len(said)
    assert [hint in problem.hint for hint, problem in zip(said, complaints.problems, strict=True)] == [True] * len(said)
