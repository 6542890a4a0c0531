"""A whole optimizer step: the pipeline's timeline, and what the data-parallel ranks do around it.

Gradients are reduced in buckets as the last backward of each stage makes them (DDP, Megatron's distributed
optimizer) or after every micro-batch (FSDP, ZeRO-2 and 3), on a stream of their own or after all compute; then the
gradient norm, the optimizer, and the gathering of parameters, which can hide behind the next step's first forwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.schedule.engine import Durations, PerStage, Transfers, per_stage, simulate
from simulator.schedule.order import BACKWARD, WEIGHT_GRAD, Order
from simulator.schedule.timeline import Columns, Timeline

Floats = npt.NDArray[np.float64]
_ROUNDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnd:
    """What a step needs beyond its forwards and backwards; by model stage unless said otherwise."""

    reduce_s: PerStage = 0.0
    """Reducing a stage's gradients over the data-parallel ranks, all buckets."""
    reduce_buckets: PerStage = 1
    """Equal buckets per stage; each leaves when its share of the backward is done (DDP: 25 MiB of parameters;
    Megatron-LM: max(40,000,000, 1,000,000 dp) parameters)."""
    overlap_reduce: bool = False
    """Buckets leave beside the backward; else after all compute of the rank."""
    reduce_each: bool = False
    """After every micro-batch's backward (ZeRO-2, ZeRO-3, FSDP) rather than the last one's."""
    gather_s: PerStage = 0.0
    """Gathering a stage's updated parameters (distributed optimizer, ZeRO-1 and 2)."""
    gather_buckets: PerStage = 1
    overlap_gather: bool = False
    """Gathers run beside the next step's first forwards; else at the end of the step."""
    clip_s: float = 0.0
    """All-reduce of the gradient norm over all ranks; every rank waits for the last. 0: no rank waits."""
    optimizer_s: PerStage = 0.0
    """The optimizer's own update, by rank."""
    slowdown: float = 1.0
    """How many times longer compute takes while a collective runs beside it (its SMs and memory bandwidth are
    shared): measured per device and collective, 1 is none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """One step as it repeats. Arrays are by rank, in seconds.

    For each rank, waits and work add up: busy + idle + reduce + wait + clip + optimizer + gather + rest = step.
    """

    timeline: Timeline
    step_time_s: float
    busy_s: Floats
    """Compute, with what collectives beside it cost it."""
    slowed_s: Floats
    """The part of `busy_s` that collectives beside it cost."""
    idle_s: Floats
    """Waiting for other stages and for parameters, up to the rank's last task."""
    exposed_reduce_s: Floats
    """Gradient reduction after the rank's last task."""
    wait_s: Floats
    """Waiting for the slowest rank before the gradient norm."""
    clip_s: float
    optimizer_s: Floats
    exposed_gather_s: Floats
    """Parameter gathers after the optimizer (those before the first forwards are in `idle_s`)."""
    rest_s: Floats
    """From the rank's end to the end of the step."""
    collective_rank: npt.NDArray[np.int64]
    """Rank of each interval of the gradient stream."""
    collective_start_s: Floats
    collective_end_s: Floats
    collective_reduces: npt.NDArray[np.bool_]
    """True for a gradient bucket, False for gathered parameters."""

    def columns(self) -> Columns:
        """The step as a table: the timeline's columns, the gradient stream and what ends the step.

        Adds stream "gradients" (kinds "reduce" and "gather") and, on "compute", "clip", "optimizer" and "gather";
        they belong to no stage and no micro-batch (-1).
        """
        ranks = np.arange(len(self.busy_s))
        clip = self.timeline.rank_end_s + self.exposed_reduce_s + self.wait_s
        update = clip + self.clip_s
        gather = update + self.optimizer_s
        stop = gather + self.exposed_gather_s
        parts = [
            (self.collective_rank, "gradients", "reduce", self.collective_start_s, self.collective_end_s),
            (ranks, "compute", "clip", clip, update),
            (ranks, "compute", "optimizer", update, gather),
            (ranks, "compute", "gather", gather, stop),
        ]
        table = self.timeline.columns()
        kinds = [np.full(len(part[0]), part[2]) for part in parts]
        kinds[0] = np.where(self.collective_reduces, "reduce", "gather")
        rank, start, end = (np.concatenate([part[index] for part in parts]) for index in (0, 3, 4))
        some = end > start
        nowhere = np.full(int(some.sum()), -1)
        stream = np.concatenate([np.full(len(part[0]), part[1]) for part in parts])
        added = [rank[some], stream[some], nowhere, nowhere, np.concatenate(kinds)[some], start[some], end[some]]
        return {name: np.concatenate([table[name], new]) for name, new in zip(table, added, strict=True)}

    @property
    def hidden_reduce_s(self) -> Floats:
        """Seconds of gradient reduction that compute hid, by rank."""
        spent = np.where(self.collective_reduces, self.collective_end_s - self.collective_start_s, 0.0)
        total = np.bincount(self.collective_rank, weights=spent, minlength=len(self.busy_s))
        hidden: Floats = np.maximum(total - self.exposed_reduce_s, 0.0)
        return hidden


