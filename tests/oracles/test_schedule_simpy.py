"""The engine against an independent discrete-event model in simpy: equal to the last bit.

Every time is a multiple of 1/16 below 2**20, so sums are exact in whatever order they are made.
"""

import numpy as np
import pytest
import simpy

from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.make import make_order

CASES = [
    ("gpipe", 4, 7, 1),
    ("1f1b", 1, 5, 1),
    ("1f1b", 5, 9, 1),
    ("1f1b", 8, 3, 1),
    ("eager-1f1b", 4, 12, 1),
    ("interleaved", 4, 8, 3),
    ("interleaved", 3, 9, 2),
    ("interleaved-bfs", 4, 6, 2),
    ("zb-h1", 5, 11, 1),
    ("zb-h1", 4, 8, 2),
    ("zb-h2", 4, 12, 1),
    ("zbv", 4, 9, 2),
    ("v-half", 5, 8, 2),
    ("v-min", 6, 8, 2),
    ("dualpipe", 4, 12, 1),
    ("dualpipev", 3, 10, 2),
    ("chimera", 4, 12, 1),
]


class Model:
    """One process per rank that runs its list; one port per rank that its sends queue for."""

    def __init__(self, order, table, sends, *, latency, blocking, launches=None, waits=False):
        self.environment = simpy.Environment()
        self.launches, self.waits = launches, waits
        self.order, self.table, self.sends = order, table, sends
        self.latency, self.blocking = latency, blocking
        self.ports = [simpy.Resource(self.environment) for _ in range(order.pp)]
        self.arrived = {}
        self.spans = {}
        for rank in range(order.pp):
            self.environment.process(self.rank(rank))
        self.environment.run()

    def arrival(self, kind, slot, number):
        return self.arrived.setdefault((kind, slot, number), self.environment.event())

    def inputs(self, slot, number, kind):
        order = self.order
        if kind == 0:
            return [self.arrival("F", order.previous[slot], number)] if order.previous[slot] >= 0 else []
        if kind in (1, 3):
            after = order.following[slot]
            return [self.arrival("B", after, number) if after >= 0 else self.arrival("F", slot, number)]
        return []  # W: its B ran earlier on this rank, which `check` has seen to.

    def send(self, rank, slot, number, kind):
        """Moves an output to where it is read; yields until the sender may go on."""
        letter = "F" if kind == 0 else "B"
        order = self.order
        goal = order.following[slot] if kind == 0 else order.previous[slot]
        event = self.arrival(letter, slot, number)
        if kind == 2 or goal < 0 or order.slot_rank[goal] == rank:
            if kind != 2:
                event.succeed()
            return
        stage = order.model_stage[slot]
        seconds = self.sends[0][stage] if kind == 0 else self.sends[1][stage - 1]

        def move():
            with self.ports[rank].request() as turn:
                yield turn
                yield self.environment.timeout(seconds)
                if self.blocking:
                    yield self.environment.timeout(self.latency)
            if not self.blocking:
                yield self.environment.timeout(self.latency)
            event.succeed()

        process = self.environment.process(move())
        if self.blocking:
            yield process

    def rank(self, rank):
        tasks = self.order.of_rank(rank)
        paired = self.order.paired[self.order.rank_start[rank] : self.order.rank_start[rank + 1]]
        index, host = 0, 0.0
        while index < len(tasks):
            issued = max(host, self.environment.now) if self.waits else host
            together = tasks[index : index + 2] if paired[index] else tasks[index : index + 1]
            for slot, number, kind in together:
                yield from self.inputs(slot, number, kind)
            if self.waits:  # The host launches once the inputs are there.
                issued = max(issued, self.environment.now)
            if self.launches and issued > self.environment.now:
                yield self.environment.timeout(issued - self.environment.now)
            begin = self.environment.now
            stages = [self.order.model_stage[slot] for slot, _, _ in together]
            seconds = [self.table[kind][stage] for (_, _, kind), stage in zip(together, stages, strict=True)]
            yield self.environment.timeout(sum(seconds))
            if self.launches:
                pairs = zip(together, stages, strict=True)
                host = issued + sum(self.launches[kind][stage] for (_, _, kind), stage in pairs)
                yield self.environment.timeout(max(host - self.environment.now, 0))
            for task in together:
                self.spans[task] = (begin, self.environment.now)
            for task in together:
                yield from self.send(rank, *task)
            index += len(together)


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize(("schedule", "pp", "micro_batches", "vp"), CASES)
def test_engine_equals_simpy_with_unequal_stages_and_transfers(schedule, pp, micro_batches, vp, blocking):
    order = make_order(schedule, pp=pp, micro_batches=micro_batches, vp=vp)
    generator = np.random.default_rng(pp * 100 + micro_batches)
    for slow_links in (1, 24):
        sixteenths = generator.integers(1, 48, (3, order.stages)) / 16
        forward, grad, weight = sixteenths
        sends = generator.integers(0, 8 * slow_links, (2, max(order.stages - 1, 0))) / 16
        latency = 3 / 16
        line = simulate(
            order,
            Durations(forward_s=forward, input_grad_s=grad, weight_grad_s=weight),
            Transfers(forward_s=sends[0], backward_s=sends[1], latency_s=latency, blocking=blocking),
        )
        model = Model(order, [forward, grad, weight, grad + weight], sends, latency=latency, blocking=blocking)
        assert len(model.spans) == order.tasks
        keys = [action for rank in range(pp) for action in order.of_rank(rank)]
        assert line.start_s.tolist() == [model.spans[key][0] for key in keys]
        assert line.end_s.tolist() == [model.spans[key][1] for key in keys]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize(("schedule", "pp", "micro_batches", "vp"), CASES)
def test_engine_equals_simpy_where_launches_bind(schedule, pp, micro_batches, vp, blocking, waits):
    order = make_order(schedule, pp=pp, micro_batches=micro_batches, vp=vp)
    generator = np.random.default_rng(pp + micro_batches)
    forward, grad, weight, launch_f, launch_b, launch_w = generator.integers(1, 48, (6, order.stages)) / 16
    sends = generator.integers(0, 8, (2, max(order.stages - 1, 0))) / 16
    line = simulate(
        order,
        Durations(
            forward_s=forward,
            input_grad_s=grad,
            weight_grad_s=weight,
            forward_host_s=launch_f,
            input_grad_host_s=launch_b,
            weight_grad_host_s=launch_w,
            host_waits=waits,
        ),
        Transfers(forward_s=sends[0], backward_s=sends[1], blocking=blocking),
    )
    model = Model(
        order,
        [forward, grad, weight, grad + weight],
        sends,
        latency=0.0,
        blocking=blocking,
        launches=[launch_f, launch_b, launch_w, launch_b + launch_w],
        waits=waits,
    )
    keys = [action for rank in range(pp) for action in order.of_rank(rank)]
    assert line.start_s.tolist() == [model.spans[key][0] for key in keys]
    assert line.end_s.tolist() == [model.spans[key][1] for key in keys]
