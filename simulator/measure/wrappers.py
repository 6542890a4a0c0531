"""What keeps replicas equal in the measured steps, operation by operation as torch 2.13 and `train.py` run it.

The engine spreads a stage's sharding evenly over its layers and takes gradients that are views of buckets for free.
Beside that, on a processor, these count, each read off the code that runs:

- DistributedDataParallel multiplies every fresh gradient into its bucket (torch/csrc/distributed/c10d/reducer.cpp,
  mark_variable_ready_dense: `mul_out(bucket_view, grad, 1 / div_factor)`), then all-reduces buckets of 25 MB;
- other replicas join gradients in a bucket, all-reduce, divide and copy back (train.py, `reduce_in_buckets`);
- ZeRO-1 joins all gradients in one flat tensor, scatters it at once, divides its shard and gathers the parameters at
  once (train.py, `Flat`);
- FSDP2 shards each layer, and what is outside layers, as a unit of its own
  (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py): it copies its shards into the buffer that is gathered
  (`all_gather_copy_in`) and out of it (`split_with_sizes_copy`), once more in the backward for every unit but the root
  (fully_shard's `reshard_after_forward`), joins a unit's gradients (`_chunk_cat`) and scatters their mean; gloo knows
  no mean, so it sums and divides the whole buffer (ProcessGroupGloo.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from simulator.arch.operations import Number
from simulator.cluster.device import pointwise_time_s
from simulator.cluster.network import collective_time_s
from simulator.lowered import Lowered, rank_slots, rank_stages
from simulator.measure.suite import Case, model_of
from simulator.parallel.gradients import synchronisation
from simulator.parallel.lower import Stage
from simulator.parallel.setting import Setting
from simulator.parallel.states import held_parameters

COPY_BYTES = 8.0
"""An fp32 element read and written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Parameters that one FSDP2 unit, or one rank of another kind, holds."""

    dense_elements: Number
    expert_elements: Number
    tensors: int

    @property
    def elements(self) -> float:
        return float(self.dense_elements + self.expert_elements)


def replicas_s(lowered: Lowered, case: Case, rank: int) -> float:
    """Seconds in which one pipeline rank keeps its replicas equal in a step [s]."""
    strategy, setting = case.strategy, lowered.setting
    if strategy.dp * strategy.cp == 1:
        return 0.0
    stages = [lowered.program.stages[stage] for stage in rank_stages(lowered.order, rank)]
    if strategy.zero == 3:
        root, layers = _units(stages, norm_bias=model_of(case.model).norm_bias)
        traffic_s = sum(_fsdp_unit_s(unit, setting, gathers=2) for unit in layers)
        return _fsdp_unit_s(root, setting, gathers=1) + traffic_s + _host_s([root, *layers], setting)
    outside, inside = _units(stages, norm_bias=model_of(case.model).norm_bias)
    held = _together([outside, *inside])
    if strategy.zero == 1:
        return _flat_s(held, setting)
    if strategy.pp == 1 and strategy.ep == 1:
        return _copy_s(held.elements, held.tensors, setting) + _buckets_s(held.elements, "dp_cp", setting)
    dense, expert = float(held.dense_elements), float(held.expert_elements)
    return _joined_s(dense, "dp_cp", setting) + _joined_s(expert, "edp", setting)


def engine_replicas_s(lowered: Lowered, rank: int) -> float:
    """What the engine counts for the same, which `replicas_s` replaces: gathers, scatters, reductions of a rank [s]."""
    end = lowered.ends[rank]
    total = float(end.reduce_s + end.gather_s + end.hidden_s) - _tensor_s(lowered, rank)
    for slot in rank_slots(lowered.order, rank):
        cost = lowered.costs[slot]
        for phase in (cost.forward, cost.input_grad, cost.weight_grad, cost.recompute):
            shared = float(phase.parts.get("dp", 0.0)) + float(phase.hidden.get("dp", 0.0))
            total += lowered.program.micro_batches * shared
    return total


def _tensor_s(lowered: Lowered, rank: int) -> float:
    """Seconds of summing what sequence parallelism leaves different on the tensor ranks: no business of replicas."""
    setting = lowered.setting
    stages = [lowered.program.stages[stage] for stage in rank_stages(lowered.order, rank)]
    held = held_parameters(tuple(stages))
    sync = synchronisation(held, setting.run, setting.strategy, setting.framework)
    return sum(_collective_s(one.kind, float(one.bytes), one.axis, setting) for one in sync.tensor)


def _tensors(name: str, norm_bias: bool) -> int:
    """How many parameter tensors a weight is: a norm's holds its bias too."""
    return 2 if norm_bias and name.endswith("norm") else 1


