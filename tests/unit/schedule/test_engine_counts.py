"""What the engine is given, laid out by hand: pairs, launches, sends by boundary, and lengths that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule.engine import Durations, Transfers, per_stage, simulate
from simulator.schedule.make import make_order
from tests.unit.schedule.paired import FOLDED, pair_of

PRIMES = {"forward_s": [2.0, 3.0], "input_grad_s": [5.0, 7.0], "weight_grad_s": [11.0, 13.0]}


@pytest.mark.parametrize(
    ("forward", "backward", "slowdown", "longest"),
    [
        # (seconds, communication in them): all communication, 3 + 4 s; compute is 2 s.
        ((4.0, 3.0), (5.0, 4.0), 1.0, 7.0),
        # All compute, 3 + 4 s, and 2 s of communication that make it half as fast meanwhile.
        ((4.0, 1.0), (5.0, 1.0), 2.0, 7.0 + 2.0 * (1 - 1 / 2)),
        ((4.0, 1.0), (5.0, 1.0), 4.0, 7.0 + 2.0 * (1 - 1 / 4)),
        # Either one alone.
        ((10.0, 5.0), (2.0, 2.0), 1.0, 10.0),
        ((2.0, 2.0), (10.0, 5.0), 1.0, 10.0),
    ],
)
@pytest.mark.parametrize("kind", [1, 3])
def test_a_pair_takes_the_longest_of_what_binds_it(
    kind: int, forward: tuple[float, float], backward: tuple[float, float], slowdown: float, longest: float
) -> None:
    """The forward is of stage 0, the backward of stage 1; the other stage's seconds must not show."""
    whole = kind == 3
    line = simulate(
        pair_of(kind),
        Durations(forward_s=[forward[0], 100.0], input_grad_s=[100.0, backward[0] - whole * 0.25],
                  weight_grad_s=[100.0, 0.25], forward_comm_s=[forward[1], 50.0], backward_comm_s=[50.0, backward[1]],
                  beside_slowdown_factor=slowdown),
    )  # fmt: skip
    begin = forward[0] + 100.0
    assert line.start_s[2:4].tolist() == [begin, begin]
    assert line.end_s[2:4].tolist() == [begin + longest, begin + longest]


def test_tasks_and_pairs_take_their_launches() -> None:
    """F and BW s1 launch for 17 + 31 + 41 s, F s1 and B s0 for 19 + 29 s: a pair with W launches it as well."""
    line = simulate(FOLDED, Durations(**PRIMES, forward_host_s=[17.0, 19.0], input_grad_host_s=[29.0, 31.0],
                                      weight_grad_host_s=[37.0, 41.0]))  # fmt: skip
    one, two = 17 + 31 + 41, 19 + 29
    launches = [17, 19, one, one, two, two, 37, 31, 29 + 37, 41]
    assert line.launch_s[:10].tolist() == launches
    # Every launch takes longer than its kernels, so a task ends with its last one.
    single = [17, 19, one, two, 37, 31, 66, 41]
    ends = np.cumsum(single)
    assert line.launch_end_s[[0, 1, 2, 4, 6, 7, 8, 9]].tolist() == ends.tolist()
    assert line.end_s[[0, 1, 3, 5, 6, 7, 8, 9]].tolist() == ends.tolist()
    assert line.start_s[[1, 2, 3, 4, 5]].tolist() == [17, 36, 36, 36 + one, 36 + one]
    assert simulate(FOLDED, Durations(**PRIMES)).launch_s.size == 0
    assert simulate(FOLDED, Durations(**PRIMES)).launch_end_s.size == 0


def test_tasks_take_their_kind_s_and_stage_s_seconds_and_communication() -> None:
    """W does not talk, BW as much as B."""
    line = simulate(FOLDED, Durations(**PRIMES, forward_comm_s=[0.5, 1.0], backward_comm_s=[2.0, 4.0]))
    seconds = [2, 3, 2, 7 + 13, 3, 5, 11, 7, 5 + 11, 13]
    talk = [0.5, 1, 0.5, 4, 1, 2, 0, 4, 2, 0]
    assert line.task_s[:10].tolist() == seconds
    assert (line.task_s - line.compute_s)[:10].tolist() == talk
    # F s0 and BW s1 have 22 s, 4.5 of them communication: the backward alone is longest. F s1 and B s0: 8 s less 3.
    assert (line.end_s - line.start_s)[[2, 3, 4, 5]].tolist() == [20, 20, 5, 5]


def test_sends_and_latencies_are_those_of_their_boundary() -> None:
    """Three ranks, one micro-batch, tasks of 1 s: sends of 2 and 5 s forward, 7 and 11 s back; 13 and 17 s more."""
    moves = Transfers(forward_s=[2.0, 5.0], backward_s=[7.0, 11.0], latency_s=[13.0, 17.0])
    line = simulate(make_order("1f1b", pp=3, micro_batches=1), Durations(forward_s=1.0, input_grad_s=1.0), moves)
    # F0 1 -> 16, F1 17 -> 39, F2 40, B2 41 -> 69, B1 70 -> 90, B0 91; tasks F0 B0 F1 B1 F2 B2.
    assert line.end_s.tolist() == [1, 91, 17, 70, 40, 41]
    assert line.arrival_s.tolist() == [16, 91, 39, 90, 40, 69]
    assert line.send_start_s.tolist() == [1, 91, 17, 70, 40, 41]
    assert line.sends.tolist() == [True, False, True, True, False, True]


