"""Handcrafted zero-bubble orders with one direction: ZB-H1 (also interleaved) and ZB-H2."""

from __future__ import annotations

import numpy as np

from simulator.schedule.order import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Ints, Order, build_order, loop_placement
from simulator.schedule.orders.interleaved import chunk_table
from simulator.schedule.orders.one_f_one_b import alternate


def zb_h1(pp: int, micro_batches: int, vp: int, group_size: int) -> Order:
    """1F1B whose weight gradients trail by r on rank r, so that every rank holds at most p micro-batches.

    Qi et al. 2023 ("Zero bubble pipeline parallelism"), section 2.3 and figure 3 top. With several stages per rank
    it is torch's `ScheduleInterleavedZeroBubble`: warm-up of (v - 1) group_size + p - r - 1.
    """
    columns = [
        split_columns(rank, pp, vp, micro_batches, group_size, ((vp - 1) * group_size + pp - rank - 1, rank))
        for rank in range(pp)
    ]
    return build_order("zb-h1", pp, vp, micro_batches, columns, placement=loop_placement(pp, vp))


def zb_h2(pp: int, micro_batches: int) -> Order:
    """Twice the warm-up of 1F1B, weight gradients trailing by 2 r: no bubble when F = B = W, at twice the memory.

    Qi et al. 2023, section 2.3 and figure 3 bottom.
    """
    columns = [
        split_columns(rank, pp, 1, micro_batches, micro_batches, (2 * (pp - rank - 1), 2 * rank)) for rank in range(pp)
    ]
    return build_order("zb-h2", pp, 1, micro_batches, columns, placement=loop_placement(pp, 1))


def split_columns(rank: int, pp: int, vp: int, micro_batches: int, group: int, shape: tuple[int, int]) -> Ints:
    """One rank's order: warm-up forwards, then F and B in turn, a W after each B once `lag` of them have passed.

    `shape` is (warm_up, lag).
    """
    count = vp * micro_batches
    warm_up, lag = shape
    chunk, number = chunk_table(micro_batches, vp, group)
    forward_at, backward_at = alternate(count, warm_up)
    # Each W stands right behind B number (its own + lag); the last `lag` of them come at the end.
    behind = backward_at[np.minimum(np.arange(count) + lag, count - 1)]
    turn = np.concatenate([2 * forward_at, 2 * backward_at, 2 * behind + 1])
    kind = np.repeat([FORWARD, INPUT_GRAD, WEIGHT_GRAD], count)
    back = (vp - 1 - chunk) * pp + rank
    slot = np.concatenate([chunk * pp + rank, back, back])
    table = np.stack([slot, np.tile(number, 3), kind], axis=1)
    return table[np.argsort(turn, kind="stable")].astype(np.int32)
