"""Small timelines that a person can draw, and what the engine says about wrong input."""

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.make import make_order
from simulator.schedule.order import build_order, check, loop_placement
from simulator.schedule.timeline import covered_s
from simulator.schedule.wiring import Deadlock


def test_two_ranks_two_micro_batches_by_hand():
    #  rank 0: F0 0-1, F1 1-2, B0 waits for rank 1: 4-6, B1 7-9
    #  rank 1: F0 1-2, B0 2-4, F1 4-5, B1 5-7
    line = simulate(make_order("1f1b", pp=2, micro_batches=2), Durations(forward_s=1.0, input_grad_s=2.0))
    assert line.start_s.tolist() == [0, 1, 4, 7, 1, 2, 4, 5]
    assert line.end_s.tolist() == [1, 2, 6, 9, 2, 4, 5, 7]
    assert line.busy_s.tolist() == [6, 6]
    assert line.idle_s.tolist() == [3, 3]
    assert line.period_s == 9


def test_asynchronous_transfers_delay_only_the_reader():
    # The guide's figure: with 0.1 s a hop the textbook (m + p - 1)(F + B) is no longer what happens.
    order = make_order("1f1b", pp=2, micro_batches=1)
    line = simulate(order, Durations(forward_s=1.0, input_grad_s=2.0), Transfers(forward_s=0.25, backward_s=0.5))
    assert line.start_s.tolist() == [0, 4.75, 1.25, 2.25]
    assert line.send_start_s[0] == 1.0
    assert line.arrival_s[0] == 1.25
    assert line.sends.tolist() == [True, False, False, True]


def test_a_blocking_sender_stands_still():
    order = make_order("gpipe", pp=2, micro_batches=2)
    durations = Durations(forward_s=1.0, input_grad_s=1.0)
    free = simulate(order, durations, Transfers(forward_s=0.5, latency_s=0.25))
    held = simulate(order, durations, Transfers(forward_s=0.5, latency_s=0.25, blocking=True))
    assert free.start_s[:2].tolist() == [0, 1]
    assert held.start_s[:2].tolist() == [0, 1.75]


def test_sends_of_a_rank_share_its_port():
    # Transfers of 3 s behind forwards of 1 s: the k-th activation is there at 1 + 3 (k + 1).
    line = simulate(
        make_order("gpipe", pp=2, micro_batches=3),
        Durations(forward_s=1.0, input_grad_s=1.0),
        Transfers(forward_s=3.0),
    )
    assert line.arrival_s[:3].tolist() == [4, 7, 10]


def test_stages_on_one_rank_send_nothing():
    line = simulate(
        make_order("zbv", pp=2, micro_batches=4, vp=2),
        Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0),
        Transfers(forward_s=[1.0, 1000.0, 1.0], backward_s=[1.0, 1000.0, 1.0]),
    )
    assert line.makespan_s < 100


def test_the_host_binds_when_launching_takes_longer_than_the_kernels():
    order = make_order("1f1b", pp=1, micro_batches=8)
    durations = Durations(forward_s=0.5, input_grad_s=1.0, forward_host_s=1.0, input_grad_host_s=2.0)
    assert simulate(order, durations).makespan_s == 8 * (1.0 + 2.0)


def test_a_fast_host_costs_nothing_unless_it_must_wait():
    order = make_order("1f1b", pp=2, micro_batches=8)
    free = Durations(forward_s=1.0, input_grad_s=2.0)
    quick = Durations(forward_s=1.0, input_grad_s=2.0, forward_host_s=0.25, input_grad_host_s=0.25)
    assert simulate(order, quick).makespan_s == simulate(order, free).makespan_s
    slow = Durations(forward_s=1.0, input_grad_s=2.0, forward_host_s=1.5, input_grad_host_s=2.5, host_waits=True)
    # Launching binds every task: rank 0's first, eight pairs on rank 1, and rank 0's last, each after its input.
    assert simulate(order, slow).makespan_s == pytest.approx(1.5 + 8 * (1.5 + 2.5) + 2.5)


def test_pairs_hide_communication_behind_compute():
    order = make_order("dualpipe", pp=2, micro_batches=20)
    hidden = Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0, forward_comm_s=0.5, backward_comm_s=1.0)
    plain = Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0)
    saved = simulate(order, plain).makespan_s - simulate(order, hidden).makespan_s
    # A pair of 3 s, 1.5 of them communication, takes as long as its longer chunk: 2.
    assert saved == pytest.approx(1.0 * order.paired[: order.rank_start[1]].sum())