def run_step(order: Order, durations: Durations, transfers: Transfers | None = None, *, end: StepEnd) -> Step:
    """Runs an order and everything around it.

    Compute that runs beside a collective is stretched by `end.slowdown` for as long as they overlap, and what that
    delays is followed through all ranks (iterated until nothing moves).

    Raises InputError for wrong lengths or a slowdown below 1.
    """
    if end.slowdown < 1:
        raise InputError([f"slowdown({end.slowdown}) must be at least 1"])
    gathers, release = _gathers(order, durations, end)
    base = simulate(order, durations, transfers, release_s=release)
    line, extra = base, np.zeros(order.tasks)
    for _ in range(_ROUNDS if end.slowdown > 1 else 0):
        beside = _join(gathers, _reduces(line, end, gathers)) if end.overlap_reduce else gathers
        grown = _overlap_s(line, beside) * (1 - 1 / end.slowdown)
        if np.allclose(grown, extra, rtol=0, atol=1e-12 * base.makespan_s):
            break
        extra = grown
        line = simulate(order, durations, transfers, release_s=release, extra_s=extra)
    return _finish(line, extra, end, gathers)


_Intervals = tuple[npt.NDArray[np.int64], Floats, Floats]
"""(rank, start, end) of intervals on the gradient stream."""


def _join(first: _Intervals, second: _Intervals) -> _Intervals:
    rank, start, end = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    return rank, start, end


def _finish(line: Timeline, extra: Floats, end: StepEnd, gathers: _Intervals) -> Step:
    order = line.order
    ranks = order.pp
    reduces = _reduces(line, end, gathers)
    done = line.rank_end_s
    reduced = done.copy()
    np.maximum.at(reduced, reduces[0], reduces[2])
    ready = np.full(ranks, reduced.max()) if end.clip_s > 0 else reduced
    optimizer = per_stage(end.optimizer_s, ranks, "optimizer_s")
    gather = np.zeros(ranks)
    if not end.overlap_gather:
        np.add.at(gather, order.slot_rank, per_stage(end.gather_s, order.stages, "gather_s")[order.model_stage])
    finished = ready + end.clip_s + optimizer + gather
    collectives = _join(gathers, reduces)
    slowed = np.add.reduceat(np.where(line.second, 0.0, extra), order.rank_start[:-1])
    return Step(
        timeline=line,
        step_time_s=float(finished.max()),
        busy_s=line.busy_s,
        slowed_s=slowed,
        idle_s=done - line.busy_s,
        exposed_reduce_s=reduced - done,
        wait_s=ready - reduced,
        clip_s=end.clip_s,
        optimizer_s=optimizer,
        exposed_gather_s=gather,
        rest_s=finished.max() - finished,
        collective_rank=collectives[0],
        collective_start_s=collectives[1],
        collective_end_s=collectives[2],
        collective_reduces=np.arange(len(collectives[0])) >= len(gathers[0]),
    )