@pytest.mark.parametrize(
    ("moves", "makespan"),
    [({"forward_s": 5.0}, 4 + 5), ({"backward_s": 7.0}, 4 + 7), ({"latency_s": 11.0}, 4 + 11 + 11), ({}, 4)],
)
def test_each_kind_of_transfer_counts_by_itself(moves: dict[str, float], makespan: float) -> None:
    order = make_order("1f1b", pp=2, micro_batches=1)
    assert simulate(order, Durations(forward_s=1.0, input_grad_s=1.0), Transfers(**moves)).makespan_s == makespan


def test_a_stage_waits_for_its_parameters_once() -> None:
    """Stage 0 has them at 3 s, stage 1 at 10 s; both copies of a stage wait for the same."""
    line = simulate(make_order("1f1b", pp=2, micro_batches=2), Durations(forward_s=1.0, input_grad_s=2.0),
                    release_s=[3.0, 10.0])  # fmt: skip
    assert line.start_s.tolist() == [3, 4, 13, 16, 10, 11, 13, 14]
    both = simulate(make_order("chimera", pp=2, micro_batches=2), Durations(forward_s=1.0, input_grad_s=2.0),
                    release_s=[3.0, 10.0])  # fmt: skip
    first = {(slot, kind): start for slot, kind, start in zip(both.order.slot.tolist(), both.order.kind.tolist(),
                                                              both.start_s.tolist(), strict=True)}  # fmt: skip
    # Rank 0 holds stage 0 down and stage 1 up, rank 1 the reverse: each waits for stage 1's at 10 s.
    assert [first[slot, 0] for slot in range(4)] == [3, 10, 3, 10]


def test_rounding_puts_no_task_before_the_one_that_its_rank_ran_before() -> None:
    """0.1 + 0.7 - 0.7 is less than 0.1 in floating point."""
    line = simulate(make_order("1f1b", pp=1, micro_batches=1), Durations(forward_s=0.1, input_grad_s=0.7))
    assert line.start_s.tolist() == [0.0, 0.1]
    two = simulate(make_order("1f1b", pp=2, micro_batches=1), Durations(forward_s=0.1, input_grad_s=0.7))
    assert two.start_s[[0, 2]].tolist() == [0.0, 0.1]
    assert two.start_s[3] == two.end_s[2]


@pytest.mark.parametrize("name", ["forward_s", "input_grad_s", "weight_grad_s", "forward_comm_s", "backward_comm_s",
                                  "forward_host_s", "input_grad_host_s", "weight_grad_host_s"])  # fmt: skip
def test_seconds_of_too_many_stages_are_named(name: str) -> None:
    given: dict[str, Any] = {"forward_s": 1.0, "input_grad_s": 1.0, name: [1.0] * 5}
    with pytest.raises(InputError) as refused:
        simulate(make_order("dualpipev", pp=2, vp=2, micro_batches=4, paired=True), Durations(**given))
    assert str(refused.value) == f"{name} has shape (5,), but the order needs (4,)"


@pytest.mark.parametrize("name", ["forward_comm_s", "backward_comm_s"])
def test_communication_of_too_many_stages_is_named_where_nothing_is_paired(name: str) -> None:
    given: dict[str, Any] = {"forward_s": 1.0, "input_grad_s": 1.0, name: [1.0] * 5}
    with pytest.raises(InputError) as refused:
        simulate(make_order("1f1b", pp=2, micro_batches=4), Durations(**given))
    assert str(refused.value) == f"{name} has shape (5,), but the order needs (2,)"


def test_whole_seconds_are_floats_as_well() -> None:
    assert per_stage([1, 2], 2, "seconds").dtype == per_stage(3, 2, "seconds").dtype == np.float64
    assert per_stage(3, 2, "seconds").tolist() == [3, 3]


@pytest.mark.parametrize("name", ["forward_s", "backward_s", "latency_s"])
def test_seconds_of_too_many_boundaries_are_named(name: str) -> None:
    order, durations = make_order("1f1b", pp=3, micro_batches=3), Durations(forward_s=1.0, input_grad_s=1.0)
    with pytest.raises(InputError) as refused:
        simulate(order, durations, Transfers(**{name: [1.0] * 3}))
    assert str(refused.value) == f"transfers.{name} has shape (3,), but the order needs (2,)"
    with pytest.raises(InputError) as refused:
        simulate(order, durations, release_s=[[1.0, 2.0, 3.0]])
    assert str(refused.value) == "release_s has shape (1, 3), but the order needs (3,)"
    one = make_order("1f1b", pp=1, micro_batches=3)
    with pytest.raises(InputError) as refused:
        simulate(one, durations, Transfers(**{name: [1.0]}))
    assert str(refused.value) == f"transfers.{name} has shape (1,), but the order needs (0,)"
