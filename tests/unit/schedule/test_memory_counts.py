"""Memory of an order with pairs, counted by hand: every change, and what each rank's peak is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule.engine import Durations, simulate
from simulator.schedule.make import make_order
from simulator.schedule.memory import Footprint, memory_over_time, memory_peaks
from simulator.schedule.order import build_order, loop_placement
from tests.unit.schedule.paired import FOLDED, pair_of

FOOTPRINT = Footprint(
    static_bytes=[1000.0, 2000.0], activation_bytes=[100.0, 200.0], weight_gradient_bytes=[10.0, 30.0],
    gradient_bytes=[7.0, 5.0], forward_working_bytes=[6.0, 2.0], backward_working_bytes=[3.0, 4.0],
)  # fmt: skip
# F 1 s, B 2 s, W 3 s: rank 0 begins its tasks at 0, 1, 2 (a pair of 6 s), 8 (of 3 s), 11, 14, 16 and 21, and ends at
# 24; rank 1 at 0, 1, 2 and 7, and ends at 12.
LINE = simulate(FOLDED, Durations(forward_s=1.0, input_grad_s=2.0, weight_grad_s=3.0))
STATIC, SAVED, LATE, GRADIENTS, WORKING = range(5)

RANK_0 = [
    (0, 1000, STATIC),
    # F s0 m0, whose backward is split: 10 of its 100 stay until W.
    (0, 6, WORKING), (0, 10, LATE), (0, 90, SAVED), (1, -6, WORKING),
    # F s1 m0, whose backward is not.
    (1, 2, WORKING), (1, 200, SAVED), (2, -2, WORKING),
    # F s0 m1 with BW s1 m0, the first backward of stage 1.
    (2, 4, WORKING), (2, 5, GRADIENTS), (2, 6, WORKING), (2, 100, SAVED),
    (8, -200, SAVED), (8, -6, WORKING), (8, -4, WORKING),
    # F s1 m1 with B s0 m0, the first backward of stage 0.
    (8, 2, WORKING), (8, 3, WORKING), (8, 7, GRADIENTS), (8, 30, LATE), (8, 170, SAVED),
    (11, -90, SAVED), (11, -3, WORKING), (11, -2, WORKING),
    # W s0 m0, B s1 m1, BW s0 m1, W s1 m1.
    (11, 3, WORKING), (14, -10, LATE), (14, -3, WORKING),
    (14, 4, WORKING), (16, -170, SAVED), (16, -4, WORKING),
    (16, 3, WORKING), (21, -100, SAVED), (21, -3, WORKING),
    (21, 4, WORKING), (24, -30, LATE), (24, -4, WORKING),
    (24, -7, GRADIENTS), (24, -5, GRADIENTS),
]  # fmt: skip
RANK_1 = [
    (0, 2000, STATIC), (0, 6, WORKING), (0, 100, SAVED), (1, -6, WORKING), (1, 2, WORKING), (1, 200, SAVED),
    (2, -2, WORKING), (2, 4, WORKING), (2, 5, GRADIENTS), (7, -200, SAVED), (7, -4, WORKING), (7, 3, WORKING),
    (7, 7, GRADIENTS), (12, -100, SAVED), (12, -3, WORKING),
    # Gradients stay until the end of the step, which rank 0 ends.
    (24, -7, GRADIENTS), (24, -5, GRADIENTS),
]  # fmt: skip


def test_every_change_of_a_rank_s_memory_in_its_sequence() -> None:
    memory = memory_over_time(LINE, FOOTPRINT)
    assert memory.rank_start.tolist() == [0, len(RANK_0), len(RANK_0) + len(RANK_1)]
    found = list(zip(memory.time_s.tolist(), memory.change_bytes.tolist(), memory.part.tolist(), strict=True))
    assert found == RANK_0 + RANK_1
    for rank, changes in enumerate((RANK_0, RANK_1)):
        time, held = memory.of_rank(rank)
        assert time.tolist() == [at for at, _, _ in changes]
        assert held.tolist() == np.cumsum([change for _, change, _ in changes]).tolist()
        assert held[-1] == [1000, 2000][rank]


def test_a_pair_holds_what_both_of_its_tasks_hold() -> None:
    """Rank 0 in F s1 m1 with B s0 m0: all four forwards less BW's 200 saved; rank 1 in its first backward."""
    memory, peaks = memory_over_time(LINE, FOOTPRINT), memory_peaks(FOLDED, FOOTPRINT)
    activations, working = [100 + 200 + 100 - 200 + 200, 300], [2 + 3, 4]
    assert peaks.activation_bytes.tolist() == activations
    assert peaks.gradient_bytes.tolist() == [7 + 5, 5]
    assert peaks.working_bytes.tolist() == working
    assert peaks.peak_bytes.tolist() == memory.peak_bytes.tolist() == [1000 + 400 + 12 + 5, 2000 + 300 + 5 + 4]
    assert peaks.task.tolist() == [4, 12]
    assert memory.peak_time_s.tolist() == [8, 2]
    assert memory.peak_index.tolist() == [RANK_0.index((8, 170, SAVED)), len(RANK_0) + 8]
    assert memory.peak_parts(0) == {
        "static": 1000, "activations": 90 + 200 + 100 - 200 + 170, "weight_gradient_inputs": 10 + 30,
        "gradients": 5 + 7, "working": 2 + 3,
    }  # fmt: skip
    assert memory.peak_parts(1) == {
        "static": 2000, "activations": 300, "weight_gradient_inputs": 0, "gradients": 5, "working": 4,
    }  # fmt: skip


