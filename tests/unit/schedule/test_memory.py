"""Memory over time: by hand, at its peak, and back to its start."""

import numpy as np
import pytest

from simulator.schedule.engine import Durations, simulate
from simulator.schedule.make import make_order
from simulator.schedule.memory import Footprint, memory_over_time, memory_peaks

ONES = Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0)


def test_two_ranks_by_hand():
    line = simulate(make_order("1f1b", pp=2, micro_batches=2), ONES)
    memory = memory_over_time(line, Footprint(static_bytes=[100.0, 50.0], activation_bytes=[4.0, 2.0]))
    # Rank 0: F0 at 0, F1 at 1, B0 4-6, B1 7-9; rank 1: F0 1, B0 2-4, F1 4, B1 5-7.
    assert [part.tolist() for part in memory.of_rank(0)] == [[0, 0, 1, 6, 9], [100, 104, 108, 104, 100]]
    assert [part.tolist() for part in memory.of_rank(1)] == [[0, 1, 4, 4, 7], [50, 52, 50, 52, 50]]
    assert memory.peak_bytes.tolist() == [108, 52]
    assert memory.peak_time_s.tolist() == [1, 1]


def test_the_peak_says_what_it_is_made_of():
    line = simulate(make_order("1f1b", pp=4, micro_batches=8), ONES)
    memory = memory_over_time(
        line,
        Footprint(
            static_bytes=10.0,
            activation_bytes=2.0,
            gradient_bytes=3.0,
            forward_working_bytes=0.5,
            backward_working_bytes=1.0,
        ),
    )
    assert memory.peak_parts(0) == {
        "static": 10.0,
        "activations": 8.0,
        "weight_gradient_inputs": 0.0,
        "gradients": 3.0,
        "working": 1.0,
    }
    for rank in range(4):
        assert sum(memory.peak_parts(rank).values()) == memory.peak_bytes[rank]


def test_weight_gradients_hold_their_inputs_until_they_run():
    line = simulate(make_order("zb-h2", pp=3, micro_batches=9), ONES)
    whole = memory_over_time(line, Footprint(activation_bytes=1.0, weight_gradient_bytes=1.0))
    early = memory_over_time(line, Footprint(activation_bytes=1.0, weight_gradient_bytes=0.0))
    assert whole.peak_bytes.tolist() == line.in_flight.tolist() == [5, 5, 5]
    assert (early.peak_bytes <= whole.peak_bytes).all()
    assert early.peak_bytes.tolist() == [5, 3, 1]


@pytest.mark.parametrize("schedule", ["gpipe", "zb-h1", "zbv", "v-half", "dualpipe", "dualpipev", "chimera"])
def test_memory_is_never_negative_and_ends_where_it_began(schedule):
    vp = 2 if schedule in {"zbv", "v-half", "dualpipev"} else 1
    line = simulate(make_order(schedule, pp=4, micro_batches=8, vp=vp), ONES)
    memory = memory_over_time(
        line,
        Footprint(
            static_bytes=7.0,
            activation_bytes=np.arange(1.0, 4 * vp + 1),
            weight_gradient_bytes=0.5,
            gradient_bytes=2.0,
            forward_working_bytes=0.25,
            backward_working_bytes=0.5,
        ),
    )
    assert (memory.held_bytes >= 7.0).all()
    for rank in range(4):
        time, held = memory.of_rank(rank)
        assert held[-1] == pytest.approx(7.0)
        assert (np.diff(time) >= 0).all()


@pytest.mark.parametrize(
    "schedule", ["gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zbv", "v-half", "dualpipe", "dualpipev", "chimera"]
)
def test_peaks_alone_are_those_of_the_whole_curve(schedule):
    vp = {"interleaved": 2, "zbv": 2, "v-half": 2, "dualpipev": 2}.get(schedule, 1)
    line = simulate(make_order(schedule, pp=4, micro_batches=8, vp=vp), ONES)
    draw = np.random.default_rng(7)
    stages = line.order.stages
    footprint = Footprint(
        static_bytes=draw.integers(50, 60, 4).astype(float),
        activation_bytes=draw.integers(5, 9, stages).astype(float),
        weight_gradient_bytes=draw.integers(1, 5, stages).astype(float),
        gradient_bytes=draw.integers(0, 3, stages).astype(float),
        forward_working_bytes=draw.integers(0, 3, stages).astype(float),
        backward_working_bytes=draw.integers(0, 5, stages).astype(float),
    )
    peaks, curve = memory_peaks(line.order, footprint), memory_over_time(line, footprint)
    assert peaks.peak_bytes.tolist() == curve.peak_bytes.tolist()
    assert line.start_s[peaks.task] == pytest.approx(curve.peak_time_s)
    for rank in range(4):
        parts = curve.peak_parts(rank)
        assert peaks.activation_bytes[rank] == parts["activations"] + parts["weight_gradient_inputs"]
        assert peaks.gradient_bytes[rank] == parts["gradients"]
        assert peaks.working_bytes[rank] == parts["working"]
