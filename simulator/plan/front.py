"""The Pareto front: strategies that no other beats in step time and memory, or, over several numbers of devices, in
step time, memory, devices and dollars.

For one number of devices the front is walked down by memory: the fastest strategy that fits, then the fastest that
fits in what the last one left out, and so on until nothing fits. Each is the proven answer of a search (`search.py`),
so the walk misses nothing: whatever needs more memory than one level was beaten at the level before. In large spaces a
level is a given share below the last peak, and the front is exact in time and within that share in memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from simulator.errors import Infeasible, InputError
from simulator.estimate import estimate
from simulator.pictures import Drawable
from simulator.plan.money import Ledger
from simulator.plan.objectives import OBJECTIVES
from simulator.plan.planner import FOREVER_S, asked_space
from simulator.plan.question import Question
from simulator.plan.result import bill_dict
from simulator.plan.scaling import Clusters, whole_counts
from simulator.plan.search import Searched, search
from simulator.plan.space import Space
from simulator.project.training import Bill, Conditions
from simulator.result import Estimate
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from simulator.units import format_percent

if TYPE_CHECKING:
    import pandas as pd

EXACT_BELOW = 20_000
"""Legal strategies up to which a front is exact unless a step is asked for."""
STEP_FRACTION = 0.1
"""The step in memory between two points of the front of a larger space."""
SLOWEST_FACTOR = 2.0
"""How many times as long as the fastest a strategy of the front may take, unless another factor is asked for."""
_SAME = 1e-9
"""Peaks that differ by less are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One strategy of a front, run through the engine, with what training takes under it."""

    strategy: Strategy
    estimate: Estimate
    bill: Bill

    def metrics(self) -> tuple[float, float, float, float]:
        """What no other point beats at once: step time [s], peak memory [B], devices, dollars (device hours where no
        price is known).
        """
        paid = self.bill.device_hours if self.bill.usd is None else self.bill.usd
        return (self.estimate.step_time_s, self.estimate.peak_memory_bytes, float(self.estimate.devices), paid)


@dataclass(frozen=True, kw_only=True)
class Front(Drawable):
    """The undominated strategies, by devices and then the fastest first."""

    model: str
    cluster: str
    points: tuple[FrontPoint, ...]
    step_fraction: float
    """0: the front is exact under the engine."""
    slowest_factor: float
    """Strategies that take longer than this many times the fastest (of the same devices) are left out."""
    complete: bool
    """Walked to its end. Where time ran out first, less memory may be possible."""
    searches: int
    engine_runs: int
    wall_s: float
    notes: tuple[str, ...] = ()
    """What was assumed: of unequal nodes, the slowest."""

    @property
    def claim(self) -> str:
        """What is proven."""
        if self.step_fraction > _SAME:
            near = format_percent(self.step_fraction)
            words = f"exact in time, within {near} in memory: any strategy left out is no faster than a point that "
            words += f"needs at most {near} more memory"
        else:
            words = "exact: every strategy left out is beaten or equalled in time and memory by a point"
        if math.isfinite(self.slowest_factor):
            words += f", up to {self.slowest_factor:g} times the least step time"
        return words if self.complete else f"{words}; time ran out, so what needs less memory than the last is unknown"

    def to_frame(self) -> pd.DataFrame:
        """One row per point: its strategy, devices, step time [s], peak memory [B], days and dollars."""
        import pandas as pd

        return pd.DataFrame([
            {**asdict(point.strategy), "devices": point.estimate.devices, "step_time_s": point.estimate.step_time_s,
             "peak_memory_bytes": point.estimate.peak_memory_bytes, "days": point.bill.days, "usd": point.bill.usd}
            for point in self.points
        ])  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Within the JSON document of `shardwise plan --pareto`."""
        slowest = self.slowest_factor if math.isfinite(self.slowest_factor) else None
        return {
            "claim": self.claim, "step_fraction": self.step_fraction, "slowest_factor": slowest,
            "complete": self.complete, "searches": self.searches, "engine_runs": self.engine_runs,
            "wall_s": self.wall_s, "notes": list(self.notes),
            "points": [
                {"devices": point.estimate.devices, "step_time_s": point.estimate.step_time_s,
                 "peak_memory_bytes": point.estimate.peak_memory_bytes, "strategy": asdict(point.strategy),
                 "bill": bill_dict(point.bill)}
                for point in self.points
            ],
        }  # fmt: skip


