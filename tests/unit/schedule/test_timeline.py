"""What a timeline says of its ranks and streams, on steps that a person can draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.make import make_order
from simulator.schedule.timeline import Timeline, covered_s
from tests.unit.schedule.paired import FOLDED


def _rows(line: Timeline, stream: str) -> list[tuple[Any, ...]]:
    """(rank, stage, micro-batch, kind, start, end) of one stream."""
    table = line.columns()
    assert list(table) == ["rank", "stream", "stage", "micro_batch", "kind", "start_s", "end_s"]
    columns = (table[name].tolist() for name in table)
    return [(rank, *rest) for rank, name, *rest in zip(*columns, strict=True) if name == stream]


STEP = simulate(
    make_order("1f1b", pp=2, micro_batches=1),
    Durations(forward_s=[4.0, 5.0], input_grad_s=[8.0, 9.0], forward_comm_s=[1.0, 0.0], backward_comm_s=[3.0, 2.0]),
    Transfers(forward_s=2.0, backward_s=6.0, latency_s=1.0),
)  # fmt: skip


def test_every_stream_of_a_step_row_by_row() -> None:
    """F0 to 4, there at 7; F1 to 12, B1 to 21, there at 28; B0 to 36."""
    assert _rows(STEP, "compute") == [(0, 0, 0, "F", 0, 4), (0, 0, 0, "BW", 28, 36), (1, 1, 0, "F", 7, 12),
                                      (1, 1, 0, "BW", 12, 21)]  # fmt: skip
    # At the end of its task; F1 has none.
    assert _rows(STEP, "communication") == [(0, 0, 0, "F", 3, 4), (0, 0, 0, "BW", 33, 36), (1, 1, 0, "BW", 19, 21)]
    assert _rows(STEP, "send") == [(0, 0, 0, "F", 4, 7), (1, 1, 0, "BW", 21, 28)]
    assert _rows(STEP, "receive") == [(1, 0, 0, "F", 4, 7), (0, 1, 0, "BW", 21, 28)]
    assert _rows(STEP, "host") == []
    assert STEP.columns()["kind"].dtype.kind == "U"
    assert {stream: spent.tolist() for stream, spent in STEP.stream_busy_s().items()} == {
        "compute": [12, 14], "communication": [4, 2], "send": [3, 7], "receive": [7, 3],
    }  # fmt: skip


def test_what_ranks_do_in_a_step() -> None:
    assert STEP.makespan_s == 36
    assert STEP.rank_start_s.tolist() == [0, 7]
    assert STEP.rank_end_s.tolist() == [36, 21]
    assert STEP.period_s == 36
    assert STEP.busy_s.tolist() == [12, 14]
    assert STEP.idle_s.tolist() == [24, 22]
    assert STEP.bubble_fraction == 46 / 72
    assert STEP.exposed_s.tolist() == [4, 2]
    assert STEP.in_flight.tolist() == [1, 1]
    assert STEP.communication_s.tolist() == [1, 3, 0, 2]


def test_the_period_is_the_longest_span_of_a_rank_and_not_of_the_step() -> None:
    """Rank 1 begins 7 s later than rank 0, ends 1 s later: ZB-H1 of one micro-batch with a long last W."""
    line = simulate(make_order("zb-h1", pp=2, micro_batches=1),
                    Durations(forward_s=[2.0, 1.0], input_grad_s=1.0, weight_grad_s=[1.0, 20.0]))  # fmt: skip
    # F0 2, F1 3, B1 4, W1 24; B0 5, W0 6.
    assert line.rank_start_s.tolist() == [0, 2]
    assert line.rank_end_s.tolist() == [6, 24]
    assert (line.makespan_s, line.period_s) == (24, 22)


def test_pairs_and_launches_in_the_table() -> None:
    """Pairs of 20 and of 5 s from 5 s on (see paired.py): communication beside compute from their start."""
    durations = {"forward_s": [2.0, 3.0], "input_grad_s": [5.0, 7.0], "weight_grad_s": [11.0, 13.0],
                 "forward_comm_s": [0.5, 1.0], "backward_comm_s": [2.0, 4.0]}  # fmt: skip
    line = simulate(FOLDED, Durations(**durations))
    rows = [(rank, kind, start, end) for rank, _, _, kind, start, end in _rows(line, "communication")]
    assert rows[:7] == [(0, "F", 1.5, 2), (0, "F", 4, 5), (0, "F", 5, 5.5), (0, "BW", 5, 9), (0, "F", 25, 26),
                        (0, "B", 25, 27), (0, "B", 30 + 11 + 7 - 4, 48)]  # fmt: skip
    assert line.paired.tolist() == [False, False, True, True, True, True, *[False] * 8]
    # A pair's time counts once: 2, 3, 20, 5, W 11, B 7, BW 16, W 13.
    assert line.busy_s.tolist() == [2 + 3 + 20 + 5 + 11 + 7 + 16 + 13, 2 + 3 + 20 + 16]
    # Compute: F 1.5 + 2 + 1.5 + 2, BW s1 16, B s0 3, W s0 11, B s1 3, BW s0 14, W s1 13; rank 1: 1.5 + 2 + 16 + 14.
    assert line.exposed_s.tolist() == [77 - (7 + 16 + 3 + 11 + 3 + 14 + 13), 41 - 33.5]
    # Forwards less backwards (W of split ones): 1, 2, 3, 2, 3, 3, 2, 2, 1, 0; rank 1: 1, 2, 1, 0.
    assert line.in_flight.tolist() == [3, 2]
    launched = simulate(FOLDED, Durations(**durations, forward_host_s=[1.0, 0.0], input_grad_host_s=0.25))
    host = [(rank, kind, start, end) for rank, _, _, kind, start, end in _rows(launched, "host")]
    # F s0 1 s, F s1 none, the pair 1.25 s for both, F s1 with B s0 0.25, W none, B, BW 0.25, W none.
    assert host[:10] == [
        (0, "F", 0, 1), (0, "F", 1, 1), (0, "F", 1, 2.25), (0, "BW", 1, 2.25), (0, "F", 2.25, 2.5),
        (0, "B", 2.25, 2.5), (0, "W", 2.5, 2.5), (0, "B", 2.5, 2.75), (0, "BW", 2.75, 3), (0, "W", 3, 3),
    ]  # fmt: skip
    # Launches of a pair overlap themselves: they count once.
    assert launched.stream_busy_s()["host"].tolist() == [3, 1.5]


@pytest.mark.parametrize(
    ("name", "vp", "forwards", "backwards"),
    [
        # Rank that reads each stage's output; none reads the last forward and the first stage's backward.
        ("1f1b", 1, [1, 2], [0, 1]),
        ("interleaved", 2, [1, 2, 0, 1, 2], [0, 1, 2, 0, 1]),
        ("zbv", 2, [1, 2, 2, 1, 0], [0, 1, 2, 2, 1]),
    ],
)
def test_outputs_go_to_the_rank_of_the_next_stage(name: str, vp: int, forwards: Any, backwards: Any) -> None:
    order = make_order(name, pp=3, vp=vp, micro_batches=6)
    receiver = simulate(order, Durations(forward_s=1.0, input_grad_s=1.0)).receiver
    last = 3 * vp - 1
    for stage, rank in enumerate(forwards):
        assert set(receiver[(order.kind == 0) & (order.stage == stage)].tolist()) == {rank}
    for stage, rank in enumerate(backwards, 1):
        back = (order.kind == 1) | (order.kind == 3)
        assert set(receiver[back & (order.stage == stage)].tolist()) == {rank}
    assert len(forwards) == len(backwards) == last


def test_intervals_count_once_however_they_lie() -> None:
    """Rank 1: 1 to 9 covers 2 to 3 and 4 to 5, 8 to 12 adds 3, 12 to 13 adds 1 and 20 to 21 one more."""
    rank = np.array([1, 1, 0, 1, 1, 1, 1, 1])
    start = np.array([8.0, 2.0, 3.0, 1.0, 20.0, 4.0, 12.0, 1.0])
    end = np.array([12.0, 3.0, 5.5, 9.0, 21.0, 5.0, 13.0, 2.0])
    assert covered_s(rank, start, end, ranks=3).tolist() == [2.5, 8 + 3 + 1 + 1, 0]
