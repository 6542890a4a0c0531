"""The engine: runs any order with given durations and returns the exact timeline.

A rank's kernels are issued in the order of its program, and a stream runs what it was given in that order (CUDA
streams are first in, first out). So the start of a task is the latest of three times: the end of the task before it
on its rank, the arrival of the output it reads, and the moment the host has issued it. In topological sequence that
is one pass of maxima and additions; there is no approximation in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.schedule.order import BACKWARD, Order
from simulator.schedule.program import Program, program
from simulator.schedule.timeline import Timeline

Floats = npt.NDArray[np.float64]
PerStage = float | npt.ArrayLike


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Seconds of one micro-batch on each model stage; a number stands for all stages.

    Exposed communication inside a stage (tensor, context, expert) is part of these. The `_comm_s` fields say how
    much of each is communication, which a *paired* task can hide behind the other one's compute.
    """

    forward_s: PerStage
    input_grad_s: PerStage
    """Backward to the input, with any recomputation."""
    weight_grad_s: PerStage = 0.0
    """Backward to the weights; added to `input_grad_s` where the order does not split the backward."""
    forward_comm_s: PerStage = 0.0
    backward_comm_s: PerStage = 0.0
    beside_slowdown_factor: float = 1.0
    """How many times longer a pair's compute takes while the other one's communication runs beside it."""
    forward_host_s: PerStage = 0.0
    """Seconds the host needs to launch the kernels of a stage's forward."""
    input_grad_host_s: PerStage = 0.0
    weight_grad_host_s: PerStage = 0.0
    host_waits: bool = False
    """The host waits for the device before each task, its input included (`torch.cuda.synchronize` after a receive,
    data-dependent sizes, `.item()`): it cannot run ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """Point-to-point transfers between neighbouring stages.

    Per boundary: entry s is between stage s and s + 1 (stages - 1 entries, or one number). Boundaries whose two
    stages share a rank cost nothing. A rank's sends share its port: they leave one after the other.
    """

    forward_s: PerStage = 0.0
    """Seconds the sender's port is busy with an activation."""
    backward_s: PerStage = 0.0
    """Seconds the sender's port is busy with a gradient."""
    latency_s: PerStage = 0.0
    """Seconds between the port being done and the data being there."""
    blocking: bool = False
    """The sender computes nothing until its data has arrived (Megatron-LM without --overlap-p2p-communication)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Durations and transfers laid out for one order: what a run of the engine reads."""

    duration: Floats
    send: Floats
    latency: Floats
    host: Floats = field(default_factory=lambda: np.zeros(0))


def simulate(
    order: Order,
    durations: Durations,
    transfers: Transfers | None = None,
    *,
    release_s: PerStage = 0.0,
    extra_s: Floats | None = None,
) -> Timeline:
    """Runs an order.

    `release_s` holds, for each model stage, the seconds before its first forward may start (parameters still being
    gathered). `extra_s` adds seconds to single tasks (slowdown beside a collective), by task number.

    Raises InputError where an array has not one entry per stage or boundary, `Deadlock` where ranks wait for each
    other.
    """
    graph = program(order)
    transfers = transfers if transfers is not None else Transfers()
    costs = lay_out(order, durations, transfers)
    duration = costs.duration[graph.duration_index]
    if extra_s is not None:
        duration[graph.task_node] += np.where(graph.second, 0.0, extra_s)
    release = per_stage(release_s, order.stages, "release_s")
    begin = [0.0, *release[order.model_stage].tolist()]
    launched: list[float] = []
    if costs.host.any():
        start, end, sent, arrived, launched = _run_with_host(
            order, graph, costs, duration.tolist(), begin, waits=durations.host_waits, blocking=transfers.blocking
        )
        starts = np.array(start)
    elif costs.send.any() or costs.latency.any():
        end, sent, arrived = _run_with_sends(order, graph, costs, duration.tolist(), begin, transfers.blocking)
        starts = np.array(end) - duration
    else:
        end = _run(order, graph, duration.tolist(), begin)
        sent = arrived = end
        starts = np.array(end) - duration
    ends = np.array(end)
    alone = costs.duration[order.table_index]
    return Timeline(
        order=order,
        start_s=_after_previous(order, graph, starts[graph.task_node], ends[graph.task_node]),
        end_s=ends[graph.task_node],
        send_start_s=ends[graph.send_node] if sent is end else np.array(sent)[graph.send_node],
        arrival_s=ends[graph.send_node] if arrived is end else np.array(arrived)[graph.send_node],
        sends=graph.send_index[graph.send_node] > 0,
        task_s=alone,
        compute_s=alone - _communication_s(order, durations),
        second=graph.second,
        launch_end_s=np.array(launched)[graph.task_node] if launched else np.zeros(0),
        launch_s=costs.host[graph.duration_index][graph.task_node] if launched else np.zeros(0),
    )


def _communication_s(order: Order, durations: Durations) -> Floats:
    """Seconds of each task that are communication."""
    stages = order.stages
    out = per_stage(durations.forward_comm_s, stages, "forward_comm_s")
    back = per_stage(durations.backward_comm_s, stages, "backward_comm_s")
    inside: Floats = np.concatenate([out, back, np.zeros(stages), back])[order.table_index]
    return inside


def _after_previous(order: Order, graph: Program, start: Floats, end: Floats) -> Floats:
    """Starts that the rounding of end - duration has not put before the end of the task before."""
    single = ~graph.second[1:]
    single[order.rank_start[1:-1] - 1] = False
    np.maximum(start[1:], end[:-1], out=start[1:], where=single)
    return start


