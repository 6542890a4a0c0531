"""One step on unequal nodes: each stage on the devices that placement gives it, each group at its slowest member.

Every distinct replica of the pipeline runs through the engine with its own costs. The one that finishes last decides:
the others wait for it when gradients are reduced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from simulator.lowered import Lowered, host_wait_s, order_of, rank_slots
from simulator.parallel.gradients import synchronisation
from simulator.parallel.lower import Program, lower
from simulator.parallel.seats import Replica, Seat, Seating, seating, send_setting, setting_of
from simulator.parallel.setting import Setting, splits_sends
from simulator.parallel.stage_cost import StageCost, backward_s, slowest_of, stage_costs
from simulator.parallel.states import held_parameters
from simulator.parallel.step_end import StepEnd, slowest_end, step_end
from simulator.schedule.durations import durations_of, send_s, sends_block
from simulator.schedule.engine import Transfers, simulate
from simulator.schedule.order import Order
from simulator.schedule.timeline import Timeline
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import FREE_RUNNING, Strategy


@dataclass(frozen=True, kw_only=True)
class UnequalStep:
    """A step's program, seats and costs by seat, before it is ordered."""

    program: Program
    seats: Seating
    settings: Mapping[Seat, Setting]
    costs: Mapping[Seat, tuple[StageCost, ...]]
    """Of every stage, as if a rank on the seat held it."""
    strategy: Strategy

    @cached_property
    def order(self) -> Order:
        """The schedule's order."""
        return order_of(self.program, self.strategy)


def cost_unequal(
    model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, software: Framework
) -> UnequalStep:
    """Lower one step and cost every stage on every seat."""
    program = lower(model, run, strategy, software)
    sync = synchronisation(held_parameters(program.stages), run, strategy, software)
    seats = seating(cluster, strategy, tied={each.axis for each in (*sync.forward, *sync.backward)})
    every = sorted({seat for rank in range(strategy.pp) for seat in seats.seats(rank)})
    settings = {seat: setting_of(seat, seats.kinds, run, strategy, software) for seat in every}
    costs = {seat: stage_costs(program, setting) for seat, setting in settings.items()}
    return UnequalStep(program=program, seats=seats, settings=settings, costs=costs, strategy=strategy)


def run_unequal(step: UnequalStep) -> Lowered:
    """Run every distinct replica; the answer is that of the one that finishes last."""
    order, strategy = step.order, step.strategy
    known: dict[tuple[int, ...], StageCost] = {}
    ends = tuple(_end(step, rank, known) for rank in range(strategy.pp))
    by_slot = _apart(order)
    ran = []
    for replica in step.seats.replicas:
        costs = _replica_costs(step, replica, known)
        setting = step.settings[replica[0][0]]
        durations, transfers = durations_of(costs, setting), _transfers(step, replica)
        line = simulate(by_slot, durations, transfers)
        ran.append((_finish_s(line, ends, strategy), costs, durations, transfers, line))
    _, costs, durations, transfers, line = max(ran, key=lambda found: found[0])
    return Lowered(
        program=step.program, costs=costs, order=order, timeline=replace(line, order=order), ends=ends,
        setting=step.settings[slowest_seat(step, range(strategy.pp))],
        host_wait_s=host_wait_s(by_slot, durations, transfers, line),
        limits_bytes=tuple(step.seats.limit_bytes(rank) for rank in range(strategy.pp)),
    )  # fmt: skip


def slowest_seat(step: UnequalStep, ranks: Sequence[int]) -> Seat:
    """The seat of these pipeline ranks whose stages take longest."""

    def seconds(rank: int, seat: Seat) -> float:
        held = [step.costs[seat][int(step.order.model_stage[slot])] for slot in rank_slots(step.order, rank)]
        return sum(float(c.forward.total_s + backward_s(c)) for c in held)

    found = ((seconds(rank, seat), seat) for rank in ranks for seat in step.seats.seats(rank))
    return max(found, key=lambda pair: pair[0])[1]


def _apart(order: Order) -> Order:
    """The order with every slot a stage of its own: models held twice have copies on different devices."""
    if order.slots == order.stages:
        return order
    return replace(order, model_stage=np.arange(order.slots, dtype=np.int32))


def _slot_cost(
    step: UnequalStep, slot: int, seats: Sequence[Seat], known: dict[tuple[int, ...], StageCost]
) -> StageCost:
    """A slot's cost on seats whose ranks finish it together."""
    stage = int(step.order.model_stage[slot])
    costs = [step.costs[seat][stage] for seat in seats]
    return known.setdefault(tuple(id(cost) for cost in costs), slowest_of(costs))


def _replica_costs(
    step: UnequalStep, replica: Replica, known: dict[tuple[int, ...], StageCost]
) -> tuple[StageCost, ...]:
    ranks = step.order.slot_rank.tolist()
    return tuple(_slot_cost(step, slot, replica[rank], known) for slot, rank in enumerate(ranks))


