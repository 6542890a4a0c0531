"""Scores columns of strategies: peak memory, and a step time that no run of the engine can beat.

The formulas are the estimate's own (segments, stage costs, step end, memory, sends), called with arrays. What is new
here is only how they are put together: times of segments once per distinct (tp, cp, ep, etp, micro-batch) and
placement, stages and ranks by the few kinds that a pipeline has (`plan/dealing.py`), and the bound over a rank's
work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simulator.arch.layer import Segment
from simulator.arch.operations import Number, Operation, Weight
from simulator.cluster.placement import Group
from simulator.estimate import send_s, sends_block, splits_sends
from simulator.parallel.lower import Pieces, Stage, boundary_bytes, pieces_of, tied_copy
from simulator.parallel.memory import SegmentMemory, memories_of, rank_memory
from simulator.parallel.recompute import policy_of
from simulator.parallel.setting import Setting, groups_of
from simulator.parallel.stage_cost import StageCost, add_phases, stage_cost
from simulator.parallel.step_end import step_end
from simulator.parallel.timing import PhaseTime, SegmentTime, segment_times
from simulator.plan.bounds import PAIRED
from simulator.plan.dealing import Dealing, dealing, mapping_of
from simulator.plan.space import Columns, Space, strategy_of
from simulator.result import COMMUNICATION
from simulator.schedule.bounds import BIDIRECTIONAL, FUSED
from simulator.schedule.closed import peak_in_flight
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_PHASES = ("forward", "input_grad", "weight_grad", "recompute")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a plan is for."""

    model: ModelSpec
    cluster: Cluster
    run: Run
    framework: Framework


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Scores:
    """Strategies with equal options: rows of the space, their least step times [s] and peak memories [B]."""

    chosen: Mapping[str, Any]
    rows: Ints
    bound_s: Floats
    memory_bytes: Floats


def score(space: Space, question: Question) -> Iterator[Scores]:
    """Scores every strategy of a space, one set of options at a time. Those that do not fit are left in."""
    for layout, mask in space.combinations(("sequence_parallel", "context_kind", "order")):
        rows = np.flatnonzero(mask)
        table = _Layout(space, question, layout, rows)
        for recompute, allowed in space.options["recompute"].items():
            for zero, offered in space.options["zero"].items():
                own = allowed[rows] & offered[rows]
                if own.any():
                    yield from table.scores(recompute, zero, own)


class _Layout:
    """Columns under one placement, with the times and sizes of their segments."""

    def __init__(self, space: Space, question: Question, layout: Mapping[str, Any], rows: Ints) -> None:
        self.space, self.question, self.rows = space, question, rows
        self.chosen = {**layout, **space.carried}
        self.layout = dict(layout)
        self.columns: Columns = {name: column[rows] for name, column in space.columns.items()}
        groups = groups_of(question.cluster, strategy_of(self.columns, self.chosen))
        first, self.place = _distinct(self.columns, groups)
        self.unique = {name: column[first] for name, column in self.columns.items()}
        self.pieces = pieces_of(question.model, question.run, strategy_of(self.unique, self.chosen), question.framework)
        self.segments = _all_segments(self.pieces)
        self.unique_groups = groups_of(question.cluster, strategy_of(self.unique, self.chosen))
        self.dealt: dict[str, tuple[Dealing, Ints]] = {}
        self.timed: dict[str, tuple[dict[str, SegmentTime], dict[str, SegmentMemory]]] = {}

    def scores(self, recompute: str, zero: int, own: npt.NDArray[np.bool_]) -> Iterator[Scores]:
        """Scores of the rows in `own` under every schedule that they take."""
        mappings: dict[str, list[str]] = {}
        for schedule in self.space.options["schedule"]:
            mappings.setdefault(mapping_of(schedule), []).append(schedule)
        for mapping, schedules in mappings.items():
            masks = {name: own & self.space.options["schedule"][name][self.rows] for name in schedules}
            some = np.flatnonzero(np.any(list(masks.values()), axis=0))
            for start in range(0, len(some), _BLOCK):
                part = some[start : start + _BLOCK]
                block = _Block(self, recompute, zero, mapping, part)
                for name in schedules:
                    chosen = {**self.layout, "recompute": recompute, "zero": zero, "schedule": name}
                    taken = np.flatnonzero(masks[name][part])
                    if taken.size:
                        bound, memory = block.schedule(name, taken)
                        yield Scores(chosen=chosen, rows=self.rows[part[taken]], bound_s=bound, memory_bytes=memory)

    def dealing(self, mapping: str) -> tuple[Dealing, Ints]:
        """The tables of stages and ranks, and each row's index into them."""
        if mapping not in self.dealt:
            code = self.columns["pp"] * (self.columns["vp"].max() + 1) + self.columns["vp"]
            _, first, place = np.unique(code, return_index=True, return_inverse=True)
            pairs = list(zip(self.columns["pp"][first].tolist(), self.columns["vp"][first].tolist(), strict=True))
            if mapping == "folded":
                pairs = [(pp, vp if vp == 2 else 0) for pp, vp in pairs]
            pairs = [(pp, vp) if vp else (1, 1) for pp, vp in pairs]
            self.dealt[mapping] = dealing(self.pieces, pairs, mapping), place.reshape(-1)
        return self.dealt[mapping]

    def condensed(self, recompute: str) -> tuple[dict[str, SegmentTime], dict[str, SegmentMemory]]:
        """Times and activation bytes of the distinct columns' segments."""
        if recompute not in self.timed:
            policy = policy_of(strategy_of(self.unique, {**self.chosen, "recompute": recompute}))
            times = segment_times(self.segments.values(), policy, self.question.cluster, self.unique_groups)
            self.timed[recompute] = times, memories_of(self.segments.values(), policy)
        return self.timed[recompute]


