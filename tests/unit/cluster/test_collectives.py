"""Costs of collectives by hand: messages counted one by one, n = 60 bytes, alpha 7 s, beta 3 s/B, gamma 2 s/B."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.cluster import collectives
from simulator.cluster.collectives import Wire

WIRE = Wire(alpha_s=7.0, beta_s_per_byte=3.0, gamma_s_per_byte=2.0)
N = 60.0


@pytest.mark.parametrize(
    ("function", "ranks", "seconds"),
    [
        # 4 steps of 12 bytes.
        ("ring_all_gather_s", 5, 4 * (7 + 12 * 3)),
        ("ring_reduce_scatter_s", 5, 4 * (7 + 12 * (3 + 2))),
        ("ring_all_reduce_s", 5, 4 * (7 + 12 * 5) + 4 * (7 + 12 * 3)),
        # Halves of 30 and 15 and back: 4 messages, 90 bytes, 45 of them reduced.
        ("halving_doubling_all_reduce_s", 4, 4 * 7 + 90 * 3 + 45 * 2),
        # The fifth and sixth ranks fold in (60 bytes, reduced) and out (60 bytes).
        ("halving_doubling_all_reduce_s", 6, 4 * 7 + 90 * 3 + 45 * 2 + 2 * (7 + 60 * 3) + 60 * 2),
        ("recursive_doubling_all_reduce_s", 8, 3 * (7 + 60 * 5)),
        ("recursive_doubling_all_reduce_s", 5, 3 * (7 + 60 * 5)),
        # Up and down two trees of depth 3, each byte moved twice and reduced once.
        ("double_binary_tree_all_reduce_s", 8, 6 * 7 + 120 * 3 + 60 * 2),
        ("double_binary_tree_all_reduce_s", 2, 2 * 7 + 120 * 3 + 60 * 2),
        # Three rounds bring the other four fifths.
        ("bruck_all_gather_s", 5, 3 * 7 + 48 * 3),
        ("pat_all_gather_s", 5, 3 * 7 + 48 * 3),
        ("bruck_all_to_all_s", 5, 3 * (7 + 30 * 3)),
        ("pairwise_all_to_all_s", 5, 4 * (7 + 12 * 3)),
        ("binomial_broadcast_s", 5, 3 * (7 + 60 * 3)),
        ("binomial_reduce_s", 5, 3 * (7 + 60 * 3 + 60 * 2)),
        # Scatter in 3 messages, gather in 4; four fifths of the bytes each time.
        ("scatter_all_gather_broadcast_s", 5, 7 * 7 + 2 * 48 * 3),
        ("in_switch_all_reduce_s", 5, 7 + 72 * 3),
    ],
)
def test_a_collective_costs_its_messages(function: str, ranks: int, seconds: float) -> None:
    cost: Any = getattr(collectives, function)
    assert cost(N, ranks, WIRE) == pytest.approx(seconds, rel=1e-14)
    assert cost(np.array([N, 2 * N]), ranks, WIRE)[0] == pytest.approx(seconds, rel=1e-14)


def test_a_tree_of_one_rank_costs_nothing() -> None:
    assert collectives.double_binary_tree_all_reduce_s(N, 1, WIRE) == 0.0
    assert list(collectives.double_binary_tree_all_reduce_s(N, np.array([1, 2]), WIRE)) == [0.0, 494.0]


def test_switches_that_reduce_send_each_byte_once_up_and_down() -> None:
    assert collectives.sharp_all_reduce_s(N, 3, WIRE) == 6 * 7 + 60 * 3


def test_a_hierarchical_all_reduce_sends_a_share_between_nodes() -> None:
    """4 ranks in each of 3 nodes: 3 steps of 15 bytes down and up inside, then 15 bytes in thirds around 3 nodes."""
    outer = Wire(alpha_s=11.0, beta_s_per_byte=13.0, gamma_s_per_byte=5.0)
    inside = 3 * (7 + 15 * 5) + 3 * (7 + 15 * 3)
    between = 2 * (11 + 5 * 18) + 2 * (11 + 5 * 13)
    assert collectives.hierarchical_all_reduce_s(N, 4, 3, WIRE, outer) == pytest.approx(inside + between, rel=1e-14)


@pytest.mark.parametrize(("ranks", "chunks", "steps"), [(5, 4, 7), (2, 4, 4), (2, 1, 1), (1, 1, 0), (1, 2, 1)])
def test_a_pipelined_broadcast_is_a_train_of_chunks(ranks: int, chunks: int, steps: int) -> None:
    seconds = collectives.pipelined_ring_broadcast_s(N, ranks, chunks, WIRE)
    assert seconds == pytest.approx(steps * (7 + 60 / chunks * 3), rel=1e-14)


def test_an_unequal_all_to_all_waits_for_the_largest_message_of_each_round() -> None:
    """Round 1: 0>1 4, 1>2 1, 2>0 8. Round 2: 0>2 2, 1>0 16, 2>1 3."""
    sent = [[99, 4, 2], [16, 99, 1], [8, 3, 99]]
    assert collectives.all_to_all_v_s(sent, WIRE) == (7 + 8 * 3) + (7 + 16 * 3)
    lopsided = [[0, 9, 1, 1], [1, 0, 9, 1], [1, 1, 0, 9], [9, 1, 1, 0]]
    assert collectives.all_to_all_v_s(lopsided, WIRE) == 3 * 7 + (9 + 1 + 1) * 3
