"""The finer bound of one strategy: its own stages, one by one, under its schedule, and the end of its step."""

from __future__ import annotations

import numpy as np

from simulator.lowered import Costed
from simulator.parallel.stage_cost import StageCost
from simulator.parallel.step_end import step_end
from simulator.plan.dealing import held_stages, mapping_of
from simulator.result import COMMUNICATION
from simulator.schedule.bounds import FUSED, lower_bound_s
from simulator.schedule.durations import transfers_of
from simulator.spec.strategy import FREE_RUNNING

PAIRED = ("dualpipe", "dualpipev")
"""Schedules that hide a task's communication beside another task's compute."""


def least_step_time_s(costed: Costed) -> float:
    """Seconds that no run of the engine can beat for these costs [s]."""
    strategy, setting = costed.setting.strategy, costed.setting
    tails = _tails_s(costed)
    paired = strategy.schedule in PAIRED
    transfers = transfers_of(costed.program, setting)
    least = float(
        lower_bound_s(
            strategy.schedule,
            forward_s=np.array([_seconds(cost, ("forward",), paired=paired) for cost in costed.costs]),
            backward_s=np.array([
                _seconds(cost, ("input_grad", "recompute", "weight_grad"), paired=paired) for cost in costed.costs
            ]),
            pp=strategy.pp, micro_batches=costed.program.micro_batches, vp=strategy.vp, group_size=strategy.group_size,
            send_forward_s=np.asarray(transfers.forward_s), send_backward_s=np.asarray(transfers.backward_s),
            blocking=transfers.blocking,
        )
    )  # fmt: skip
    if strategy.schedule in FREE_RUNNING:
        phases = ("forward", "input_grad", "recompute", "weight_grad")
        work = [
            sum(_seconds(costed.costs[s], phases, paired=False) for s in held)
            for held in held_stages(mapping_of(strategy.schedule), strategy.pp, strategy.vp)
        ]
        return max(costed.program.micro_batches * w + tail for w, tail in zip(work, tails, strict=True))
    # Where every rank ends on a backward that the rank before waits for, the first rank ends last.
    return least + (tails[0] if strategy.schedule in FUSED else min(tails))


def runs_alike(one: Costed, other: Costed) -> bool:
    """Whether the engine is given the same: equal costs, transfers and ends of the step."""
    return (
        one.costs == other.costs
        and transfers_of(one.program, one.setting) == transfers_of(other.program, other.setting)
        and _tails_s(one) == _tails_s(other)
    )


def _tails_s(costed: Costed) -> list[float]:
    """The end of the step on every rank [s]."""
    strategy = costed.setting.strategy
    ends: dict[tuple[int, ...], float] = {}
    tails = []
    for held in held_stages(mapping_of(strategy.schedule), strategy.pp, strategy.vp):
        key = tuple(id(costed.costs[stage]) for stage in held)
        if key not in ends:
            stages, costs = [costed.program.stages[s] for s in held], [costed.costs[s] for s in held]
            ends[key] = float(step_end(stages, costs, costed.setting).total_s)
        tails.append(ends[key])
    return tails


def _seconds(cost: StageCost, phases: tuple[str, ...], *, paired: bool) -> float:
    total = sum(float(getattr(cost, phase).total_s) for phase in phases)
    if not paired:
        return total
    return total - sum(float(getattr(cost, phase).parts.get(axis, 0.0)) for phase in phases for axis in COMMUNICATION)
