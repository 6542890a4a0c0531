"""Seconds of segments on a device and a cluster, by kind of work and by axis.

All GEMMs of a program go through the device's formula in one call, all collectives of a kind and axis through the
network's: one formula for one strategy or for an array of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from simulator.arch.layer import Segment
from simulator.arch.operations import (
    AttentionCore,
    Collective,
    Gemm,
    GroupedGemm,
    Lookup,
    Number,
    Operation,
    Pointwise,
    Work,
)
from simulator.cluster.attention import kernel_slowdown
from simulator.cluster.device import (
    attention_time_s,
    gemm_time_s,
    lookup_time_s,
    pointwise_time_s,
    trained_experts_time_s,
)
from simulator.cluster.dispatch import deduplicated_exchange_s
from simulator.cluster.network import collective_time_s
from simulator.cluster.peaks import constants_for
from simulator.cluster.placement import Group
from simulator.parallel.recompute import Policy, recomputed_operations
from simulator.spec.hardware import Cluster, Device
from simulator.spec.kernels import MEASURED_LIMITS, PowerLimit, sustained_slowdown

KIND_OF = {Gemm: "gemm", GroupedGemm: "grouped_gemm", AttentionCore: "attention", Pointwise: "pointwise",
           Lookup: "lookup"}  # fmt: skip
MATRIX = (Gemm, GroupedGemm, AttentionCore)
NATIVE_LAUNCH_SHARE = 0.08
"""Host time of a launch from C++ over one from Python: grouped products launch one kernel per expert from inside one
operator (TransformerEngine te_multi_stream_cublas_gemm), at 3.8 of 50 us (framework profiles, launch_s)."""
PHASES = ("forward", "input_grad", "weight_grad")
CHANNEL_SHARE = 0.15
"""Share of a device's units that a running collective holds: NCCL runs 16 to 24 channels of one thread block each on
108 to 148 multiprocessors (NCCL tuning; calculon's A100 file measures 0.15 the same way)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTime:
    """Seconds of one phase of one segment by kind of work or axis. `parts` holds exposed communication only, `hidden`
    what ran beside compute; `kernels` counts launches, `experts_kernels` those of dropless experts, whose sizes are not
    known when a CUDA graph is recorded.
    """

    parts: Mapping[str, Number]
    hidden: Mapping[str, Number]
    kernels: Number
    experts_kernels: Number = 0

    @property
    def total_s(self) -> Number:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTime:
    """One micro-batch through one segment: forward, B, W and recomputation."""

    forward: PhaseTime
    input_grad: PhaseTime
    weight_grad: PhaseTime
    recompute: PhaseTime


EQUAL_LINKS: Mapping[str, Cluster] = {}
"""Every group runs on the links of the cluster itself."""


def work_times_s(
    works: Sequence[Work], cluster: Cluster, groups: Mapping[str, Group], links: Mapping[str, Cluster] = EQUAL_LINKS,
    *, device: Device | None = None,
) -> list[Any]:  # fmt: skip
    """Seconds of each work, evaluated together by kind and structural options [s].

    `links` holds, by axis, the cluster that the axis's group feels where that is another (`Setting.links`); `device`
    computes instead of the cluster's.
    """
    device = device or cluster.device
    by_name = device.kernels.measured is not None
    buckets: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, work in enumerate(works):
        buckets[_bucket(work, by_name)].append(index)
    result: list[Any] = [0.0] * len(works)
    for key, indices in buckets.items():
        times = _evaluate(key, [works[i] for i in indices], device, groups, lambda axis: links.get(axis, cluster))
        for row, index in enumerate(indices):
            result[index] = times[row]
    return result


def _bucket(work: Work, by_name: bool) -> tuple[Any, ...]:
    match work:
        case Gemm() | GroupedGemm():
            return type(work), work.dtype
        case AttentionCore():
            return AttentionCore, work.dtype, work.causal, work.window, work.backward, work.kernel
        case Pointwise():
            return Pointwise, work.kernels, work.kernel if by_name else ""
        case Lookup():
            return (Lookup,)
        case Collective():
            return Collective, work.kind, work.axis, work.copies


def _stack(works: Sequence[Any], *fields: str) -> dict[str, Any]:
    """Fields of equal works as arrays of one row per work (and one column per strategy, where fields are arrays)."""
    columns = {name: [getattr(work, name) for work in works] for name in fields}
    if any(isinstance(value, np.ndarray) for values in columns.values() for value in values):
        shape = np.broadcast_shapes(*(np.shape(value) for values in columns.values() for value in values))
        return {
            name: np.stack([np.broadcast_to(np.asarray(value, dtype=float), shape) for value in values])
            for name, values in columns.items()
        }
    return {name: np.array(values, dtype=float) for name, values in columns.items()}


_COLUMN = 2048
"""Shapes from which on equal ones are looked for: columns of strategies repeat few of them."""


def _distinct_shapes(fields: Mapping[str, Any], seconds: Callable[..., Any]) -> Any:
    """Seconds of each shape, evaluated once per distinct shape."""
    any_field, *_ = fields.values()
    if any_field.size < _COLUMN:
        return seconds(**fields)
    flat = {name: np.ascontiguousarray(array).ravel() for name, array in fields.items()}
    code = np.zeros(any_field.size, np.uint64)
    for values in flat.values():
        bits = values.view(np.uint64)
        code = (code ^ (bits >> np.uint64(20))) * np.uint64(0x9E3779B97F4A7C15) + bits
    _, first, place = np.unique(code, return_index=True, return_inverse=True)
    if not all(np.array_equal(values[first][place], values) for values in flat.values()):
        return seconds(**fields)
    few = seconds(**{name: values[first] for name, values in flat.items()})
    return np.asarray(few)[place].reshape(any_field.shape)


def _evaluate(
    key: tuple[Any, ...], works: Sequence[Any], device: Device, groups: Mapping[str, Group],
    felt_by: Callable[[str], Cluster],
) -> Any:  # fmt: skip
    kind = key[0]
    if kind is Gemm:
        f = _stack(works, "m", "n", "k", "batch", "repeat")
        repeat = f.pop("repeat")
        return _distinct_shapes(f, partial(gemm_time_s, device, key[1])) * repeat
    if kind is GroupedGemm:
        fields = _stack(works, "experts", "tokens", "n", "k", "imbalance")
        return _distinct_shapes(fields, partial(trained_experts_time_s, device, key[1]))
    if kind is AttentionCore:
        fields = _stack(works, "batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "value_head_dim")
        timed = partial(attention_time_s, device, key[1], causal=key[2], window=key[3], backward=key[4])
        return _distinct_shapes(fields, timed) * kernel_slowdown(device.generation, key[5])
    if kind is Pointwise:
        return pointwise_time_s(device, kernels=key[1], kernel=key[2], **_stack(works, "bytes", "flops"))
    if kind is Lookup:
        return lookup_time_s(device, **_stack(works, "rows", "width_bytes"))
    buffer_bytes = _stack(works, "bytes")["bytes"]
    if key[3]:
        return deduplicated_exchange_s(felt_by(key[2]), buffer_bytes, key[3], groups[key[2]])
    return collective_time_s(felt_by(key[2]), key[1], buffer_bytes, groups[key[2]])


def segment_times(
    segments: Iterable[Segment], policy: Policy, cluster: Cluster, groups: Mapping[str, Group],
    links: Mapping[str, Cluster] = EQUAL_LINKS,
) -> dict[str, SegmentTime]:  # fmt: skip
    """Times of distinct segments, by name."""
    return segment_times_by_policy(segments, [policy], cluster, groups, links)[0]


def segment_times_by_policy(
    segments: Iterable[Segment], policies: Sequence[Policy], cluster: Cluster, groups: Mapping[str, Group],
    links: Mapping[str, Cluster] = EQUAL_LINKS,
) -> list[dict[str, SegmentTime]]:  # fmt: skip
    """Times of distinct segments, by name, under each recomputation policy; every operation is timed once."""
    held = list(segments)
    works = [
        work
        for segment in held
        for operation in segment.operations
        for work in (*operation.forward, *operation.input_grad, *operation.weight_grad)
    ]
    cold = replace(cluster.device, kernels=cluster.device.kernels.cold())
    seconds = iter(_sustained(works, work_times_s(works, cluster, groups, links, device=cold), cluster.device))
    timed = [(segment, [_timed(operation, seconds) for operation in segment.operations]) for segment in held]
    return [{segment.name: _segment_time(segment, each, policy) for segment, each in timed} for policy in policies]


def _sustained(works: Sequence[Work], cold_s: list[Any], device: Device) -> list[Any]:
    """Lengthen matrix kernels by what the power limit costs a device that never rests.

    The limit lowers the clock, so every dtype pays what long 16-bit products were measured to pay; what long products
    of narrower dtypes lose beyond that, they lose to memory. Where large products were measured on the device itself,
    its constants already hold what its limit makes of them.
    """
    scaled = device.products_factor and device.kernels.provenance == "inherited"
    own = None if scaled else PowerLimit(device.tdp_watts, device.units, device.clock_factor)
    measured = MEASURED_LIMITS.get(device.generation)
    slowdown = sustained_slowdown(constants_for(device, "gemm", "bf16"), own, measured)
    return [
        seconds * slowdown if isinstance(work, MATRIX) else seconds
        for work, seconds in zip(works, cold_s, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Timed:
    """An operation with the seconds of each of its works, phase by phase."""

    operation: Operation
    phases: Mapping[str, list[tuple[Work, Any]]]


def _timed(operation: Operation, seconds: Iterator[Any]) -> Timed:
    phases = {name: [(work, next(seconds)) for work in getattr(operation, name)] for name in PHASES}
    return Timed(operation, phases)


def _segment_time(segment: Segment, timed: list[Timed], policy: Policy) -> SegmentTime:
    again = {id(operation) for operation in recomputed_operations(segment, policy)}
    recomputed = [entry for entry in timed if id(entry.operation) in again]
    shown = _shown_of_experts(timed)
    return SegmentTime(
        forward=_phase(timed, "forward", shown),
        input_grad=_phase(timed, "input_grad", shown),
        weight_grad=_phase(timed, "weight_grad", shown),
        recompute=_phase(recomputed, "forward", shown),
    )


def _shown_of_experts(timed: list[Timed]) -> Number:
    """Share of the experts' exchanges, both ways and back, that sticks out of all compute of the segment.

    The forward of one micro-batch runs beside the backward of another, each one's exchanges beside the other's compute
    (Megatron-LM megatron/core/pipeline_parallel/combined_1f1b.py, overlap_moe_expert_parallel_comm; DeepSeek-V3 report
    sec. 3.2.1): one second of compute covers one exchange.
    """
    sent_s: Number = sum(
        seconds for entry in timed for phase in PHASES for work, seconds in entry.phases[phase]
        if isinstance(work, Collective) and work.hides == "experts"
    )  # fmt: skip
    shown_s = exposed_s(sent_s, _compute_s(entry.phases[phase] for entry in timed for phase in PHASES))
    # Where nothing is sent nothing is shown: 0 / 1.
    return shown_s / (sent_s + (sent_s == 0))


def _phase(timed: list[Timed], phase: str, shown_of_experts: Number) -> PhaseTime:
    """Sum a phase, charging each hidden collective only what sticks out of what it runs beside."""
    parts: dict[str, Any] = defaultdict(float)
    covered: dict[str, Any] = defaultdict(float)
    kernels: Number = 0
    experts: Number = 0
    for index, entry in enumerate(timed):
        dynamic = "moe" in entry.operation.modules and not entry.operation.name.endswith(".router")
        hidden: dict[tuple[str, str], Any] = defaultdict(float)
        for work, seconds in entry.phases[phase]:
            kernels = kernels + _launches(work)
            experts = experts + (_launches(work) if dynamic else 0)
            if isinstance(work, Collective) and work.hides:
                hidden[work.hides, work.axis] = hidden[work.hides, work.axis] + seconds
            else:
                kind = work.axis if isinstance(work, Collective) else KIND_OF[type(work)]
                parts[kind] = parts[kind] + seconds
        for (beside, axis), seconds in hidden.items():
            if beside == "experts":
                shown = seconds * shown_of_experts
            else:
                shown = exposed_s(seconds, _cover_s(timed, index, phase, beside))
            parts[axis] = parts[axis] + shown
            covered[axis] = covered[axis] + (seconds - shown)
    return PhaseTime(parts=dict(parts), hidden=dict(covered), kernels=kernels, experts_kernels=experts)


def exposed_s(communication_s: Number, cover_s: Number, share: float = CHANNEL_SHARE) -> Number:
    """Time that communication adds to the work it runs beside [s].

    While it runs, the work advances at rate 1 - share. So w seconds of work and c of communication take
    max(c, w + share c): the addition is max(c - w, share c).

    >>> exposed_s(2.0, 10.0, share=0.1), exposed_s(12.0, 10.0, share=0.1)
    (0.2, 2.0)
    """
    if isinstance(communication_s, np.ndarray) or isinstance(cover_s, np.ndarray):
        return np.maximum(communication_s - cover_s, share * communication_s)
    return max(communication_s - cover_s, share * communication_s)


def _cover_s(timed: list[Timed], index: int, phase: str, beside: str) -> Any:
    """Seconds of compute that a hidden collective of operation `index` runs beside.

    A border's GEMM is that of the layer after it (entering) or before it (leaving).
    """
    column = beside if beside in PHASES else phase
    neighbours = timed[index + 1 : index + 2]
    if beside != "attention" and not any(_has_gemm(entry) for entry in neighbours):
        neighbours = timed[max(index - 1, 0) : index]
    return _compute_s(entry.phases[column] for entry in neighbours)


def _has_gemm(entry: Timed) -> bool:
    return any(isinstance(work, Gemm) for work, _ in entry.phases["forward"])


def _compute_s(phases: Iterable[list[tuple[Work, Any]]]) -> Any:
    return sum(seconds for phase in phases for work, seconds in phase if not isinstance(work, Collective))


def _launches(work: Work) -> Number:
    match work:
        case Pointwise():
            return work.kernels
        case Gemm():
            return work.repeat
        case AttentionCore():
            return 3 if work.backward else 1
        case GroupedGemm():
            return 1 + NATIVE_LAUNCH_SHARE * work.experts
        case _:
            return 1
