"""What follows a rank's last backward: gradient reduction, clipping, optimizer, parameter gathering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.arch.operations import Collective, Number
from simulator.cluster.device import pointwise_time_s
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.parallel.gradients import synchronisation
from simulator.parallel.lower import Stage
from simulator.parallel.stage_cost import StageCost
from simulator.parallel.states import HeldParameters, held_parameters, optimizer_traffic_bytes
from simulator.parallel.timing import exposed_s
from simulator.spec.hardware import Cluster
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnd:
    """Seconds of one rank after its last backward, and what was hidden before that."""

    reduce_s: Number
    """Exposed reduction of gradients over replicas (and of replicated parameters over tp)."""
    optimizer_s: Number
    """Gradient norm, clipping and update."""
    gather_s: Number
    """Exposed all-gather of updated parameters."""
    hidden_s: Number

    @property
    def total_s(self) -> Number:
        return self.reduce_s + self.optimizer_s + self.gather_s


def step_end(
    stages: Sequence[Stage], costs: Sequence[StageCost], *, run: Run, strategy: Strategy, framework: Framework,
    cluster: Cluster, groups: Mapping[str, Group],
) -> StepEnd:  # fmt: skip
    """The end of the step of one rank.

    An overlapped reduction runs bucket by bucket beside the backward of the last micro-batch: its last bucket and
    what the backward does not cover stay exposed. An overlapped gather runs beside the next forward likewise.
    """
    held = held_parameters(tuple(stages))
    sync = synchronisation(held, run, strategy, framework)
    backward = sum(c.input_grad.total_s + c.recompute.total_s + c.weight_grad.total_s for c in costs)
    forward = sum(c.forward.total_s for c in costs)
    reduce_s, reduce_hidden = _bucketed(
        sync.reduce, backward, _choice(strategy.overlap_grad_reduce, framework.overlap_grad_reduce),
        framework, cluster, groups,
    )  # fmt: skip
    gather_s, gather_hidden = _bucketed(
        sync.gather, forward, _choice(strategy.overlap_param_gather, framework.overlap_param_gather),
        framework, cluster, groups,
    )  # fmt: skip
    tensor_s = sum(_seconds(c, cluster, groups) for c in sync.tensor)
    return StepEnd(
        reduce_s=reduce_s + tensor_s,
        optimizer_s=optimizer_s(held, run, strategy, framework, cluster),
        gather_s=gather_s,
        hidden_s=reduce_hidden + gather_hidden,
    )


def _choice(chosen: bool | None, default: bool) -> bool:
    return default if chosen is None else chosen


def _seconds(collective: Collective, cluster: Cluster, groups: Mapping[str, Group]) -> Number:
    result: Number = collective_time_s(cluster, collective.kind, collective.bytes, groups[collective.axis])
    return result


def _bucketed(
    collectives: tuple[Collective, ...], cover_s: Number, overlapped: bool, framework: Framework, cluster: Cluster,
    groups: Mapping[str, Group],
) -> tuple[Number, Number]:  # fmt: skip
    """(exposed, hidden) seconds of step-end collectives."""
    total: Number = 0.0
    last: Number = 0.0
    for collective in collectives:
        buckets: Number = 1.0
        if framework.bucket_bytes:
            buckets = np.maximum(1.0, np.ceil(np.asarray(collective.bytes) / framework.bucket_bytes))
        part = Collective(kind=collective.kind, axis=collective.axis, bytes=collective.bytes / buckets)
        each = _seconds(part, cluster, groups)
        total = total + buckets * each
        last = last + each
    if not overlapped:
        return total, 0.0 * total
    shown = last + exposed_s(total - last, cover_s)
    return shown, total - shown


def optimizer_s(held: HeldParameters, run: Run, strategy: Strategy, framework: Framework, cluster: Cluster) -> Number:
    """Seconds of the optimizer step: HBM traffic of gradients and states."""
    kernels = 8 if framework.fused_optimizer else 40
    result: Number = pointwise_time_s(
        cluster.device, optimizer_traffic_bytes(held, run, strategy, framework), kernels=kernels
    )
    return result
