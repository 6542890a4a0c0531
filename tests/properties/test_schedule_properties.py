"""What holds for every schedule, size and set of durations."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.schedule.bounds import lower_bound_by_class_s, lower_bound_s
from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.make import make_order
from simulator.schedule.memory import Footprint, memory_over_time
from simulator.schedule.order import BACKWARD, FORWARD, INPUT_GRAD, WEIGHT_GRAD, check
from simulator.spec.strategy import SCHEDULES

EVEN = 60
FOLDED = {"zbv", "v-half", "v-min", "dualpipev"}


@st.composite
def orders(draw):
    schedule = draw(st.sampled_from(SCHEDULES))
    pp = draw(st.integers(1, 8))
    vp = 1
    if schedule in FOLDED:
        vp = 2
    elif schedule in {"interleaved", "interleaved-bfs"}:
        vp = draw(st.integers(2, 4))
    elif schedule == "zb-h1":
        vp = draw(st.integers(1, 3))
    if schedule in {"dualpipe", "chimera"}:
        pp = max(2, pp // 2 * 2)
    if vp > 1:
        pp = max(pp, 2)
    count = draw(st.integers(1, 24))
    if schedule in {"dualpipe", "dualpipev"}:
        count = 2 * pp + 2 * (count // 2)
    if schedule == "chimera" or vp > 2 or schedule in {"interleaved", "zb-h1"}:
        count = -(-count // pp) * pp
    group = draw(st.integers(pp, count)) if schedule == "interleaved" else 0
    try:
        return make_order(schedule, pp=pp, micro_batches=count, vp=vp, group_size=group)
    except InputError:
        assume(False)


@st.composite
def cases(draw):
    order = draw(orders())
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    forward, grad, weight = generator.uniform(0.1, 3.0, (3, order.stages))
    sends = generator.uniform(0.0, draw(st.sampled_from([0.0, 0.2, 4.0])), (2, max(order.stages - 1, 0)))
    return (
        order,
        Durations(forward_s=forward, input_grad_s=grad, weight_grad_s=weight),
        Transfers(forward_s=sends[0], backward_s=sends[1], latency_s=0.01, blocking=draw(st.booleans())),
    )


@given(cases())
@settings(max_examples=EVEN)
def test_nothing_is_lost_and_nothing_runs_twice(case):
    order, durations, transfers = case
    check(order)
    line = simulate(order, durations, transfers)
    # Every forward has its backward, whole or split.
    assert (order.kind == FORWARD).sum() == ((order.kind == INPUT_GRAD) | (order.kind == BACKWARD)).sum()
    assert (order.kind == INPUT_GRAD).sum() == (order.kind == WEIGHT_GRAD).sum()
    # Busy and idle make up the makespan, on every rank; the work is the work.
    assert np.allclose(line.busy_s + line.idle_s, line.makespan_s, rtol=1e-12)
    seconds = np.stack([durations.forward_s, durations.input_grad_s, durations.weight_grad_s])
    seconds = np.concatenate([seconds, seconds[1:2] + seconds[2:]])
    assert np.isclose(line.busy_s.sum(), seconds[order.kind, order.stage].sum(), rtol=1e-12)
    # A rank does one thing at a time, and reads nothing before it is there.
    same = order.rank[1:] == order.rank[:-1]
    together = line.second[1:]
    assert (line.start_s[1:] >= line.end_s[:-1] - 1e-9)[same & ~together].all()
    reads = order.dependency >= 0
    assert (line.start_s[reads] >= line.arrival_s[order.dependency[reads]] - 1e-9).all()


@given(cases())
@settings(max_examples=EVEN)
def test_memory_is_never_negative_and_comes_back(case):
    order, durations, transfers = case
    line = simulate(order, durations, transfers)
    memory = memory_over_time(line, Footprint(activation_bytes=3.0, weight_gradient_bytes=1.0, gradient_bytes=2.0))
    assert memory.held_bytes.min() >= -1e-9
    for rank in range(order.pp):
        assert abs(memory.of_rank(rank)[1][-1]) < 1e-9
        assert np.isclose(sum(memory.peak_parts(rank).values()), memory.peak_bytes[rank])
    counted = memory_over_time(line, Footprint(activation_bytes=1.0, weight_gradient_bytes=1.0))
    assert counted.peak_bytes.tolist() == line.in_flight.tolist()


@given(cases(), st.floats(1.0, 3.0), st.integers(0, 2))
@settings(max_examples=EVEN)
def test_more_work_or_slower_links_never_make_a_step_faster(case, factor, which):
    order, durations, transfers = case
    before = simulate(order, durations, transfers).makespan_s
    if which == 0:
        longer = np.array(durations.forward_s) * factor
        durations = Durations(
            forward_s=longer, input_grad_s=durations.input_grad_s, weight_grad_s=durations.weight_grad_s
        )
    elif which == 1:
        transfers = Transfers(
            forward_s=np.array(transfers.forward_s) * factor,
            backward_s=transfers.backward_s,
            latency_s=0.01,
            blocking=transfers.blocking,
        )
    else:
        transfers = Transfers(
            forward_s=transfers.forward_s, backward_s=transfers.backward_s, latency_s=0.01, blocking=True
        )
    assert simulate(order, durations, transfers).makespan_s >= before * (1 - 1e-12)


@given(cases(), st.floats(0.01, 100.0))
@settings(max_examples=EVEN)
def test_seconds_scale(case, factor):
    order, durations, _ = case
    scaled = Durations(
        forward_s=np.array(durations.forward_s) * factor,
        input_grad_s=np.array(durations.input_grad_s) * factor,
        weight_grad_s=np.array(durations.weight_grad_s) * factor,
    )
    before, after = simulate(order, durations).makespan_s, simulate(order, scaled).makespan_s
    assert np.isclose(after, before * factor, rtol=1e-9)


@given(cases())
@settings(max_examples=2 * EVEN)
def test_lower_bounds_never_exceed_the_engine(case):
    order, durations, transfers = case
    free = Transfers(forward_s=transfers.forward_s, backward_s=transfers.backward_s, blocking=transfers.blocking)
    found = simulate(order, durations, free).makespan_s
    bound = lower_bound_s(
        order.schedule,
        forward_s=durations.forward_s,
        backward_s=np.array(durations.input_grad_s) + np.array(durations.weight_grad_s),
        pp=order.pp,
        vp=order.vp,
        micro_batches=order.micro_batches,
        send_forward_s=free.forward_s,
        send_backward_s=free.backward_s,
        blocking=free.blocking,
    )
    assert float(bound) <= found * (1 + 1e-12)


@given(orders(), st.tuples(*[st.floats(0.1, 3.0)] * 3), st.sampled_from([0.0, 0.1, 2.0]), st.booleans())
@settings(max_examples=2 * EVEN)
def test_class_bounds_never_exceed_the_engine(order, seconds, send, blocking):
    first, middle, last = seconds
    assume(order.stages > 1)
    whole = np.full(order.stages, middle)
    whole[0], whole[-1] = first, last
    line = simulate(
        order,
        Durations(forward_s=0.4 * whole, input_grad_s=0.35 * whole, weight_grad_s=0.25 * whole),
        Transfers(forward_s=send / 2, backward_s=send / 2, blocking=blocking),
    )
    bound = lower_bound_by_class_s(
        order.schedule,
        first_s=first,
        middle_s=middle,
        last_s=last,
        pp=order.pp,
        vp=order.vp,
        micro_batches=order.micro_batches,
        send_s=send,
        blocking=blocking,
    )
    assert float(bound) <= line.makespan_s * (1 + 1e-12)


@given(st.sampled_from(["dualpipe", "chimera"]), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=20)
def test_mirrored_ranks_are_alike(schedule, half, more):
    """Both directions are the same pipeline: turning it round permutes the ranks and changes nothing else."""
    pp = 2 * half
    order = make_order(schedule, pp=pp, micro_batches=2 * pp + pp * more)
    line = simulate(order, Durations(forward_s=1.0, input_grad_s=1.25, weight_grad_s=0.5))
    assert np.allclose(line.busy_s, line.busy_s[::-1])
    assert np.allclose(line.rank_end_s, line.rank_end_s[::-1])
    assert line.in_flight.tolist() == line.in_flight[::-1].tolist()
