"""Memory over time, read off the timeline: what each rank holds at each moment, and what its peak is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from simulator.schedule.engine import PerStage, per_stage
from simulator.schedule.order import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Order
from simulator.schedule.timeline import Timeline

Floats = npt.NDArray[np.float64]
PARTS = ("static", "activations", "weight_gradient_inputs", "gradients", "working")


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes that one rank holds, by model stage (one number stands for all stages) unless said otherwise."""

    static_bytes: PerStage = 0.0
    """By rank: weights, optimizer states, buffers that are there all the time."""
    activation_bytes: PerStage = 0.0
    """Saved by a forward, let go by the backward of the same micro-batch."""
    weight_gradient_bytes: PerStage = 0.0
    """The part of `activation_bytes` (and gradients kept beside it) that a split backward holds until W."""
    gradient_bytes: PerStage = 0.0
    """Allocated by a stage's first backward, held to the end of the step."""
    forward_working_bytes: PerStage = 0.0
    """Held only while a forward runs: logits, gathered parameters (ZeRO-3), collective buffers."""
    backward_working_bytes: PerStage = 0.0
    """Held only while a backward task runs: recomputed activations, gathered parameters, temporary gradients."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MemoryTimeline:
    """Steps of every rank's memory, sorted by rank and time; `rank_start` delimits the ranks.

    `held_bytes[i]` is what the rank holds from `time_s[i]` until the next entry.
    """

    rank_start: npt.NDArray[np.int64]
    time_s: Floats
    held_bytes: Floats
    change_bytes: Floats
    part: npt.NDArray[np.int8]

    @cached_property
    def peak_index(self) -> npt.NDArray[np.int64]:
        """Entry at which each rank first holds its most."""
        bounds = pairwise(self.rank_start.tolist())
        return np.array([first + int(np.argmax(self.held_bytes[first:last])) for first, last in bounds])

    @cached_property
    def peak_bytes(self) -> Floats:
        """The most each rank holds."""
        return self.held_bytes[self.peak_index]

    @cached_property
    def peak_time_s(self) -> Floats:
        """When each rank first holds its most."""
        return self.time_s[self.peak_index]

    def peak_parts(self, rank: int) -> dict[str, float]:
        """What a rank's peak is made of; sums to `peak_bytes[rank]`."""
        span = slice(self.rank_start[rank], self.peak_index[rank] + 1)
        amounts = np.bincount(self.part[span], weights=self.change_bytes[span], minlength=len(PARTS))
        return dict(zip(PARTS, amounts.tolist(), strict=True))

    def of_rank(self, rank: int) -> tuple[Floats, Floats]:
        """(seconds, bytes held from then on) of one rank, for a picture or a counter track."""
        span = slice(self.rank_start[rank], self.rank_start[rank + 1])
        return self.time_s[span], self.held_bytes[span]


@dataclass(frozen=True, eq=False, kw_only=True)
class MemoryPeaks:
    """The most each rank holds, in which task, and what it is made of. Arrays are by rank."""

    peak_bytes: Floats
    task: npt.NDArray[np.int64]
    """The task in which the rank first holds its most."""
    activation_bytes: Floats
    """Saved activations of every micro-batch then in flight, those that only a weight gradient still reads among
    them."""
    gradient_bytes: Floats
    working_bytes: Floats


def memory_peaks(order: Order, footprint: Footprint) -> MemoryPeaks:
    """The peaks of `memory_over_time`, without its sorted list of every change: they depend on no second.

    A rank's tasks follow each other, so what it holds while one runs is what the tasks before it left, what it saves
    itself, and its working memory; the two tasks of a pair hold theirs together (a backward, the second, saves none).
    Raises InputError as `memory_over_time` does.
    """
    made, kept, working = _changes(order, footprint)
    first = order.rank_start[:-1]
    before = np.zeros(order.tasks)
    np.cumsum((made + kept)[:-1], out=before[1:])
    grown = _gradients_so_far(order, footprint)
    held = before + (made + working) + grown
    pairs = np.flatnonzero(order.paired)
    held[pairs] += working[pairs + 1] + (grown[pairs + 1] - grown[pairs])
    bounds = pairwise(order.rank_start.tolist())
    at = np.array([start + int(np.argmax(held[start:stop])) for start, stop in bounds])
    paired = order.paired[at]
    beside = at + paired
    activations = before[at] - before[first] + made[at]
    at_work = working[at] + paired * working[beside]
    return MemoryPeaks(
        peak_bytes=activations + grown[beside] + at_work + per_stage(footprint.static_bytes, order.pp, "static_bytes"),
        task=at,
        activation_bytes=activations,
        gradient_bytes=grown[beside],
        working_bytes=at_work,
    )


