"""What can be ruled out before rows are timed: by states that no way of dealing layers holds, and by work alone.

Most rows of a large space differ only in how layers are dealt out. Their work, spread evenly over all devices, depends
on few of their degrees: that of dense blocks on tp, cp and the micro-batch, that of experts on tokens, ep and etp. Both
are timed once per combination (a few thousand), and added up for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.arch.layer import Segment
from simulator.arch.operations import Collective, Operation, Work
from simulator.cluster.placement import Group
from simulator.parallel.lower import Pieces, Stage, pieces_of, tied_copy
from simulator.parallel.memory import memories_of, overhead_bytes
from simulator.parallel.recompute import Policy
from simulator.parallel.setting import groups_of
from simulator.parallel.states import held_parameters, state_bytes
from simulator.parallel.timing import SegmentTime, segment_times
from simulator.plan.bounds import PAIRED
from simulator.plan.question import Question
from simulator.plan.space import Space
from simulator.plan.table import Columns, Ints, Mask, distinct, strategy_of
from simulator.result import COMMUNICATION

Floats = npt.NDArray[np.float64]
PLACED = ("tp", "cp", "ep", "etp")
"""Axes whose places decide what a segment's communication costs."""


def counted(pieces: Pieces) -> list[tuple[Segment, int]]:
    """Every distinct segment of a model with how often it occurs."""
    held = [pieces.opening, *(unit for unit, _ in pieces.units), *pieces.closing]
    counts: dict[str, int] = {}
    for segment in held:
        counts[segment.name] = counts.get(segment.name, 0) + 1
    return [(segment, counts[segment.name]) for segment in {segment.name: segment for segment in held}.values()]


def place_keys(groups: Mapping[str, Group], axes: Sequence[str]) -> list[Any]:
    """What tells the places of some axes' groups apart."""
    return [getattr(groups[axis], part) for axis in axes for part in ("stride", "blocks", "block_stride")]


def state_floor_bytes(question: Question, columns: Columns, zeros: Mapping[int, Mask]) -> Floats:
    """Weights, gradients and optimizer of a rank that holds its even share of the parameters, under the ZeRO stage that
    needs least of those offered to a row [B].

    However layers are dealt out, some rank holds as much: the mean of the pipeline.
    """
    first, place = distinct([columns[name] for name in ("tp", "pp", "cp", "dp", "ep", "etp")])
    few = {name: column[first] for name, column in columns.items()}
    degrees = strategy_of({**few, "micro_batch": np.ones(len(first), np.int64)}, {})
    pieces = pieces_of(question.model, question.run, degrees, question.framework)
    parts = [(segment, count / few["pp"]) for segment, count in counted(pieces)]
    copy = [(tied_copy(pieces.opening), np.where(few["pp"] > 1, 1 / few["pp"], 0.0))] if pieces.tied else []
    held = held_parameters((Stage(index=0, parts=(*parts, *copy), boundary_bytes=0.0),))
    layers = [held_parameters((Stage(index=0, parts=((unit, 1),), boundary_bytes=0.0),)).total
              for unit in {unit.name: unit for unit, is_layer in pieces.units if is_layer}.values()]  # fmt: skip
    smallest = np.min([np.broadcast_to(size, (len(first),)) for size in layers], axis=0)
    held = replace(held, largest_segment=smallest, largest_layer=smallest)
    least = np.full(len(place), np.inf)
    for zero, offered in zeros.items():
        stage = strategy_of(few, {"zero": zero})
        whole = sum(state_bytes(held, question.run, stage, question.framework).values())
        least = np.where(offered, np.minimum(least, np.broadcast_to(whole, (len(first),))[place]), least)
    return least


@dataclass(frozen=True, eq=False, kw_only=True)
class _Part:
    """One kind of operations of a model, by combination: seconds of a micro-batch through all layers, and by segment
    the bytes that it keeps and the most that stands beside them.
    """

    work_s: Floats
    kept_bytes: Mapping[str, Floats]
    beside_bytes: Mapping[str, Floats]


