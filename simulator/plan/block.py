"""A few thousand rows of one layout: memory, coarse and fine bounds over (kind of rank, row) arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simulator.arch.layer import Segment
from simulator.arch.operations import Number, Operation, Weight
from simulator.parallel.lower import Stage
from simulator.parallel.memory import (
    SegmentMemory,
    backward_bytes,
    kept_bytes,
    overhead_bytes,
    stage_memory,
    static_bytes,
    step_bytes,
)
from simulator.parallel.setting import Setting, groups_of, splits_sends
from simulator.parallel.stage_cost import StageCost, stage_cost
from simulator.parallel.step_end import step_end
from simulator.parallel.timing import PhaseTime, SegmentTime
from simulator.plan.bounds import PAIRED
from simulator.plan.layout import PHASES, Layout, seconds_of
from simulator.plan.table import Columns, strategy_of
from simulator.schedule.bounds import BIDIRECTIONAL, FUSED
from simulator.schedule.closed import peak_in_flight
from simulator.schedule.durations import send_s, sends_block
from simulator.spec.strategy import FREE_RUNNING

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_SOMEWHERE = ("v-half", "v-min")
_FULLEST = {"zbv": 1, "chimera": 2}
"""Which rank of a kind holds most micro-batches: the first (0), the last (1), the one nearest the middle (2)."""


class Block:
    """Rows `part` of a layout under one way of laying stages over ranks. Arrays are by row, or by kind and row."""

    def __init__(self, layout: Layout, mapping: str, part: Ints, order: tuple[str, ...] | None = None) -> None:
        question = layout.question
        self.layout, self.mapping, self.part, self.framework = layout, mapping, part, question.framework
        self.chosen = {**layout.chosen, "order": order or layout.chosen["order"]}
        self.columns: Columns = {name: column[part] for name, column in layout.columns.items()}
        self.micro_batches = question.run.global_batch // (self.columns["dp"] * self.columns["micro_batch"])
        tables, index = layout.dealing(mapping)
        index = index[part]
        self.place = layout.place[part]
        self.holds = np.moveaxis(tables.holds[index], 0, -1).copy()
        self.before = np.moveaxis(tables.before[index], 0, -1).copy()
        self.ranks = np.moveaxis(tables.ranks[index], 0, -1).copy()
        self.reach, self.sends = tables.reach[index].T.copy(), tables.sends[index].T.copy()
        self.parts = {name: table[index].T.copy() for name, table in tables.parts.items()}
        self.segments = {name: _gathered_segment(layout.segments[name], self.place) for name in self.parts}
        self.boundary_bytes = layout.boundary_bytes[self.place]
        self.ordered = tables.ordered
        self._costs: dict[tuple[str, int], StageCost] = {}
        self._works: dict[tuple[str, int, bool], tuple[Floats, Floats, Floats, Floats]] = {}
        self._states: dict[int, tuple[Floats, Floats]] = {}
        self._kept: dict[str, tuple[Floats, ...]] = {}
        self._flights: dict[str, Any] = {}

    def setting(self, recompute: str, zero: int) -> Setting:
        """The rows' degrees with their groups, under a recomputation and a ZeRO stage."""
        question = self.layout.question
        degrees = strategy_of(self.columns, {**self.chosen, "recompute": recompute, "zero": zero})
        return Setting(run=question.run, strategy=degrees, framework=question.framework, cluster=question.cluster,
                       groups=self._groups)  # fmt: skip

    @cached_property
    def _groups(self) -> dict[str, Any]:
        return groups_of(self.layout.question.cluster, strategy_of(self.columns, self.chosen))

    @cached_property
    def rank_stage(self) -> Stage:
        """All that a kind of rank holds, as one stage."""
        counts = {name: np.einsum("dkn,kn->dn", self.holds, part) for name, part in self.parts.items()}
        return self._stage(counts)

    def _stage(self, counts: Mapping[str, Ints]) -> Stage:
        parts = tuple((self.segments[name], count) for name, count in counts.items())
        return Stage(index=0, parts=parts, boundary_bytes=np.where(counts["head"] > 0, 0.0, self.boundary_bytes))

    def memory_bytes(self, recompute: str, zero: int, schedule: str, layers: Ints | None = None) -> Floats:
        """Bytes that the fullest rank holds at least, when it holds most micro-batches [B]. Full recomputation runs
        `layers` of each stage again, all where none are given.

        Exact where a rank's stages are alike and the backward is one task. Otherwise each micro-batch counts with the
        smallest of the rank's stages, and with what a split backward leaves if that is less.
        """
        if zero not in self._states:
            self._states[zero] = self._state_bytes(zero)
        static, step = self._states[zero]
        held = self._in_tasks(recompute, schedule, layers)
        if schedule in _SOMEWHERE:
            # Their closed form is the most of any rank, which one they do not say.
            allocated = np.maximum((static + held).min(axis=0), (static + step).max(axis=0))
        else:
            allocated = (static + np.maximum(step, held)).max(axis=0)
        return np.asarray(allocated + sum(overhead_bytes(allocated, self.framework).values()))

    def _in_tasks(self, recompute: str, schedule: str, layers: Ints | None) -> Floats:
        """What the tasks of the fullest rank of each kind hold at least beside its states [B]."""
        kept, late, forward, backward = self._held(recompute)
        if layers is not None:
            kept, backward = self._held_with(layers)
        fused = schedule in FUSED
        each = kept if fused else np.minimum(kept, late)
        working = np.maximum(forward, backward) if fused else forward
        return np.asarray(self._in_flight(schedule) * each + working)

    def again_floor_s(self, zero: int, schedule: str, limit_bytes: float) -> Floats:
        """By kind of rank the least recomputation of a micro-batch with which its fullest rank fits, whichever layers
        it takes [s].

        A layer that is recomputed spares its tensors once for every micro-batch that its stage holds.
        """
        if zero not in self._states:
            self._states[zero] = self._state_bytes(zero)
        in_flight = np.broadcast_to(np.asarray(self._in_flight(schedule), np.float64), self.ranks[:, 0].shape)
        if schedule in _SOMEWHERE:
            return np.zeros_like(in_flight)
        room = (limit_bytes - self.framework.context_bytes) * (1.0 - self.framework.fragmentation_fraction)
        over = np.maximum(self._states[zero][0] + self._in_tasks("none", schedule, None) - room, 0.0)
        times = in_flight
        if schedule == "interleaved" and not self.chosen.get("group_size"):
            # Depth first, a stage begins a group of pp micro-batches when it holds at most one other.
            times = np.minimum(in_flight, 2 * self.columns["pp"])
        shortest, spared, rate = (np.full(in_flight.shape, bad) for bad in (np.inf, 0.0, np.inf))
        for name, part in self.parts.items():
            if not self.segments[name].recomputable:
                continue
            here = np.einsum("dkn,kn->dn", self.holds, part) > 0
            memory = self.layout.memories["full"][name]
            saves = _rows(memory.plain_bytes - memory.saved_bytes, self.place)
            seconds = seconds_of(_gathered_time(self.layout.times["full"][name], self.place).recompute,
                                 paired=schedule in PAIRED)  # fmt: skip
            shortest = np.where(here, np.minimum(shortest, seconds), shortest)
            spared = np.where(here, np.maximum(spared, saves), spared)
            rate = np.where(here, np.minimum(rate, seconds / np.maximum(saves, 1e-9)), rate)
        needed = over / times
        layers = np.ceil(needed / np.maximum(spared, 1e-9) - 1e-6)
        floor = np.maximum(layers * shortest, needed * rate)
        return np.where(over > 0.0, floor, 0.0)

    def fitted_s(self, zero: int, schedule: str, limit_bytes: float) -> Floats:
        """As `coarse_s` where each stage recomputes the fewest layers with which it fits [s]."""
        paired = schedule in PAIRED
        forward, backward, ahead, back = self.works("none", zero, paired=paired)
        again = self.again_floor_s(zero, schedule, limit_bytes)
        times = self.micro_batches / (2 if schedule in BIDIRECTIONAL else 1)
        work = forward + backward + again
        found = times * work
        if schedule in ("1f1b", "eager-1f1b", "gpipe"):
            # Rank r is at most `lead` forwards ahead: its last one comes after all but as many of its backwards, and
            # then goes down the pipe and back.
            lead = np.minimum(self._in_flight(schedule), self.micro_batches)
            way = (ahead + back + forward + backward).max(axis=0)
            found = np.maximum(found, way + again + (times - 1) * work - (lead - 1) * (backward + again))
        return np.asarray(np.maximum(found.max(axis=0), self.coarse_s("none", zero, schedule)))

    def _state_bytes(self, zero: int) -> tuple[Floats, Floats]:
        """What stands there all the time, and what the optimizer step needs, by kind of rank [B]."""
        setting = self.setting("none", zero)
        edge = np.where(self.columns["pp"] * self.columns["vp"] > 1, self.boundary_bytes, 0.0)
        static = np.asarray(sum(static_bytes([self.rank_stage], edge, setting).values()))
        return static, np.broadcast_to(np.asarray(step_bytes([self.rank_stage], setting), np.float64), static.shape)

    def _held(self, recompute: str) -> tuple[Floats, ...]:
        """By kind of rank the least of its stages' activations, of what a split backward leaves, and of the working
        memory of a forward and of a backward [B].
        """
        if recompute not in self._kept:
            distinct = self.layout.memories[recompute]
            memories = {name: _gathered_memory(distinct[name], self.place) for name in self.parts}
            stage = self._stage(self.parts)
            each = stage_memory(stage, self.setting(recompute, 0), memories)
            shape = next(iter(self.parts.values())).shape
            backward = each.backward_bytes if self.ordered else 0.0
            sizes = (each.activation_bytes, each.late_bytes, each.forward_bytes, backward)
            self._kept[recompute] = tuple(
                self._least(np.broadcast_to(np.asarray(size, np.float64), shape)) for size in sizes
            )
        return self._kept[recompute]

    def _in_flight(self, schedule: str) -> Any:
        if schedule not in self._flights:
            self._flights[schedule] = peak_in_flight(
                schedule, pp=self.columns["pp"], micro_batches=self.micro_batches,
                rank=self.ranks[:, _FULLEST.get(schedule, 0)], vp=self.columns["vp"],
            )  # fmt: skip
        return self._flights[schedule]

    @cached_property
    def _recomputed(self) -> tuple[Stage, dict[str, SegmentMemory]]:
        """The rows' stages, and what their segments keep under full recomputation."""
        distinct = self.layout.memories["full"]
        return self._stage(self.parts), {name: _gathered_memory(distinct[name], self.place) for name in self.parts}

    def _held_with(self, layers: Ints) -> tuple[Floats, Floats]:
        """As `_held`, what is kept and what a backward works with when full recomputation stops at a number of layers
        [B].
        """
        stage, memories = self._recomputed
        degrees = strategy_of(self.columns, {**self.chosen, "recompute": "full", "recompute_layers": layers})
        setting = replace(self.setting("full", 0), strategy=degrees)
        shape = next(iter(self.parts.values())).shape
        kept = np.broadcast_to(np.asarray(kept_bytes(stage, setting, memories), np.float64), shape)
        if not self.ordered:
            return self._least(kept), np.zeros(shape[-1])
        working = np.asarray(backward_bytes(stage, setting.strategy, memories), np.float64)
        return self._least(kept), self._least(np.broadcast_to(working, shape))

    def _least(self, sizes: Floats) -> Floats:
        """The least over the kinds of stages that each kind of rank holds."""
        least: Floats = np.where(self.holds > 0, sizes, np.inf).min(axis=1)
        return least

    def cost(self, recompute: str, zero: int) -> StageCost:
        """Cost of each kind of stage, (kind, row) arrays. Only ZeRO-2 and 3 change it."""
        key = (recompute, max(zero, 1))
        if key not in self._costs:
            times = {name: _gathered_time(self.layout.times[recompute][name], self.place) for name in self.parts}
            stage = self._stage(self.parts)
            self._costs[key] = stage_cost(stage, times, self.micro_batches, self.setting(recompute, zero))
        return self._costs[key]

    def works(
        self, recompute: str, zero: int, *, paired: bool, layers: Ints | None = None
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """By kind of rank: its forward and its backward seconds per micro-batch, and those of the stages before it.

        Of pairs that hide communication only the compute counts. `layers` are those that full recomputation runs again:
        the communication that all of them would hide counts as hidden.
        """
        if layers is not None:
            return self._works_with(layers, zero, paired=paired)
        key = (recompute, max(zero, 1), paired)
        if key not in self._works:
            cost = self.cost(recompute, zero)
            forward = seconds_of(cost.forward, paired=paired)
            backward = sum(seconds_of(getattr(cost, phase), paired=paired) for phase in PHASES[1:])
            shape = next(iter(self.parts.values())).shape
            f, b = np.broadcast_to(forward, shape), np.broadcast_to(backward, shape)
            self._works[key] = (_mixed(self.holds, f), _mixed(self.holds, b), _mixed(self.before, f),
                                _mixed(self.before, b))  # fmt: skip
        return self._works[key]

    def _works_with(self, layers: Ints, zero: int, *, paired: bool) -> tuple[Floats, Floats, Floats, Floats]:
        cost = self.cost("full", zero)
        again: Any = 0.0
        left: Any = layers
        for name, count in self.parts.items():
            if not self.segments[name].recomputable:
                continue
            time = _gathered_time(self.layout.times["full"][name], self.place).recompute
            run = np.minimum(count, left)
            again, left = again + run * seconds_of(time, paired=paired), left - run
        backward = seconds_of(cost.input_grad, paired=paired) + seconds_of(cost.weight_grad, paired=paired) + again
        shape = next(iter(self.parts.values())).shape
        f, b = np.broadcast_to(seconds_of(cost.forward, paired=paired), shape), np.broadcast_to(backward, shape)
        return _mixed(self.holds, f), _mixed(self.holds, b), _mixed(self.before, f), _mixed(self.before, b)

    def coarse_s(self, recompute: str, zero: int, schedule: str, layers: Ints | None = None) -> Floats:
        """Seconds that no run can beat: each rank's work, the way to it and back; neither sends nor step end [s]."""
        forward, backward, ahead, back = self.works(recompute, zero, paired=schedule in PAIRED, layers=layers)
        copies = 2 if schedule in BIDIRECTIONAL else 1
        way = ahead + back if schedule in FUSED else 0.0 if schedule in FREE_RUNNING else ahead
        return np.asarray((way + self.micro_batches / copies * (forward + backward)).max(axis=0))

    def fine_s(self, chosen: Mapping[str, Any], layers: Ints | None = None) -> Floats:
        """As `coarse_s`, with sends and the end of the step [s]."""
        schedule = chosen["schedule"]
        setting = self.setting(chosen["recompute"], chosen["zero"])
        forward, backward, ahead, back = self.works(
            chosen["recompute"], chosen["zero"], paired=schedule in PAIRED, layers=layers
        )
        send = send_s(self.boundary_bytes, setting, split=splits_sends(setting.strategy, setting.framework))
        work = self.micro_batches / (2 if schedule in BIDIRECTIONAL else 1) * (forward + backward)
        tail = np.broadcast_to(self._tail_s(chosen, setting), work.shape)
        bound = work + tail if schedule in FREE_RUNNING else ahead + self.reach * send + work + tail
        if schedule in FUSED:
            blocking = sends_block(schedule, self.framework)
            held = np.maximum((self.micro_batches * self.sends - 1) * send, 0.0) if blocking else 0.0
            bound = np.maximum(bound, ahead + back + 2 * self.reach * send + work + held + tail[0])
        return np.asarray(bound.max(axis=0))

    def _tail_s(self, chosen: Mapping[str, Any], setting: Setting) -> Floats:
        """The end of the step by kind of rank [s]."""
        cost = self.cost(chosen["recompute"], chosen["zero"])
        shape = next(iter(self.parts.values())).shape
        whole = {
            phase: PhaseTime(
                parts={"gemm": _mixed(self.holds, np.broadcast_to(getattr(cost, phase).total_s, shape))}, hidden={},
                kernels=0,
            )
            for phase in PHASES
        }  # fmt: skip
        return np.asarray(step_end([self.rank_stage], [StageCost(**whole)], setting).total_s)


def _mixed(counts: Ints, values: Floats) -> Floats:
    """Sums of the kinds of stages by kind of rank: (rank kind, stage kind, row) and (stage kind, row)."""
    result: Floats = np.einsum("dkn,kn->dn", counts, values)
    return result


def _rows(value: Number, place: Ints) -> Any:
    """A value of the distinct columns for each row."""
    array = np.asarray(value, np.float64)
    return array[place] if array.ndim else float(array)


def _gathered_time(time: SegmentTime, place: Ints) -> SegmentTime:
    return SegmentTime(**{
        phase: PhaseTime(
            parts={name: _rows(seconds, place) for name, seconds in getattr(time, phase).parts.items()}, hidden={},
            kernels=0,
        )
        for phase in PHASES
    })  # fmt: skip


def _gathered_memory(memory: SegmentMemory, place: Ints) -> SegmentMemory:
    names = ("saved_bytes", "plain_bytes", "largest_bytes", "late_bytes")
    return SegmentMemory(**{name: _rows(getattr(memory, name), place) for name in names})


def _gathered_segment(segment: Segment, place: Ints) -> Segment:
    """A segment of the same parameters in at most four tensors, for each row."""
    weights = [weight for operation in segment.operations for weight in operation.weights]
    kinds: dict[tuple[Literal["dense", "expert"], bool], Number] = {}
    for weight in weights:
        key = (weight.sharing, weight.sequence_replicated)
        kinds[key] = kinds.get(key, 0.0) + weight.elements
    condensed = tuple(
        Weight(name=sharing, elements=_rows(elements, place), sharing=sharing, sequence_replicated=replicated)
        for (sharing, replicated), elements in kinds.items()
    )
    return Segment(name=segment.name, operations=(Operation(name=segment.name, weights=condensed),), input_bytes=0.0,
                   recomputable=segment.recomputable)  # fmt: skip