def _gradients_so_far(order: Order, footprint: Footprint) -> Floats:
    """By task: gradient bytes that its rank has allocated up to it."""
    opened = np.zeros(order.tasks)
    if not np.any(footprint.gradient_bytes):
        return opened
    opened[_first_backward(order)] = per_stage(footprint.gradient_bytes, order.stages, "gradient_bytes")[
        order.model_stage
    ]
    # A rank's first task is a forward.
    total, first = np.cumsum(opened), order.rank_start[:-1]
    grown: Floats = total - np.repeat(total[first], np.diff(order.rank_start))
    return grown


def _changes(order: Order, footprint: Footprint) -> tuple[Floats, Floats, Floats]:
    """By task: bytes it saves when it begins, the change when it ends, and what it holds only while it runs."""

    def column(name: str) -> Floats:
        return per_stage(getattr(footprint, name), order.stages, name)

    saved, late, none = column("activation_bytes"), column("weight_gradient_bytes"), np.zeros(order.stages)
    forward, back = column("forward_working_bytes"), column("backward_working_bytes")
    # Tables of [F of each stage, B, W, BW].
    tables = np.array([
        [saved, none, none, none],
        [none, late - saved, -late, -saved],
        [forward, back, back, back],
    ])  # fmt: skip
    made, kept, working = tables.reshape(3, -1).take(order.table_index, axis=1)
    return made, kept, working


def _late(timeline: Timeline, footprint: Footprint) -> Floats:
    """By task: what its micro-batch leaves for a weight gradient of its own; 0 where the backward is one task."""
    order = timeline.order
    late = per_stage(footprint.weight_gradient_bytes, order.stages, "weight_gradient_bytes")[order.stage]
    split = np.zeros((order.slots, order.micro_batches), np.bool_)
    only_input = order.kind == INPUT_GRAD
    split[order.slot[only_input], order.micro_batch[only_input]] = True
    return np.where(split[order.slot, order.micro_batch], late, 0.0)


def memory_over_time(timeline: Timeline, footprint: Footprint) -> MemoryTimeline:
    """Allocations and frees of a step, in the order they happen.

    A forward's activations count from its start, a backward lets go at its end; what ends at a moment is free before
    what begins then. Gradients stay until the end of the step, so a rank's last entry is its static memory again.
    Raises InputError where an array has not one entry per stage (per rank for `static_bytes`).
    """
    order = timeline.order
    stages = order.stages
    late = _late(timeline, footprint)
    forward, weight = order.kind == FORWARD, order.kind == WEIGHT_GRAD
    back = ~forward & ~weight
    made, kept, working = _changes(order, footprint)
    static = per_stage(footprint.static_bytes, order.pp, "static_bytes")
    gradient = per_stage(footprint.gradient_bytes, stages, "gradient_bytes")[order.model_stage]
    opens = _first_backward(order)
    ranks = np.arange(order.pp)
    start, end, rank = timeline.start_s, timeline.end_s, order.rank
    # Moments of a rank by its own sequence, not by time: a task begins after the one before it has ended, whatever
    # the last bit of a sum of seconds says. The two tasks of a pair begin together and end together.
    step = 2 * np.arange(order.tasks)
    begins, ends = step - 2 * timeline.second, step + 1 + 2 * order.paired
    done = np.full(order.slots, timeline.makespan_s)
    last = np.full(order.slots, 2 * order.tasks)
    rows: list[_Row] = [
        (ranks, np.full(order.pp, -1), np.zeros(order.pp), static, 0),
        (rank[forward], begins[forward], start[forward], (made - late)[forward], 1),
        (rank[forward], begins[forward], start[forward], late[forward], 2),
        (rank[back], ends[back], end[back], kept[back], 1),
        (rank[weight], ends[weight], end[weight], -late[weight], 2),
        (order.slot_rank, begins[opens], start[opens], gradient, 3),
        (order.slot_rank, last, done, -gradient, 3),
        (rank, begins, start, working, 4),
        (rank, ends, end, -working, 4),
    ]
    return _sorted(rows, order.pp)


_Row = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer], Floats, Floats, int]
"""(rank, moment, seconds, bytes, part) of changes."""


def _first_backward(order: Order) -> npt.NDArray[np.int64]:
    position = order.position[1]
    first: npt.NDArray[np.int64] = np.where(position >= 0, position, order.tasks).min(axis=1).astype(np.int64)
    return first


def _sorted(rows: list[_Row], ranks: int) -> MemoryTimeline:
    rank, moment, time, change = (np.concatenate([row[column] for row in rows]) for column in range(4))
    part = np.concatenate([np.full(len(row[0]), row[4], np.int8) for row in rows])
    some = (change != 0) | (part == 0)
    sequence = np.lexsort((change[some], moment[some], rank[some]))
    rank, time, change, part = (column[some][sequence] for column in (rank, time, change, part))
    begin = np.searchsorted(rank, np.arange(ranks + 1))
    total = np.cumsum(change)
    before = np.concatenate([[0.0], total])[begin[:-1]]
    held = total - np.repeat(before, np.diff(begin))
    return MemoryTimeline(rank_start=begin, time_s=time, held_bytes=held, change_bytes=change, part=part)
