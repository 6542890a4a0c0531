"""What one micro-batch costs on each stage, by part: the segments' times summed, and the traffic of ZeRO-2 and 3."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.arch.operations import Collective, Number
from simulator.cluster.device import pointwise_time_s
from simulator.cluster.elementwise import maximum, minimum, where
from simulator.cluster.network import collective_time_s
from simulator.parallel.gradients import synchronisation
from simulator.parallel.lower import Program, Stage
from simulator.parallel.offload import host_link_s
from simulator.parallel.recompute import policy_of, recomputed_layers, recomputed_parts
from simulator.parallel.setting import Setting
from simulator.parallel.states import (
    HeldParameters,
    accumulation_bytes,
    held_parameters,
    owned_parameters,
    parameter_bytes,
    sharding_copy_bytes,
)
from simulator.parallel.timing import PhaseTime, SegmentTime, exposed_s, segment_times
from simulator.spec.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """One micro-batch on one stage. `recompute` runs at the start of the backward."""

    forward: PhaseTime
    input_grad: PhaseTime
    weight_grad: PhaseTime
    recompute: PhaseTime


def stage_costs(program: Program, setting: Setting) -> tuple[StageCost, ...]:
    """Costs of every stage, in model order."""
    distinct = {segment.name: segment for stage in program.stages for segment, _ in stage.parts}
    policy = policy_of(setting.strategy)
    times = segment_times(distinct.values(), policy, setting.cluster, setting.groups, setting.links)
    cache: dict[StageKind, StageCost] = {}
    costs = []
    for stage in program.stages:
        key = stage_kind(stage, setting.strategy)
        if key not in cache:
            cache[key] = stage_cost(stage, times, program.micro_batches, setting)
        costs.append(cache[key])
    return tuple(costs)


StageKind = tuple[tuple[int, int], ...]
"""Stages of one kind hold equally many of the same segments, and recompute as many of them."""


def stage_kind(stage: Stage, strategy: Strategy) -> StageKind:
    """What makes a stage cost what it costs (counts are numbers)."""
    if not isinstance(strategy.recompute_layers, tuple):
        return held_kind(stage)
    return (*held_kind(stage), (0, int(recomputed_layers(strategy, stage))))


def held_kind(stage: Stage) -> StageKind:
    """What makes a stage hold the parameters that it holds."""
    return tuple((id(segment), count) for segment, count in stage.parts)


def stage_cost(
    stage: Stage, times: Mapping[str, SegmentTime], micro_batches: Number, setting: Setting
) -> StageCost:
    """One stage's cost from its segments' times, by name. Counts, degrees and `micro_batches` may be arrays."""
    cost = _sum_stage(stage, times, setting.strategy)
    alone = minimum(setting.strategy.pp / micro_batches, 1.0)
    cost = _replace(cost, forward=_shown_alone(cost.forward, alone), input_grad=_shown_alone(cost.input_grad, alone))
    return _with_shared_traffic(cost, stage, micro_batches, setting)


def _shown_alone(phase: PhaseTime, alone_fraction: Number) -> PhaseTime:
    """A phase with what its hidden exchanges of experts show in the passes that run alone.

    Exchanges hide where one micro-batch's forward is merged with another's backward. The first forwards and the last
    backwards find no partner: of vp m chunks (vp - 1) pp + (pp - 1) in the mean of the ranks and the one that starts
    the pairs, pp / m of all; without a pipeline the first and the last (Megatron-LM megatron/core/pipeline_parallel/
    schedules.py get_pp_rank_microbatches, combined_1f1b.py combined_1f1b_schedule_for_no_pipelining).
    """
    if "ep" not in phase.hidden:
        return phase
    hidden = phase.hidden["ep"]
    return with_part(phase, "ep", alone_fraction * hidden, hidden_s=-alone_fraction * hidden)


def _sum_stage(stage: Stage, times: Mapping[str, SegmentTime], strategy: Strategy) -> StageCost:
    again = [(times[segment.name].recompute, count) for segment, count, _ in recomputed_parts(stage, strategy)]
    return StageCost(
        forward=add_phases([(times[s.name].forward, count) for s, count in stage.parts]),
        input_grad=add_phases([(times[s.name].input_grad, count) for s, count in stage.parts]),
        weight_grad=add_phases([(times[s.name].weight_grad, count) for s, count in stage.parts]),
        recompute=add_phases(again),
    )


def backward_s(cost: StageCost) -> Number:
    """Seconds of a stage's whole backward: recomputation, B and W."""
    return cost.recompute.total_s + cost.input_grad.total_s + cost.weight_grad.total_s


def slowest_of(costs: Sequence[StageCost]) -> StageCost:
    """One stage's cost on members that wait for each other: forward and backward each as on the slowest (numbers only).

    The backward is taken whole: what of its communication sticks out of B and W together stands in B.
    """
    if len(costs) == 1:
        return costs[0]
    ahead, back = max(costs, key=lambda c: float(c.forward.total_s)), max(costs, key=lambda c: float(backward_s(c)))
    return _replace(back, forward=ahead.forward)


