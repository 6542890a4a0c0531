"""Peak memory of each rank, by part.

Peak = weights + gradients + optimizer (+ gathered parameters) + activations of the micro-batches in flight + the
working set of the segment at work + loss and logits + communication buffers + what sits outside the allocator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.arch.operations import Number, largest
from simulator.parallel.lower import Program, Stage
from simulator.parallel.recompute import Policy, policy_of, saved_bytes, working_bytes
from simulator.parallel.states import held_parameters, state_bytes
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes of one pipeline rank at its peak; `parts` sums to `total_bytes`."""

    rank: int
    parts: Mapping[str, Number]

    @property
    def total_bytes(self) -> Number:
        return sum(self.parts.values())


def stage_activation_bytes(stage: Stage, strategy: Strategy) -> Number:
    """Activation bytes that one micro-batch leaves in one stage until its backward [B].

    With partial full recomputation the first `recompute_layers` layers keep only their input.
    """
    policy = policy_of(strategy)
    if not (policy.full and strategy.recompute_layers):
        return sum(count * saved_bytes(segment, policy) for segment, count in stage.parts)
    left = strategy.recompute_layers
    total: Number = 0.0
    for segment, count in stage.parts:
        recomputed = min(count, left) if segment.recomputable else 0
        left -= recomputed
        total += recomputed * saved_bytes(segment, policy) + (count - recomputed) * saved_bytes(segment, Policy())
    return total


def rank_memory(
    rank: int, stages: Sequence[Stage], in_flight: Sequence[float], *, program: Program, run: Run, strategy: Strategy,
    framework: Framework,
) -> RankMemory:  # fmt: skip
    """Memory of one pipeline rank.

    `in_flight[i]` is how many micro-batches `stages[i]` holds at the peak (the schedule's figure).
    """
    held = held_parameters(tuple(stages))
    parts: dict[str, Number] = dict(state_bytes(held, run, strategy, framework))
    parts["activations"] = sum(
        count * stage_activation_bytes(stage, strategy) for stage, count in zip(stages, in_flight, strict=True)
    )
    parts["working_set"] = _working_set_bytes(stages, strategy)
    boundary_bytes = largest([program.stages[0].boundary_bytes, stages[0].boundary_bytes])
    parts["communication_buffers"] = _buffer_bytes(boundary_bytes, held.total, strategy, framework)
    allocated = sum(parts.values())
    fraction = framework.fragmentation_fraction
    parts["fragmentation"] = allocated * fraction / (1.0 - fraction)
    parts["context"] = framework.context_bytes
    return RankMemory(rank=rank, parts=parts)


def _working_set_bytes(stages: Sequence[Stage], strategy: Strategy) -> Number:
    """The largest segment while it is recomputed, and the largest gradient of a saved tensor while it is made."""
    policy = policy_of(strategy)
    segments = [segment for stage in stages for segment, _ in stage.parts]
    recomputed = largest(working_bytes(segment, policy) for segment in segments)
    gradient = largest(
        saved.bytes for segment in segments for operation in segment.operations for saved in operation.saves
    )
    return recomputed + gradient


def _buffer_bytes(boundary_bytes: Number, parameters: Number, strategy: Strategy, framework: Framework) -> Number:
    """Pipeline send and receive buffers (two each way) and, where gradients are bucketed outside the main gradient
    buffer, two buckets.
    """
    bucketed = framework.overlap_grad_reduce if strategy.overlap_grad_reduce is None else strategy.overlap_grad_reduce
    if not (bucketed and strategy.zero >= 2):
        return 4 * boundary_bytes
    return 4 * boundary_bytes + 2 * np.minimum(framework.bucket_bytes, parameters * 4)
