"""What a step that ran is made of: seconds by part, peak bytes by rank and part, FLOPs that were executed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from simulator.arch.flops import executed_flops
from simulator.arch.operations import largest
from simulator.lowered import Lowered, rank_slots, rank_stages
from simulator.parallel.lower import Program
from simulator.parallel.memory import (
    SegmentMemory,
    overhead_bytes,
    segment_memories,
    stage_memory,
    static_bytes,
    step_bytes,
)
from simulator.parallel.recompute import policy_of, recomputed_operations, recomputed_parts
from simulator.parallel.setting import Setting
from simulator.parallel.stage_cost import StageKind, held_kind, stage_kind
from simulator.result import Memory, TimeParts
from simulator.schedule.durations import PAIRED_AXES
from simulator.schedule.memory import Footprint, MemoryPeaks, memory_peaks
from simulator.schedule.order import Order
from simulator.spec.strategy import FREE_RUNNING, Strategy


def memory_of(lowered: Lowered) -> Memory:
    """Peak memory of every pipeline rank, read off its timeline; the one with the least room left gives the parts."""
    setting, order = lowered.setting, lowered.order
    memories = segment_memories(lowered.program, setting.strategy)
    static, step = standing_bytes(lowered.program, order, setting)
    footprint = footprint_of(lowered.program, setting, memories, [sum(parts.values()) for parts in static])
    peaks = memory_peaks(order, footprint)
    ranks = rank_parts(peaks, static, step, setting)
    totals = [sum(parts.values()) for parts in ranks]
    limits = lowered.limits_bytes or (setting.cluster.device.memory_bytes,) * order.pp
    over = [total - limit for total, limit in zip(totals, limits, strict=True)]
    fullest = over.index(max(over))
    return Memory(
        per_stage=tuple({**parts, "total": total} for parts, total in zip(ranks, totals, strict=True)),
        limits_bytes=lowered.limits_bytes,
        parts=ranks[fullest],
        limit_bytes=limits[fullest],
        peak_time_s=float(lowered.timeline.start_s[peaks.task[fullest]]),
        step_bytes=step[fullest],
        step_reserved=setting.framework.flat_gradients,
        footprint=footprint,
    )


def rank_parts(
    peaks: MemoryPeaks, static: Sequence[Mapping[str, float]], step: Sequence[float], setting: Setting
) -> list[dict[str, float]]:
    """Peak bytes of every rank by part, from what stands there all the time and what its tasks hold at most [B]."""
    ranks = []
    for rank, standing in enumerate(static):
        activations, working = float(peaks.activation_bytes[rank]), float(peaks.working_bytes[rank])
        parts = {**standing, "activations": activations, "working_set": working}
        if step[rank] > activations + working:
            parts["optimizer_step"] = step[rank] - activations - working
        outside = overhead_bytes(sum(parts.values()), setting.framework)
        ranks.append(parts | {name: float(value) for name, value in outside.items()})
    return ranks


def standing_bytes(program: Program, order: Order, setting: Setting) -> tuple[list[dict[str, float]], list[float]]:
    """By rank what is there all the time, by part, and what the optimizer step needs [B]; ranks that hold the same
    segments are alike.
    """
    shared = {id(stage.parts): held_kind(stage) for stage in program.stages}
    kinds = [shared[id(stage.parts)] for stage in program.stages]
    known: dict[tuple[StageKind, ...], tuple[dict[str, float], float]] = {}
    ranks = []
    for held in (rank_stages(order, rank) for rank in range(order.pp)):
        key = tuple(kinds[stage] for stage in held)
        if key not in known:
            stages = [program.stages[stage] for stage in held]
            edge = largest([program.stages[0].boundary_bytes, stages[0].boundary_bytes])
            parts = static_bytes(stages, edge, setting)
            known[key] = ({name: float(value) for name, value in parts.items()}, float(step_bytes(stages, setting)))
        ranks.append(known[key])
    return [parts for parts, _ in ranks], [step for _, step in ranks]


def footprint_of(
    program: Program, setting: Setting, memories: Mapping[str, SegmentMemory], static_bytes_: Sequence[float]
) -> Footprint:
    """What the tasks of each stage hold, beside what stands on each rank all the time. Equal stages are alike."""
    kinds = [stage_kind(stage, setting.strategy) for stage in program.stages]
    alike = dict(zip(kinds, program.stages, strict=True))
    sizes = {kind: stage_memory(stage, setting, memories) for kind, stage in alike.items()}

    def by_stage(name: str) -> list[float]:
        return [float(getattr(sizes[kind], name)) for kind in kinds]

    return Footprint(
        static_bytes=list(static_bytes_),
        activation_bytes=by_stage("activation_bytes"),
        weight_gradient_bytes=by_stage("late_bytes"),
        forward_working_bytes=by_stage("forward_bytes"),
        backward_working_bytes=by_stage("backward_bytes"),
    )


def time_of(lowered: Lowered, strategy: Strategy) -> TimeParts:
    """The step of the rank that finishes last, by part. What its work does not explain is waiting: for kernel launches
    (what the step would gain if they were free), or for the rest of the pipeline.

    Zero-bubble schedules let each rank go on to the next step without a barrier (optimizer post-validation, Qi 2023
    sec. 4): a rank's step then begins with its own first task.
    """
    ends_s = lowered.timeline.rank_end_s.tolist()
    begins_s = lowered.timeline.rank_start_s.tolist() if strategy.schedule in FREE_RUNNING else [0.0] * strategy.pp
    finish = [
        end - begin + float(tail.total_s)
        for begin, end, tail in zip(begins_s, ends_s, lowered.ends, strict=True)
    ]
    rank = finish.index(max(finish))
    parts: dict[str, float] = defaultdict(float)
    hidden: dict[str, float] = defaultdict(float)
    copies = len(lowered.order.slot_rank) // strategy.stages
    times = lowered.program.micro_batches / copies
    for slot in rank_slots(lowered.order, rank):
        cost = lowered.costs[slot]
        for phase in (cost.forward, cost.input_grad, cost.weight_grad):
            for name, seconds in phase.parts.items():
                parts[name] += times * float(seconds)
        parts["recompute"] += times * float(cost.recompute.total_s)
        for phase in (cost.forward, cost.input_grad, cost.weight_grad, cost.recompute):
            for name, seconds in phase.hidden.items():
                hidden[name] += times * float(seconds)
    _hide_paired(parts, hidden, float(lowered.timeline.busy_s[rank]))
    tail = lowered.ends[rank]
    parts["dp"] += float(tail.reduce_s + tail.gather_s)
    parts["optimizer"] += float(tail.optimizer_s)
    hidden["dp"] += float(tail.hidden_s)
    idle = max(finish) - sum(parts.values())
    idle = idle if idle > 1e-12 * max(finish) else 0.0  # Less is what rounding leaves of a sum.
    parts["host"] += min(idle, lowered.host_wait_s) if strategy.pp > 1 else idle
    parts["bubble"] += max(idle - lowered.host_wait_s, 0.0) if strategy.pp > 1 else 0.0
    return TimeParts(parts=_merged(parts), hidden=_merged(hidden), rank=rank)


def _hide_paired(parts: dict[str, float], hidden: dict[str, float], busy_s: float) -> None:
    """Move communication that a paired forward and backward hid behind each other from `parts` to `hidden`.

    A rank is busy for less than its work adds up to where DualPipe or batch overlap pairs two chunks.
    """
    overlapped_s = sum(parts.values()) - busy_s
    exposed_s = sum(parts.get(axis, 0.0) for axis in PAIRED_AXES)
    if overlapped_s <= 1e-9 * busy_s or not exposed_s:
        return
    share = min(overlapped_s / exposed_s, 1.0)
    for axis in PAIRED_AXES:
        hidden[axis] += share * parts[axis]
        parts[axis] -= share * parts[axis]


def _merged(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: float(seconds) for name, seconds in sorted(parts.items()) if seconds}


def executed_flops_per_step(lowered: Lowered, strategy: Strategy) -> float:
    """Matrix FLOPs that all devices execute in one step, recomputation and padding included."""
    policy = policy_of(strategy)
    counts: dict[str, int] = defaultdict(int)
    repeated: dict[str, int] = defaultdict(int)
    segments = {}
    for stage in lowered.program.stages:
        for segment, again, rest in recomputed_parts(stage, strategy):
            counts[segment.name] += int(again + rest)
            repeated[segment.name] += int(again)
            segments[segment.name] = segment
    total = 0.0
    for name, segment in segments.items():
        again = executed_flops(recomputed_operations(segment, policy), "forward")
        phases = sum(executed_flops(segment.operations, p) for p in ("forward", "input_grad", "weight_grad"))
        total += repeated[name] * float(again) + counts[name] * float(phases)
    return total * lowered.program.micro_batches * strategy.tp * strategy.cp * strategy.dp
