"""Recomputation chosen to just fit: for each rank of a pipeline the fewest layers with which it fits.

A rank's memory depends on the numbers of its own stages only (its tasks run in the order of the schedule, whatever the
others take), and more recomputation takes no less time anywhere and no more memory. So where every rank has one stage,
the fewest layers of each are, of all numbers that fit, at most equal in every place, and no other choice is faster.
Ranks with several stages recompute the first ones first, which hold most micro-batches; two ranks that hold the same
stages (DualPipe, Chimera) share one number. Of all lists of small cases the fastest is then at most 0.2 % faster
(tests/properties/test_fitted_recompute.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from simulator.breakdown import rank_parts, standing_bytes
from simulator.errors import Infeasible
from simulator.lowered import order_of, rank_stages
from simulator.parallel.lower import Program, layers_of_stages, lower
from simulator.parallel.memory import StageMemory, segment_memories, stage_memory
from simulator.parallel.setting import Setting, groups_of
from simulator.parallel.stage_cost import held_kind
from simulator.plan.balance import Balance
from simulator.plan.dealing import mapping_of
from simulator.plan.question import Question
from simulator.schedule.memory import Footprint, memory_peaks
from simulator.schedule.order import Order
from simulator.spec.strategy import Strategy

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def fitted(question: Question, strategy: Strategy) -> Strategy:
    """A strategy with full recomputation of the fewest layers with which each rank fits, stated as plainly as it can be
    (no recomputation, one number for all stages, a list). Raises Infeasible where recomputing all does not fit either.
    """
    whole = replace(strategy, recompute="full", recompute_layers=0)
    program = lower(question.model, question.run, whole, question.framework)
    setting = Setting(run=question.run, strategy=whole, framework=question.framework, cluster=question.cluster,
                      groups=groups_of(question.cluster, whole))  # fmt: skip
    layers = _Fitting(program, setting).fewest(question.cluster.device.memory_bytes)
    return stated(whole, layers.tolist(), [int(stage.layers) for stage in program.stages])


def fitted_on_its_split(balance: Balance, ceiling_s: float = math.inf) -> tuple[Strategy, float]:
    """The balanced split of a strategy with the fewest layers of each stage recomputed, those of that split, and a
    floor of its seconds; all layers where the floor is no better than a ceiling [s], none where the split is the even
    one, which stands for itself. Raises Infeasible where nothing fits.
    """
    strategy = balance.strategy
    split = balance.fitted_split().layers_per_stage
    if split == layers_of_stages(sum(split), strategy.stages):
        return replace(strategy, recompute="none"), 0.0
    whole = replace(strategy, layers_per_stage=split)
    floor_s = balance.floor_s(split, balance.least_recomputed(split))
    if floor_s >= ceiling_s:
        return whole, floor_s
    found = fitted(balance.question, whole)
    return found, balance.floor_s(split, found.recompute_layers) if found.recompute == "full" else floor_s


def one_stage_each(strategy: Strategy) -> bool:
    """Whether every rank has one stage and no other has it: one number for all stages is then no faster than the fewest
    of each that fit.
    """
    return strategy.vp == 1 and mapping_of(strategy.schedule) == "looped"


def stated(strategy: Strategy, layers: Sequence[int], held: Sequence[int]) -> Strategy:
    """A strategy that recomputes so many of the layers that its stages hold, stated as plainly as it can be."""
    most = max(layers)
    if most == 0:
        return replace(strategy, recompute="none", recompute_layers=0)
    if list(layers) == list(held):
        return replace(strategy, recompute_layers=0)
    if all(some == min(most, whole) for some, whole in zip(layers, held, strict=True)):
        return replace(strategy, recompute_layers=most)
    return replace(strategy, recompute_layers=tuple(layers))


class _Fitting:
    """Peaks of one strategy's ranks under any numbers of recomputed layers."""

    def __init__(self, program: Program, setting: Setting) -> None:
        self.setting = setting
        self.order: Order = order_of(program, setting.strategy)
        self.static, self.step = standing_bytes(program, self.order, setting)
        self.layers = np.array([int(stage.layers) for stage in program.stages], np.int64)
        self.sizes = _sizes(program, setting)
        held = [tuple(sorted(set(rank_stages(self.order, rank)))) for rank in range(self.order.pp)]
        self.held = list(dict.fromkeys(held))
        self.group = np.array([self.held.index(stages) for stages in held])

    def fewest(self, limit_bytes: float) -> Ints:
        """Layers of each stage to recompute. Raises Infeasible where all are not enough."""
        high = np.array([self.layers[list(stages)].sum() for stages in self.held])
        if not self._fit(high, limit_bytes).all():
            raise Infeasible(["Recomputing every layer does not fit the memory of every rank."])
        low = np.zeros_like(high)
        while (low < high).any():
            middle = (low + high) // 2
            enough = self._fit(middle, limit_bytes)
            low, high = np.where(enough, low, np.minimum(middle + 1, high)), np.where(enough, middle, high)
        return self._dealt(high)

    def _dealt(self, numbers: Ints) -> Ints:
        """Numbers of layers of ranks as numbers of their stages, the first ones first."""
        dealt = np.zeros_like(self.layers)
        for stages, number in zip(self.held, numbers.tolist(), strict=True):
            left = number
            for stage in stages:
                dealt[stage] = min(left, self.layers[stage])
                left -= int(dealt[stage])
        return dealt

    def _fit(self, numbers: Ints, limit_bytes: float) -> npt.NDArray[np.bool_]:
        """Whether ranks fit under so many recomputed layers each."""
        dealt = self._dealt(numbers)
        peaks = memory_peaks(self.order, self._footprint(dealt))
        ranks = rank_parts(peaks, self.static, self.step, self.setting)
        fits = np.ones(len(self.held), np.bool_)
        for rank, parts in enumerate(ranks):
            fits[self.group[rank]] &= sum(parts.values()) <= limit_bytes
        return fits

    def _footprint(self, dealt: Ints) -> Footprint:
        def by_stage(name: str) -> list[float]:
            return [float(getattr(each, name)[number]) for each, number in zip(self.sizes, dealt, strict=True)]

        return Footprint(
            static_bytes=[sum(parts.values()) for parts in self.static],
            activation_bytes=by_stage("activation_bytes"),
            weight_gradient_bytes=by_stage("late_bytes"),
            forward_working_bytes=by_stage("forward_bytes"),
            backward_working_bytes=by_stage("backward_bytes"),
        )


def _sizes(program: Program, setting: Setting) -> list[StageMemory]:
    """Bytes of every stage by how many of its layers are recomputed, as arrays. Equal stages share them."""
    memories = segment_memories(program, setting.strategy)
    known: dict[Any, StageMemory] = {}
    found = []
    for stage in program.stages:
        key = held_kind(stage), stage.boundary_bytes
        if key not in known:
            numbers = np.arange(int(stage.layers) + 1)
            listed = cast("Any", (numbers,) * len(program.stages))
            each = replace(setting, strategy=replace(setting.strategy, recompute_layers=listed))
            sizes = stage_memory(stage, each, memories)
            known[key] = StageMemory(**{
                name: np.broadcast_to(np.asarray(getattr(sizes, name), np.float64), numbers.shape)
                for name in ("activation_bytes", "late_bytes", "forward_bytes", "backward_bytes")
            })  # fmt: skip
        found.append(known[key])
    return found
