"""One step lowered, costed, ordered and run: everything that an estimate is read off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.parallel.lower import Program, lower
from simulator.parallel.setting import Setting, groups_of
from simulator.parallel.stage_cost import StageCost, stage_costs
from simulator.parallel.step_end import StepEnd, step_end
from simulator.schedule.durations import durations_of, transfers_of
from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.make import make_order
from simulator.schedule.order import Order
from simulator.schedule.timeline import Timeline
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Costed:
    """A step on equal devices before it is ordered: program and the costs of its stages."""

    program: Program
    costs: tuple[StageCost, ...]
    setting: Setting


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A step that ran. Of unequal nodes it is that of the replica which finishes last."""

    program: Program
    costs: tuple[StageCost, ...]
    """By slot of the order: what a rank holds of the model."""
    order: Order
    timeline: Timeline
    ends: tuple[StepEnd, ...]
    """By pipeline rank."""
    host_wait_s: float
    """What the pipeline would gain if kernel launches were free."""
    setting: Setting
    limits_bytes: tuple[float, ...] = ()
    """Memory of each pipeline rank's smallest device; empty where all devices are equal."""


def run_step(model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, software: Framework) -> Lowered:
    """Lower, cost, order and simulate one step on equal devices."""
    return run_costed(cost_step(model, cluster, run, strategy, software))


def cost_step(model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, software: Framework) -> Costed:
    """Lower one step and cost every stage."""
    program = lower(model, run, strategy, software)
    setting = Setting(run=run, strategy=strategy, framework=software, cluster=cluster,
                      groups=groups_of(cluster, strategy))  # fmt: skip
    return Costed(program=program, costs=stage_costs(program, setting), setting=setting)


def run_costed(costed: Costed) -> Lowered:
    """Order and simulate one step."""
    program, costs, setting = costed.program, costed.costs, costed.setting
    order = order_of(program, setting.strategy)
    durations, transfers = durations_of(costs, setting), transfers_of(program, setting)
    timeline = simulate(order, durations, transfers)
    by_slot = tuple(costs[stage] for stage in order.model_stage.tolist())
    return Lowered(program=program, costs=by_slot, order=order, timeline=timeline, setting=setting,
                   ends=_ends(program, by_slot, order, setting),
                   host_wait_s=host_wait_s(order, durations, transfers, timeline))  # fmt: skip


def order_of(program: Program, strategy: Strategy) -> Order:
    """The order in which the strategy's schedule runs a program."""
    return make_order(
        strategy.schedule, pp=strategy.pp, micro_batches=program.micro_batches, vp=strategy.vp,
        group_size=strategy.group_size,
    )  # fmt: skip


def host_wait_s(order: Order, durations: Durations, transfers: Transfers, timeline: Timeline) -> float:
    """Seconds by which a step would be shorter if kernel launches were free [s]."""
    if not np.any(durations.forward_host_s):
        return 0.0
    free = replace(durations, forward_host_s=0.0, input_grad_host_s=0.0, weight_grad_host_s=0.0)
    return max(timeline.makespan_s - simulate(order, free, transfers).makespan_s, 0.0)


def _ends(program: Program, costs: Sequence[StageCost], order: Order, setting: Setting) -> tuple[StepEnd, ...]:
    """The end of the step on every rank; ranks that hold the same programs share one."""
    known: dict[tuple[int, ...], StepEnd] = {}
    result = []
    for rank in range(setting.strategy.pp):
        held = rank_slots(order, rank)
        key = tuple(id(costs[slot]) for slot in held)
        if key not in known:
            stages = [program.stages[stage] for stage in rank_stages(order, rank)]
            known[key] = step_end(stages, [costs[slot] for slot in held], setting)
        result.append(known[key])
    return tuple(result)


def rank_slots(order: Order, rank: int) -> list[int]:
    """Slots that a rank holds."""
    return list(order.rank_slots[rank])


def rank_stages(order: Order, rank: int) -> list[int]:
    """Model stages that a rank holds (twice-held models list both copies)."""
    return [int(order.model_stage[slot]) for slot in rank_slots(order, rank)]
