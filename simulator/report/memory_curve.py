"""Memory over a step: the footprint that the estimate's peak was read off, laid over its timeline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.result import Estimate
from simulator.schedule.memory import MemoryTimeline, memory_over_time


def memory_curve(answer: Estimate) -> MemoryTimeline:
    """Bytes that each pipeline rank holds over one step.

    What the allocator cannot use and what sits outside it stand there all the time, so each rank's peak is the
    estimate's; only what an optimizer step needs beyond forward and backward comes after the curve's end.
    Raises ValueError for an estimate without a timeline.
    """
    line = answer.timeline()
    footprint = answer.memory.footprint
    if footprint is None:
        raise ValueError("this estimate was read from JSON and carries no footprint")
    outside = [rank.get("fragmentation", 0.0) + rank.get("context", 0.0) for rank in answer.memory.per_stage]
    return memory_over_time(line, replace(footprint, static_bytes=np.asarray(footprint.static_bytes) + outside))
