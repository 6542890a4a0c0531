"""Plans for clusters of unequal nodes: stages on their own devices, with layers dealt out by the speed of each.

Strategies are found where all nodes are the slowest, for each depth of the pipeline that the nodes allow, and then
costed on the nodes themselves: with their own placement or the pipeline outermost, so that stages lie on nodes of one
kind, and with their own layers or those that make the slowest stage fastest. From the best, single changes are followed
for as long as one is better.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.arch.layer import Segment
from simulator.cluster.members import as_fastest, as_slowest, distinct_devices
from simulator.errors import Infeasible, InputError
from simulator.estimate import estimate
from simulator.numbers import divisors
from simulator.parallel.lower import Pieces, layers_of_stages, pieces_of
from simulator.parallel.recompute import policy_of
from simulator.parallel.seats import Seat, Seating, seating, setting_of
from simulator.parallel.timing import SegmentTime, segment_times
from simulator.plan.limits import SPLITS, Limits
from simulator.plan.money import Ledger
from simulator.plan.objectives import OBJECTIVES
from simulator.plan.partition import best_split, between
from simulator.plan.question import Question
from simulator.plan.result import Plan, Planned
from simulator.plan.search import Found
from simulator.result import Estimate
from simulator.schedule.order import Order
from simulator.spec.hardware import Cluster
from simulator.spec.strategy import AXES, Strategy

Floats = npt.NDArray[np.float64]
MOST_DEPTHS = 8
"""Pipelines of so many depths are looked at besides the best ones of all."""
EACH = 6
"""Strategies of each depth that are costed on the nodes themselves."""
GROWS = ("weights", "gradients", "optimizer", "activations", "fragmentation")
"""Parts of memory that grow with a rank's layers."""
SHARE = 1.0 / 3.0
"""Of the time left, what each plan for equal nodes may take."""
Planning = Callable[[Cluster, Mapping[str, Sequence[Any]], int], Plan]
"""Plans for a cluster of equal nodes, with the values that some fields may have, so many strategies."""


def plan_on_unequal_nodes(
    plan: Callable[..., Plan],
    entries: Callable[[Sequence[Found], Ledger | None], tuple[Planned, ...]],
    question: Question,
    limits: Limits,
    *,
    objective: str,
    limit: int,
    time_limit_s: float,
    ledger: Ledger | None,
) -> Plan:
    """The best strategies found on a cluster of unequal nodes: `plan` plans for equal ones, `entries` makes the table.

    Not a proof: the gap is against the optimum on nodes that are all the fastest. With a time limit [s] no further
    strategy is costed once it is over. Dollars follow the step time. Raises Infeasible as `plan` does, and when no
    strategy fits the nodes.
    """
    started = time.monotonic()
    equal = "step_time" if objective == "dollars" else objective

    def planning(cluster: Cluster, allowed: Mapping[str, Sequence[Any]], asked: int) -> Plan:
        return plan(
            question.model, cluster, question.run, objective=equal, limit=asked, fix=limits.fix, within=limits.within,
            allow={**limits.allow, **allowed}, forbid=limits.forbid, framework=question.framework,
            time_limit_s=max(started + time_limit_s - time.monotonic(), 0.0) * SHARE,
        )  # fmt: skip

    slow, first = _first(planning, question, max(limit, EACH))
    costing = _Costing(question, limits, equal, started + time_limit_s)
    for planned in _candidates(planning, first, slow, question, limits):
        if costing.late():
            break
        costing.add(planned.strategy)
    costing.improve()
    found, costed = sorted(costing.found)[:limit], len(costing.costed)
    if not found:
        raise Infeasible([f"None of {costed} strategies fits the nodes of {question.cluster.name}."])
    gap, least_s = _gap(planning, question, found[0], equal)
    how = "found for nodes that are all the slowest or by changes of the best"
    where = "costed on the nodes themselves, with layers by the speed of each stage"
    notes = (
        f"Unequal nodes: {costed} strategies, {how}, were {where}.",
        f"The gap is against {least_s:.4g} s if all nodes were the fastest, which these cannot reach.",
    )  # fmt: skip
    return replace(
        first, objective=objective, objective_words=OBJECTIVES[objective].words, entries=entries(found, ledger),
        proof=replace(first.proof, engine_runs=first.proof.engine_runs + costed, gap=gap), notes=notes,
        wall_s=time.monotonic() - started,
    )  # fmt: skip


def _first(planning: Planning, question: Question, asked: int) -> tuple[Cluster, Plan]:
    """The plan where all nodes are the slowest: with the least memory of any, or, if nothing fits, with the most."""
    slow, _ = as_slowest(question.cluster, question.run.precision)
    try:
        return slow, planning(slow, {}, asked)
    except Infeasible:
        most = max(device.memory_bytes for device in distinct_devices(question.cluster))
        roomy = replace(slow, device=replace(slow.device, memory_bytes=most))
        return roomy, planning(roomy, {}, asked)