PEAKS = [
    # Working memory of one stage's backwards or forwards decides which task is the peak: task, saved, gradients, work.
    ({"backward_working_bytes": [3000.0, 4.0]}, 4, 400, 12, 3002),
    ({"backward_working_bytes": [3.0, 4000.0]}, 2, 400, 5, 4006),
    ({"forward_working_bytes": [5000.0, 2.0]}, 2, 400, 5, 5004),
    ({"forward_working_bytes": [1.0, 6000.0]}, 4, 400, 12, 6003),
    ({"activation_bytes": [10.0, 30.0], "backward_working_bytes": [300.0, 4.0], "gradient_bytes": 0.0}, 4,
     10 + 30 + 10 - 30 + 30, 0, 302),
    # A stage's gradients are there once, from its first backward on.
    ({"activation_bytes": 0.0, "weight_gradient_bytes": 0.0, "forward_working_bytes": 0.0,
      "backward_working_bytes": [3.0, 4.0]}, 7, 0, 12, 4),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "task", "saved", "gradients", "working"), PEAKS)
def test_the_peak_is_where_the_most_is_held(
    changes: dict[str, Any], task: int, saved: float, gradients: float, working: float
) -> None:
    given = {name: getattr(FOOTPRINT, name) for name in FOOTPRINT.__slots__}
    footprint = Footprint(**{**given, **changes})
    peaks, curve = memory_peaks(FOLDED, footprint), memory_over_time(LINE, footprint)
    found = (peaks.task[0], peaks.activation_bytes[0], peaks.gradient_bytes[0], peaks.working_bytes[0])
    assert found == (task, saved, gradients, working)
    assert peaks.peak_bytes.tolist() == curve.peak_bytes.tolist()
    assert curve.peak_bytes[0] == 1000 + saved + gradients + working


def test_the_peak_is_the_first_of_equals_and_no_gradient_counts_before_its_backward() -> None:
    """F s0 m0, F s1 m0, F s0 m1 with BW s1 m0, BW s0 m0, F s1 m1, BW s1 m1, BW s0 m1."""
    order = pair_of(3)
    # Two forwards and 1000 of F s1's work, in task 1 and again in task 5.
    work = Footprint(activation_bytes=[3.0, 4.0], forward_working_bytes=[1.0, 1000.0])
    assert memory_peaks(order, work).task.tolist() == [1]
    # Three forwards in the pair; two and stage 0's gradients from task 4 on.
    gradients = Footprint(activation_bytes=1.0, gradient_bytes=[50.0, 0.0])
    found = memory_peaks(order, gradients)
    assert (found.task.tolist(), found.peak_bytes.tolist()) == ([4], [2 + 50])


def test_a_rank_s_count_begins_with_it() -> None:
    """Forwards alone: rank 0 still holds 6 when rank 1's list begins, which holds 10 by itself."""
    columns = [np.array([(0, 0, 0), (0, 1, 0)]), np.array([(1, 0, 0), (1, 1, 0)])]
    order = build_order("forwards", 2, 1, 2, columns, placement=loop_placement(2, 1))
    assert memory_peaks(order, Footprint(activation_bytes=[3.0, 5.0])).peak_bytes.tolist() == [6, 10]


def test_a_peak_of_activations_alone_has_no_other_parts() -> None:
    memory = memory_over_time(LINE, Footprint(static_bytes=1.0, activation_bytes=[100.0, 200.0]))
    assert memory.peak_parts(1) == {
        "static": 1, "activations": 300, "weight_gradient_inputs": 0, "gradients": 0, "working": 0,
    }  # fmt: skip


def test_nothing_but_what_is_there_all_the_time() -> None:
    """One entry a rank; the first task holds the most, as every other one."""
    footprint = Footprint(static_bytes=[3.0, 0.0])
    memory = memory_over_time(LINE, footprint)
    assert (memory.time_s.tolist(), memory.held_bytes.tolist()) == ([0, 0], [3, 0])
    peaks = memory_peaks(FOLDED, footprint)
    assert (peaks.peak_bytes.tolist(), peaks.task.tolist()) == ([3, 0], [0, 10])


@pytest.mark.parametrize("name", [name for name in Footprint.__slots__ if name != "static_bytes"])
@pytest.mark.parametrize("curve", [False, True])
def test_bytes_of_too_many_stages_are_named(name: str, curve: bool) -> None:
    line = simulate(make_order("1f1b", pp=2, micro_batches=2), Durations(forward_s=1.0, input_grad_s=1.0))
    footprint = Footprint(**{name: [1.0] * 3})
    with pytest.raises(InputError) as refused:
        memory_over_time(line, footprint) if curve else memory_peaks(line.order, footprint)
    assert str(refused.value) == f"{name} has shape (3,), but the order needs (2,)"


@pytest.mark.parametrize("curve", [False, True])
def test_static_bytes_are_by_rank(curve: bool) -> None:
    line = simulate(make_order("zbv", pp=2, vp=2, micro_batches=4), Durations(forward_s=1.0, input_grad_s=1.0))
    footprint = Footprint(static_bytes=[1.0] * 4)
    with pytest.raises(InputError) as refused:
        memory_over_time(line, footprint) if curve else memory_peaks(line.order, footprint)
    assert str(refused.value) == "static_bytes has shape (4,), but the order needs (2,)"
