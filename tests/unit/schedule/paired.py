"""An order with pairs that a person can follow, for hand counts of costs, memory and wirings."""

from __future__ import annotations

import numpy as np

from simulator.schedule.order import Order, build_order, loop_placement

_INTS = {"dtype": np.int32}

FOLDED = build_order(
    "by hand", 2, 1, 2,
    [
        # Rank 0 holds both stages (slots 0 and 1): two pairs, and backwards whole and split.
        np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 0, 3), (1, 1, 0), (0, 0, 1), (0, 0, 2), (1, 1, 1), (0, 1, 3),
                  (1, 1, 2)]),
        # Rank 1 holds both stages again (slots 2 and 3), by itself.
        np.array([(2, 0, 0), (3, 0, 0), (3, 0, 3), (2, 0, 3)]),
    ],
    placement=(np.array([0, 0, 1, 1], **_INTS), np.array([0, 1, 0, 1], **_INTS), np.array([-1, 0, -1, 2], **_INTS)),
    paired=[np.isin(np.arange(10), [2, 4]), np.zeros(4, np.bool_)],
)  # fmt: skip
"""Tasks of rank 0: F s0 m0, F s1 m0, F s0 m1 with BW s1 m0, F s1 m1 with B s0 m0, W s0 m0, B s1 m1, BW s0 m1, W s1 m1;
of rank 1 (from 10 on): F s0, F s1, BW s1, BW s0 of one micro-batch."""


def pair_of(kind: int) -> Order:
    """One rank, two stages: F s0 m0, F s1 m0, then F s0 m1 together with a backward of s1 m0, and the rest alone."""
    rest = [(1, 0, 2)] if kind == 1 else []
    column = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 0, kind), *rest, (0, 0, 3), (1, 1, 0), (1, 1, 3), (0, 1, 3)]
    paired = np.arange(len(column)) == 2
    return build_order("pair", 1, 2, 2, [np.array(column)], placement=loop_placement(1, 2), paired=[paired])
