"""model + cluster + run + strategy -> Estimate: one step, once, in one direction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from simulator import catalog
from simulator.arch.flops import executed_flops, model_flops_per_sequence
from simulator.arch.operations import Number, largest
from simulator.cluster.device import peak_flops_per_s
from simulator.cluster.members import as_slowest
from simulator.cluster.network import collective_time_s
from simulator.intervals import regime_interval
from simulator.parallel.legal import check
from simulator.parallel.lower import Program, lower, sequence_lengths
from simulator.parallel.memory import overhead_bytes, segment_memories, stage_memory, static_bytes, step_bytes
from simulator.parallel.recompute import policy_of, recomputed_operations
from simulator.parallel.setting import Setting, groups_of
from simulator.parallel.stage_cost import StageCost, stage_costs
from simulator.parallel.step_end import StepEnd, step_end
from simulator.parallel.timing import PhaseTime
from simulator.parallel.traffic import traffic_bytes
from simulator.provenance import notes_of, provenance_of, regime_of
from simulator.result import Estimate, Memory, TimeParts
from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.make import make_order
from simulator.schedule.memory import Footprint, memory_peaks
from simulator.schedule.order import Order
from simulator.schedule.timeline import Timeline
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import FREE_RUNNING, Strategy

PAIRED_AXES = ("tp", "cp", "ep", "etp")
"""Axes whose communication a paired chunk's compute can hide."""
LARGEST_FACTOR = 1e6
"""Upper end of an interval without any residuals to read it off: JSON has no infinity."""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """Everything an estimate is read off: program, costs, order, timeline and the end of the step."""

    program: Program
    costs: tuple[StageCost, ...]
    order: Order
    timeline: Timeline
    ends: tuple[StepEnd, ...]
    host_wait_s: float
    """What the pipeline would gain if kernel launches were free."""
    setting: Setting


def estimate(
    model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, *, framework: Framework | None = None
) -> Estimate:
    """Cost of one training step.

    Raises InputError when the strategy cannot run (every reason at once). A strategy that does not fit in memory
    is an answer: `fits` is False. Clusters of unequal nodes run at their slowest members, which the notes name.
    """
    software = framework if framework is not None else catalog.load_framework(run.framework)
    check(model, cluster, run, strategy)
    run = replace(run, seq_len=run.seq_len or model.seq_len)
    cluster, unequal = as_slowest(cluster, run.precision)
    lowered = run_step(model, cluster, run, strategy, software)
    answer = summarise(model, cluster, run, strategy, software, lowered)
    return replace(answer, notes=(*answer.notes, *unequal)) if unequal else answer


@dataclass(frozen=True, kw_only=True)
class Costed:
    """A step before it is ordered: program and costs."""

    program: Program
    costs: tuple[StageCost, ...]
    setting: Setting


def run_step(model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, software: Framework) -> Lowered:
    """Lower, cost, order and simulate one step."""
    return run_costed(cost_step(model, cluster, run, strategy, software))


def cost_step(model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, software: Framework) -> Costed:
    """Lower one step and cost every stage."""
    program = lower(model, run, strategy, software)
    setting = Setting(run=run, strategy=strategy, framework=software, cluster=cluster,
                      groups=groups_of(cluster, strategy))  # fmt: skip
    return Costed(program=program, costs=stage_costs(program, setting), setting=setting)


def run_costed(costed: Costed) -> Lowered:
    """Order and simulate one step."""
    program, costs, setting = costed.program, costed.costs, costed.setting
    strategy = setting.strategy
    order = make_order(
        strategy.schedule, pp=strategy.pp, micro_batches=program.micro_batches, vp=strategy.vp,
        group_size=strategy.group_size,
    )  # fmt: skip
    durations, transfers = durations_of(costs, setting), transfers_of(program, setting)
    timeline = simulate(order, durations, transfers)
    host_wait_s = 0.0
    if np.any(durations.forward_host_s):
        free = replace(durations, forward_host_s=0.0, input_grad_host_s=0.0, weight_grad_host_s=0.0)
        host_wait_s = max(timeline.makespan_s - simulate(order, free, transfers).makespan_s, 0.0)
    ends = _ends(program, costs, order, setting)
    return Lowered(program=program, costs=costs, order=order, timeline=timeline, ends=ends, setting=setting,
                   host_wait_s=host_wait_s)  # fmt: skip


def _ends(
    program: Program, costs: Sequence[StageCost], order: Order, setting: Setting
) -> tuple[StepEnd, ...]:
    """The end of the step on every rank; ranks that hold the same programs share one."""
    known: dict[tuple[int, ...], StepEnd] = {}
    result = []
    for rank in range(setting.strategy.pp):
        held = rank_stages(order, rank)
        key = tuple(id(costs[stage]) for stage in held)
        if key not in known:
            known[key] = step_end(
                [program.stages[stage] for stage in held], [costs[stage] for stage in held], setting
            )
        result.append(known[key])
    return tuple(result)