def _candidates(
    planning: Planning, first: Plan, slow: Cluster, question: Question, limits: Limits
) -> Iterator[Planned]:
    """The best of all, then the best of every depth that lays whole stages on nodes."""
    yield from first
    depths = [depth for depth in divisors(question.cluster.nodes) if 1 < depth <= question.model.layers]
    for depth in limits.choices("pp", depths)[:MOST_DEPTHS]:
        try:
            yield from planning(slow, {"pp": (depth,)}, EACH)
        except (Infeasible, InputError):
            continue


class _Costing:
    """Strategies costed on the nodes themselves, each once, and those that fit."""

    def __init__(self, question: Question, limits: Limits, objective: str, deadline: float) -> None:
        self.question, self.limits, self.objective, self.deadline = question, limits, objective, deadline
        self.costed: dict[Strategy, Estimate | None] = {}
        self.found: list[Found] = []

    def late(self) -> bool:
        """Whether time ran out with an answer at hand."""
        return bool(self.found) and time.monotonic() > self.deadline

    def add(self, strategy: Strategy) -> None:
        """Cost a strategy as it is, and with stages on nodes of one kind and layers by their speed."""
        if self.late():
            return
        self._cost(strategy)
        if strategy.pp == 1:
            return
        for order in dict.fromkeys((strategy.order, *self.limits.choices("order", (AXES,)))):
            placed = replace(strategy, order=order)
            answer = self._cost(placed)
            if answer is not None and "balanced" in self.limits.choices("split", SPLITS):
                split = layers_by_speed(self.question, placed, answer)
                if split:
                    self._cost(replace(placed, layers_per_stage=split))

    def improve(self) -> None:
        """Follow single changes of the best strategy until none is better."""
        best: Found | None = None
        while self.found and (best is None or min(self.found) < best) and not self.late():
            best = min(self.found)
            for strategy in _neighbours(best.strategy, self.limits):
                self.add(strategy)
            for strategy in _shifted(best.strategy):
                if not self.late():
                    self._cost(strategy)

    def _cost(self, strategy: Strategy) -> Estimate | None:
        if strategy not in self.costed:
            answer = self.costed[strategy] = _estimate(self.question, strategy)
            if answer is not None and answer.fits:
                key = OBJECTIVES[self.objective].key(answer.step_time_s, answer.peak_memory_bytes)
                self.found.append(Found(key, (answer.peak_memory_bytes,), strategy, answer, 0.0))
        return self.costed[strategy]


