"""Orders with one stage per rank and a fused backward: GPipe, 1F1B, eager 1F1B."""

from __future__ import annotations

import numpy as np

from simulator.schedule.order import BACKWARD, FORWARD, Ints, Order, build_order, loop_placement


def gpipe(pp: int, micro_batches: int) -> Order:
    """All forwards, then all backwards (Huang et al. 2019, figure 2c); torch's `ScheduleGPipe`."""
    columns = [warm_up_then_alternate(rank, micro_batches, micro_batches) for rank in range(pp)]
    return build_order("gpipe", pp, 1, micro_batches, columns, placement=loop_placement(pp, 1))


def one_f_one_b(pp: int, micro_batches: int) -> Order:
    """Warm-up of p - r - 1 forwards, then one forward, one backward (Megatron-LM schedules.py,
    `forward_backward_pipelining_without_interleaving`).
    """
    columns = [warm_up_then_alternate(rank, micro_batches, pp - rank - 1) for rank in range(pp)]
    return build_order("1f1b", pp, 1, micro_batches, columns, placement=loop_placement(pp, 1))


def eager_one_f_one_b(pp: int, micro_batches: int) -> Order:
    """Warm-up of 2 (p - r - 1) forwards: a transfer each way can hide behind compute, at up to twice the
    activations (Zhuang et al. 2023, "On optimizing the communication of model parallelism", section 4).
    """
    columns = [warm_up_then_alternate(rank, micro_batches, 2 * (pp - rank - 1)) for rank in range(pp)]
    return build_order("eager-1f1b", pp, 1, micro_batches, columns, placement=loop_placement(pp, 1))


def warm_up_then_alternate(slot: int, micro_batches: int, warm_up: int) -> Ints:
    """One rank's (slot, micro-batch, kind): `warm_up` forwards, then forward and backward in turn, then the rest."""
    forward_at, backward_at = alternate(micro_batches, warm_up)
    table = np.empty((2 * micro_batches, 3), np.int32)
    table[:, 0] = slot
    table[forward_at, 1] = table[backward_at, 1] = np.arange(micro_batches)
    table[forward_at, 2], table[backward_at, 2] = FORWARD, BACKWARD
    return table


def alternate(count: int, warm_up: int) -> tuple[Ints, Ints]:
    """Positions of `count` forwards and `count` backwards with `warm_up` forwards first (all, if fewer)."""
    step = np.arange(count)
    forward_at = np.maximum(step, 2 * step - warm_up)
    backward_at = np.minimum(warm_up + 1 + 2 * step, count + step)
    return forward_at.astype(np.int32), backward_at.astype(np.int32)
