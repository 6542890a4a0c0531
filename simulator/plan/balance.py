"""The balanced split of one strategy: its layers over its stages so that the slowest stage is as fast as can be, within
the memory of every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

from simulator.arch.layer import Segment
from simulator.arch.operations import Number
from simulator.parallel.lower import Pieces, Stage, boundary_bytes, layers_of_stages, pieces_of, tied_copy
from simulator.parallel.memory import SegmentMemory, buffer_bytes, memories_of
from simulator.parallel.recompute import policy_of
from simulator.parallel.setting import Setting, groups_of, splits_sends
from simulator.parallel.states import HeldParameters, held_parameters, state_bytes, whole_gradient_bytes
from simulator.parallel.timing import SegmentTime, segment_times
from simulator.plan.bounds import PAIRED
from simulator.plan.dealing import held_stages, mapping_of
from simulator.plan.partition import Partition, best_split, between
from simulator.plan.question import Question
from simulator.schedule.bounds import FUSED, lower_bound_s
from simulator.schedule.closed import peak_in_flight
from simulator.schedule.durations import send_s, sends_block
from simulator.spec.strategy import Strategy

Floats = npt.NDArray[np.float64]


def balanced_layers(question: Question, strategy: Strategy) -> tuple[int, ...]:
    """Layers of each stage under the balanced split of a strategy whose stages recompute as many layers; empty where
    that is the even one.

    Seconds of a layer are those of its forward, backward and recomputation. A rank's memory is shared equally by its
    stages: each must hold its states, what its micro-batches in flight keep and the working memory of a layer. Raises
    Infeasible when no split fits.
    """
    split = Balance(question, strategy, layer_costs(question, strategy)).split(cast("int", strategy.recompute_layers))
    given = split.layers_per_stage
    return () if given == layers_of_stages(sum(given), strategy.stages) else given


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerCosts:
    """What the segments of a model cost by name, for strategies whose segments are alike. Layers hold what must stay
    with them: a stack's final norm.
    """

    layers: tuple[tuple[str, ...], ...]
    opening: tuple[str, ...]
    closing: tuple[str, ...]
    forward_s: Mapping[str, float]
    backward_s: Mapping[str, float]
    again_s: Mapping[str, float]
    plain_bytes: Mapping[str, float]
    spared_bytes: Mapping[str, float]
    """What recomputation does not keep."""
    beside_bytes: Mapping[str, float]
    edge_bytes: float
    parameters: Mapping[str, HeldParameters]

    @property
    def working_bytes(self) -> float:
        """The most that a task of a layer holds beside what is kept."""
        return max(self.spared_bytes[name] + self.beside_bytes[name] for layer in self.layers for name in layer)

    @cached_property
    def work_s(self) -> tuple[Floats, Floats]:
        """Forward and backward of layers begin to end - 1, without recomputation: [end, begin]."""
        return between(self.each(self.forward_s)), between(self.each(self.backward_s))

    @cached_property
    def kept_bytes(self) -> Floats:
        """What layers begin to end - 1 keep without recomputation: [end, begin]."""
        return between(self.each(self.plain_bytes))

    def each(self, values: Mapping[str, float]) -> list[float]:
        """The sum of each layer's values."""
        return [sum(values[name] for name in layer) for layer in self.layers]

    @cached_property
    def again_until_s(self) -> Floats:
        """Recomputation of all layers before each, and of all: [layer]."""
        return np.concatenate([[0.0], np.cumsum(self.each(self.again_s))])

    @cached_property
    def spared_until_bytes(self) -> Floats:
        """What that does not keep."""
        return np.concatenate([[0.0], np.cumsum(self.each(self.spared_bytes))])

    def first_s(self, most: int) -> Floats:
        """Recomputation of the first layers, `most` at most, of begin to end - 1: [end, begin]."""
        return first_of(self.again_until_s, most)

    def first_bytes(self, most: int) -> Floats:
        """What that does not keep."""
        return first_of(self.spared_until_bytes, most)


