"""Orders with several stages per rank: interleaved 1F1B and breadth-first."""

from __future__ import annotations

import numpy as np

from simulator.schedule.order import BACKWARD, FORWARD, Ints, Order, build_order, loop_placement
from simulator.schedule.orders.one_f_one_b import alternate


def interleaved(pp: int, micro_batches: int, vp: int, group_size: int, *, paired: bool = False) -> Order:
    """Interleaved 1F1B as Megatron-LM orders it (schedules.py, `get_schedule_table` and
    `get_pp_rank_microbatches`): `group_size` consecutive micro-batches per virtual stage, warm-up of
    2 (p - r - 1) + (v - 1) group_size chunks, then one forward, one backward.

    group_size = pp is depth-first; group_size = micro_batches runs each virtual stage's forwards in one go
    (Llama 3 report, section 3.3.2, prints both as N). `paired` runs each forward of the steady phase together with
    the backward after it, which takes one more warm-up chunk (Megatron-Core --overlap-moe-expert-parallel-comm).
    """
    chunk, micro_batch = chunk_table(micro_batches, vp, group_size)
    columns, together = [], []
    for rank in range(pp):
        warm_up = 2 * (pp - rank - 1) + (vp - 1) * group_size + paired
        forward_at, backward_at = alternate(vp * micro_batches, warm_up)
        table = np.empty((2 * vp * micro_batches, 3), np.int32)
        table[forward_at] = np.stack([chunk * pp + rank, micro_batch, np.full_like(chunk, FORWARD)], axis=1)
        back = (vp - 1 - chunk) * pp + rank
        table[backward_at] = np.stack([back, micro_batch, np.full_like(chunk, BACKWARD)], axis=1)
        columns.append(table)
        pair = np.zeros(len(table), np.bool_)
        pair[forward_at[warm_up:]] = paired
        together.append(pair)
    placement = loop_placement(pp, vp)
    return build_order("interleaved", pp, vp, micro_batches, columns, placement=placement, paired=together)


def chunk_table(micro_batches: int, vp: int, group_size: int) -> tuple[Ints, Ints]:
    """(chunk, micro-batch) of each forward in turn; Megatron-LM's `get_schedule_table`."""
    chunks, numbers = [], []
    for begin in range(0, micro_batches, group_size):
        group = np.arange(begin, min(begin + group_size, micro_batches), dtype=np.int32)
        chunks.append(np.repeat(np.arange(vp, dtype=np.int32), len(group)))
        numbers.append(np.tile(group, vp))
    return np.concatenate(chunks), np.concatenate(numbers)


def breadth_first(pp: int, micro_batches: int, vp: int) -> Order:
    """All micro-batches of the first chunk, then of the next, and back (Lamy-Poirier 2023, breadth-first pipeline
    parallelism; torch's `ScheduleLoopedBFS`, whose backwards take the micro-batches from the last to the first).
    """
    chunk = np.repeat(np.arange(vp), micro_batches)
    number = np.tile(np.arange(micro_batches), vp)
    columns = []
    for rank in range(pp):
        forward = np.stack([chunk * pp + rank, number, np.full_like(chunk, FORWARD)], axis=1)
        backward = np.stack([chunk[::-1] * pp + rank, number[::-1], np.full_like(chunk, BACKWARD)], axis=1)
        columns.append(np.concatenate([forward, backward]))
    return build_order("interleaved-bfs", pp, vp, micro_batches, columns, placement=loop_placement(pp, vp))
