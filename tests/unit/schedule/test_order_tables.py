"""The tables of an order (who runs what, what each task reads) counted out for nine tasks on two ranks."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule.order import (
    BACKWARD,
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Order,
    bidirectional_placement,
    build_order,
    check,
    loop_placement,
)

F, B, W, BW = FORWARD, INPUT_GRAD, WEIGHT_GRAD, BACKWARD
ORDER = build_order(
    "own", 2, 1, 2,
    [np.array([(0, 0, F), (3, 1, F), (3, 1, BW), (0, 0, B), (0, 0, W)]),
     np.array([(2, 1, F), (1, 0, F), (1, 0, BW), (2, 1, BW)])],
    placement=bidirectional_placement(2),
)  # fmt: skip
"""Micro-batch 0 goes down (slots 0 and 1), micro-batch 1 up (slots 2 and 3); tasks 0 .. 4 are rank 0's, 5 .. 8 rank
1's. Slots 0 and 2 hold stage 0, slots 1 and 3 stage 1."""


def test_sizes_and_places() -> None:
    assert (ORDER.tasks, ORDER.slots, ORDER.stages, ORDER.splits_backward) == (9, 4, 2, True)
    assert ORDER.rank.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert ORDER.rank_slots == ((0, 3), (1, 2))
    assert ORDER.following.tolist() == [1, -1, 3, -1]
    assert ORDER.stage.tolist() == [0, 1, 1, 0, 0, 0, 1, 1, 0]
    assert ORDER.of_rank(1) == [(2, 1, F), (1, 0, F), (1, 0, BW), (2, 1, BW)]


def test_a_tables_entries_are_by_kind_then_stage() -> None:
    """F of stages 0 and 1 are entries 0 and 1, B 2 and 3, W 4 and 5, BW 6 and 7."""
    assert ORDER.table_index.tolist() == [0, 1, 7, 2, 4, 0, 1, 7, 6]


def test_positions_of_each_pass() -> None:
    assert ORDER.position.tolist() == [
        [[0, -1], [6, -1], [-1, 5], [-1, 1]],
        [[3, -1], [7, -1], [-1, 8], [-1, 2]],
        [[4, -1], [-1, -1], [-1, -1], [-1, -1]],
    ]


def test_what_each_task_reads() -> None:
    """F s3 reads F s2 (5), B s0 reads BW s1 (7), F s1 reads F s0 (0), BW s2 reads BW s3 (2); the rest read nothing."""
    assert ORDER.dependency.tolist() == [-1, 5, -1, 7, -1, -1, 0, -1, 2]


def test_tables_are_of_small_integers() -> None:
    small = (ORDER.rank, ORDER.following, ORDER.stage, ORDER.position, ORDER.dependency, ORDER.rank_start)
    assert {table.dtype for table in small} == {np.dtype(np.int32)}
    assert (ORDER.table_index.dtype, ORDER.kind.dtype, ORDER.paired.dtype) == (np.intp, np.int8, np.bool_)
    assert all(column.flags.c_contiguous for column in (ORDER.slot, ORDER.micro_batch))


def test_an_order_of_whole_backwards_splits_none() -> None:
    whole = build_order("own", 1, 1, 1, [np.array([(0, 0, F), (0, 0, BW)])], placement=loop_placement(1, 1))
    assert whole.splits_backward is False


def said(order: Order) -> list[tuple[str, str]]:
    with pytest.raises(InputError) as refused:
        check(order)
    return [(problem.where, problem.message) for problem in refused.value.problems]


def test_every_problem_of_an_order_is_listed() -> None:
    """Six micro-batches on two ranks: 0 whole, 1 nowhere, 2 thrice forward, 3 late, 4 with W before B, 5 half way."""
    first = [(0, 0, F), (0, 0, BW), (0, 2, F), (0, 2, F), (0, 2, F), (0, 2, BW), (0, 3, BW), (0, 3, F), (0, 4, F),
             (0, 4, W), (0, 4, B), (0, 5, F)]  # fmt: skip
    second = [(1, 0, F), (1, 0, BW), (1, 2, F), (1, 2, B), (1, 3, F), (1, 3, BW), (1, 3, W), (1, 4, F), (1, 4, BW)]
    order = build_order("own", 2, 1, 6, [np.array(first), np.array(second)], placement=loop_placement(2, 1))
    assert said(order) == [
        ("", "F s0 m2 stands 3 times"),
        ("", "micro-batch 1 never runs"),
        ("", "B s0 m5 is missing"),
        ("", "F s1 m5 is missing"),
        ("", "B s1 m5 is missing"),
        ("", "W s1 m2 is missing"),
        ("", "W s1 m3 has no B (BW already holds the weight gradient)"),
        ("", "B s0 m3 comes before its F on the same rank"),
        ("", "W s0 m4 comes before its B on the same rank"),
    ]


def test_a_weight_gradient_may_be_the_first_task_and_the_only_one() -> None:
    def alone(*tasks: tuple[int, int, int]) -> Order:
        return build_order("own", 1, 1, 1, [np.array(tasks)], placement=loop_placement(1, 1))

    assert said(alone((0, 0, W), (0, 0, F), (0, 0, B))) == [("", "W s0 m0 comes before its B on the same rank")]
    assert said(alone((0, 0, W))) == [
        ("", "F s0 m0 is missing"),
        ("", "B s0 m0 is missing"),
        ("", "W s0 m0 has no B (BW already holds the weight gradient)"),
    ]


def test_a_task_on_another_rank_is_named_with_its_home() -> None:
    columns = [np.array([(0, 0, F), (1, 0, F), (1, 0, BW)]), np.array([(0, 0, BW)])]
    assert said(build_order("own", 2, 1, 1, columns, placement=loop_placement(2, 1))) == [
        ("", "rank 0 runs F s1 m0, but slot 1 is on rank 1"),
        ("", "rank 0 runs BW s1 m0, but slot 1 is on rank 1"),
        ("", "rank 1 runs BW s0 m0, but slot 0 is on rank 0"),
    ]


def test_a_micro_batch_that_goes_both_ways_does_not_hide_the_next_ones_faults() -> None:
    """Micro-batch 0 runs forward on slots of either direction; micro-batch 1 goes up and lacks a backward."""
    columns = [np.array([(0, 0, F), (3, 1, F), (3, 1, BW)]), np.array([(2, 0, F), (2, 1, F)])]
    order = build_order("own", 2, 1, 2, columns, placement=bidirectional_placement(2))
    assert said(order) == [("", "micro-batch 0 runs in both directions"), ("", "B s2 m1 is missing")]
