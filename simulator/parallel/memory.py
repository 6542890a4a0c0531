"""Memory of each rank, by part: what stands there all the time, what a micro-batch leaves until its backward, and what
exists only while a task runs.

Peak = weights + gradients + optimizer (+ gathered parameters) + communication buffers + activations of the
micro-batches in flight + the working set of the task at hand, or what the optimizer step needs if that is more; then
what sits outside the allocator's tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.arch.layer import Segment
from simulator.arch.operations import DTYPE_BYTES, Gemm, GroupedGemm, Number, largest
from simulator.cluster.elementwise import maximum, where
from simulator.parallel.lower import Program, Stage
from simulator.parallel.recompute import Policy, policy_of, recomputed_parts, saved_bytes
from simulator.parallel.setting import Setting, splits_sends
from simulator.parallel.states import held_parameters, optimizer_step_bytes, state_bytes, whole_gradient_bytes
from simulator.spec.run import Framework
from simulator.spec.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentMemory:
    """Activation bytes of one micro-batch in one segment."""

    saved_bytes: Number
    """Kept until backward under the strategy's recomputation."""
    plain_bytes: Number
    """Kept without recomputation."""
    largest_bytes: Number
    """The most that stands beside one saved tensor: as a rule its gradient."""
    late_bytes: Number = 0.0
    """Inputs and output gradients of its matrix products, which a split backward keeps for the weight gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Bytes of one micro-batch in one stage."""

    activation_bytes: Number
    """Kept from forward to backward."""
    late_bytes: Number
    """Kept from a split backward to its weight gradient."""
    forward_bytes: Number
    """Held only while a forward runs, beside what it saves."""
    backward_bytes: Number
    """Held only while a backward runs, beside what was saved."""


def segment_memories(program: Program, strategy: Strategy) -> dict[str, SegmentMemory]:
    """Activation bytes of every distinct segment, by name."""
    distinct = {segment.name: segment for stage in program.stages for segment, _ in stage.parts}
    return memories_of(distinct.values(), policy_of(strategy))


def memories_of(segments: Iterable[Segment], policy: Policy) -> dict[str, SegmentMemory]:
    """Activation bytes of segments under a recomputation policy, by name."""
    return {
        segment.name: SegmentMemory(
            saved_bytes=saved_bytes(segment, policy),
            plain_bytes=saved_bytes(segment, Policy()),
            largest_bytes=largest(
                saved.bytes if saved.beside_bytes is None else saved.beside_bytes
                for operation in segment.operations for saved in operation.saves
            ),
            late_bytes=_weight_gradient_bytes(segment),
        )
        for segment in segments
    }  # fmt: skip


def _weight_gradient_bytes(segment: Segment) -> Number:
    """What the weight gradients of a segment read: of every product the input and the gradient of the output.

    For a GPT layer 32 s b h bytes (Qi et al. 2023, Zero Bubble, section 3.1: M_W).
    """
    total: Number = 0.0
    for operation in segment.operations:
        for work in operation.weight_grad:
            if isinstance(work, Gemm):
                total = total + (work.m + work.n) * work.k * work.batch * work.repeat * DTYPE_BYTES[work.dtype]
            elif isinstance(work, GroupedGemm):
                total = total + (work.n + work.k) * work.tokens * DTYPE_BYTES[work.dtype]
    return total


def stage_activation_bytes(stage: Stage, strategy: Strategy, memories: Mapping[str, SegmentMemory]) -> Number:
    """Activation bytes that one micro-batch leaves in one stage until its backward [B].

    With partial full recomputation the first `recompute_layers` layers keep only their input.
    """
    total: Number = 0.0
    for segment, again, rest in recomputed_parts(stage, strategy):
        memory = memories[segment.name]
        total = total + again * memory.saved_bytes + rest * memory.plain_bytes
    return total


def stage_memory(stage: Stage, setting: Setting, memories: Mapping[str, SegmentMemory]) -> StageMemory:
    """Bytes of one micro-batch in a stage: kept, and beside that at the worst moment of its forward and backward."""
    held = [(memories[segment.name], count) for segment, count in stage.parts]
    return StageMemory(
        activation_bytes=kept_bytes(stage, setting, memories),
        late_bytes=sum(count * memory.late_bytes for memory, count in held),
        forward_bytes=largest(where(count > 0, memory.largest_bytes, 0.0) for memory, count in held),
        backward_bytes=backward_bytes(stage, setting.strategy, memories),
    )


def kept_bytes(stage: Stage, setting: Setting, memories: Mapping[str, SegmentMemory]) -> Number:
    """What a micro-batch leaves in a stage, its output included where the software keeps that."""
    kept = stage_activation_bytes(stage, setting.strategy, memories)
    software = setting.framework
    if not software.keeps_stage_outputs:
        return kept
    sent = setting.strategy.tp if software.keeps_split_outputs and splits_sends(setting.strategy, software) else 1
    return kept + stage.boundary_bytes / sent


def backward_bytes(stage: Stage, strategy: Strategy, memories: Mapping[str, SegmentMemory]) -> Number:
    """The worst of a stage's segments: what is recomputed, and the largest gradient.

    Backward visits them from the last one, and each lets go of what it saved: layers that are not recomputed, which
    come last in a stage, of all of it.
    """
    released: Number = 0.0
    worst: Number = 0.0
    for segment, again, rest in reversed(recomputed_parts(stage, strategy)):
        memory = memories[segment.name]
        if np.any(rest):
            worst = maximum(worst, where(rest > 0, memory.largest_bytes - released, 0.0))
            released = released + rest * memory.plain_bytes
        need = memory.plain_bytes - memory.saved_bytes + memory.largest_bytes
        worst = maximum(worst, where(again > 0, need - released, 0.0))
        released = released + again * memory.saved_bytes
    return worst


def static_bytes(stages: Sequence[Stage], boundary_bytes: Number, setting: Setting) -> dict[str, Number]:
    """What a pipeline rank holds from the start of a step to its end, by part [B]."""
    held = held_parameters(tuple(stages))
    parts: dict[str, Number] = dict(state_bytes(held, setting.run, setting.strategy, setting.framework))
    parts["communication_buffers"] = buffer_bytes(boundary_bytes, held.total, setting)
    if setting.strategy.zero == 3:
        whole = whole_gradient_bytes(held, setting.run, setting.framework)
        parts["communication_buffers"] = parts["communication_buffers"] + whole
    return parts


def step_bytes(stages: Sequence[Stage], setting: Setting) -> Number:
    """What the optimizer step of a pipeline rank allocates beside its states [B]."""
    return optimizer_step_bytes(held_parameters(tuple(stages)), setting.run, setting.strategy, setting.framework)


def overhead_bytes(allocated_bytes: Number, framework: Framework) -> dict[str, Number]:
    """What tensors of `allocated_bytes` cost besides: what the allocator cannot use, and what sits outside it [B]."""
    fraction = framework.fragmentation_fraction
    return {"fragmentation": allocated_bytes * fraction / (1.0 - fraction), "context": framework.context_bytes}


def buffer_bytes(boundary_bytes: Number, parameters: Number, setting: Setting) -> Number:
    """Pipeline send and receive buffers (two each way) and, where gradients are bucketed outside the main gradient
    buffer, two buckets.
    """
    if not (setting.overlaps_grad_reduce and setting.strategy.zero >= 2):
        return 4 * boundary_bytes
    return 4 * boundary_bytes + 2 * np.minimum(setting.framework.bucket_bytes, parameters * 4)
