"""A step whose repeating middle is written down, against the same step run node by node."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.make import make_order
from simulator.schedule.recurrence import Work, run_nodes
from simulator.schedule.wiring import wiring

ORDERS = (
    ("gpipe", 1), ("1f1b", 1), ("eager-1f1b", 1), ("interleaved", 2), ("interleaved", 3), ("interleaved-bfs", 2),
    ("zb-h1", 1), ("zb-h2", 1), ("zbv", 2), ("v-half", 2), ("v-min", 2), ("dualpipe", 1), ("dualpipev", 2),
    ("chimera", 1),
)  # fmt: skip
FIELDS = ("start_s", "end_s", "send_start_s", "arrival_s", "launch_end_s")


def seconds(draw, count):
    """Seconds by stage: few different values, so that ties and near ties of paths happen."""
    kinds = draw(st.sampled_from([(1.0,), (1.0, 2.0), (0.1, 0.3, 0.7, 1.1), (1.0, 1.0 + 1e-9)]))
    return [draw(st.sampled_from(kinds)) for _ in range(count)]


@st.composite
def steps(draw):
    name, vp = draw(st.sampled_from(ORDERS))
    pp = draw(st.sampled_from([2, 4, 6]))
    order = make_order(name, pp=pp, vp=vp, micro_batches=pp * draw(st.integers(8, 24)))
    stages, boundaries = order.stages, order.stages - 1
    durations = Durations(
        forward_s=seconds(draw, stages), input_grad_s=seconds(draw, stages), weight_grad_s=seconds(draw, stages),
        forward_comm_s=0.05, backward_comm_s=0.02, host_waits=draw(st.booleans()),
        forward_host_s=draw(st.sampled_from([0.0, 0.4, 3.0])), input_grad_host_s=draw(st.sampled_from([0.0, 0.9])),
    )  # fmt: skip
    transfers = Transfers(
        forward_s=[draw(st.sampled_from([0.0, 0.07, 2.5])) for _ in range(boundaries)],
        backward_s=draw(st.sampled_from([0.0, 0.05])), latency_s=draw(st.sampled_from([0.0, 0.01, 40.0])),
        blocking=draw(st.booleans()),
    )  # fmt: skip
    release = [draw(st.sampled_from([0.0, 0.0, 60.0])) for _ in range(stages)]
    return order, durations, transfers, release


def run_whole(order):
    """The same order, of which the engine runs every node."""
    same = replace(order)
    object.__setattr__(wiring(same), "zones", ())
    return same


@settings(max_examples=150, deadline=None)
@given(steps())
def test_writing_the_steady_state_down_changes_nothing(case):
    order, durations, transfers, release = case
    quick = simulate(order, durations, transfers, release_s=release)
    full = simulate(run_whole(order), durations, transfers, release_s=release)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(quick, name), getattr(full, name), rtol=1e-12, atol=0, err_msg=name)


@pytest.mark.parametrize(("name", "vp"), [order for order in ORDERS if order[0] != "interleaved-bfs"])
def test_orders_repeat_themselves(name, vp):
    """Each zone repeats node by node: same rank, same work, the output read from as far back."""
    order = make_order(name, pp=4, vp=vp, micro_batches=96)
    graph = wiring(order)
    assert graph.zones
    for zone in graph.zones:
        ranks, after, index = np.array(graph.rank), np.array(graph.after), graph.duration_index
        later = np.arange(zone.first + zone.period, zone.stop)
        earlier = later - zone.period
        assert (ranks[later] == ranks[earlier]).all()
        assert (index[later] == index[earlier]).all()
        assert (graph.send_index[later] == graph.send_index[earlier]).all()
        reads = after[later] > order.slots
        assert (after[later][reads] == after[earlier][reads] + zone.period).all()
        assert (after[later][~reads] == 0).all()
    covered = sum(zone.stop - zone.first for zone in graph.zones)
    assert covered > 0.6 * graph.nodes


@pytest.mark.parametrize("send_s", [0.0, 0.25])
def test_a_long_steady_state_is_not_run(send_s):
    """The loop stops after a few periods; with transfers, after a few times as many periods as there are ranks."""
    order = make_order("1f1b", pp=4, micro_batches=400)
    graph = wiring(order)
    seen = []

    class Watched(list):
        def __getitem__(self, key):
            if isinstance(key, slice):
                seen.append(len(range(*key.indices(len(self)))))
            return super().__getitem__(key)

    object.__setattr__(graph, "after", Watched(graph.after))
    none = np.zeros(0)
    seconds = np.where(graph.duration_index < order.stages, 1.0, 2.0)
    sends = np.where(graph.send_index > 0, send_s, 0.0) if send_s else none
    work = Work(seconds=seconds, sends=sends, lates=np.zeros_like(sends), launches=none)
    begin = [0.0] * (1 + order.slots)
    quick = run_nodes(graph, work, order.pp, begin)
    assert sum(seen) < 0.2 * graph.nodes
    seen.clear()
    full = run_nodes(replace(graph, zones=()), work, order.pp, begin)
    assert sum(seen) == graph.nodes
    assert quick.end.tolist() == full.end.tolist()
