"""What the engine is fed: seconds of every slot's tasks and of the sends between them, read off the stages' costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from simulator.arch.operations import Number
from simulator.cluster.network import collective_time_s
from simulator.parallel.lower import Program
from simulator.parallel.setting import Setting, splits_sends
from simulator.parallel.stage_cost import StageCost
from simulator.parallel.timing import PhaseTime
from simulator.schedule.engine import Durations, Transfers
from simulator.spec.run import Framework

PAIRED_AXES = ("tp", "cp", "ep", "etp")
"""Axes whose communication a paired chunk's compute can hide."""


def durations_of(costs: Sequence[StageCost], setting: Setting) -> Durations:
    """Engine durations: recomputation opens the backward; launches cost host time unless replayed from a graph.

    Dropless experts stay outside a graph, as their sizes follow the routing, unless their buffers are fixed ahead.
    """
    software = setting.framework
    launch_s = software.launch_s * setting.cluster.host_slowdown_factor

    def host_s(*phases: PhaseTime) -> float:
        if software.cuda_graphs and software.graphs_experts:
            return 0.0
        launched = sum(p.experts_kernels if software.cuda_graphs else p.kernels for p in phases)
        return launch_s * float(launched)

    # Stages of one kind share one cost.
    kinds = {id(cost): cost for cost in costs}
    row = {key: index for index, key in enumerate(kinds)}
    which = [row[id(cost)] for cost in costs]
    device = np.array([
        [float(c.forward.total_s), float(c.input_grad.total_s + c.recompute.total_s), float(c.weight_grad.total_s)]
        for c in kinds.values()
    ])[which]  # fmt: skip
    host = np.array([
        [host_s(c.forward), host_s(c.input_grad, c.recompute), host_s(c.weight_grad)] for c in kinds.values()
    ])[which]  # fmt: skip
    inside = np.array([
        [_communication_s(c.forward.parts), _communication_s(c.input_grad.parts)] for c in kinds.values()
    ])[which]  # fmt: skip
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
        forward_comm_s=inside[:, 0],
        backward_comm_s=inside[:, 1],
    )


def _communication_s(parts: Mapping[str, Number]) -> float:
    return float(sum(parts.get(axis, 0.0) for axis in PAIRED_AXES))


def transfers_of(program: Program, setting: Setting) -> Transfers:
    """Sends between neighbouring stages of equal devices.

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


def sends_block(schedule: str, software: Framework) -> bool:
    """Whether a rank computes nothing until what it sends has arrived, and its host launches nothing either.

    Megatron-LM's p2p_communication.py calls torch.cuda.synchronize after a batch_isend_irecv (batch_p2p_sync).
    """
    return not software.overlap_p2p or schedule in ("1f1b", "gpipe")


def send_s(boundary_bytes: Number, setting: Setting, *, split: bool) -> Number:
    """Seconds of one send to the next stage; `split` sends 1 / tp and gathers at the receiver. Broadcasts."""
    part = boundary_bytes / (setting.strategy.tp if split else 1)
    seconds: Number = collective_time_s(setting.felt_by("pp"), "send", part, setting.groups["pp"])
    if split:
        gathered = collective_time_s(setting.felt_by("tp"), "all_gather", boundary_bytes, setting.groups["tp"])
        seconds = seconds + gathered
    return seconds