def add_phases(phases: Sequence[tuple[PhaseTime, Number]]) -> PhaseTime:
    """Sum phases, each taken a number of times."""
    parts: dict[str, Any] = defaultdict(float)
    hidden: dict[str, Any] = defaultdict(float)
    kernels: Number = 0
    experts: Number = 0
    for phase, count in phases:
        for name, seconds in phase.parts.items():
            parts[name] = parts[name] + count * seconds
        for name, seconds in phase.hidden.items():
            hidden[name] = hidden[name] + count * seconds
        kernels = kernels + count * phase.kernels
        experts = experts + count * phase.experts_kernels
    return PhaseTime(parts=dict(parts), hidden=dict(hidden), kernels=kernels, experts_kernels=experts)


def with_part(
    phase: PhaseTime, name: str, seconds: Number, *, hidden_s: Number = 0.0, kernels: Number = 0
) -> PhaseTime:
    """A phase with one part grown."""
    extra = PhaseTime(parts={name: seconds}, hidden={name: hidden_s}, kernels=kernels)
    return add_phases([(phase, 1), (extra, 1)])


def _with_shared_traffic(cost: StageCost, stage: Stage, micro_batches: Number, setting: Setting) -> StageCost:
    """Add gradient accumulation (with more than one micro-batch) and the gathers and scatters of ZeRO-2 and 3."""
    held = held_parameters((stage,))
    several = micro_batches > 1
    if np.any(several):
        moved = accumulation_bytes(held.total, setting.run, setting.framework)
        seconds = where(several, pointwise_time_s(setting.cluster.device, moved, kernel="accumulate"), 0.0)
        cost = _replace(cost, weight_grad=with_part(cost.weight_grad, "pointwise", seconds))
    sync = synchronisation(held, setting.run, setting.strategy, setting.framework)
    if not sync.backward:
        return cost
    pieces = maximum(stage.layers, 1)
    cost = _with_sharding_copies(cost, held.total, pieces, setting)
    fetched_s, late_s = _sharded_s(sync.backward, backward_s(cost), pieces, held, setting)
    launches = pieces if setting.strategy.zero == 2 else 2 * pieces
    back = with_part(cost.input_grad, "dp", late_s, hidden_s=fetched_s - late_s, kernels=launches)
    if setting.strategy.zero == 2:
        return _replace(cost, input_grad=back)
    gathered_s, shown_s = _sharded_s(sync.forward, cost.forward.total_s, pieces, held, setting)
    ahead = with_part(cost.forward, "dp", shown_s, hidden_s=gathered_s - shown_s, kernels=pieces)
    return _replace(cost, forward=ahead, input_grad=back)


def _sharded_s(
    collectives: tuple[Collective, ...], cover_s: Number, pieces: Number, held: HeldParameters, setting: Setting
) -> tuple[Number, Number]:
    """(all, exposed) seconds of a stage's gathers and scatters, those that the software overlaps beside `cover_s`."""
    gathers = tuple(c for c in collectives if c.kind == "all_gather")
    scatters = tuple(c for c in collectives if c not in gathers)
    gathered_s = _sharded_traffic(gathers, pieces, setting) + (_from_host_s(held, setting) if gathers else 0.0)
    scattered_s = _sharded_traffic(scatters, pieces, setting)
    beside_s = gathered_s * setting.overlaps_param_gather + scattered_s * setting.overlaps_grad_reduce
    total_s = gathered_s + scattered_s
    return total_s, total_s - beside_s + prefetched_s(beside_s, cover_s, pieces)


def _with_sharding_copies(cost: StageCost, held: Number, pieces: Number, setting: Setting) -> StageCost:
    """Add what ZeRO-2 and 3 copy around their gathers (in forward, and in backward unless kept) and scatters."""
    gathered, scattered = sharding_copy_bytes(held, setting.run, setting.framework)
    strategy = setting.strategy

    def grown(phase: PhaseTime, moved: Number) -> PhaseTime:
        if not np.any(moved):
            return phase
        seconds = pieces * pointwise_time_s(setting.cluster.device, moved / pieces, kernel="copy")
        return with_part(phase, "pointwise", seconds, kernels=pieces)

    again = gathered if strategy.zero == 3 and strategy.reshard_after_forward else 0.0
    forward = grown(cost.forward, gathered) if strategy.zero == 3 else cost.forward
    return _replace(cost, forward=forward, input_grad=grown(cost.input_grad, scattered + again))


def _replace(cost: StageCost, **changes: PhaseTime) -> StageCost:
    fields = {name: getattr(cost, name) for name in ("forward", "input_grad", "weight_grad", "recompute")}
    return StageCost(**{**fields, **changes})


def _sharded_traffic(collectives: tuple[Collective, ...], pieces: Number, setting: Setting) -> Number:
    """Seconds of a stage's gathers or scatters, one collective per layer."""
    total: Number = sum(
        pieces * collective_time_s(setting.felt_by(c.axis), c.kind, c.bytes / pieces, setting.groups[c.axis])
        for c in collectives
    )
    return total


def _from_host_s(held: HeldParameters, setting: Setting) -> Number:
    """Seconds in which shards of parameters that rest in host memory come to the device before their gather."""
    if setting.strategy.offload != "parameters":
        return 0.0
    return host_link_s(owned_parameters(held, setting.strategy) * parameter_bytes(setting.run), setting.cluster)


def prefetched_s(communication_s: Number, cover_s: Number, pieces: Number) -> Number:
    """Exposed seconds of per-layer traffic that is prefetched one layer ahead: the first layer's, and what the compute
    of the others does not cover [s].

    >>> prefetched_s(4.0, 100.0, 4)
    1.45
    """
    first = communication_s / pieces
    return first + exposed_s(communication_s - first, cover_s * (pieces - 1) / pieces)