def _units(stages: Sequence[Stage], *, norm_bias: bool) -> tuple[Unit, list[Unit]]:
    """What lies outside layers, and each layer."""
    outside: list[Unit] = []
    layers: list[Unit] = []
    for stage in stages:
        for segment, count in stage.parts:
            weights = [weight for operation in segment.operations for weight in operation.weights]
            unit = Unit(
                dense_elements=float(sum(weight.elements for weight in weights if weight.sharing == "dense")),
                expert_elements=float(sum(weight.elements for weight in weights if weight.sharing == "expert")),
                tensors=sum(_tensors(weight.name, norm_bias) for weight in weights),
            )
            (layers if segment.recomputable else outside).extend([unit] * int(count))
    return _together(outside), layers


def _together(units: Sequence[Unit]) -> Unit:
    return Unit(dense_elements=sum(unit.dense_elements for unit in units),
                expert_elements=sum(unit.expert_elements for unit in units),
                tensors=sum(unit.tensors for unit in units))  # fmt: skip


def _fsdp_unit_s(unit: Unit, setting: Setting, *, gathers: int) -> float:
    ranks = float(setting.groups["shard"].size)
    held, size = unit.elements, 4.0 * unit.elements
    gather = (
        _copy_s(held / ranks, unit.tensors, setting)
        + _collective_s("all_gather", size, "shard", setting)
        + _copy_s(held, unit.tensors, setting)
    )
    scatter = (
        _copy_s(held, unit.tensors, setting)
        + _collective_s("reduce_scatter", size, "shard", setting)
        + _copy_s(held, 1, setting)
    )
    return gathers * gather + scatter


def _host_s(units: Sequence[Unit], setting: Setting) -> float:
    """Bookkeeping of sharded units and of their tensors, where calibration measured it (calibrate/sharing.py)."""
    measured = setting.cluster.device.kernels.measured
    found = measured.sums.get("sharding") if measured else None
    if not found:
        return 0.0
    tensors = sum(unit.tensors for unit in units)
    return found["call_s"] + found["unit_s"] * len(units) + found["tensor_s"] * tensors


def _flat_s(held: Unit, setting: Setting) -> float:
    ranks = float(setting.groups["shard"].size)
    size = 4.0 * held.elements
    return (
        _copy_s(held.elements, held.tensors, setting)
        + _collective_s("reduce_scatter", size, "shard", setting)
        + _copy_s(held.elements / ranks, 1, setting)
        + _collective_s("all_gather", size, "shard", setting)
    )


def _joined_s(elements: float, axis: str, setting: Setting) -> float:
    if elements == 0 or setting.groups[axis].size <= 1:
        return 0.0
    return 3 * _copy_s(elements, 1, setting) + _buckets_s(elements, axis, setting)


def _buckets_s(elements: float, axis: str, setting: Setting) -> float:
    return sum(_collective_s("all_reduce", size, axis, setting) for size in _bucket_sizes(4.0 * elements, setting))


def _bucket_sizes(size_bytes: float, setting: Setting) -> Iterator[float]:
    count = math.ceil(size_bytes / setting.framework.bucket_bytes)
    yield from (size_bytes / count for _ in range(count))


def _collective_s(kind: str, size_bytes: float, axis: str, setting: Setting) -> float:
    return float(collective_time_s(setting.felt_by(axis), kind, size_bytes, setting.groups[axis]))


def _copy_s(elements: float, tensors: int, setting: Setting) -> float:
    """Seconds of reading and writing so many elements, in so many tensors of equal size."""
    count = max(tensors, 1)
    each = COPY_BYTES * elements / count
    return count * float(pointwise_time_s(setting.cluster.device, each, kernel="copy"))
