"""What a published peak memory means, by its source: tensors only, what the allocator keeps, or all of the device."""

from __future__ import annotations

import re

from simulator.validate.runs import PublishedRun

MEANINGS = ("allocated", "reserved", "device")
"""torch.cuda.max_memory_allocated; max_memory_reserved; what nvidia-smi shows."""

_SOURCES = (
    # docs/b200: max_allocated_MB of each rank beside max_memory_reserved
    (r"MooreThreads/SimuMax", "allocated"),
    # benchmark/alpa: executable.get_total_allocation_size();
    # osdi22_artifact/megatron: torch.cuda.max_memory_allocated()
    (r"alpa-projects/alpa", "allocated"),
    # experiments and chronicles: memory per GPU as nvidia-smi shows it
    (r"bigscience-workshop/bigscience", "device"),
)


def peak_meaning(run: PublishedRun) -> str:
    """What the peak of a row means. A source that does not say is read as the memory a device needs."""
    return next((meaning for pattern, meaning in _SOURCES if re.search(pattern, run.source)), "device")