def durations_of(costs: Sequence[StageCost], setting: Setting) -> Durations:
    """Engine durations: recomputation opens the backward; launches cost host time unless replayed from a graph.

    Dropless experts stay outside a graph: their sizes follow the routing.
    """
    software = setting.framework
    launch_s = software.launch_s * setting.cluster.host_slowdown_factor

    def host_s(*phases: PhaseTime) -> float:
        launched = sum(p.experts_kernels if software.cuda_graphs else p.kernels for p in phases)
        return launch_s * float(launched)

    device = np.array([
        [float(c.forward.total_s), float(c.input_grad.total_s + c.recompute.total_s), float(c.weight_grad.total_s)]
        for c in costs
    ])  # fmt: skip
    host = np.array([[host_s(c.forward), host_s(c.input_grad, c.recompute), host_s(c.weight_grad)] for c in costs])
    if (host <= device).all():
        # Where every task is longer than its launches the host always runs ahead, and need not be simulated.
        host = np.zeros_like(host)
    return Durations(
        forward_s=device[:, 0],
        input_grad_s=device[:, 1],
        weight_grad_s=device[:, 2],
        forward_host_s=host[:, 0],
        host_waits=sends_block(setting.strategy.schedule, software),
        input_grad_host_s=host[:, 1],
        weight_grad_host_s=host[:, 2],
        forward_comm_s=[_communication_s(c.forward.parts) for c in costs],
        backward_comm_s=[_communication_s(c.input_grad.parts) for c in costs],
    )


def _communication_s(parts: Mapping[str, Number]) -> float:
    return float(sum(parts.get(axis, 0.0) for axis in PAIRED_AXES))


def rank_stages(order: Order, rank: int) -> list[int]:
    """Model stages that a rank holds (twice-held models list both copies)."""
    return [int(stage) for stage, holder in zip(order.model_stage, order.slot_rank, strict=True) if holder == rank]


def transfers_of(program: Program, setting: Setting) -> Transfers:
    """Sends between neighbouring stages.

    Without sequence parallelism a send carries 1 / tp of the activation and the receiver's tp group gathers it
    (Narayanan 2021 sec. 4.1), where the framework does so. Plain 1F1B and GPipe wait for their sends.
    """
    strategy, software = setting.strategy, setting.framework
    if strategy.stages == 1:
        return Transfers()
    split = splits_sends(strategy, software)
    known: dict[float, float] = {}
    seconds = []
    for stage in program.stages[:-1]:
        boundary_bytes = float(stage.boundary_bytes)
        if boundary_bytes not in known:
            known[boundary_bytes] = float(send_s(boundary_bytes, setting, split=split))
        seconds.append(known[boundary_bytes])
    return Transfers(forward_s=seconds, backward_s=seconds, blocking=sends_block(strategy.schedule, software))


def splits_sends(strategy: Strategy, software: Framework) -> bool:
    """Whether a send carries 1 / tp of the activation, which the receiver's tp group gathers."""
    return not strategy.sequence_parallel and software.scatter_gather_p2p


def sends_block(schedule: str, software: Framework) -> bool:
    """Whether a rank computes nothing until what it sends has arrived, and its host launches nothing either.

    Megatron-LM's p2p_communication.py calls torch.cuda.synchronize after a batch_isend_irecv (batch_p2p_sync).
    """
    return not software.overlap_p2p or schedule in ("1f1b", "gpipe")


def send_s(boundary_bytes: Number, setting: Setting, *, split: bool) -> Number:
    """Seconds of one send to the next stage; `split` sends 1 / tp and gathers at the receiver. Broadcasts."""
    part = boundary_bytes / (setting.strategy.tp if split else 1)
    seconds: Number = collective_time_s(setting.cluster, "send", part, setting.groups["pp"])
    if split:
        seconds = seconds + collective_time_s(setting.cluster, "all_gather", boundary_bytes, setting.groups["tp"])
    return seconds


def memory_of(lowered: Lowered) -> Memory:
    """Peak memory of every pipeline rank, read off its timeline; the fullest one gives the parts."""
    setting, order = lowered.setting, lowered.order
    holds = [rank_stages(order, rank) for rank in range(order.pp)]
    footprint, static, step = _footprint(lowered, holds)
    peaks = memory_peaks(lowered.timeline, footprint)
    ranks = []
    for rank in range(order.pp):
        activations, working = float(peaks.activation_bytes[rank]), float(peaks.working_bytes[rank])
        parts = {**static[rank], "activations": activations, "working_set": working}
        if step[rank] > activations + working:
            parts["optimizer_step"] = step[rank] - activations - working
        outside = overhead_bytes(sum(parts.values()), setting.framework)
        ranks.append(parts | {name: float(value) for name, value in outside.items()})
    totals = [sum(parts.values()) for parts in ranks]
    fullest = totals.index(max(totals))
    return Memory(
        per_stage=tuple({**parts, "total": total} for parts, total in zip(ranks, totals, strict=True)),
        parts=ranks[fullest],
        limit_bytes=setting.cluster.device.memory_bytes,
        peak_time_s=float(peaks.time_s[fullest]),
        step_bytes=step[fullest],
        step_reserved=setting.framework.flat_gradients,
        footprint=footprint,
    )