def _end(step: UnequalStep, rank: int, known: dict[tuple[int, ...], StageCost]) -> StepEnd:
    """The end of the step on a pipeline rank.

    What hides, hides beside the slowest replica's backward: a bucket is reduced once the last replica has made it.
    """
    seats, slots = step.seats.seats(rank), rank_slots(step.order, rank)
    costs = [_slot_cost(step, slot, seats, known) for slot in slots]
    stages = [step.program.stages[int(step.order.model_stage[slot])] for slot in slots]
    return slowest_end([step_end(stages, costs, step.settings[seat]) for seat in seats])


def _finish_s(line: Timeline, ends: Sequence[StepEnd], strategy: Strategy) -> float:
    begins: list[float] = line.rank_start_s.tolist() if strategy.schedule in FREE_RUNNING else [0.0] * strategy.pp
    ended: list[float] = line.rank_end_s.tolist()
    return max(end - begin + float(tail.total_s) for begin, end, tail in zip(begins, ended, ends, strict=True))


def _transfers(step: UnequalStep, replica: Replica) -> Transfers:
    """Sends between the slots of a replica: at the slower end's links, gathered on the receiver's."""
    order, strategy = step.order, step.strategy
    if order.slots == 1:
        return Transfers()
    any_setting = step.settings[replica[0][0]]
    split = splits_sends(strategy, any_setting.framework)
    rank_of, stage_of = order.slot_rank.tolist(), order.model_stage.tolist()

    def seconds(stage: int, sender: int, receiver: int) -> float:
        here, there = replica[sender], replica[receiver]
        sent_bytes = float(step.program.stages[stage].boundary_bytes)
        return max(
            float(send_s(sent_bytes, send_setting(step.settings[seat], step.seats.kinds, here, there), split=split))
            for seat in there
        )

    forward, backward = np.zeros(order.slots - 1), np.zeros(order.slots - 1)
    for slot in range(order.slots - 1):
        if int(order.previous[slot + 1]) == slot:
            one, other = rank_of[slot], rank_of[slot + 1]
            forward[slot] = seconds(stage_of[slot], one, other)
            backward[slot] = seconds(stage_of[slot], other, one)
    return Transfers(forward_s=forward, backward_s=backward,
                     blocking=sends_block(strategy.schedule, any_setting.framework))  # fmt: skip


def members_of(step: UnequalStep) -> tuple[dict[str, Any], ...]:
    """By pipeline rank: how many nodes of which device hold it, the slowest of them, and the least memory [B].

    Where links differ among those nodes, also the node with the slowest inside and the one with the slowest to others.
    """
    found = []
    kinds = step.seats.kinds
    for rank in range(step.strategy.pp):
        members = step.seats.members(rank)
        by_kind = {int(kinds.of_node[m.node]): m for m in members}
        devices: dict[str, int] = {}
        for node in step.seats.nodes[rank]:
            name = kinds.members[int(kinds.of_node[node])].device.name
            devices[name] = devices.get(name, 0) + 1
        card = next(by_kind[kind] for kind in kinds.by_uplink.tolist() if kind in by_kind)
        found.append({
            "rank": rank, "nodes_by_device": devices, "slowest": by_kind[slowest_seat(step, [rank]).node].label,
            "slowest_links": members[0].label if any(m.tier != members[0].tier for m in members) else None,
            "slowest_uplinks": card.uplink_label if any(m.uplink != card.uplink for m in members) else None,
            "kinds": len(members), "memory_bytes": step.seats.limit_bytes(rank),
        })  # fmt: skip
    return tuple(found)


def member_notes(members: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The same in words, equal neighbours together."""
    alike: list[tuple[list[int], str]] = []
    for each in members:
        words = _member_words(each)
        if alike and alike[-1][1] == words:
            alike[-1][0].append(int(each["rank"]))
        else:
            alike.append(([int(each["rank"])], words))
    said = [
        f"Pipeline rank {ranks[0]} {words}" if len(ranks) == 1 else f"Pipeline ranks {ranks[0]} to {ranks[-1]} {words}"
        for ranks, words in alike
    ]
    return ("Unequal nodes: every group runs at its slowest member; MFU is of all devices' peaks together.", *said)


def _member_words(each: Mapping[str, Any]) -> str:
    held = " and ".join(f"{count} of {name}" for name, count in sorted(each["nodes_by_device"].items()))
    said = [f"is on nodes {held}"]
    if each["kinds"] > 1:
        said.append(f"waits for {each['slowest']}")
    if each["slowest_links"]:
        said.append(f"exchanges within nodes as {each['slowest_links']} does")
    if each["slowest_uplinks"]:
        said.append(f"exchanges between nodes as {each['slowest_uplinks']} does")
    return ", ".join(said) + f"; {each['memory_bytes'] / 2**30:g} GiB per device at least."
