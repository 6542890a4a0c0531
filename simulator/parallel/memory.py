"""Peak memory of each rank, by part.

Peak = weights + gradients + optimizer (+ gathered parameters) + activations of the micro-batches in flight + the
working set of the segment at work + loss and logits + communication buffers + what sits outside the allocator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.arch.layer import Segment
from simulator.arch.operations import Number, largest
from simulator.cluster.elementwise import minimum, where
from simulator.parallel.lower import Program, Stage
from simulator.parallel.recompute import Policy, policy_of, saved_bytes
from simulator.parallel.setting import Setting
from simulator.parallel.states import held_parameters, state_bytes
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
    """The largest saved tensor: its gradient is as large."""


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
            largest_bytes=largest(saved.bytes for operation in segment.operations for saved in operation.saves),
        )
        for segment in segments
    }


def stage_activation_bytes(stage: Stage, strategy: Strategy, memories: Mapping[str, SegmentMemory]) -> Number:
    """Activation bytes that one micro-batch leaves in one stage until its backward [B].

    With partial full recomputation the first `recompute_layers` layers keep only their input.
    """
    left = strategy.recompute_layers or stage.layers
    total: Number = 0.0
    for segment, count in stage.parts:
        recomputed = minimum(count, left) if segment.recomputable else count
        left -= recomputed if segment.recomputable else 0
        memory = memories[segment.name]
        total = total + recomputed * memory.saved_bytes + (count - recomputed) * memory.plain_bytes
    return total


def rank_memory(
    stages: Sequence[Stage], in_flight: Sequence[Number], memories: Mapping[str, SegmentMemory], setting: Setting,
    boundary_bytes: Number,
) -> dict[str, Number]:  # fmt: skip
    """Peak bytes of one pipeline rank by part; they sum to its peak.

    `in_flight[i]` is how many micro-batches `stages[i]` holds at the peak (the schedule's figure), `boundary_bytes` the
    activation that crosses a pipeline border.
    """
    held = held_parameters(tuple(stages))
    parts: dict[str, Number] = dict(state_bytes(held, setting.run, setting.strategy, setting.framework))
    parts["activations"] = sum(
        count * stage_activation_bytes(stage, setting.strategy, memories)
        for stage, count in zip(stages, in_flight, strict=True)
    )
    parts["working_set"] = working_set_bytes(stages, memories)
    parts["communication_buffers"] = buffer_bytes(boundary_bytes, held.total, setting)
    return parts | overhead_bytes(sum(parts.values()), setting.framework)


def overhead_bytes(allocated_bytes: Number, framework: Framework) -> dict[str, Number]:
    """What tensors of `allocated_bytes` cost besides: what the allocator cannot use, and what sits outside it [B]."""
    fraction = framework.fragmentation_fraction
    return {"fragmentation": allocated_bytes * fraction / (1.0 - fraction), "context": framework.context_bytes}


def working_set_bytes(stages: Sequence[Stage], memories: Mapping[str, SegmentMemory]) -> Number:
    """The largest segment while it is recomputed, and the largest gradient of a saved tensor while it is made."""
    held = [(memories[segment.name], count) for stage in stages for segment, count in stage.parts]
    dropped = largest(where(count > 0, m.plain_bytes - m.saved_bytes, 0.0) for m, count in held)
    return dropped + largest(where(count > 0, m.largest_bytes, 0.0) for m, count in held)


def buffer_bytes(boundary_bytes: Number, parameters: Number, setting: Setting) -> Number:
    """Pipeline send and receive buffers (two each way) and, where gradients are bucketed outside the main gradient
    buffer, two buckets.
    """
    if not (setting.overlaps_grad_reduce and setting.strategy.zero >= 2):
        return 4 * boundary_bytes
    return 4 * boundary_bytes + 2 * np.minimum(setting.framework.bucket_bytes, parameters * 4)