def per_stage(value: PerStage, count: int, name: str) -> Floats:
    """One float per stage (or boundary) from a number or an array of that length. Raises InputError otherwise."""
    array = np.asarray(value, np.float64)
    if array.ndim == 0:
        return np.full(count, float(array))
    if array.shape != (count,):
        raise InputError([f"{name} has shape {array.shape}, but the order needs ({count},)"])
    return array


def lay_out(order: Order, durations: Durations, transfers: Transfers) -> Costs:
    """The lookup tables that a program's indices point into. Raises InputError for a wrong length."""
    stages = order.stages

    def column(name: str) -> Floats:
        return per_stage(getattr(durations, name), stages, name)

    forward, grad, weight = column("forward_s"), column("input_grad_s"), column("weight_grad_s")
    tables = [forward, grad, weight, grad + weight, np.zeros(1)]
    pairs = program(order).pairs
    if len(pairs):
        talk = np.stack([column("forward_comm_s"), column("backward_comm_s")])
        tables.append(_paired_s(pairs, np.stack(tables[:4]), talk, durations.beside_slowdown_factor))
    boundaries = max(stages - 1, 0)
    out = per_stage(transfers.forward_s, boundaries, "transfers.forward_s")
    back = per_stage(transfers.backward_s, boundaries, "transfers.backward_s")
    late = per_stage(transfers.latency_s, boundaries, "transfers.latency_s")
    none = np.zeros(1)
    host = [column("forward_host_s"), column("input_grad_host_s"), column("weight_grad_host_s")]
    both = [host[0][pairs[:, 0]] + host[1][pairs[:, 1]] + (pairs[:, 2] == BACKWARD) * host[2][pairs[:, 1]]]
    return Costs(
        duration=np.concatenate(tables),
        send=np.concatenate([none, out, none, none, back]),
        latency=np.concatenate([none, late, none, none, late]),
        host=np.concatenate([*host, host[1] + host[2], none, *both]),
    )


def _paired_s(pairs: npt.NDArray[np.int32], table: Floats, talk: Floats, slowdown: float) -> Floats:
    """Seconds of a forward and a backward that run together.

    Each alternates compute and communication and waits for itself; the two share one compute and one communication
    stream. So the pair takes the longest of: all communication, all compute (slower while communication runs),
    either chunk alone (DeepSeek-V3 report, section 3.2.1 and figure 4).
    """
    forward, backward = table[0][pairs[:, 0]], table[pairs[:, 2], pairs[:, 1]]
    beside = talk[0][pairs[:, 0]] + talk[1][pairs[:, 1]]
    compute = forward + backward - beside
    longest: Floats = np.maximum.reduce([compute + beside * (1 - 1 / slowdown), beside, forward, backward])
    return longest


# A call of max() in these loops would cost a third of their speed.


def _run(order: Order, graph: Program, duration: list[float], begin: list[float]) -> list[float]:
    free = [0.0] * order.pp
    arrival = begin
    append = arrival.append
    for rank, after, seconds in zip(graph.rank, graph.after, duration, strict=True):
        time = arrival[after]
        ready = free[rank]
        if time < ready:  # noqa: PLR1730
            time = ready
        time += seconds
        free[rank] = time
        append(time)
    return arrival[1 + order.slots :]


def _run_with_sends(
    order: Order, graph: Program, costs: Costs, duration: list[float], begin: list[float], blocking: bool
) -> tuple[list[float], list[float], list[float]]:
    free = [0.0] * order.pp
    port = free if blocking else [0.0] * order.pp
    arrival = begin
    end: list[float] = []
    sent: list[float] = []
    append, ended, leaves = arrival.append, end.append, sent.append
    sends, lates = costs.send[graph.send_index].tolist(), costs.latency[graph.send_index].tolist()
    for rank, after, seconds, send, late in zip(graph.rank, graph.after, duration, sends, lates, strict=True):
        time = arrival[after]
        ready = free[rank]
        if time < ready:  # noqa: PLR1730
            time = ready
        time += seconds
        free[rank] = time
        ended(time)
        if send or late:
            ready = port[rank]
            if time < ready:  # noqa: PLR1730
                time = ready
            leaves(time)
            time += send
            port[rank] = time + late if blocking else time
            append(time + late)
        else:
            leaves(time)
            append(time)
    return end, sent, arrival[1 + order.slots :]


def _run_with_host(
    order: Order,
    graph: Program,
    costs: Costs,
    duration: list[float],
    begin: list[float],
    *,
    waits: bool,
    blocking: bool,
) -> tuple[list[float], list[float], list[float], list[float], list[float]]:
    free, host, done = [0.0] * order.pp, [0.0] * order.pp, [0.0] * order.pp
    port = free if blocking else [0.0] * order.pp
    arrival = begin
    start: list[float] = []
    end: list[float] = []
    sent: list[float] = []
    launched: list[float] = []
    sends, lates = costs.send[graph.send_index].tolist(), costs.latency[graph.send_index].tolist()
    launches = costs.host[graph.duration_index].tolist()
    rows = zip(graph.rank, graph.after, duration, sends, lates, launches, strict=True)
    for rank, after, seconds, send, late, launch in rows:
        issued = max(host[rank], done[rank], arrival[after]) if waits else host[rank]
        time = max(arrival[after], free[rank], issued if seconds or launch else 0.0)
        start.append(time)
        host[rank] = issued + launch
        launched.append(issued + launch)
        time = max(time + seconds, host[rank]) if launch else time + seconds
        free[rank] = time
        end.append(time)
        time = max(time, port[rank]) if send or late else time
        sent.append(time)
        if send or late:
            time += send
            port[rank] = time + late if blocking else time
        if seconds or launch or send or late:
            # A node that only waits for an input does not hold the host up.
            done[rank] = free[rank]
        arrival.append(time + late)
    return start, end, sent, arrival[1 + order.slots :], launched