def _footprint(
    lowered: Lowered, holds: Sequence[Sequence[int]]
) -> tuple[Footprint, list[dict[str, float]], list[float]]:
    """What the timeline's tasks hold; and by rank what is there all the time, and what the optimizer step needs.

    Stages of equal cost are alike, and so are ranks that hold such stages.
    """
    program, setting = lowered.program, lowered.setting
    memories = segment_memories(program, setting.strategy)
    kinds = [id(cost) for cost in lowered.costs]
    alike = dict(zip(kinds, program.stages, strict=True))
    sizes = {kind: stage_memory(stage, setting, memories) for kind, stage in alike.items()}
    known: dict[tuple[int, ...], tuple[dict[str, float], float]] = {}
    ranks = []
    for held in holds:
        key = tuple(kinds[stage] for stage in held)
        if key not in known:
            stages = [program.stages[stage] for stage in held]
            edge = largest([program.stages[0].boundary_bytes, stages[0].boundary_bytes])
            parts = static_bytes(stages, edge, setting)
            known[key] = ({name: float(value) for name, value in parts.items()}, float(step_bytes(stages, setting)))
        ranks.append(known[key])

    def by_stage(name: str) -> list[float]:
        return [float(getattr(sizes[kind], name)) for kind in kinds]

    footprint = Footprint(
        static_bytes=[sum(parts.values()) for parts, _ in ranks],
        activation_bytes=by_stage("activation_bytes"),
        weight_gradient_bytes=by_stage("late_bytes"),
        forward_working_bytes=by_stage("forward_bytes"),
        backward_working_bytes=by_stage("backward_bytes"),
    )
    return footprint, [parts for parts, _ in ranks], [step for _, step in ranks]


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
    for stage in rank_stages(lowered.order, rank):
        cost = lowered.costs[stage]
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
    return TimeParts(parts=_merged(parts), hidden=_merged(hidden))


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
    segments = {}
    for stage in lowered.program.stages:
        for segment, count in stage.parts:
            counts[segment.name] += count
            segments[segment.name] = segment
    total = 0.0
    for name, segment in segments.items():
        again = executed_flops(recomputed_operations(segment, policy), "forward")
        phases = sum(executed_flops(segment.operations, p) for p in ("forward", "input_grad", "weight_grad"))
        total += counts[name] * float(again + phases)
    return total * lowered.program.micro_batches * strategy.tp * strategy.cp * strategy.dp


def _plain(value: Run | Strategy) -> dict[str, object]:
    """The fields of a flat value; `asdict` would copy each of them deeply."""
    return {entry.name: getattr(value, entry.name) for entry in fields(value)}


def summarise(
    model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, software: Framework, lowered: Lowered
) -> Estimate:
    """Read the answer off a lowered step."""
    time = time_of(lowered, strategy)
    memory = memory_of(lowered)
    step_s = time.total_s
    lengths = sequence_lengths(model, run)
    flops = run.global_batch * model_flops_per_sequence(model, *lengths, run.flops_convention)
    peak = strategy.devices * peak_flops_per_s(cluster.device, run.precision)
    stages = [lowered.program.stages[stage] for stage in rank_stages(lowered.order, 0)]
    traffic = traffic_bytes(lowered.program, stages, lowered.setting)
    bracket = (step_s - time.exposed_comm_s, step_s + sum(time.hidden.values()))
    regime = regime_of(model, cluster, run, strategy, time)
    low, high = regime_interval(regime["kind"], regime["bound"], regime["pipeline"])
    return Estimate(
        model=model.name,
        cluster=cluster.name,
        framework=software.name,
        run=_plain(run),
        strategy=_plain(strategy),
        devices=strategy.devices,
        step_time_s=step_s,
        step_time_low_s=low * step_s,
        step_time_high_s=min(high, LARGEST_FACTOR) * step_s,
        bracket_s=bracket,
        tokens_per_s=run.global_batch * sum(lengths) / step_s,
        model_flops_per_step=flops,
        flops_convention=run.flops_convention,
        mfu=flops / (step_s * peak),
        hfu=executed_flops_per_step(lowered, strategy) / (step_s * peak),
        time=time,
        memory=memory,
        traffic_bytes={axis: float(value) for axis, value in traffic.items() if float(value)},
        provenance=provenance_of(model, cluster, software),
        notes=notes_of(cluster, run, strategy, software),
        regime=regime,
        _timeline=lowered.timeline,
    )