def pareto(
    model: ModelSpec,
    cluster: Cluster,
    run: Run,
    *,
    step_fraction: float | None = None,
    slowest_factor: float = SLOWEST_FACTOR,
    time_limit_s: float = FOREVER_S,
    tokens: float | None = None,
    conditions: Conditions | None = None,
    **limits: Any,
) -> Front:
    """Strategies on all devices of the cluster that no other beats in step time and peak memory.

    `step_fraction` is the step in memory from one point to the next, as a share of the peak: 0 gives every point, None
    0 for spaces of up to 20,000 strategies and 10 % for larger ones. The walk ends at strategies that take more than
    `slowest_factor` times as long as the fastest (inf: where nothing fits). `tokens` and `conditions` are those of
    `project`; `limits` (fix, allow, within, forbid, framework) narrow the space as in `plan`. With a time limit [s]
    what was found until then.

    Raises InputError as `plan` does and for a step or factor that makes no sense, Infeasible when nothing fits.
    """
    started = time.monotonic()
    if step_fraction is not None and not 0.0 <= step_fraction < 1.0:
        raise InputError([f"a step in memory of {step_fraction:g} is no share from 0 to 1."])
    if not slowest_factor >= 1.0:
        raise InputError([f"a slowest strategy of {slowest_factor:g} times the fastest is none."])
    space, question, unequal = asked_space(model, cluster, run, **limits)
    step = step_fraction if step_fraction is not None else STEP_FRACTION if space.legal > EXACT_BELOW else 0.0
    walked, complete = _walk(space, question, max(step, _SAME), slowest_factor, started + time_limit_s)
    if not walked:
        raise Infeasible([f"No strategy of {space.considered:,} is legal and fits {cluster.devices} devices."])
    ledger = Ledger(question, tokens, conditions)
    points = []
    for searched in walked:
        strategy = searched.found[0].strategy
        answer = estimate(model, cluster, question.run, strategy, framework=question.framework)
        paid = ledger.bill(strategy, answer.step_time_s)
        points.append(FrontPoint(strategy=strategy, estimate=answer, bill=paid))
    kept = undominated([point.metrics()[:2] for point in points])
    return Front(
        model=model.name, cluster=cluster.name, points=tuple(points[index] for index in kept), step_fraction=step,
        slowest_factor=slowest_factor, complete=complete, searches=len(walked),
        engine_runs=sum(each.engine_runs for each in walked), wall_s=time.monotonic() - started, notes=unequal,
    )  # fmt: skip


def _walk(
    space: Space, question: Question, step_fraction: float, slowest_factor: float, deadline: float
) -> tuple[list[Searched], bool]:
    """The fastest strategy within less and less memory, and whether the walk came to its end."""
    walked: list[Searched] = []
    device = question.cluster.device
    level_bytes = device.memory_bytes
    while not walked or time.monotonic() < deadline:
        cluster = replace(question.cluster, device=replace(device, memory_bytes=level_bytes))
        left_s = max(deadline - time.monotonic(), 0.0)
        asked = replace(question, cluster=cluster)
        searched = search(space, asked, OBJECTIVES["step_time"], limit=1, time_limit_s=left_s)
        if not searched.found:
            return walked, True
        fastest_s = (walked or [searched])[0].found[0].estimate.step_time_s
        if searched.gap > 0.0 and walked:
            return walked, False
        if searched.found[0].estimate.step_time_s > slowest_factor * fastest_s:
            return walked, True
        walked.append(searched)
        level_bytes = searched.found[0].estimate.peak_memory_bytes * (1.0 - step_fraction)
    return walked, False


def pareto_over(
    model: ModelSpec, clusters: Clusters, run: Run, devices: Sequence[int], *, time_limit_s: float = FOREVER_S,
    **options: Any,
) -> Front:  # fmt: skip
    """The fronts of several numbers of devices in one: strategies that no other beats in step time, peak memory,
    devices and dollars. Options are those of `pareto`; the global batch is held, the time limit [s] is for all counts.

    Raises InputError for counts that are no whole nodes, Infeasible when nothing fits any of them.
    """
    started = time.monotonic()
    own = clusters(None)
    counts = whole_counts(devices, own.devices_per_node)
    fronts: list[Front] = []
    refused: list[str] = []
    for index, count in enumerate(counts):
        left_s = max(started + time_limit_s - time.monotonic(), 0.0) / (len(counts) - index)
        try:
            cluster = clusters(count // own.devices_per_node)
            fronts.append(pareto(model, cluster, run, time_limit_s=left_s, **options))
        except Infeasible as error:
            refused += [f"{count:,} devices: {problem}" for problem in error.problems]
    if not fronts:
        raise Infeasible(refused)
    points = [point for front in fronts for point in front.points]
    kept = undominated([point.metrics() for point in points])
    return Front(
        model=model.name, cluster=own.name, points=tuple(points[index] for index in kept),
        step_fraction=max(front.step_fraction for front in fronts), slowest_factor=fronts[0].slowest_factor,
        complete=all(front.complete for front in fronts),
        searches=sum(front.searches for front in fronts), engine_runs=sum(front.engine_runs for front in fronts),
        wall_s=time.monotonic() - started, notes=fronts[0].notes,
    )  # fmt: skip


def undominated(rows: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of rows that no other is at most equal to in every place and below in one; of equal rows the first.

    >>> undominated([(1.0, 5.0), (2.0, 3.0), (2.5, 3.0), (1.0, 5.0)])
    [0, 1]
    """

    def beaten(index: int) -> bool:
        mine = rows[index]
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and (other != mine or place < index)
            for place, other in enumerate(rows)
            if place != index
        )

    return [index for index in range(len(rows)) if not beaten(index)]
