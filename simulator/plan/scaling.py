"""How many devices? The best strategy of every count, proven one by one: scaling curves with their knee, and the fewest
devices that meet a deadline.

Nothing is taken to grow or fall with the number of devices: every count that an answer speaks of was planned, and the
answer lists them. A count may be worse than a smaller one (its factors suit the heads or the batch less).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from simulator.errors import Complaints, Infeasible, InputError
from simulator.pictures import Drawable
from simulator.plan.planner import FOREVER_S, plan
from simulator.plan.result import Plan, bill_dict
from simulator.project.training import Bill, Conditions
from simulator.result import Estimate
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run

if TYPE_CHECKING:
    import pandas as pd

Clusters = Callable[[int | None], Cluster]
"""The cluster with so many nodes; None: with its own."""
KINDS = ("strong", "weak")
"""strong: the global batch is held; weak: the batch per device is."""
KNEE_FRACTION = 0.8
"""The knee: the last count whose tokens per second and device are at least this share of the curve's best, so that a
token costs at most 1 / 0.8 = 1.25 times as many device hours as where it costs least."""
DAY_S = 86400.0
EIGHTHS = 8
"""Parts into which the step between two tried counts is divided once the larger one meets a deadline."""
MOST_DEVICES = 65_536
"""The largest count tried for a deadline when none are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One count of devices with its best strategy, or with the reasons why there is none."""

    devices: int
    nodes: int
    global_batch: int
    plan: Plan | None
    refused: tuple[str, ...] = ()

    @property
    def estimate(self) -> Estimate | None:
        return None if self.plan is None else self.plan[0].estimate

    @property
    def bill(self) -> Bill | None:
        return None if self.plan is None else self.plan[0].bill

    @property
    def days_high(self) -> float | None:
        """Days where the step takes what the slow end of its likely range says."""
        if self.plan is None or self.bill is None:
            return None
        step = self.plan[0].estimate
        return self.bill.days * step.step_time_high_s / step.step_time_s

    def to_dict(self) -> dict[str, Any]:
        """The figures of a point and, where there is one, its whole plan."""
        head = {"devices": self.devices, "nodes": self.nodes, "global_batch": self.global_batch}
        if self.plan is None or self.bill is None:
            return {**head, "refused": list(self.refused)}
        step = self.plan[0].estimate
        names = ("step_time_s", "step_time_low_s", "step_time_high_s", "tokens_per_s", "tokens_per_s_per_device", "mfu",
                 "peak_memory_bytes")  # fmt: skip
        return {**head, **{name: getattr(step, name) for name in names}, "bill": bill_dict(self.bill),
                "days_high": self.days_high, "plan": self.plan.to_dict()}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scaling(Drawable):
    """The best strategy of every count, in ascending order."""

    model: str
    cluster: str
    kind: str
    objective: str
    points: tuple[Point, ...]
    wall_s: float

    @property
    def planned(self) -> tuple[Point, ...]:
        """The counts that have a strategy."""
        return tuple(point for point in self.points if point.plan is not None)

    @property
    def knee(self) -> Point:
        """The last count that is at least `KNEE_FRACTION` as efficient as the best one."""
        return self.planned[knee_index([_rate(point) for point in self.planned])]

    @property
    def best(self) -> Point:
        """The count that is best by the objective."""
        return min(self.planned, key=_MERIT[self.objective])

    def efficiencies(self) -> list[float]:
        """Tokens per second and device of each planned count over those of the most efficient one."""
        rates = [_rate(point) for point in self.planned]
        return [rate / max(rates) for rate in rates]

    def marginals(self) -> list[float | None]:
        """For each planned count: tokens per second that the added devices brought, over what they would have at the
        rate of the devices before; None for the first.
        """
        found: list[float | None] = [None]
        for before, after in zip(self.planned, self.planned[1:], strict=False):
            added = _rate(after) * after.devices - _rate(before) * before.devices
            found.append(added / ((after.devices - before.devices) * _rate(before)))
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row per planned count: devices, batch, step time [s], tokens/s, efficiency, memory [B], days, dollars."""
        import pandas as pd

        rows = []
        for point, share, marginal in zip(self.planned, self.efficiencies(), self.marginals(), strict=True):
            step, paid = point.estimate, point.bill
            if step is not None and paid is not None:
                rows.append({
                    "devices": point.devices, "global_batch": point.global_batch, "step_time_s": step.step_time_s,
                    "tokens_per_s": step.tokens_per_s, "efficiency": share, "marginal": marginal, "mfu": step.mfu,
                    "peak_memory_bytes": step.peak_memory_bytes, "days": paid.days, "usd": paid.usd,
                })  # fmt: skip
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """A curve within the JSON document of `shardwise plan --devices`."""
        counts = [point.devices for point in self.planned]
        shares = dict(zip(counts, zip(self.efficiencies(), self.marginals(), strict=True), strict=True))
        points = []
        for point in self.points:
            efficiency, marginal = shares.get(point.devices, (None, None))
            points.append({**point.to_dict(), "efficiency": efficiency, "marginal": marginal})
        return {
            "model": self.model, "cluster": self.cluster, "kind": self.kind, "objective": self.objective,
            "knee_devices": self.knee.devices, "knee_fraction": KNEE_FRACTION, "best_devices": self.best.devices,
            "wall_s": self.wall_s, "points": points,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Deadline(Drawable):
    """The fewest devices, of the counts tried, whose best strategy trains the tokens in time."""

    model: str
    cluster: str
    deadline_s: float
    tokens: float
    point: Point
    tried: tuple[Point, ...]
    """Every count that was planned, in ascending order."""
    claim: str
    wall_s: float

    def to_dict(self) -> dict[str, Any]:
        """Within the JSON document of `shardwise plan --objective devices`."""
        tried = [{**point.to_dict(), "in_time": _in_time(point, self.deadline_s)} for point in self.tried]
        return {"deadline_s": self.deadline_s, "tokens": self.tokens, "devices": self.point.devices,
                "claim": self.claim, "wall_s": self.wall_s, "tried": tried}  # fmt: skip


def knee_index(rates: Sequence[float], least_fraction: float = KNEE_FRACTION) -> int:
    """The last of some counts (in ascending order) whose rate per device is at least that share of the best.

    >>> knee_index([100.0, 99.0, 81.0, 60.0])
    2
    """
    best = max(rates)
    return max(index for index, rate in enumerate(rates) if rate >= least_fraction * best)


def scaling(
    model: ModelSpec,
    clusters: Clusters,
    run: Run,
    devices: Sequence[int],
    *,
    kind: str = "strong",
    objective: str = "tokens_per_s",
    time_limit_s: float = FOREVER_S,
    conditions: Conditions | None = None,
    **options: Any,
) -> Scaling:
    """The best strategy for every number of devices: the scaling curve.

    `clusters(nodes)` gives the cluster of so many nodes, as `partial(load_cluster, "dgx-a100")` does. `kind` "strong"
    holds the global batch of the run; "weak" holds the batch per device, the run's being that of the smallest count.
    The other `options` are those of `plan`. The time limit [s] is for all counts together.

    Raises InputError for counts that are no whole nodes or batches, Infeasible when no count has a strategy.
    """
    started = time.monotonic()
    cluster = clusters(None)
    counts = whole_counts(devices, cluster.devices_per_node)
    _check_batches(counts, run, kind)
    planner = _Planner(model, clusters, cluster.devices_per_node)
    points = []
    for index, count in enumerate(counts):
        left_s = started + time_limit_s - time.monotonic()
        batch = run.global_batch * count // counts[0] if kind == "weak" else run.global_batch
        points.append(planner.point(
            count, replace(run, global_batch=batch), objective=objective, conditions=conditions or Conditions(),
            time_limit_s=max(left_s / (len(counts) - index), 0.0), **options,
        ))  # fmt: skip
    if not any(point.plan for point in points):
        planner.refuse([f"{point.devices:,} devices: {reason}" for point in points for reason in point.refused])
    return Scaling(model=model.name, cluster=cluster.name, kind=kind, objective=objective, points=tuple(points),
                   wall_s=time.monotonic() - started)  # fmt: skip


def fewest_devices(
    model: ModelSpec,
    clusters: Clusters,
    run: Run,
    deadline_s: float,
    devices: Sequence[int] | None = None,
    *,
    time_limit_s: float = FOREVER_S,
    tokens: float | None = None,
    conditions: Conditions | None = None,
    **options: Any,
) -> Deadline:
    """The fewest devices whose best strategy trains `tokens` tokens within `deadline_s` seconds, failures included.

    Counts are tried from the smallest on until one is in time: those given, or one node doubled again and again and
    then the eighths of the last step. The global batch is held; the other `options` are those of `plan`.

    Raises InputError for a deadline or counts that make no sense, Infeasible when no count tried is in time.
    """
    started = time.monotonic()
    if not 0.0 < deadline_s < FOREVER_S * DAY_S:
        raise InputError([f"a deadline of {deadline_s:g} s is not positive and finite."])
    own = clusters(None)
    given = None if devices is None else whole_counts(devices, own.devices_per_node)
    planner = _Planner(model, clusters, own.devices_per_node)
    tried: dict[int, Point] = {}

    def in_time(count: int) -> bool:
        left_s = max(started + time_limit_s - time.monotonic(), 0.0)
        tried[count] = planner.point(count, run, objective="days", conditions=conditions or Conditions(),
                                     tokens=tokens, time_limit_s=left_s / 2.0, **options)  # fmt: skip
        return _in_time(tried[count], deadline_s)

    first = next((count for count in given or _doublings(own, clusters) if in_time(count)), None)
    if first is not None and given is None:
        next((count for count in _between(list(tried), own.devices_per_node) if in_time(count)), None)
    points = tuple(tried[count] for count in sorted(tried))
    met = [point for point in points if _in_time(point, deadline_s)]
    if not met:
        planner.refuse(_too_late(points, deadline_s))
    point, paid = met[0], met[0].bill
    return Deadline(
        model=model.name, cluster=own.name, deadline_s=deadline_s, tokens=paid.tokens if paid else 0.0, point=point,
        tried=points, wall_s=time.monotonic() - started,
        claim=f"the fewest of the {len(points)} counts tried: {', '.join(f'{p.devices:,}' for p in points)}",
    )  # fmt: skip


class _Planner:
    """Plans one count after the other. What is wrong with a count only is a refusal; with all of them, an error."""

    def __init__(self, model: ModelSpec, clusters: Clusters, devices_per_node: int) -> None:
        self.model, self.clusters, self.devices_per_node = model, clusters, devices_per_node
        self.errors: list[InputError] = []
        self.asked = 0

    def point(self, devices: int, run: Run, **options: Any) -> Point:
        nodes, answer, refused = devices // self.devices_per_node, None, tuple[str, ...]()
        self.asked += 1
        try:
            answer = plan(self.model, self.clusters(nodes), run, **options)
        except Infeasible as error:
            refused = tuple(str(problem) for problem in error.problems)
        except InputError as error:
            self.errors.append(error)
            refused = tuple(str(problem) for problem in error.problems)
        return Point(devices=devices, nodes=nodes, global_batch=run.global_batch, plan=answer, refused=refused)

    def refuse(self, reasons: Sequence[str]) -> NoReturn:
        if self.errors and len(self.errors) == self.asked:
            raise self.errors[0]
        raise Infeasible(reasons)


def whole_counts(devices: Sequence[int], devices_per_node: int) -> tuple[int, ...]:
    """The counts in order, once each. Raises InputError with every one that is no whole number of nodes."""
    complaints = Complaints()
    complaints.require(bool(devices), "no count of devices is given.", where="--devices")
    counts = sorted(set(devices))
    for count in counts:
        near = max(round(count / devices_per_node), 1) * devices_per_node
        complaints.require(count > 0 and count % devices_per_node == 0, hint=f"{near} is the nearest count.",
                           message=f"{count:,} devices are no whole nodes of {devices_per_node}.",
                           where="--devices")  # fmt: skip
    complaints.raise_if_any()
    return tuple(counts)


def _check_batches(counts: Sequence[int], run: Run, kind: str) -> None:
    complaints = Complaints()
    complaints.require(kind in KINDS, f"scaling {kind!r} is neither of {', '.join(KINDS)}.", where="--scaling")
    for count in counts:
        if kind == "weak":
            complaints.require(run.global_batch * count % counts[0] == 0, where="--devices",
                               message=f"weak scaling: batch {run.global_batch} * {count:,} / {counts[0]:,} is no "
                               "whole number of sequences.")  # fmt: skip
    complaints.raise_if_any()


def _doublings(own: Cluster, clusters: Clusters) -> Iterator[int]:
    """One node, two, four, ... as long as the cluster can have so many."""
    count = own.devices_per_node
    while count <= MOST_DEVICES:
        try:
            clusters(count // own.devices_per_node)
        except InputError:
            return
        yield count
        count *= 2


def _between(tried: Sequence[int], per_node: int) -> list[int]:
    """The eighths of the step between the last two counts, in whole nodes."""
    if len(tried) < 2:
        return []
    low, high = (count // per_node for count in tried[-2:])
    nodes = {low + (high - low) * part // EIGHTHS for part in range(1, EIGHTHS)} - {low, high}
    return [count * per_node for count in sorted(nodes)]


def _in_time(point: Point, deadline_s: float) -> bool:
    return point.bill is not None and point.bill.days * DAY_S <= deadline_s


def _too_late(points: Sequence[Point], deadline_s: float) -> list[str]:
    counts = ", ".join(f"{point.devices:,}" for point in points)
    said = [f"None of the counts tried ({counts}) trains in {deadline_s / DAY_S:,.4g} days."]
    timed = [(point.bill.days, point.devices) for point in points if point.bill is not None]
    if timed:
        days, count = min(timed)
        said.append(f"The quickest is {count:,} devices with {days:,.4g} days, failures included.")
    return said


def _rate(point: Point) -> float:
    return 0.0 if point.plan is None else point.plan[0].estimate.tokens_per_s_per_device


def _dollars(point: Point) -> float:
    paid = point.bill
    return float("inf") if paid is None or paid.usd is None else paid.usd


_MERIT: dict[str, Callable[[Point], float]] = {
    "tokens_per_s": lambda point: -_rate(point) * point.devices,
    "step_time": lambda point: point.estimate.step_time_s if point.estimate else float("inf"),
    "tokens_per_s_per_device": lambda point: -_rate(point),
    "memory": lambda point: point.estimate.peak_memory_bytes if point.estimate else float("inf"),
    "days": lambda point: point.bill.days if point.bill else float("inf"),
    "dollars": _dollars,
}
"""What is least at the best count."""