def layer_costs(question: Question, strategy: Strategy) -> LayerCosts:
    """The segments' costs under a strategy's degrees and recomputation."""
    pieces = pieces_of(question.model, question.run, strategy, question.framework)
    segments = all_segments(pieces)
    groups = groups_of(question.cluster, strategy)
    times = segment_times(segments.values(), policy_of(strategy), question.cluster, groups)
    edge = boundary_bytes(question.model, pieces.shards, pieces.kernels, (1, pieces.layers - 1))[0]
    return costs_at(pieces, times, memories_of(segments.values(), policy_of(strategy)), edge, 0)


def costs_at(
    pieces: Pieces, times: Mapping[str, SegmentTime], memories: Mapping[str, SegmentMemory], edge_bytes: Number,
    place: int,
) -> LayerCosts:  # fmt: skip
    """The costs of one of the strategies that segments, times and memories are columns of (numbers hold for all)."""
    closing = (*pieces.closing, *((tied_copy(pieces.opening),) if pieces.tied else ()))

    def at(value: Number) -> float:
        array = np.asarray(value, np.float64)
        return float(array[place]) if array.ndim else float(array)

    return LayerCosts(
        layers=_layers(list(pieces.units)), opening=(pieces.opening.name,),
        closing=tuple(segment.name for segment in closing),
        forward_s={name: at(time.forward.total_s) for name, time in times.items()},
        backward_s={name: at(time.input_grad.total_s + time.weight_grad.total_s) for name, time in times.items()},
        again_s={name: at(time.recompute.total_s) for name, time in times.items()},
        plain_bytes={name: at(memory.plain_bytes) for name, memory in memories.items()},
        spared_bytes={name: at(memory.plain_bytes - memory.saved_bytes) for name, memory in memories.items()},
        beside_bytes={name: at(memory.largest_bytes) for name, memory in memories.items()},
        edge_bytes=at(edge_bytes),
        parameters={name: _held_at(segment, at) for name, segment in all_segments(pieces).items()},
    )  # fmt: skip


def all_segments(pieces: Pieces) -> dict[str, Segment]:
    """Every distinct segment of a model, by name."""
    held = [pieces.opening, *pieces.distinct, *pieces.closing]
    if pieces.tied:
        held.append(tied_copy(pieces.opening))
    return {segment.name: segment for segment in held}


def _held_at(segment: Segment, at: Callable[[Number], float]) -> HeldParameters:
    held = held_parameters((Stage(index=0, parts=((segment, 1),), boundary_bytes=0.0),))
    return HeldParameters(**{entry.name: at(getattr(held, entry.name)) for entry in fields(held)})


