"""The engine: runs any order with given durations and returns the exact timeline.

A rank's kernels are issued in the order of its schedule, and a stream runs what it was given in that order (CUDA
streams are first in, first out). So the start of a task is the latest of three times: the end of the task before it
on its rank, the arrival of the output it reads, and the moment the host has issued it. In topological sequence that
is one pass of maxima and additions; there is no approximation in it. Where the pass repeats itself, its periods are
written down and not run (`recurrence.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.schedule.order import BACKWARD, Order
from simulator.schedule.recurrence import Work, run_nodes
from simulator.schedule.timeline import Timeline
from simulator.schedule.wiring import Wiring, wiring

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
) -> Timeline:
    """Runs an order.

    `release_s` holds, for each model stage, the seconds before its first forward may start (parameters still being
    gathered).

    Raises InputError where an array has not one entry per stage or boundary, `Deadlock` where ranks wait for each
    other.
    """
    graph = wiring(order)
    transfers = transfers if transfers is not None else Transfers()
    costs = lay_out(order, durations, transfers)
    duration = costs.duration[graph.duration_index]
    release = per_stage(release_s, order.stages, "release_s")
    none = np.zeros(0)
    launches = costs.host[graph.duration_index] if costs.host.any() else none
    sends = bool(launches.size or costs.send.any() or costs.latency.any())
    work = Work(
        seconds=duration, launches=launches, waits=durations.host_waits, blocking=transfers.blocking,
        sends=costs.send[graph.send_index] if sends else none,
        lates=costs.latency[graph.send_index] if sends else none,
    )  # fmt: skip
    times = run_nodes(graph, work, order.pp, [0.0, *release[order.model_stage].tolist()])
    starts = times.start if launches.size else times.end - duration
    end = times.end[graph.task_node]
    return Timeline(
        order=order,
        start_s=_after_previous(order, graph, starts[graph.task_node], end),
        end_s=end,
        send_start_s=times.sent[graph.send_node],
        arrival_s=times.arrived[graph.send_node],
        sends=graph.sends,
        task_s=costs.duration[order.table_index],
        compute_s=(costs.duration[: 4 * order.stages] - _communication_s(order, durations))[order.table_index],
        second=graph.second,
        launch_end_s=times.launched[graph.task_node] if launches.size else none,
        launch_s=launches[graph.task_node] if launches.size else none,
    )


def _communication_s(order: Order, durations: Durations) -> Floats:
    """Seconds of communication in a table of [F of each stage, B, W, BW]."""
    stages = order.stages
    out = per_stage(durations.forward_comm_s, stages, "forward_comm_s")
    back = per_stage(durations.backward_comm_s, stages, "backward_comm_s")
    return np.concatenate([out, back, np.zeros(stages), back])


def _after_previous(order: Order, graph: Wiring, start: Floats, end: Floats) -> Floats:
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
    """The lookup tables that a wiring's indices point into. Raises InputError for a wrong length."""
    stages = order.stages

    def column(name: str) -> Floats:
        return per_stage(getattr(durations, name), stages, name)

    forward, grad, weight = column("forward_s"), column("input_grad_s"), column("weight_grad_s")
    tables = [forward, grad, weight, grad + weight, np.zeros(1)]
    pairs = wiring(order).pairs
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
