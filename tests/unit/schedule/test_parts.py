"""The small engine, FSDP passes, ring attention, jitter and the zero-bubble search."""

import numpy as np
import pytest

from simulator.errors import Infeasible, InputError
from simulator.parallel.stage_cost import prefetched_s
from simulator.parallel.timing import CHANNEL_SHARE
from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.jitter import Jitter, jittered_steps
from simulator.schedule.make import make_order
from simulator.schedule.order import check
from simulator.schedule.orders.automatic import zero_bubble_order
from simulator.schedule.overlap import Layers, fsdp_passes_s, ring_attention_s
from simulator.schedule.tasks import Task, TaskGraph, run_tasks


def test_streams_take_ready_tasks_by_time_then_priority_then_sequence():
    graph = TaskGraph()
    first = graph.add("a", 2.0)
    graph.add("a", 1.0, priority=1)
    urgent = graph.add("a", 1.0, priority=-1)
    late = graph.add("b", 1.0, first)
    assert run_tasks(graph.tasks)[urgent] == (0.0, 1.0)
    assert run_tasks(graph.tasks)[first] == (1.0, 3.0)
    assert run_tasks(graph.tasks)[late] == (3.0, 4.0)


def test_a_circle_of_tasks_is_named():
    with pytest.raises(InputError, match="x waits for y"):
        run_tasks([Task("a", 1.0, (1,), name="x"), Task("a", 1.0, (0,), name="y")])


def fsdp(**options):
    layers = Layers(forward_s=[1.0] * 4, backward_s=[2.0] * 4, gather_s=[0.5] * 4, reduce_s=[0.25] * 4)
    return fsdp_passes_s(layers, **options)


def test_fsdp_without_prefetch_adds_every_gather():
    # Forward gathers 4, backward 3 (the last unit is kept); 4 reduces, of which the last is alone at the end.
    total, exposed = fsdp(prefetch=0)
    assert total == pytest.approx(12 + 7 * 0.5 + 3 * 0.25 + 0.25)
    assert exposed == pytest.approx(total - 12)


def test_fsdp_with_prefetch_exposes_the_first_gather_and_the_last_reduce():
    assert fsdp(prefetch=1) == pytest.approx((12 + 0.5 + 0.25, 0.75))


def test_fsdp_that_is_bound_by_its_wire():
    layers = Layers(forward_s=[0.1] * 3, backward_s=[0.1] * 3, gather_s=[1.0] * 3, reduce_s=[1.0] * 3)
    total, _ = fsdp_passes_s(layers, prefetch=1)
    # Three gathers, two more in backward, three reduces share one wire; the ends of compute stick out.
    assert 8.0 <= total <= 8.0 + 6 * 0.1


def test_fsdp_that_keeps_parameters_gathers_once():
    once, _ = fsdp(prefetch=0, reshard=False, micro_batches=3, reduce_each=False)
    assert once == pytest.approx(3 * 12 + 4 * 0.5 + 4 * 0.25, abs=0.76)


@pytest.mark.parametrize("units", [1, 2, 5, 32])
@pytest.mark.parametrize(("compute_s", "gather_s"), [(1.0, 0.25), (1.0, 1.0), (0.5, 2.0), (0.0, 1.0)])
def test_the_estimates_prefetch_is_this_one_with_what_channels_displace(units, compute_s, gather_s):
    # Forwards alone, parameters kept: what the small engine exposes, and at most what channels take from compute.
    layers = Layers(
        forward_s=[compute_s] * units, backward_s=[0.0] * units, gather_s=[gather_s] * units, reduce_s=[0.0] * units
    )
    _, exposed = fsdp_passes_s(layers, prefetch=1, reshard=False)
    shown = prefetched_s(units * gather_s, units * compute_s, units)
    assert exposed - 1e-12 <= shown <= exposed + CHANNEL_SHARE * units * gather_s + 1e-12


def test_fsdp_needs_a_time_for_each_unit():
    with pytest.raises(InputError, match="per unit"):
        fsdp_passes_s(Layers(forward_s=[1.0], backward_s=[], gather_s=[1.0], reduce_s=[1.0]))


def test_ring_attention_hides_hops_behind_blocks_and_agrees_with_the_small_engine():
    for block, hop in ((2.0, 1.0), (1.0, 3.0)):
        graph = TaskGraph()
        arrived, computed = -1, -1
        for step in range(4):
            computed = graph.add("compute", block, arrived, computed)
            if step < 3:
                arrived = graph.add("wire", hop, arrived)
        assert max(end for _, end in run_tasks(graph.tasks)) == ring_attention_s(block, hop, 4)
    assert ring_attention_s(np.array([1.0, 2.0]), 1.5, np.array([1, 3])).tolist() == [1.0, 6.0]


ORDER = make_order("1f1b", pp=4, micro_batches=8)
PLAIN = Durations(forward_s=1.0, input_grad_s=2.0)