def test_exposed_is_what_is_occupied_and_not_compute():
    order = make_order("1f1b", pp=2, micro_batches=4)
    line = simulate(order, Durations(forward_s=1.0, input_grad_s=2.0, forward_comm_s=0.25, backward_comm_s=0.5))
    assert line.exposed_s.tolist() == pytest.approx([4 * 0.75] * 2)
    paired = make_order("interleaved", pp=2, micro_batches=8, vp=2, paired=True)
    durations = {"forward_s": 1.0, "input_grad_s": 2.0, "forward_comm_s": 0.25, "backward_comm_s": 0.5}
    hidden = simulate(paired, Durations(**durations))
    # Per pair 0.75 s of communication hide; the rest of the 16 + 16 tasks of a rank shows all of it.
    pairs = [paired.paired[: paired.rank_start[1]].sum(), paired.paired[paired.rank_start[1] :].sum()]
    assert hidden.exposed_s.tolist() == pytest.approx([(16 - count) * 0.75 for count in pairs])
    slowed = simulate(paired, Durations(**durations, beside_slowdown_factor=1.25))
    assert slowed.exposed_s.tolist() == pytest.approx([(16 - count) * 0.75 + count * 0.75 * 0.2 for count in pairs])


def test_steps_without_a_barrier_follow_each_other_by_the_period():
    durations = Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0)
    one = make_order("zb-h2", pp=4, micro_batches=12)
    columns = []
    for rank in range(4):
        step = np.array(one.of_rank(rank))
        columns.append(np.concatenate([step + np.array([0, 12 * n, 0]) for n in range(3)]))
    three = build_order("three steps", 4, 1, 36, columns, placement=loop_placement(4, 1))
    alone = simulate(one, durations)
    assert alone.period_s == 36.0
    assert simulate(three, durations).makespan_s == alone.makespan_s + 2 * alone.period_s


def test_wrong_lengths_are_named():
    order = make_order("1f1b", pp=4, micro_batches=8)
    with pytest.raises(InputError, match=r"forward_s has shape \(3,\), but the order needs \(4,\)"):
        simulate(order, Durations(forward_s=[1.0, 1.0, 1.0], input_grad_s=1.0))
    with pytest.raises(InputError, match=r"transfers.forward_s has shape \(4,\), but the order needs \(3,\)"):
        simulate(order, Durations(forward_s=1.0, input_grad_s=1.0), Transfers(forward_s=[0.0] * 4))


def test_a_deadlock_says_who_waits_for_what():
    columns = [
        np.array([(0, 0, 0), (0, 0, 3), (0, 1, 0), (0, 1, 3)]),
        np.array([(1, 1, 0), (1, 1, 3), (1, 0, 0), (1, 0, 3)]),
    ]
    order = build_order("built-in", 2, 1, 2, columns, placement=loop_placement(2, 1))
    with pytest.raises(Deadlock, match="rank 0 stands before BW s0 m0 and waits for BW s1 m0 of rank 1"):
        simulate(order, Durations(forward_s=1.0, input_grad_s=1.0))


def test_a_task_on_the_wrong_rank_or_in_no_pipeline_is_refused():
    columns = [np.array([(0, 0, 0), (1, 0, 0)]), np.array([(1, 0, 3), (0, 0, 3)])]
    order = build_order("mine", 2, 1, 2, columns, placement=loop_placement(2, 1))
    with pytest.raises(InputError) as found:
        check(order)
    said = [str(problem) for problem in found.value.problems]
    assert "rank 0 runs F s1 m0, but slot 1 is on rank 1" in said
    assert "rank 1 runs BW s0 m0, but slot 0 is on rank 0" in said
    assert "micro-batch 1 never runs" in said


def test_columns_hold_tasks_and_both_ends_of_every_transfer():
    order = make_order("1f1b", pp=3, micro_batches=2)
    table = simulate(order, Durations(forward_s=1.0, input_grad_s=1.0), Transfers(forward_s=0.5)).columns()
    streams = table["stream"].tolist()
    assert streams.count("compute") == order.tasks
    assert streams.count("send") == streams.count("receive") == 2 * 2 * 2
    rows = zip(table["rank"].tolist(), table["stage"].tolist(), streams, strict=True)
    assert {(rank, stage) for rank, stage, stream in rows if stream == "receive"} == {(1, 0), (2, 1), (1, 2), (0, 1)}


def test_every_stream_is_busy_for_what_it_was_given():
    order = make_order("1f1b", pp=2, micro_batches=4)
    durations = Durations(
        forward_s=1.0,
        input_grad_s=2.0,
        forward_comm_s=0.25,
        backward_comm_s=0.5,
        forward_host_s=0.5,
        input_grad_host_s=1.0,
    )
    busy = simulate(order, durations, Transfers(forward_s=0.25, backward_s=0.5, latency_s=0.125)).stream_busy_s()
    assert {stream: spent.tolist() for stream, spent in busy.items()} == {
        "compute": [12.0, 12.0],
        "communication": [3.0, 3.0],
        "send": [4 * 0.375, 4 * 0.625],
        "receive": [4 * 0.625, 4 * 0.375],
        "host": [6.0, 6.0],
    }


def test_intervals_that_overlap_are_covered_once():
    rank = np.array([0, 0, 0, 1])
    start, end = np.array([0.0, 1.0, 5.0, 2.0]), np.array([3.0, 2.0, 6.0, 4.0])
    assert covered_s(rank, start, end, ranks=3).tolist() == [4.0, 2.0, 0.0]
