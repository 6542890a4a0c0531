"""Orders of two ranks written out: what is wrong with them word for word, and small task graphs by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule.order import (
    BACKWARD,
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Order,
    action_name,
    bidirectional_placement,
    build_order,
    check,
    folded_placement,
    loop_placement,
)
from simulator.schedule.overlap import Layers, fsdp_passes_s, ring_attention_s
from simulator.schedule.tasks import Task, TaskGraph, run_tasks

F, B, W, BW = FORWARD, INPUT_GRAD, WEIGHT_GRAD, BACKWARD


def _order(*ranks: list[tuple[int, int, int]], micro_batches: int = 1, placement: Any = None) -> Order:
    columns = [np.array(rank, np.int32).reshape(-1, 3) for rank in ranks]
    pp = len(ranks)
    return build_order("own", pp, 1, micro_batches, columns, placement=placement or loop_placement(pp, 1))


def _said(order: Order) -> list[str]:
    with pytest.raises(InputError) as refused:
        check(order, where="here")
    assert {problem.where for problem in refused.value.problems} == {"here"}
    return [problem.message for problem in refused.value.problems]


def test_complete_orders_pass() -> None:
    check(_order([(0, 0, F), (0, 0, BW)], [(1, 0, F), (1, 0, BW)]))
    check(_order([(0, 0, F), (0, 0, B), (0, 0, W)], [(1, 0, F), (1, 0, B), (1, 0, W)]))
    check(_order([(0, 0, F), (0, 0, B), (0, 0, W)], [(1, 0, F), (1, 0, BW)]))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([(0, 0, F), (0, 0, BW), (1, 0, F)], [(1, 0, BW)], ["rank 0 runs F s1 m0, but slot 1 is on rank 1"]),
        ([(0, 0, F), (0, 0, F), (0, 0, BW)], [(1, 0, F), (1, 0, BW)], ["F s0 m0 stands 2 times"]),
        ([(0, 0, F)], [(1, 0, F), (1, 0, BW)], ["B s0 m0 is missing"]),
        ([(0, 0, BW)], [(1, 0, F), (1, 0, BW)], ["F s0 m0 is missing"]),
        ([], [], ["micro-batch 0 never runs"]),
        ([(0, 0, F), (0, 0, B)], [(1, 0, F), (1, 0, BW)], ["W s0 m0 is missing"]),
        ([(0, 0, F), (0, 0, BW), (0, 0, W)], [(1, 0, F), (1, 0, BW)],
         ["W s0 m0 has no B (BW already holds the weight gradient)"]),
        ([(0, 0, BW), (0, 0, F)], [(1, 0, F), (1, 0, BW)], ["B s0 m0 comes before its F on the same rank"]),
        ([(0, 0, F), (0, 0, W), (0, 0, B)], [(1, 0, F), (1, 0, BW)], ["W s0 m0 comes before its B on the same rank"]),
    ],
)  # fmt: skip
def test_incomplete_and_impossible_orders_are_refused_word_for_word(
    first: list[tuple[int, int, int]], second: list[tuple[int, int, int]], said: list[str]
) -> None:
    assert _said(_order(first, second)) == said


def test_a_micro_batch_goes_one_way() -> None:
    both = [[(0, 0, F), (0, 0, BW), (3, 0, F), (3, 0, BW)], [(1, 0, F), (1, 0, BW), (2, 0, F), (2, 0, BW)]]
    order = _order(*both, placement=bidirectional_placement(2))
    assert _said(order) == ["micro-batch 0 runs in both directions"]


def test_places_of_stages() -> None:
    found = [[part.tolist() for part in placement] for placement in
             (loop_placement(2, 2), folded_placement(2), bidirectional_placement(2))]  # fmt: skip
    assert found == [[[0, 1, 0, 1], [0, 1, 2, 3], [-1, 0, 1, 2]], [[0, 1, 1, 0], [0, 1, 2, 3], [-1, 0, 1, 2]],
                     [[0, 1, 1, 0], [0, 1, 0, 1], [-1, 0, -1, 2]]]  # fmt: skip
    dtypes = {part.dtype for placement in (loop_placement(2, 2), folded_placement(2), bidirectional_placement(2))
              for part in placement}  # fmt: skip
    assert dtypes == {np.dtype(np.int32)}


def test_tasks_are_named_as_people_write_them() -> None:
    assert [action_name(2, 5, kind) for kind in (F, B, W, BW)] == ["F s2 m5", "B s2 m5", "W s2 m5", "BW s2 m5"]
    order = _order([(0, 0, F), (0, 0, BW)], [(1, 0, F), (1, 0, BW)])
    assert (order.tasks, order.slots, order.stages) == (4, 2, 2)
    assert order.rank.tolist() == [0, 0, 1, 1]
    assert list(order.of_rank(1)) == [(1, 0, F), (1, 0, BW)]


def test_streams_take_the_task_that_became_ready_first_then_the_urgent_one() -> None:
    """Two streams: b waits for a; of c and d, both ready at 0, the urgent d goes first; e waits for both streams."""
    graph = TaskGraph()
    a = graph.add("one", 2.0)
    b = graph.add("two", 1.0, a, -1)
    c = graph.add("two", 3.0, priority=1)
    d = graph.add("two", 0.5, priority=0)
    e = graph.add("one", 1.0, b, c, c)
    assert run_tasks(graph.tasks) == [(0, 2), (3.5, 4.5), (0.5, 3.5), (0, 0.5), (4.5, 5.5)]
    assert [a, b, c, d, e] == [0, 1, 2, 3, 4]
    assert (graph.tasks[1].after, graph.tasks[2].name) == ((0,), "")
    assert run_tasks([]) == []


def test_a_later_task_that_was_ready_earlier_goes_first() -> None:
    """x becomes ready at 1 and y at 0.5, while the stream is busy until 2."""
    tasks = [Task("wire", 2.0), Task("a", 1.0), Task("b", 0.5), Task("wire", 1.0, (1,)), Task("wire", 1.0, (2,), 9)]
    assert run_tasks(tasks)[3:] == [(3.0, 4.0), (2.0, 3.0)]


def test_tasks_in_a_circle_are_named() -> None:
    with pytest.raises(InputError) as refused:
        run_tasks([Task("a", 1.0, (1,), name="first"), Task("b", 1.0, (0,)), Task("a", 1.0)])
    assert [problem.message for problem in refused.value.problems] == [
        "first waits for task 1: the tasks wait for each other in a circle",
        "task 1 waits for first: the tasks wait for each other in a circle"]  # fmt: skip


UNITS = Layers(forward_s=[4.0, 4.0, 4.0], backward_s=[8.0, 8.0, 8.0], gather_s=[1.0, 1.0, 1.0], reduce_s=[2.0, 2.0,
2.0])


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        # The first gather and the last reduction show: 1 + 3 x 4 + 3 x 8 + 2.
        ({}, 39), ({"reshard": False}, 39), ({"micro_batches": 2}, 75), ({"micro_batches": 2, "reduce_each": False},
         75),
        # Without prefetch every gather but the kept last unit's shows, and each waits behind the last reduction:
        # three forward; in backward two, of which the wire first ends its reduction of 2.
        ({"prefetch": 0}, 3 + 12 + 24 + 2 * (2 + 1) + 2), ({"prefetch": 0, "reshard": False}, 3 + 12 + 24 + 2),
    ],
)  # fmt: skip
def test_fsdp_units_by_hand(changes: dict[str, Any], end: float) -> None:
    found = fsdp_passes_s(UNITS, **changes)
    assert found == (end, end - 36 * changes.get("micro_batches", 1))


def test_slow_gathers_hold_compute_up() -> None:
    """Gathers of 6 behind forwards of 4: 6 + 6 + 6 + 4, then two more gathers while the last unit's backward runs."""
    slow = Layers(forward_s=[4.0] * 3, backward_s=[8.0] * 3, gather_s=[6.0] * 3, reduce_s=[0.0] * 3)
    end, exposed = fsdp_passes_s(slow, prefetch=2)
    assert exposed == end - 36
    assert end == 6 * 3 + 4 + 8 * 3
    with pytest.raises(InputError, match="one unit"):
        fsdp_passes_s(Layers(forward_s=[], backward_s=[], gather_s=[], reduce_s=[]))
    with pytest.raises(InputError, match="per unit"):
        fsdp_passes_s(Layers(forward_s=[1.0], backward_s=[1.0], gather_s=[1.0], reduce_s=[]))


def test_ring_attention_waits_for_the_longer_of_block_and_hop() -> None:
    assert ring_attention_s(3.0, 2.0, 4) == 12
    assert ring_attention_s(3.0, 5.0, 4) == 3 + 3 * 5
    assert ring_attention_s([3.0, 3.0], [2.0, 5.0], [4, 1]).tolist() == [12, 3]