def test_no_jitter_is_the_engine():
    moves = Transfers(forward_s=0.25, backward_s=0.125, latency_s=0.0625)
    for blocking in (False, True):
        moves = Transfers(forward_s=0.25, backward_s=0.125, latency_s=0.0625, blocking=blocking)
        times = jittered_steps(ORDER, PLAIN, moves, jitter=Jitter(), steps=2, replicas=2)
        assert times.alone_s.tolist() == [[simulate(ORDER, PLAIN, moves).makespan_s] * 2] * 2


def test_one_jittered_run_is_the_engine_with_those_durations():
    jitter = Jitter(sigma=0.2, seed=5)
    factors = np.exp(0.2 * np.random.default_rng(5).standard_normal((3, 4)))
    times = jittered_steps(ORDER, PLAIN, jitter=jitter, steps=3).alone_s[:, 0]
    for row, time in zip(factors, times, strict=True):
        assert simulate(ORDER, Durations(forward_s=row, input_grad_s=2 * row)).makespan_s == pytest.approx(time)


def test_waiting_for_replicas_costs_more_the_more_there_are():
    cost = [
        jittered_steps(ORDER, PLAIN, jitter=Jitter(sigma=0.05, seed=1), steps=100, replicas=n).sync_cost_s
        for n in (1, 4, 32)
    ]
    assert cost[0] == 0
    assert cost[0] < cost[1] < cost[2]


def test_quantiles_and_seed():
    jitter = Jitter(distribution="normal", sigma=0.1, seed=2)
    once, again = (jittered_steps(ORDER, PLAIN, jitter=jitter, steps=50, replicas=2) for _ in range(2))
    assert once.alone_s.tolist() == again.alone_s.tolist()
    assert once.quantile_s(0.5) <= once.quantile_s(0.99)
    assert (once.alone_s >= simulate(ORDER, PLAIN).makespan_s).all()


def test_a_straggler_slows_every_step():
    jitter = Jitter(stragglers=1 / 8, straggler_factor=2.0)
    times = jittered_steps(ORDER, PLAIN, jitter=jitter, steps=3, replicas=2)
    clean = simulate(ORDER, PLAIN).makespan_s
    assert sorted((times.alone_s > clean).sum(axis=0).tolist()) == [0, 3]


def test_impossible_jitter_is_refused():
    with pytest.raises(InputError, match="lognormal or normal"):
        jittered_steps(ORDER, PLAIN, jitter=Jitter(distribution="cauchy"), steps=1)
    with pytest.raises(InputError, match="not modelled"):
        jittered_steps(ORDER, Durations(forward_s=1.0, input_grad_s=1.0, forward_host_s=2.0), jitter=Jitter(), steps=1)


@pytest.mark.parametrize(("f", "b", "w"), [(1.0, 1.0, 1.0), (2.0, 2.4, 1.6), (2.0, 3.0, 1.0), (1.0, 2.0, 1.5)])
def test_the_search_is_no_worse_than_the_handcrafted_orders_in_the_same_memory(f, b, w):
    durations = Durations(forward_s=f, input_grad_s=b, weight_grad_s=w)
    p, m = 4, 12
    one = zero_bubble_order(pp=p, micro_batches=m, durations=durations)
    check(one)
    line = simulate(one, durations)
    assert line.in_flight.max() <= p
    assert line.makespan_s <= simulate(make_order("zb-h1", pp=p, micro_batches=m), durations).makespan_s + 1e-9
    assert line.makespan_s < simulate(make_order("1f1b", pp=p, micro_batches=m), durations).makespan_s
    two = zero_bubble_order(pp=p, micro_batches=m, durations=durations, limit=2 * p, free_running=True)
    assert simulate(two, durations).period_s <= simulate(make_order("zb-h2", pp=p, micro_batches=m), durations).period_s
    folded = zero_bubble_order(pp=p, micro_batches=m, durations=durations, folded=True)
    check(folded)
    assert simulate(folded, durations).in_flight.max() <= 2 * p


def test_the_search_uses_unequal_stages():
    durations = Durations(forward_s=[2.0, 1.0, 1.0, 3.0], input_grad_s=[2.0, 1.0, 1.0, 3.0], weight_grad_s=1.0)
    found = zero_bubble_order(pp=4, micro_batches=12, durations=durations, send_s=0.25)
    transfers = Transfers(forward_s=0.25, backward_s=0.25)
    handmade = simulate(make_order("zb-h1", pp=4, micro_batches=12), durations, transfers).makespan_s
    assert simulate(found, durations, transfers).makespan_s <= handmade


def test_a_limit_that_nothing_fits_is_infeasible():
    with pytest.raises(Infeasible, match=r"no zero-bubble order tried fits 0\.5"):
        zero_bubble_order(pp=4, micro_batches=8, durations=PLAIN, limit=0.5)
