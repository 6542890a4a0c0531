"""Communication that hides behind compute inside a stage: FSDP's gathers, ring attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.schedule.tasks import TaskGraph, run_tasks

Number = Any
"""A float or an array of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """One rank's FSDP units of a stage in model order; all seconds, one entry per unit."""

    forward_s: Sequence[float]
    backward_s: Sequence[float]
    gather_s: Sequence[float]
    """All-gather of the unit's parameters."""
    reduce_s: Sequence[float]
    """Reduce-scatter of its gradients."""


def fsdp_passes_s(
    layers: Layers, *, micro_batches: int = 1, prefetch: int = 1, reshard: bool = True, reduce_each: bool = True
) -> tuple[float, float]:
    """(seconds, exposed communication seconds) of `micro_batches` forward and backward passes under FSDP / ZeRO-3.

    A unit's gather may run while `prefetch` earlier units still compute (their buffers are in use; 0 is no overlap,
    1 is FSDP's default of two buffers, torch.distributed.fsdp `limit_all_gathers`). Gathers and reduces share the
    wire and go in the order in which they become ready. `reshard` frees parameters after the forward, so that the
    backward gathers again; the last unit is kept (fully_shard's `reshard_after_forward` of the root). `reduce_each`
    reduces after every micro-batch's backward, else after the last only (`set_requires_gradient_sync(False)`).
    """
    count = len(layers.forward_s)
    if not all(len(part) == count for part in (layers.backward_s, layers.gather_s, layers.reduce_s)) or count == 0:
        raise InputError(["an FSDP stage needs one forward, backward, gather and reduce time per unit, and one unit"])
    graph = TaskGraph()
    computed: list[int] = []
    there: dict[int, int] = {}
    kept = [False] * count

    def gather(unit: int) -> None:
        # Issued once the buffer of the unit `prefetch + 1` back is free again, in step with compute.
        free = computed[: max(len(computed) - prefetch, 0)]
        there[unit] = graph.add("wire", layers.gather_s[unit], *free[-1:])

    def compute(seconds: float, unit: int) -> None:
        computed.append(graph.add("compute", seconds, there[unit], *computed[-1:]))

    for number in range(micro_batches):
        for unit in range(count):
            if not kept[unit]:
                gather(unit)
            compute(layers.forward_s[unit], unit)
            kept[unit] = not reshard or unit == count - 1
        for unit in reversed(range(count)):
            if not kept[unit]:
                gather(unit)
            compute(layers.backward_s[unit], unit)
            kept[unit] = not reshard
            if reduce_each or number == micro_batches - 1:
                graph.add("wire", layers.reduce_s[unit], computed[-1])
    end = max(end for _, end in run_tasks(graph.tasks))
    busy = micro_batches * (sum(layers.forward_s) + sum(layers.backward_s))
    return end, end - busy


def ring_attention_s(block_s: Number, send_s: Number, steps: Number) -> Number:
    """Seconds of ring attention over `steps` ranks: the next keys and values arrive while a block is computed.

    `block_s` is the attention of the local queries with one rank's keys and values, `send_s` one hop of keys and
    values. Liu et al. 2023 ("Ring attention"), section 3: hidden as long as a block takes longer than a hop.
    """
    block = np.asarray(block_s, np.float64)
    return block + (np.asarray(steps) - 1) * np.maximum(block, send_s)
