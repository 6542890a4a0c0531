"""What follows a rank's last backward: gradient reduction, clipping, optimizer, parameter gathering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.arch.operations import Collective, Number
from simulator.cluster.device import pointwise_time_s
from simulator.cluster.network import collective_time_s
from simulator.parallel.gradients import Synchronisation, synchronisation
from simulator.parallel.lower import Stage
from simulator.parallel.offload import host_link_s, host_update_s
from simulator.parallel.setting import Setting
from simulator.parallel.stage_cost import StageCost
from simulator.parallel.states import (
    HeldParameters,
    flattening_bytes,
    held_parameters,
    optimizer_traffic_bytes,
    owned_parameters,
    parameter_bytes,
    sharding_copy_bytes,
)
from simulator.parallel.timing import exposed_s


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnd:
    """Seconds of one rank after its last backward, and what was hidden before that."""

    reduce_s: Number
    """Exposed reduction of gradients over replicas (and of replicated parameters over tp)."""
    optimizer_s: Number
    """Gradient norm, clipping and update."""
    gather_s: Number
    """Exposed all-gather of updated parameters."""
    reduce_hidden_s: Number
    """Reduction beside the last backward."""
    gather_hidden_s: Number
    """Gathering beside the next step's first forward."""
    reduce_count: Number = 1
    """How many collectives the reduction consists of: its buckets."""

    @property
    def hidden_s(self) -> Number:
        return self.reduce_hidden_s + self.gather_hidden_s

    @property
    def total_s(self) -> Number:
        return self.reduce_s + self.optimizer_s + self.gather_s


def slowest_end(ends: Sequence[StepEnd]) -> StepEnd:
    """The end of the step of ranks that wait for each other, each part as on the slowest of them (numbers only)."""
    reduce, update, gather = (
        max(ends, key=lambda end: float(getattr(end, part))) for part in ("reduce_s", "optimizer_s", "gather_s")
    )
    return StepEnd(reduce_s=reduce.reduce_s, reduce_hidden_s=reduce.reduce_hidden_s,
                   reduce_count=reduce.reduce_count, optimizer_s=update.optimizer_s,
                   gather_s=gather.gather_s, gather_hidden_s=gather.gather_hidden_s)  # fmt: skip


def step_end(stages: Sequence[Stage], costs: Sequence[StageCost], setting: Setting) -> StepEnd:
    """The end of the step of one rank.

    An overlapped reduction runs bucket by bucket beside the backward of the last micro-batch: its last bucket and
    what the backward does not cover stay exposed. An overlapped gather runs beside the next forward likewise. States
    in host memory are updated there: gradients leave beside the backward, parameters come back after the update.
    """
    held = held_parameters(tuple(stages))
    sync = synchronisation(held, setting.run, setting.strategy, setting.framework)
    backward = sum(c.input_grad.total_s + c.recompute.total_s + c.weight_grad.total_s for c in costs)
    forward = sum(c.forward.total_s for c in costs)
    beside, ahead = setting.overlaps_grad_reduce, setting.overlaps_param_gather
    reduce_s, reduce_hidden, buckets = _bucketed(sync.reduce, backward, setting, overlapped=beside)
    gather_s, gather_hidden, _ = _bucketed(sync.gather, forward, setting, overlapped=ahead)
    tensor_s = sum(_seconds(c, setting) for c in sync.tensor)
    update_s = optimizer_s(held, setting)
    if setting.strategy.offload != "none":
        owned, each_bytes = owned_parameters(held, setting.strategy), parameter_bytes(setting.run)
        moved_s = host_link_s(owned * each_bytes, setting.cluster)
        late = exposed_s(moved_s, backward) if setting.overlaps_grad_reduce else moved_s
        reduce_s, reduce_hidden = reduce_s + late, reduce_hidden + moved_s - late
        # Shards of parameters that rest on the host come to the device with their gathers (stage_cost.py).
        back_s = moved_s if setting.strategy.offload == "optimizer" else 0.0
        update_s = host_update_s(owned, setting.run, setting.cluster) + back_s
    return StepEnd(
        reduce_s=reduce_s + tensor_s + _copies_s(held, sync, setting),
        optimizer_s=update_s,
        gather_s=gather_s,
        reduce_hidden_s=reduce_hidden,
        gather_hidden_s=gather_hidden,
        reduce_count=buckets,
    )


def _copies_s(held: HeldParameters, sync: Synchronisation, setting: Setting) -> Number:
    """Seconds of copying gradients into what is reduced once per step, and back where they are tensors of their own."""
    kinds = {collective.kind for collective in sync.reduce}
    if not kinds or setting.framework.sharded_copies == "none":
        return 0.0
    if "reduce_scatter" in kinds:
        _, moved = sharding_copy_bytes(held.total, setting.run, setting.framework)
    else:
        moved = flattening_bytes(held.total, setting.run, setting.framework)
    # One replica sends nothing and copies nothing.
    alone = setting.strategy.dp * setting.strategy.cp == 1
    seconds = pointwise_time_s(setting.cluster.device, moved, kernel="copy")
    result: Number = np.where(alone, 0.0, seconds)[()]
    return result


def _seconds(collective: Collective, setting: Setting) -> Number:
    group = setting.groups[collective.axis]
    result: Number = collective_time_s(setting.felt_by(collective.axis), collective.kind, collective.bytes, group)
    return result


def _bucketed(
    collectives: tuple[Collective, ...], cover_s: Number, setting: Setting, *, overlapped: bool
) -> tuple[Number, Number, Number]:
    """(exposed, hidden) seconds of step-end collectives, and how many they are."""
    total: Number = 0.0
    last: Number = 0.0
    count: Number = 0
    for collective in collectives:
        buckets = _buckets(collective, setting)
        part = Collective(kind=collective.kind, axis=collective.axis, bytes=collective.bytes / buckets)
        each = _seconds(part, setting)
        total = total + buckets * each
        last = last + each
        count = count + buckets
    if not overlapped:
        return total, 0.0 * total, count
    shown = last + exposed_s(total - last, cover_s)
    return shown, total - shown, count


def _buckets(collective: Collective, setting: Setting) -> Number:
    """How many collectives share the work: one per bucket, and at least one per owner of whole tensors."""
    least: Number = 1.0
    if collective.kind in ("broadcast", "reduce"):
        least = setting.groups[collective.axis].size
    if not setting.framework.bucket_bytes:
        return least
    return np.maximum(least, np.ceil(np.asarray(collective.bytes) / setting.framework.bucket_bytes))


def optimizer_s(held: HeldParameters, setting: Setting) -> Number:
    """Seconds of the optimizer step: HBM traffic of gradients and states."""
    kernels = 8 if setting.framework.fused_optimizer else 40
    moved = optimizer_traffic_bytes(held, setting.run, setting.strategy, setting.framework)
    result: Number = pointwise_time_s(setting.cluster.device, moved, kernels=kernels, kernel="optimizer")
    return result
