"""The engine against the closed forms, over every legal size that issue and guide name."""

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule.closed import peak_in_flight, step_time_s
from simulator.schedule.engine import Durations, simulate
from simulator.schedule.make import check_sizes, make_order
from simulator.schedule.order import check
from simulator.spec.strategy import SCHEDULES

# Forward, input-gradient and weight-gradient seconds: those the form is stated for, and where it is general, others.
EQUAL = (1.0, 1.0, 1.0)
SECONDS = {
    "gpipe": (1.0, 1.5, 0.75),
    "1f1b": (1.0, 1.5, 0.75),
    "eager-1f1b": (2.0, 0.5, 0.25),
    "interleaved": (1.0, 1.5, 0.75),
    "interleaved-bfs": (1.0, 1.5, 0.75),
    "chimera": (1.0, 1.25, 0.75),
}


def sizes(schedule, p_max=12, m_max=48, v_max=4):
    for p in range(1, p_max + 1):
        for v in range(1, v_max + 1):
            for m in range(1, m_max + 1):
                try:
                    check_sizes(schedule, pp=p, micro_batches=m, vp=v)
                except InputError:
                    continue
                yield p, m, v


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_engine_equals_the_closed_form_for_every_legal_size(schedule):
    f, b, w = SECONDS.get(schedule, EQUAL)
    seen = 0
    for p, m, v in sizes(schedule):
        order = make_order(schedule, pp=p, micro_batches=m, vp=v)
        line = simulate(order, Durations(forward_s=f, input_grad_s=b, weight_grad_s=w))
        wanted = float(step_time_s(schedule, forward_s=f, input_grad_s=b, weight_grad_s=w, pp=p, micro_batches=m, vp=v))
        assert line.makespan_s == pytest.approx(wanted, rel=1e-9), (p, m, v)
        seen += 1
    assert seen >= 58


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_orders_are_complete_and_hold_the_published_number_of_micro_batches(schedule):
    for p, m, v in sizes(schedule, p_max=9, m_max=24, v_max=3):
        if (p + m + v) % 2:
            continue
        order = make_order(schedule, pp=p, micro_batches=m, vp=v)
        check(order)
        held = simulate(order, Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0)).in_flight
        wanted = peak_in_flight(schedule, pp=p, micro_batches=m, rank=np.arange(p), vp=v)
        if schedule in ("v-half", "v-min"):
            assert (held <= wanted).all(), (p, m, v)
            assert held.max() == wanted.max(), (p, m, v)
        else:
            assert held.tolist() == wanted.tolist(), (p, m, v)


@pytest.mark.parametrize(
    ("schedule", "vp", "stages_held"),
    [  # Table e of the guide, for p = 8 and m = 32, in micro-batches of a whole rank on the rank that holds most.
        ("gpipe", 1, 32.0),
        ("1f1b", 1, 8.0),
        ("interleaved", 2, 8 * (1 + 7 / (8 * 2))),
        ("interleaved", 4, 8 * (1 + 7 / (8 * 4))),
        ("zb-h1", 1, 8.0),
        ("zb-h2", 1, 15.0),
        ("zbv", 2, 8.0),
        ("v-half", 2, (8 + 2) / 2),
        ("v-min", 2, (8 + 4) / 3),
        ("dualpipe", 1, 9.0),
        ("chimera", 1, 8.0),
    ],
)
def test_activations_of_the_fullest_rank_are_the_published_ones(schedule, vp, stages_held):
    order = make_order(schedule, pp=8, micro_batches=32, vp=vp)
    line = simulate(order, Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0))
    assert line.in_flight.max() / vp == stages_held


def bubble(schedule, p, m, vp=1):
    line = simulate(
        make_order(schedule, pp=p, micro_batches=m, vp=vp),
        Durations(forward_s=1 / vp, input_grad_s=1 / vp, weight_grad_s=1 / vp),
    )
    return line.makespan_s - 3 * m, line.period_s - 3 * m


@pytest.mark.parametrize(("p", "m"), [(4, 16), (8, 32), (12, 48)])
def test_zero_bubble_trade_offs(p, m):
    plain, _ = bubble("1f1b", p, m)
    assert bubble("zb-h1", p, m)[0] == pytest.approx(plain / 3)
    assert bubble("zb-h2", p, m)[1] == 0
    assert bubble("zbv", p, m, 2)[1] == pytest.approx(0)
    half, least = bubble("v-half", p, m, 2)[0], bubble("v-min", p, m, 2)[0]
    assert plain / 2 - 1 <= half <= plain / 2
    assert plain * 2 / 3 - 0.5 <= least <= plain * 2 / 3


def test_dualpipe_is_the_readme_formula_and_folded_the_same_on_half_the_ranks():
    # (p / 2 - 1)(F&B + B - 3 W) with F&B = 3, B = 2, W = 1.
    assert bubble("dualpipe", 8, 20)[0] == (8 / 2 - 1) * (3 + 2 - 3)
    assert bubble("dualpipev", 4, 20, 2)[0] == pytest.approx((4 - 1) * (3 + 2 - 3) / 2)


def test_chimera_bubble_fraction_is_the_published_one():
    depth, number = 8, 8
    line = simulate(make_order("chimera", pp=depth, micro_batches=number), Durations(forward_s=1.0, input_grad_s=1.0))
    assert line.bubble_fraction == pytest.approx((depth - 2) / (2 * number + depth - 2))


def test_zb_h1_closed_form_is_general():
    generator = np.random.default_rng(3)
    for _ in range(60):
        p, more = int(generator.integers(1, 9)), int(generator.integers(0, 9))
        f, b, w = generator.integers(1, 9, 3).astype(float)
        line = simulate(
            make_order("zb-h1", pp=p, micro_batches=p + more), Durations(forward_s=f, input_grad_s=b, weight_grad_s=w)
        )
        form = step_time_s("zb-h1", forward_s=f, input_grad_s=b, weight_grad_s=w, pp=p, micro_batches=p + more)
        assert line.makespan_s == pytest.approx(float(form), rel=1e-12)


def test_closed_forms_broadcast():
    pp = np.array([[2], [4], [8]])
    m = np.array([8, 16])
    times = step_time_s("1f1b", forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0, pp=pp, micro_batches=m)
    assert times.shape == (3, 2)
    assert times[2, 1] == (16 + 7) * 3
    assert peak_in_flight("1f1b", pp=pp, micro_batches=m, rank=0).tolist() == [[2, 2], [4, 4], [8, 8]]


def test_what_has_no_closed_form_is_refused():
    with pytest.raises(InputError, match="F = B = W"):
        step_time_s("zbv", forward_s=1.0, input_grad_s=2.0, weight_grad_s=1.0, pp=4, micro_batches=8)
    with pytest.raises(InputError, match="Did you mean zb-h1"):
        step_time_s("zb_h1", forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0, pp=4, micro_batches=8)
    with pytest.raises(InputError, match="unknown schedule"):
        peak_in_flight("magic", pp=4, micro_batches=8, rank=0)
