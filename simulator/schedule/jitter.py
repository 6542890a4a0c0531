"""Ranks are never equally fast: the distribution of step times under a seeded slowdown per rank and step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.schedule.engine import Durations, Transfers, lay_out
from simulator.schedule.order import Order
from simulator.schedule.wiring import wiring

Floats = npt.NDArray[np.float64]
_FLOATS_AT_ONCE = 10_000_000
"""Tasks times runs evaluated together; bounds memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """How much slower than its fastest each rank computes, drawn anew for each step.

    lognormal: factor exp(sigma z), median 1. normal: factor 1 + sigma |z| (never faster than the given durations).
    A fixed share of `stragglers` ranks (rounded) is slower by `straggler_factor` in every step.
    """

    distribution: str = "lognormal"
    sigma: float = 0.0
    stragglers: float = 0.0
    straggler_factor: float = 1.0
    seed: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class StepTimes:
    """Step times of `steps` steps of `replicas` data-parallel pipelines that wait for each other after each step."""

    alone_s: Floats
    """(steps, replicas): each pipeline by itself."""

    @property
    def together_s(self) -> Floats:
        """Each step's slowest pipeline: what all of them take."""
        slowest: Floats = self.alone_s.max(axis=1)
        return slowest

    @property
    def sync_cost_s(self) -> float:
        """Mean seconds per step that a pipeline loses by waiting for the slowest one."""
        return float(self.together_s.mean() - self.alone_s.mean())

    def quantile_s(self, fraction: float) -> float:
        """The step time that this fraction of steps does not exceed (0.5 the median, 0.99 the p99)."""
        return float(np.quantile(self.together_s, fraction))


def jittered_steps(
    order: Order,
    durations: Durations,
    transfers: Transfers | None = None,
    *,
    jitter: Jitter,
    steps: int,
    replicas: int = 1,
) -> StepTimes:
    """Runs an order `steps` times on each of `replicas` pipelines with jittered ranks, vectorised.

    The same seed gives the same step times. Raises InputError for a distribution that is not known or impossible
    numbers.
    """
    factors = _factors(jitter, steps * replicas, order.pp, replicas)
    moves = transfers if transfers is not None else Transfers()
    chunk = max(1, _FLOATS_AT_ONCE // order.tasks)
    spans = [
        _makespans(order, durations, moves, factors[first : first + chunk]) for first in range(0, len(factors), chunk)
    ]
    return StepTimes(alone_s=np.concatenate(spans).reshape(steps, replicas))


def _factors(jitter: Jitter, runs: int, ranks: int, replicas: int) -> Floats:
    if jitter.distribution not in ("lognormal", "normal") or jitter.sigma < 0 or not 0 <= jitter.stragglers <= 1:
        raise InputError([f"jitter must be lognormal or normal with sigma >= 0 and 0 <= stragglers <= 1, got {jitter}"])
    generator = np.random.default_rng(jitter.seed)
    draws = generator.standard_normal((runs, ranks))
    factors: Floats = (
        np.exp(jitter.sigma * draws) if jitter.distribution == "lognormal" else 1 + jitter.sigma * np.abs(draws)
    )
    slow = round(jitter.stragglers * ranks * replicas)
    if slow:
        which = generator.permutation(ranks * replicas)[:slow]
        table = factors.reshape(-1, replicas * ranks)
        table[:, which] *= jitter.straggler_factor
    return factors


def _makespans(order: Order, durations: Durations, transfers: Transfers, factors: Floats) -> Floats:
    """The engine's recurrence with one row of numbers per task; factors are (runs, ranks)."""
    graph = wiring(order)
    costs = lay_out(order, durations, transfers)
    seconds = costs.duration[graph.duration_index].tolist()
    sends, lates = costs.send[graph.send_index].tolist(), costs.latency[graph.send_index].tolist()
    host = costs.host[graph.duration_index]
    if host.any():
        raise InputError(["jitter of a host-bound step is not modelled: give durations without host seconds"])
    runs = len(factors)
    column = np.ascontiguousarray(factors.T)
    nothing = np.zeros(runs)
    free = [nothing] * order.pp
    port = free if transfers.blocking else [nothing] * order.pp
    arrival: list[Floats] = [nothing] * (1 + order.slots)
    for rank, after, duration, send, late in zip(graph.rank, graph.after, seconds, sends, lates, strict=True):
        time = np.maximum(arrival[after], free[rank])
        if duration:
            time = time + duration * column[rank]
        free[rank] = time
        if send or late:
            time = np.maximum(time, port[rank]) + send
            port[rank] = time + late if transfers.blocking else time
            time = time + late
        arrival.append(time)
    ends: Floats = np.maximum.reduce(free)
    return ends
