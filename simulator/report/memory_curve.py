"""Memory over a step, from the estimate alone: the same activations per micro-batch that its peak was made of."""

from __future__ import annotations

import numpy as np

from simulator.result import Estimate
from simulator.schedule.memory import Footprint, MemoryTimeline, memory_over_time


def memory_curve(answer: Estimate) -> MemoryTimeline:
    """Bytes that each pipeline rank holds over one step.

    A rank's activations divide evenly over the stage-micro-batches that it holds at its peak, and are held until the
    weight gradient where the backward is split; everything else stands there all the time. So each rank's peak is the
    estimate's. Raises ValueError for an estimate without a timeline.
    """
    line = answer.timeline()
    order, ranks = line.order, answer.memory.per_stage
    activations = np.array([rank.get("activations", 0.0) for rank in ranks])
    total = np.array([rank["total"] for rank in ranks])
    each = activations / np.maximum(line.in_flight, 1)
    by_stage = np.zeros(order.stages)
    # Where two ranks hold one stage (bidirectional schedules) they mirror each other and hold the same.
    by_stage[order.model_stage[::-1]] = each[order.slot_rank[::-1]]
    held = Footprint(static_bytes=total - activations, activation_bytes=by_stage, weight_gradient_bytes=by_stage)
    return memory_over_time(line, held)