class Balance:
    """The layers of a model under one strategy, ready to be dealt out with any number of them recomputed."""

    def __init__(self, question: Question, strategy: Strategy, costs: LayerCosts) -> None:
        self.question, self.strategy, self.costs = question, strategy, costs
        self.setting = Setting(run=question.run, strategy=strategy, framework=question.framework,
                               cluster=question.cluster, groups=groups_of(question.cluster, strategy))  # fmt: skip
        self.full = policy_of(strategy).full
        self.micro_batches = question.run.global_batch // (strategy.dp * strategy.micro_batch)
        self.state = {name: self._state_bytes(held) for name, held in costs.parameters.items()}
        self.layer_states = between(costs.each(self.state))
        self.in_flight = self._in_flight()
        self.room_bytes = self._room_bytes()

    def split(self, recomputed: int) -> Partition:
        """The balanced split with `recomputed` layers of each stage run again (0: all, under full recomputation).

        Seconds count to a billionth of a pass, so that equal layers tie. Raises Infeasible when no split fits.
        """
        costs, stages = self.costs, self.strategy.stages
        most = self._most(recomputed)
        ends_s = self._ends_s()
        seconds = sum(costs.work_s) + costs.first_s(most)
        unit = 2.0**-30 * (float(seconds[-1, 0]) + float(ends_s.sum()))
        seconds, ends_s = np.round(seconds / unit), np.round(ends_s / unit)
        kept, states = costs.kept_bytes - costs.first_bytes(most), self.layer_states
        room = [(self.room_bytes - self._end_bytes(stage)) * (1.0 + 1e-9) for stage in range(stages)]
        found = best_split(
            lambda stage: seconds + ends_s[stage],
            lambda stage: states + self.in_flight[stage] * kept <= room[stage],
            layers=len(costs.layers), stages=stages,
        )  # fmt: skip
        return replace(found, slowest_s=found.slowest_s * unit)

    def fitted_split(self) -> Partition:
        """As `split`, where each stage recomputes the fewest of its layers with which it fits."""
        costs, stages = self.costs, self.strategy.stages
        again, spared = costs.again_until_s, costs.spared_until_bytes
        states, begin = self.layer_states, np.arange(len(costs.layers) + 1)
        ends: list[npt.NDArray[np.int64]] = []
        for stage in range(stages):
            room = (self.room_bytes - self._end_bytes(stage)) * (1.0 + 1e-9)
            over = (states - room) / self.in_flight[stage] + costs.kept_bytes
            wanted = np.searchsorted(spared, spared[begin] + over - 1e-6)
            ends.append(np.maximum(wanted, begin))
        seconds, ends_s = costs.work_s[0] + costs.work_s[1], self._ends_s()
        unit = 2.0**-30 * (float(seconds[-1, 0]) + float(ends_s.sum()))

        def taken_s(stage: int) -> Floats:
            run: Floats = again[np.minimum(ends[stage], len(begin) - 1)] - again[begin]
            return np.asarray(np.round((seconds + run) / unit) + np.round(ends_s[stage] / unit))

        found = best_split(taken_s, lambda stage: ends[stage] <= begin[:, None], layers=len(costs.layers),
                           stages=stages)  # fmt: skip
        return replace(found, slowest_s=found.slowest_s * unit)

    def least_recomputed(self, layers_per_stage: Sequence[int]) -> tuple[int, ...]:
        """Layers that the stages of a split must recompute at least: their states and activations alone must fit."""
        if self.strategy.schedule not in FUSED or len(self.in_flight) != self.strategy.pp:
            return (0,) * len(layers_per_stage)
        software, spared = self.question.framework, self.costs.spared_until_bytes
        room = (self.question.cluster.device.memory_bytes - software.context_bytes) * (1.0 + 1e-9)
        room *= 1.0 - software.fragmentation_fraction
        ends = np.cumsum(layers_per_stage)
        found = []
        for stage, (end, held) in enumerate(zip(ends.tolist(), layers_per_stage, strict=True)):
            begin = end - held
            kept = self.costs.kept_bytes[end, begin]
            over = (self.layer_states[end, begin] + self._end_bytes(stage) - room) / self.in_flight[stage] + kept
            must = int(np.searchsorted(spared, spared[begin] + over - 1e-6)) - begin
            found.append(min(max(must, 0), held))
        return tuple(found)

    def _ends_s(self) -> Floats:
        """Seconds of the embedding and the head by stage [s]."""
        found = np.zeros(self.strategy.stages)
        for stage, names in ((0, self.costs.opening), (-1, self.costs.closing)):
            found[stage] += sum(self.costs.forward_s[name] + self.costs.backward_s[name] for name in names)
        return found

    def floor_s(self, layers_per_stage: Sequence[int], recomputed: int | tuple[int, ...]) -> float:
        """Seconds that no run of such a split can beat: its stages' work and sends [s]. `recomputed` layers of each
        stage are run again, or so many stage by stage.
        """
        strategy, costs, setting = self.strategy, self.costs, self.setting
        if strategy.schedule in PAIRED:
            return 0.0
        ends = np.cumsum(layers_per_stage)
        begins = ends - np.asarray(layers_per_stage)
        forward, backward = (table[ends, begins] for table in costs.work_s)
        numbers = recomputed if isinstance(recomputed, tuple) else self._most(recomputed)
        until = costs.again_until_s
        backward = backward + until[np.minimum(begins + numbers, ends)] - until[begins]
        for stage, names in ((0, costs.opening), (-1, costs.closing)):
            forward[stage] += sum(costs.forward_s[name] for name in names)
            backward[stage] += sum(costs.backward_s[name] for name in names)
        split = splits_sends(strategy, setting.framework)
        send = float(send_s(costs.edge_bytes, setting, split=split)) if strategy.stages > 1 else 0.0
        return float(
            lower_bound_s(
                strategy.schedule, forward_s=forward, backward_s=backward, pp=strategy.pp, vp=strategy.vp,
                micro_batches=self.micro_batches, group_size=strategy.group_size, send_forward_s=send,
                send_backward_s=send, blocking=sends_block(strategy.schedule, setting.framework),
            )
        )  # fmt: skip

    def _most(self, recomputed: int) -> int:
        return (recomputed or len(self.costs.layers)) if self.full else len(self.costs.layers)

    def _in_flight(self) -> Floats:
        """Micro-batches that each stage holds at once: its share of what its rank holds."""
        strategy = self.strategy
        held = held_stages(mapping_of(strategy.schedule), strategy.pp, strategy.vp)
        most = peak_in_flight(strategy.schedule, pp=strategy.pp, micro_batches=self.micro_batches,
                              rank=np.arange(strategy.pp), vp=strategy.vp, group_size=strategy.group_size)  # fmt: skip
        result = np.zeros(strategy.stages)
        for rank, stages in enumerate(held):
            for stage in stages:
                result[stage] = max(result[stage], float(np.broadcast_to(most, (strategy.pp,))[rank]) / len(stages))
        return result

    def _room_bytes(self) -> float:
        """What a stage may fill with states and activations of its layers, embedding and head [B]."""
        software, question, costs = self.question.framework, self.question, self.costs
        room = (question.cluster.device.memory_bytes - software.context_bytes) * (1.0 - software.fragmentation_fraction)
        held = [costs.parameters[name] for layer in costs.layers for name in layer]
        room -= float(buffer_bytes(costs.edge_bytes, sum(each.total for each in held), self.setting))
        gathered = replace(_NOTHING, largest_segment=max(each.largest_segment for each in held),
                           largest_layer=max(each.largest_layer for each in held))  # fmt: skip
        states = state_bytes(gathered, question.run, self.strategy, question.framework)
        room -= float(states.get("gathered_parameters", 0.0)) + costs.working_bytes
        if self.strategy.zero == 3:
            room -= float(whole_gradient_bytes(gathered, question.run, software))
        return room / len(held_stages(mapping_of(self.strategy.schedule), self.strategy.pp, self.strategy.vp)[0])

    def _state_bytes(self, held: HeldParameters) -> float:
        alone = replace(held, largest_segment=0.0, largest_layer=0.0)
        return float(sum(state_bytes(alone, self.question.run, self.strategy, self.question.framework).values()))

    def _end_bytes(self, stage: int) -> float:
        """States and activations of the embedding and the head, where a stage has them [B]."""
        costs = self.costs
        ends = ((0, costs.opening), (self.strategy.stages - 1, costs.closing))
        return sum(
            self.state[name] + float(self.in_flight[stage]) * (costs.plain_bytes[name] - costs.spared_bytes[name])
            for at, names in ends if at == stage for name in names
        )  # fmt: skip


_NOTHING = HeldParameters(dense=0.0, expert=0.0, replicated=0.0, largest_segment=0.0)


def _layers(units: list[tuple[Segment, bool]]) -> tuple[tuple[str, ...], ...]:
    result: list[list[str]] = []
    for segment, is_layer in units:
        if is_layer or not result:
            result.append([segment.name])
        else:
            result[-1].append(segment.name)
    return tuple(tuple(held) for held in result)


def first_of(until: Floats, most: int) -> Floats:
    """As `between`, of the first `most` of the layers only, from the sums of the layers before each."""
    begin = np.arange(len(until))
    end = np.minimum(begin[:, None], begin[None, :] + most)
    sums: Floats = until[end] - until[None, :]
    return sums