class Floors:
    """Floors of rows (given as columns) under one placement, by class: rows whose segments are alike."""

    def __init__(self, space: Space, question: Question, columns: Columns, order: tuple[str, ...]) -> None:
        self.space, self.question, self.order = space, question, order
        groups = groups_of(question.cluster, strategy_of(columns, {"order": order}))
        names = ("tp", "cp", "ep", "etp", "micro_batch")
        first, self.place = distinct([*(columns[name] for name in names), *place_keys(groups, PLACED)])
        self.columns = {name: column[first] for name, column in columns.items()}
        own = groups_of(question.cluster, strategy_of(self.columns, {"order": order}))
        kinds = [self.columns[name] for name in ("tp", "cp", "micro_batch")]
        self.dense = distinct([*kinds, *place_keys(own, ("tp", "cp"))])
        tokens = self.columns["micro_batch"] / self.columns["cp"]
        folded = [self.columns[name] for name in ("tp", "ep", "etp")]
        self.expert = distinct([tokens, *folded, *place_keys(own, ("tp", "ep", "etp"))])
        self._experts: dict[bool, _Part] = {}

    def floors(self, split: Mapping[str, Any], rows: Ints) -> tuple[Floats, Floats]:
        """By row: seconds of its work spread evenly over the devices, and bytes that a micro-batch needs at least on
        some rank while it runs, the state of that rank aside.
        """
        needed = np.zeros(len(self.columns["tp"]), np.bool_)
        needed[self.place[rows]] = True
        dense = self._part(split, self.dense[0], needed, self.dense[1], expert=False)
        expert = self._expert_part(split)
        work_s = dense.work_s[self.dense[1]] + expert.work_s[self.expert[1]]
        share = self.columns["tp"] * self.columns["cp"] / self.question.cluster.devices
        spread_s = work_s * share * (self.question.run.global_batch / self.columns["micro_batch"])
        bytes_ = [
            (dense.kept_bytes[name] + dense.beside_bytes[name])[self.dense[1]]
            + expert.kept_bytes[name][self.expert[1]]
            for name in dense.kept_bytes
        ]
        place = self.place[rows]
        return spread_s[place], np.min(bytes_, axis=0)[place]

    def _expert_part(self, split: Mapping[str, Any]) -> _Part:
        split_sequence = bool(split["sequence_parallel"])
        if split_sequence not in self._experts:
            everything = np.ones(len(self.columns["tp"]), np.bool_)
            self._experts[split_sequence] = self._part(split, self.expert[0], everything, self.expert[1], expert=True)
        return self._experts[split_sequence]

    def _part(self, split: Mapping[str, Any], first: Ints, needed: Mask, place: Ints, *, expert: bool) -> _Part:
        """The dense or the expert operations of the combinations that some needed class is of; the rest are free."""
        some = np.zeros(len(first), np.bool_)
        some[place[needed]] = True
        few = {name: column[first[some]] for name, column in self.columns.items()}
        degrees = strategy_of(few, {**split, **self.space.carried, "order": self.order})
        pieces = pieces_of(self.question.model, self.question.run, degrees, self.question.framework)
        held = [(_only(segment, expert=expert), count) for segment, count in counted(pieces)]
        groups = groups_of(self.question.cluster, degrees)
        times = segment_times([segment for segment, _ in held], Policy(), self.question.cluster, groups)
        talk = not any(schedule in PAIRED for schedule in self.space.options["schedule"])
        layers = [segment for segment, _ in held if segment.recomputable and segment.name in _layers(pieces)]
        memories = memories_of(layers, Policy())

        def spread(values: Any) -> Floats:
            result = np.zeros(len(first))
            result[some] = values
            return result

        return _Part(
            work_s=spread(sum(count * whole_s(times[segment.name], talk=talk) for segment, count in held)),
            kept_bytes={name: spread(memory.plain_bytes) for name, memory in memories.items()},
            beside_bytes={name: spread(memory.largest_bytes) for name, memory in memories.items()},
        )


def fits(state_bytes_: Floats, working_bytes: Any, question: Question, limit_bytes: float) -> Mask:
    """Rows whose rank with the most state could hold one micro-batch besides."""
    allocated = state_bytes_ + working_bytes
    whole = allocated + sum(overhead_bytes(allocated, question.framework).values())
    return np.asarray(whole <= limit_bytes)


def whole_s(time: SegmentTime, *, talk: bool) -> Any:
    """All seconds of a segment, with communication where no schedule can hide it [s]."""
    phases = (time.forward, time.input_grad, time.weight_grad, time.recompute)
    return sum(
        seconds for phase in phases for name, seconds in phase.parts.items() if talk or name not in COMMUNICATION
    )


def _layers(pieces: Pieces) -> set[str]:
    return {segment.name for segment, is_layer in pieces.units if is_layer}


def _only(segment: Segment, *, expert: bool) -> Segment:
    """A segment's expert operations or the others, without what runs beside something."""
    chosen = tuple(
        replace(operation, forward=_blocking(operation.forward), input_grad=_blocking(operation.input_grad),
                weight_grad=_blocking(operation.weight_grad))
        for operation in segment.operations if _is_expert(operation) == expert
    )  # fmt: skip
    return replace(segment, operations=chosen)


def _blocking(works: tuple[Work, ...]) -> tuple[Work, ...]:
    return tuple(work for work in works if not (isinstance(work, Collective) and work.hides))


def _is_expert(operation: Operation) -> bool:
    """Operations that depend on ep and etp, and on the other degrees only by tp and tokens."""
    return "moe" in operation.modules and "shared_experts" not in operation.modules
