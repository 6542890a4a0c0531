"""The zero-bubble search on sizes where the best order can be written down, or counted out."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.errors import Infeasible, InputError
from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.order import Order, check, folded_placement
from simulator.schedule.order_file import format_order
from simulator.schedule.orders.automatic import zero_bubble_order

ONES = Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0)


def found(**changes: Any) -> Order:
    return zero_bubble_order(**{"pp": 2, "micro_batches": 3, "durations": ONES, **changes})


def test_what_is_handcrafted_for_equal_times_is_found_for_them() -> None:
    """In the memory of 1F1B no order of two ranks ends before 10 s: rank 0 has 9 s of work and waits 1 s for B0."""
    assert found().schedule == "zb-h1"
    assert simulate(found(), ONES).makespan_s == 10.0


def test_ranks_that_do_not_wait_for_each_other_take_the_order_without_a_bubble() -> None:
    """ZB-H2 holds 2 p - 1 = 3 and keeps each rank busy for 9 s in a row; its makespan is no better than ZB-H1's."""
    for limit in (3, [3.0, 3.0], [3, 4]):
        assert found(limit=limit).schedule == "zb-h1"
        free = found(limit=limit, free_running=True)
        assert (free.schedule, simulate(free, ONES).period_s) == ("zb-h2", 9.0)
    for limit in (2.99, [3.0, 2.0]):
        assert found(limit=limit, free_running=True).schedule != "zb-h2"


def test_each_rank_has_its_own_limit() -> None:
    """Rank 1 may hold one: F0 1 .. 2, B0 .. 3, W0 .. 4, F1 .. 5, B1 .. 6, W1. Rank 0 waits for B1 from 4 s on: W0."""
    order = found(micro_batches=2, limit=[2, 1])
    assert format_order(order) == "0F0,0F1,0I0,0W0,0I1,0W1\n1F0,1I0,1W0,1F1,1I1,1W1\n"
    assert (order.schedule, order.pp, order.vp, order.micro_batches) == ("auto", 2, 1, 2)


def test_room_for_one_micro_batch_is_enough() -> None:
    """Rank 0: F0 0 .. 1, B0 (rank 1: F0 1 .. 2, B0 .. 3) 3 .. 4, W0 .. 5, and the same again from 5 s on."""
    order = found(micro_batches=2, limit=1)
    assert format_order(order) == "0F0,0I0,0W0,0F1,0I1,0W1\n1F0,1I0,1W0,1F1,1I1,1W1\n"
    assert simulate(order, ONES).makespan_s == 10.0


@pytest.mark.parametrize(
    ("micro_batches", "forward", "grad", "weight", "send", "end"),
    [
        # Rank 0 works without a pause, or rank 1 does from when the first micro-batch has reached it.
        (3, [3.0, 1.0], [1.0, 1.0], [2.0, 1.0], 2.0, 3 * (3 + 1 + 2)),
        (4, [1.0, 1.0], [2.0, 1.0], [1.0, 1.0], 0.0, 4 * (1 + 2 + 1)),
        (3, [1.0, 2.0], [3.0, 2.0], [2.0, 3.0], 1.0, 1 + 1 + 3 * (2 + 2 + 3)),
        (4, [1.0, 2.0], [2.0, 2.0], [3.0, 3.0], 1.0, 1 + 1 + 4 * (2 + 2 + 3)),
    ],
)
def test_unequal_ranks_get_the_best_order_that_there_can_be(
    micro_batches: int, forward: list[float], grad: list[float], weight: list[float], send: float, end: float
) -> None:
    """Room for three on rank 0 and two on rank 1: the busier rank never stands still, so nothing ends sooner."""
    times = Durations(forward_s=forward, input_grad_s=grad, weight_grad_s=weight)
    order = found(micro_batches=micro_batches, durations=times, send_s=send, limit=[3, 2])
    assert simulate(order, times, Transfers(forward_s=send, backward_s=send)).makespan_s == end


def test_zero_stands_for_the_memory_of_1f1b_rank_by_rank() -> None:
    """p = 2 where 0 stands: the same as 2 there."""
    assert format_order(found(micro_batches=2, limit=[0, 1])) == format_order(found(micro_batches=2, limit=[2, 1]))
    held = simulate(found(micro_batches=9), ONES).in_flight
    assert held.tolist() == [2, 2]
    folded = found(pp=3, micro_batches=9, folded=True)
    assert simulate(folded, ONES).in_flight.max() <= 6


def test_a_folded_order_is_a_v() -> None:
    order = found(pp=3, micro_batches=7, folded=True)
    check(order)
    assert (order.schedule, order.pp, order.vp, order.micro_batches) == ("auto", 3, 2, 7)
    assert type(order.vp) is int
    assert [part.tolist() for part in (order.slot_rank, order.model_stage, order.previous)] == [
        part.tolist() for part in folded_placement(3)
    ]


@pytest.mark.parametrize("name", ["forward_s", "input_grad_s", "weight_grad_s"])
def test_times_are_by_stage(name: str) -> None:
    times = {"forward_s": 1.0, "input_grad_s": 1.0, "weight_grad_s": 1.0, name: [1.0, 2.0, 3.0]}
    for folded, stages in ((False, 2), (True, 4)):
        with pytest.raises(InputError, match=rf"^{name} has shape \(3,\), but the order needs \({stages},\)$"):
            found(durations=Durations(**times), folded=folded)


def test_limits_are_by_rank() -> None:
    with pytest.raises(InputError, match=r"^limit has shape \(4,\), but the order needs \(2,\)$"):
        found(limit=[2, 2, 2, 2], folded=True)


def test_what_fits_nowhere_says_the_least_room() -> None:
    with pytest.raises(Infeasible, match=r"fits 0\.5 stage-micro-batches per rank at pp\(2\)"):
        found(limit=[3, 0.5])
    with pytest.raises(Infeasible):
        found(limit=1, folded=True)


def test_slow_transfers_are_hidden_by_more_forwards_first() -> None:
    """Transfers of 1 s each way, times of 1 s, four micro-batches, room for all of them.

    Rank 1 begins at 2 s and has 12 s of work: nothing ends before 14 s, and the search finds 14 s; 1F1B's single
    warm-up forward (ZB-H1) leaves gaps."""
    moves = Transfers(forward_s=1.0, backward_s=1.0)
    order = found(micro_batches=4, limit=4, send_s=1.0)
    assert simulate(order, ONES, moves).makespan_s == 14.0
    assert simulate(found(micro_batches=4), ONES, moves).makespan_s > 14.0