def _neighbours(strategy: Strategy, limits: Limits) -> Iterator[Strategy]:
    """One change of a degree, the micro-batch, ZeRO or recomputation, with even layers."""
    changes: list[dict[str, Any]] = []
    for axis in ("tp", "pp", "cp"):
        here = getattr(strategy, axis)
        changes += [{axis: 2 * here, "dp": strategy.dp // 2}] if strategy.dp % 2 == 0 else []
        changes += [{axis: here // 2, "dp": strategy.dp * 2}] if here % 2 == 0 else []
    if strategy.schedule in ("1f1b", "interleaved"):
        for vp in {strategy.vp + 1, strategy.vp - 1, 2 * strategy.vp, strategy.vp // 2} - {0, strategy.vp}:
            changes.append({"vp": vp, "schedule": "interleaved" if vp > 1 else "1f1b"})
    changes += [{"micro_batch": size} for size in (2 * strategy.micro_batch, strategy.micro_batch // 2) if size]
    changes += [{"zero": zero} for zero in (strategy.zero - 1, strategy.zero + 1) if 0 <= zero <= 3]
    changes += [{"recompute": kind, "recompute_layers": 0} for kind in ("none", "selective", "full")
                if kind != strategy.recompute]  # fmt: skip
    for change in changes:
        if isinstance(strategy.recompute_layers, tuple) and not {"pp", "vp"}.isdisjoint(change):
            change["recompute_layers"] = 0
        if all(value in limits.choices(name, (value,)) for name, value in change.items()):
            yield replace(strategy, layers_per_stage=(), **change)


def _shifted(strategy: Strategy) -> Iterator[Strategy]:
    """One layer moved over one border between stages, where the layers are dealt by speed."""
    layers = strategy.layers_per_stage
    for border in range(len(layers) - 1):
        for step in (-1, 1):
            moved = (*layers[:border], layers[border] + step, layers[border + 1] - step, *layers[border + 2 :])
            if min(moved) > 0:
                yield replace(strategy, layers_per_stage=moved)


def _estimate(question: Question, strategy: Strategy) -> Estimate | None:
    try:
        return estimate(question.model, question.cluster, question.run, strategy, framework=question.framework)
    except InputError:
        return None


def layers_by_speed(question: Question, strategy: Strategy, answer: Estimate) -> tuple[int, ...]:
    """Layers of each stage that make the slowest stage fastest, each on its own nodes; empty where no split fits.

    Memory is counted off the strategy's own estimate, `answer`: what a layer of a rank keeps there, against its
    smallest device.
    """
    seats = seating(question.cluster, strategy)
    order = answer.timeline().order
    stages = strategy.stages
    pieces = pieces_of(question.model, question.run, strategy, question.framework)
    seconds = _Seconds(question, strategy, seats, pieces)
    tables = []
    for stage in range(stages):
        ranks = order.slot_rank[order.model_stage == stage].tolist()
        ends = (*((pieces.opening,) if stage == 0 else ()), *(pieces.closing if stage == stages - 1 else ()))
        tables.append(seconds.table({seat for rank in ranks for seat in seats.seats(rank)}, ends))
    most = _most_layers(seats, order, answer, strategy.layers_per_stage or layers_of_stages(pieces.layers, stages))
    dealt = np.arange(pieces.layers + 1)
    held = dealt[:, None] - dealt[None, :]
    try:
        return best_split(
            lambda stage: tables[stage], lambda stage: held <= most[stage], layers=pieces.layers, stages=stages
        ).layers_per_stage
    except Infeasible:
        return ()


class _Seconds:
    """Seconds of a model's layers on the seats of a strategy."""

    def __init__(self, question: Question, strategy: Strategy, seats: Seating, pieces: Pieces) -> None:
        self.question, self.strategy, self.seats, self.pieces = question, strategy, seats, pieces
        self.known: dict[Seat, dict[str, float]] = {}

    def table(self, seats: set[Seat], ends: Sequence[Segment]) -> Floats:
        """Of layers begin to end - 1 and a stage's embedding and head, on the slowest of the seats: [end, begin]."""
        worst: Floats = np.maximum.reduce([
            between(self._layers(seat)) + sum(self._of(seat)[segment.name] for segment in ends)
            for seat in sorted(seats)
        ])  # fmt: skip
        return worst

    def _layers(self, seat: Seat) -> list[float]:
        """Each layer with what stays with it: a stack's final norm."""
        layers: list[float] = []
        for segment, is_layer in self.pieces.units:
            if is_layer:
                layers.append(self._of(seat)[segment.name])
            else:
                layers[-1] += self._of(seat)[segment.name]
        return layers

    def _of(self, seat: Seat) -> dict[str, float]:
        if seat not in self.known:
            setting = setting_of(seat, self.seats.kinds, self.question.run, self.strategy, self.question.framework)
            segments = {s.name: s for s in (*self.pieces.distinct, self.pieces.opening, *self.pieces.closing)}
            policy = policy_of(self.strategy)
            times = segment_times(segments.values(), policy, setting.cluster, setting.groups, setting.links)
            self.known[seat] = {name: _whole_s(time) for name, time in times.items()}
        return self.known[seat]


def _whole_s(time: SegmentTime) -> float:
    phases = (time.forward, time.input_grad, time.weight_grad, time.recompute)
    return float(sum(phase.total_s for phase in phases))


def _most_layers(seats: Seating, order: Order, answer: Estimate, layers: Sequence[int]) -> list[int]:
    """The most layers that each stage holds within its own devices' memory, by what one of `layers` keeps."""
    most = [0] * order.stages
    for rank, parts in enumerate(answer.memory.per_stage):
        stages = [int(order.model_stage[slot]) for slot in order.rank_slots[rank]]
        held = sum(layers[stage] for stage in stages)
        grows = sum(parts.get(name, 0.0) for name in GROWS) / max(held, 1)
        room = int((seats.limit_bytes(rank) - parts["total"] + grows * held) / grows) // len(stages)
        for stage in stages:
            most[stage] = max(min(most[stage] or room, room), 1)
    return most


def _gap(planning: Planning, question: Question, best: Found, objective: str) -> tuple[float, float]:
    """How far the best is from the optimum where all nodes are the fastest, and that optimum's step [s]."""
    fast = planning(as_fastest(question.cluster, question.run.precision), {}, 1)
    answer = fast[0].estimate
    least = (1.0 - fast.proof.gap) * OBJECTIVES[objective].key(answer.step_time_s, answer.peak_memory_bytes)[0]
    return max(1.0 - least / best.key[0], 0.0), answer.step_time_s