_BLOCK = 8192
"""Rows evaluated together: their arrays stay in a core's cache."""


def _distinct(columns: Columns, groups: Mapping[str, Group]) -> tuple[Ints, Ints]:
    """Rows whose segments differ: first of each, and each row's place among them."""
    keys: list[Any] = [columns[name] for name in ("tp", "cp", "ep", "etp", "micro_batch")]
    for axis in ("tp", "cp", "ep", "etp"):
        keys += [groups[axis].stride, groups[axis].blocks, groups[axis].block_stride]
    rows = len(columns["tp"])
    code = np.zeros(rows, np.int64)
    for key in keys:
        values = np.asarray(key)
        if values.ndim and (values != values[0]).any():
            names, index = np.unique(values, return_inverse=True)
            _, code = np.unique(code * len(names) + index.reshape(-1), return_inverse=True)
            code = code.reshape(-1)
    _, first, place = np.unique(code, return_index=True, return_inverse=True)
    return first, place.reshape(-1)


def _all_segments(pieces: Pieces) -> dict[str, Segment]:
    held = [pieces.opening, *pieces.distinct, *pieces.closing]
    if pieces.tied:
        held.append(tied_copy(pieces.opening))
    return {segment.name: segment for segment in held}


class _Block:
    """Rows under one placement, recomputation and ZeRO stage: costs of their kinds of stages and ranks."""

    def __init__(self, layout: _Layout, recompute: str, zero: int, mapping: str, part: Ints) -> None:
        question = layout.question
        self.mapping, self.framework = mapping, question.framework
        self.columns: Columns = {name: column[part] for name, column in layout.columns.items()}
        self.micro_batches = question.run.global_batch // (self.columns["dp"] * self.columns["micro_batch"])
        tables, index = layout.dealing(mapping)
        self.tables, self.index = tables, index[part]
        place = layout.place[part]
        chosen = {**layout.chosen, "recompute": recompute, "zero": zero}
        degrees = strategy_of(self.columns, chosen)
        self.setting = Setting(run=question.run, strategy=degrees, framework=question.framework,
                               cluster=question.cluster, groups=groups_of(question.cluster, degrees))  # fmt: skip
        times, memories = layout.condensed(recompute)
        self.times = {name: _gathered_time(time, place) for name, time in times.items()}
        self.memories = {name: _gathered_memory(memory, place) for name, memory in memories.items()}
        self.segments = {name: _gathered_segment(segment, place) for name, segment in layout.segments.items()}
        edge = boundary_bytes(question.model, layout.pieces.shards, layout.pieces.kernels, (1, layout.pieces.layers))[0]
        self.boundary = _rows(edge, place)
        self.send_s = _full(send_s(self.boundary, self.setting, split=splits_sends(degrees, question.framework)), place)
        self.kinds = [self._kind(kind) for kind in range(tables.before.shape[2])]
        self.ranks = [self._rank(rank) for rank in range(tables.holds.shape[1])]

    def _kind(self, kind: int) -> StageCost:
        """Cost of one kind of stage."""
        counts = {name: table[:, kind][self.index] for name, table in self.tables.parts.items()}
        return stage_cost(self._stage(counts), self.times, self.micro_batches, self.setting)

    def _stage(self, counts: Mapping[str, Ints]) -> Stage:
        parts = tuple((self.segments[name], count) for name, count in counts.items())
        return Stage(index=0, parts=parts, boundary_bytes=self.boundary)

    def _rank(self, rank: int) -> _Rank:
        """One kind of rank: the end of its step and its memory, which is linear in the micro-batches in flight."""
        holds = self.tables.holds[:, rank][self.index]
        before = self.tables.before[:, rank][self.index]
        counts = {name: np.sum(holds * table[self.index], axis=1) for name, table in self.tables.parts.items()}
        stage = self._stage(counts)
        cost = StageCost(**{
            phase: add_phases([(getattr(kind, phase), holds[:, i]) for i, kind in enumerate(self.kinds)])
            for phase in _PHASES
        })  # fmt: skip
        edge = np.where(self.columns["pp"] * self.columns["vp"] > 1, self.boundary, 0.0)
        empty, one = (
            np.asarray(sum(rank_memory([stage], [held], self.memories, self.setting, edge).values()))
            for held in (0.0, 1.0)
        )
        tail = step_end([stage], [cost], self.setting).total_s
        return _Rank(holds=holds, before=before, tail_s=_full(tail, self.index), empty_bytes=_full(empty, self.index),
                     each_bytes=_full(one - empty, self.index))  # fmt: skip

    def schedule(self, schedule: str, taken: Ints) -> tuple[Floats, Floats]:
        """Least step time [s] and peak memory [B] of some rows under a schedule."""
        forward, backward = self._work(schedule)
        pp, vp = self.columns["pp"][taken], self.columns["vp"][taken]
        m, send = self.micro_batches[taken], self.send_s[taken]
        copies = 2 if schedule in BIDIRECTIONAL else 1
        stages = 2 if self.mapping != "looped" else vp
        blocking = sends_block(schedule, self.framework)
        first_tail = self.ranks[0].tail_s[taken]
        bounds: list[Floats] = []
        memories: list[Floats] = []
        for number, rank in enumerate(self.ranks):
            holds, before = rank.holds[taken], rank.before[taken]
            ahead = _dot(before, forward, taken) + self.tables.reach[:, number][self.index[taken]] * send
            work = m / copies * (_dot(holds, forward, taken) + _dot(holds, backward, taken))
            bounds.append(ahead + work + rank.tail_s[taken])
            if schedule in FUSED:
                sends = self.tables.sends[:, number][self.index[taken]]
                held = np.maximum((m * sends - 1) * send, 0.0) if blocking else 0.0
                back = _dot(before, backward, taken) + self.tables.reach[:, number][self.index[taken]] * send
                bounds.append(ahead + work + held + back + first_tail)
            places = self.tables.ranks[:, number][self.index[taken]]
            held_most = np.max([
                peak_in_flight(schedule, pp=pp, micro_batches=m, rank=places[:, i], vp=vp) for i in range(3)
            ], axis=0)  # fmt: skip
            memories.append(rank.empty_bytes[taken] + held_most / stages * rank.each_bytes[taken])
        return np.max(bounds, axis=0), np.max(memories, axis=0)

    def _work(self, schedule: str) -> tuple[list[Floats], list[Floats]]:
        """Forward and backward seconds of each kind of stage; of pairs that hide communication only the compute."""
        if schedule in PAIRED:
            forward = [_compute_s(k.forward) for k in self.kinds]
            return [_full(f, self.index) for f in forward], [
                _full(_compute_s(k.input_grad) + _compute_s(k.recompute) + _compute_s(k.weight_grad), self.index)
                for k in self.kinds
            ]
        return [_full(k.forward.total_s, self.index) for k in self.kinds], [
            _full(k.input_grad.total_s + k.recompute.total_s + k.weight_grad.total_s, self.index) for k in self.kinds
        ]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class _Rank:
    holds: Ints
    before: Ints
    tail_s: Floats
    empty_bytes: Floats
    each_bytes: Floats