def _gathers(order: Order, durations: Durations, end: StepEnd) -> tuple[_Intervals, Floats]:
    """Gathers at the start of the step, and when each stage's first forward may start so that it never stalls."""
    none: _Intervals = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    seconds = per_stage(end.gather_s, order.stages, "gather_s")
    if not end.overlap_gather or not seconds.any():
        return none, np.zeros(order.stages)
    buckets = per_stage(end.gather_buckets, order.stages, "gather_buckets").astype(int)
    forward = per_stage(durations.forward_s, order.stages, "forward_s")
    first = order.position[0]
    opening = np.where(first >= 0, first, order.tasks).min(axis=1)
    stream = np.zeros(order.pp)
    release = np.zeros(order.stages)
    rows: list[tuple[int, float, float]] = []
    for slot in np.argsort(opening, kind="stable"):
        rank, stage = int(order.slot_rank[slot]), int(order.model_stage[slot])
        share = np.arange(1, buckets[stage] + 1) / buckets[stage]
        ends = stream[rank] + share * seconds[stage]
        starts = ends - seconds[stage] / buckets[stage]
        rows += zip([rank] * len(ends), starts.tolist(), ends.tolist(), strict=True)
        stream[rank] = ends[-1]
        need = float((ends - (share - share[0]) * forward[stage]).max())
        release[stage] = max(release[stage], need)
    table = np.array(rows)
    return (table[:, 0].astype(np.int64), table[:, 1], table[:, 2]), release


def _reduces(line: Timeline, end: StepEnd, gathers: _Intervals) -> _Intervals:
    """Every gradient bucket on its rank's gradient stream, first ready first, behind the gathers."""
    order = line.order
    seconds = per_stage(end.reduce_s, order.stages, "reduce_s")
    last = (order.kind == BACKWARD) | (order.kind == WEIGHT_GRAD)
    tasks = np.flatnonzero(last)
    if not end.reduce_each:
        final = np.zeros(order.slots, np.int64)
        final[order.slot[tasks]] = tasks
        tasks = np.unique(final)
    tasks = tasks[seconds[order.stage[tasks]] > 0]
    count = per_stage(end.reduce_buckets, order.stages, "reduce_buckets").astype(np.int64)[order.stage[tasks]]
    which = np.repeat(tasks, count)
    share = (np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + 1) / np.repeat(count, count)
    rank = order.rank[which].astype(np.int64)
    if end.overlap_reduce:
        ready = line.start_s[which] + share * (line.end_s - line.start_s)[which]
    else:
        ready = line.rank_end_s[rank]
    gathered = np.zeros(order.pp)
    np.maximum.at(gathered, gathers[0], gathers[2])
    ready = np.maximum(ready, gathered[rank])
    duration = (seconds[order.stage[which]]) / np.repeat(count, count)
    sequence = np.lexsort((np.arange(len(which)), ready, rank))
    rank, ready, duration = rank[sequence], ready[sequence], duration[sequence]
    ends = np.empty(len(rank))
    for one in np.unique(rank):
        part = rank == one
        # First in, first out: end_k = max(ready_k, end_(k-1)) + d_k, written as a running maximum.
        total = np.cumsum(duration[part])
        ends[part] = total + np.maximum.accumulate(ready[part] - (total - duration[part]))
    return rank, ends - duration, ends


def _overlap_s(line: Timeline, beside: _Intervals) -> Floats:
    """Seconds of each task during which a collective runs on its rank."""
    order = line.order
    overlap = np.zeros(order.tasks)
    for rank in np.unique(beside[0]):
        part = beside[0] == rank
        sequence = np.argsort(beside[1][part], kind="stable")
        start, stop = beside[1][part][sequence], beside[2][part][sequence]
        covered = np.concatenate([[0.0], np.cumsum(stop - start)])
        span = slice(order.rank_start[rank], order.rank_start[rank + 1])

        def busy_until(time: Floats, start: Floats = start, stop: Floats = stop, covered: Floats = covered) -> Floats:
            index = np.searchsorted(start, time, side="right")
            into = np.where(index > 0, np.minimum(time, stop[index - 1]) - start[index - 1], 0.0)
            found: Floats = covered[np.maximum(index - 1, 0)] + np.maximum(into, 0.0)
            return found

        overlap[span] = busy_until(line.end_s[span]) - busy_until(line.start_s[span])
    return overlap
