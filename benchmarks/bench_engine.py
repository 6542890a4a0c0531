"""The pipeline engine: an order that is known, an order that is new, and simpy running the same."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.benchmark import Benchmark

LARGEST = {"pp": 64, "micro_batches": 512, "vp": 2}
"""A model of 1T parameters: 131,072 tasks."""


def _again(*, schedule: str, sends: bool, **sizes: int) -> Callable[[], Callable[[], None]]:
    """Runs of an order whose graph is built: what an estimate of another model or cluster pays."""

    def prepare() -> Callable[[], None]:
        from simulator.schedule.engine import Durations, Transfers, simulate
        from simulator.schedule.make import make_order

        order = make_order(schedule, **sizes)
        durations = Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0)
        transfers = Transfers(forward_s=0.1, backward_s=0.1) if sends else Transfers()
        simulate(order, durations, transfers)

        def call() -> None:
            simulate(order, durations, transfers)

        return call

    return prepare


def _first(*, schedule: str, **sizes: int) -> Callable[[], Callable[[], None]]:
    """Order, graph and run with transfers, nothing kept from before."""

    def prepare() -> Callable[[], None]:
        from simulator.schedule import make
        from simulator.schedule.engine import Durations, Transfers, simulate

        durations = Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0)
        transfers = Transfers(forward_s=0.1, backward_s=0.1)

        def call() -> None:
            make.RECENT.clear()
            simulate(make.make_order(schedule, **sizes), durations, transfers)

        return call

    return prepare


def _simpy() -> Callable[[], None]:
    """1F1B on 16 ranks with 256 micro-batches as simpy processes and events (8,192 tasks)."""
    import simpy

    from simulator.schedule.make import make_order

    order = make_order("1f1b", pp=16, micro_batches=256)
    plans = [order.of_rank(rank) for rank in range(16)]

    def call() -> None:
        world = simpy.Environment()
        there = {(kind > 0, slot, number): world.event() for plan in plans for slot, number, kind in plan}

        def rank(plan: list[tuple[int, int, int]]):  # noqa: ANN202 (a simpy process)
            for slot, number, kind in plan:
                near = slot + (1 if kind else -1)
                if (kind > 0, near, number) in there:
                    yield there[kind > 0, near, number]
                yield world.timeout(1.0)
                there[kind > 0, slot, number].succeed()

        for plan in plans:
            world.process(rank(plan))
        world.run()

    return call


def _bench(name: str, prepare: Callable[[], Callable[[], None]], tasks: int, target_s: float = 0.0) -> Benchmark:
    return Benchmark(name=f"engine {name}", prepare=prepare, work=tasks, unit="tasks", target_s=target_s)


BENCHMARKS = [
    _bench("8 x 64 again", _again(schedule="1f1b", sends=False, pp=8, micro_batches=64), 1_024, 5e-4),
    _bench("8 x 64 again, sends", _again(schedule="1f1b", sends=True, pp=8, micro_batches=64), 1_024, 1e-3),
    _bench("16 x 256 again", _again(schedule="1f1b", sends=False, pp=16, micro_batches=256), 8_192, 8_192e-6),
    _bench("16 x 256 again, sends", _again(schedule="1f1b", sends=True, pp=16, micro_batches=256), 8_192, 8_192e-6),
    _bench("16 x 256 simpy, no sends", _simpy, 8_192),
    _bench("1T 64 x 512 x 2 again, sends", _again(schedule="interleaved", sends=True, **LARGEST), 131_072, 0.131),
    _bench("1T 64 x 512 x 2 first, sends", _first(schedule="interleaved", **LARGEST), 131_072, 0.3),
    _bench("8 x 64 first, sends", _first(schedule="1f1b", pp=8, micro_batches=64), 1_024, 2e-3),
    _bench("v-half 16 x 128 first, sends", _first(schedule="v-half", pp=16, micro_batches=128, vp=2), 12_288),
]