def _dot(counts: Ints, values: Sequence[Floats], taken: Ints) -> Floats:
    total: Floats = sum((counts[:, kind] * value[taken] for kind, value in enumerate(values)), np.zeros(len(taken)))
    return total


def _compute_s(phase: PhaseTime) -> Number:
    return sum(seconds for name, seconds in phase.parts.items() if name not in COMMUNICATION)


def _rows(value: Number, place: Ints) -> Any:
    """A value of the distinct columns for each row."""
    array = np.asarray(value, np.float64)
    return array[place] if array.ndim else float(array)


def _full(value: Number, place: Ints) -> Floats:
    return np.broadcast_to(np.asarray(value, np.float64), (len(place),))


def _gathered_time(time: SegmentTime, place: Ints) -> SegmentTime:
    """A segment's seconds as compute and communication only, for each row."""
    return SegmentTime(**{phase: _gathered_phase(getattr(time, phase), place) for phase in _PHASES})


def _gathered_phase(phase: PhaseTime, place: Ints) -> PhaseTime:
    compute = _compute_s(phase)
    communication = sum(seconds for name, seconds in phase.parts.items() if name in COMMUNICATION)
    return PhaseTime(parts={"gemm": _rows(compute, place), "tp": _rows(communication, place)}, hidden={}, kernels=0)


def _gathered_memory(memory: SegmentMemory, place: Ints) -> SegmentMemory:
    names = ("saved_bytes", "plain_bytes", "largest_bytes")
    return SegmentMemory(**{name: _rows(getattr(memory, name), place) for name in names})


def _gathered_segment(segment: Segment, place: Ints) -> Segment:
    """A segment of the same parameters in at most three tensors, for each row."""
    weights = [weight for operation in segment.operations for weight in operation.weights]
    kinds: dict[tuple[Literal["dense", "expert"], bool], list[Number]] = {}
    for weight in weights:
        kinds.setdefault((weight.sharing, weight.sequence_replicated), []).append(weight.elements)
    condensed = tuple(
        Weight(name=sharing, elements=_rows(_sum(elements), place), sharing=sharing, sequence_replicated=replicated)
        for (sharing, replicated), elements in kinds.items()
    )
    return Segment(name=segment.name, operations=(Operation(name=segment.name, weights=condensed),), input_bytes=0.0,
                   recomputable=segment.recomputable)  # fmt: skip


def _sum(values: Iterable[Number]) -> Number:
    return sum(values)

