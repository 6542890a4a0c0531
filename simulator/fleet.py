"""Several training jobs on one cluster: where each is placed, and what they take from each other on the shared fabric.

Every job is first estimated alone on as many nodes as it needs. Then the rings of its heaviest axis that leaves a node
are laid over the links of the whole cluster, together with those of all other jobs, and each gets its max-min fair rate
(`cluster.contention`). The worst case is that all jobs communicate at once: then communication between nodes lasts
longer by the ratio of the rates, and what was hidden may stick out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator import catalog
from simulator.cluster.contention import ring_rates
from simulator.cluster.placement import all_groups, axis_groups
from simulator.errors import Complaints, InputError, Problem, did_you_mean
from simulator.estimate import estimate
from simulator.result import Estimate
from simulator.spec.hardware import Cluster
from simulator.spec.reading import read_document
from simulator.sweep.evaluate import Case, case_of_point
from simulator.sweep.points import SweepSpec, checked

PLACEMENTS = ("packed", "in-order", "spread")
MAX_DEVICES = 65_536
"""Rings are laid out device by device; beyond this a fleet is refused."""
_GROUP_OF = {"dp": "dp_cp", "tp": "tp", "cp": "cp", "ep": "ep", "etp": "etp", "pp": "pp"}
Placed = tuple[tuple[int, ...], ...]
"""The nodes of every job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training job: a name, the nodes it needs, and its case."""

    name: str
    nodes: int
    case: Case


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """One job in one placement. `step_time_s` is alone and packed; the worst adds what placement and others cost."""

    name: str
    nodes: tuple[int, ...]
    step_time_s: float
    worst_step_time_s: float
    axis: str
    """The axis whose rings were laid over the fabric ("" when none leaves a node)."""
    placement_ratio: float
    """Time of its communication between nodes in this placement, alone, over that when packed (1 or more)."""
    contention_ratio: float
    """The same with all jobs communicating at once, over alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """All jobs under every placement; `best` is the placement with the least total slowdown."""

    cluster: str
    nodes: int
    idle_nodes: int
    best: str
    placements: Mapping[str, tuple[JobView, ...]]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `shardwise fleet --json`."""
        return asdict(self)


def read_fleet(path: Path) -> tuple[str, int | None, tuple[Mapping[str, Any], ...]]:
    """A fleet file: `cluster`, `nodes`, and [[jobs]] with a name, nodes, a model and fields of Run and Strategy.

    Raises InputError with every problem and its line.
    """
    document, complaints = read_document(path), Complaints()
    table = document.table
    for key in table:
        if key not in ("cluster", "nodes", "jobs", "title"):
            complaints.add(f"{key}: unknown key.", where=document.where((key,)),
                           hint=did_you_mean(key, ("cluster", "nodes", "jobs", "title")))  # fmt: skip
    cluster, nodes, jobs = table.get("cluster"), table.get("nodes"), table.get("jobs")
    complaints.require(isinstance(cluster, str), "cluster: a name is missing.", where=document.where(("cluster",)))
    complaints.require(nodes is None or type(nodes) is int, "nodes: is no whole number.",
                       where=document.where(("nodes",)))  # fmt: skip
    if not isinstance(jobs, list) or not jobs or not all(isinstance(job, dict) for job in jobs):
        complaints.add("jobs: write [[jobs]], one table per job.", where=document.where(("jobs",)))
    complaints.raise_if_any()
    points = []
    for index, job in enumerate(jobs or []):
        try:
            rest = {key: value for key, value in job.items() if key != "name"}
            points.append({"name": str(job.get("name", f"job {index + 1}")), **_checked(rest, str(cluster))})
        except InputError as error:
            for problem in error.problems:
                complaints.add(problem.message, where=document.where(("jobs", index)), hint=problem.hint)
    complaints.raise_if_any()
    return str(cluster), nodes, tuple(points)


def _checked(point: Mapping[str, Any], cluster: str) -> Mapping[str, Any]:
    if "cluster" in point or "nodes" not in point:
        message = "a job has no cluster of its own." if "cluster" in point else "nodes: how many does the job need?"
        raise InputError([Problem(message)])
    whole = {**point, "cluster": cluster}
    checked(SweepSpec(case=whole))
    return whole


def fleet(cluster_name: str, nodes: int | None, jobs: Sequence[Mapping[str, Any]]) -> FleetView:
    """Place jobs on a cluster in every known way and lay their communication over its links.

    `jobs` are points as in a sweep (`name`, `nodes`, `model`, fields of Run and Strategy). Placements: packed (largest
    first on neighbouring nodes), in-order (as listed, on the first free nodes), spread (dealt out over the units of
    the outermost tier). Raises InputError where they do not fit or a job is refused.
    """
    cluster = catalog.load_cluster(cluster_name, nodes=nodes)
    _check_size(cluster, jobs)
    parsed, alone = zip(*(_job(point) for point in jobs), strict=True)
    views = {name: _view(cluster, parsed, alone, _placed(name, cluster, parsed)) for name in PLACEMENTS}
    best = min(PLACEMENTS, key=lambda name: sum(view.worst_step_time_s / view.step_time_s for view in views[name]))
    return FleetView(cluster=cluster.name, nodes=cluster.nodes, best=best, placements=views,
                     idle_nodes=cluster.nodes - sum(job.nodes for job in parsed))  # fmt: skip


def _check_size(cluster: Cluster, jobs: Sequence[Mapping[str, Any]]) -> None:
    wanted = sum(int(job["nodes"]) for job in jobs)
    complaints = Complaints()
    complaints.require(wanted <= cluster.nodes, f"the jobs need {wanted} nodes, {cluster.name} has {cluster.nodes}.",
                       where="nodes")  # fmt: skip
    complaints.require(cluster.devices <= MAX_DEVICES, f"{cluster.devices:,} devices > {MAX_DEVICES:,}.",
                       where="nodes", hint="Look at a part of the cluster.")  # fmt: skip
    complaints.raise_if_any()


def _job(point: Mapping[str, Any]) -> tuple[Job, Estimate]:
    """A job and its estimate alone. Raises InputError that names the job."""
    try:
        case = case_of_point({key: value for key, value in point.items() if key != "name"})
        alone = estimate(case.model, case.cluster, case.run, case.strategy, framework=case.framework)
    except InputError as error:
        raise InputError([Problem(f"{point['name']}: {p.message}", p.where, p.hint) for p in error.problems]) from None
    return Job(name=str(point["name"]), nodes=case.cluster.nodes, case=case), alone


def _placed(kind: str, cluster: Cluster, jobs: Sequence[Job]) -> Placed:
    """The nodes of every job, in the order of the jobs."""
    free = list(range(cluster.nodes))
    if kind == "spread":
        unit = max(1, _unit_devices(cluster) // cluster.devices_per_node)
        free.sort(key=lambda node: (node % unit, node // unit))
    order = list(range(len(jobs)))
    if kind == "packed":
        order.sort(key=lambda index: (-jobs[index].nodes, index))
    found: dict[int, tuple[int, ...]] = {}
    for index in order:
        taken, free = free[: jobs[index].nodes], free[jobs[index].nodes :]
        found[index] = tuple(sorted(taken) if kind != "spread" else taken)
    return tuple(found[index] for index in range(len(jobs)))


def _unit_devices(cluster: Cluster) -> int:
    """Devices of one unit of the outermost tier that joins several."""
    sizes = [tier.size for tier in cluster.tiers if tier.size < cluster.devices]
    return max(sizes, default=cluster.devices_per_node)


def _view(cluster: Cluster, jobs: Sequence[Job], alone: Sequence[Estimate], placed: Placed) -> tuple[JobView, ...]:
    axes = [_heaviest(job, answer) for job, answer in zip(jobs, alone, strict=True)]
    rings = [_rings(job, axis, nodes) for job, axis, nodes in zip(jobs, axes, placed, strict=True)]
    flat = [ring for several in rings for ring in several]
    shared = ring_rates(cluster, flat) if flat else np.zeros(0)
    result, at = [], 0
    for job, answer, axis, nodes, own in zip(jobs, alone, axes, placed, rings, strict=True):
        together = shared[at : at + len(own)]
        at += len(own)
        here = ring_rates(cluster, own) if own else np.zeros(0)
        packed = ring_rates(job.case.cluster, _rings(job, axis, tuple(range(job.nodes)))) if own else np.zeros(0)
        placement, contention = _over(packed, here), _over(here, together)
        extra_s = (placement * contention - 1.0) * _between_nodes_s(answer, axis)
        result.append(JobView(name=job.name, nodes=nodes, step_time_s=answer.step_time_s, axis=axis,
                              worst_step_time_s=answer.step_time_s + extra_s, placement_ratio=placement,
                              contention_ratio=contention))  # fmt: skip
    return tuple(result)


def _over(quick: Any, slow: Any) -> float:
    """How much longer the slowest ring lasts; 1 where nothing leaves a node."""
    if not len(quick) or not np.isfinite(quick.min()):
        return 1.0
    return max(1.0, float(quick.min() / slow.min()))


def _heaviest(job: Job, answer: Estimate) -> str:
    """The axis that leaves a node and takes the most time, hidden or not."""
    inside = job.case.cluster.tiers[0].size
    groups = _groups(job)
    leaving = [axis for axis, name in _GROUP_OF.items() if groups[name].size > 1
               and max(groups[name].ranks()) - min(groups[name].ranks()) >= inside]  # fmt: skip
    return max(leaving, key=lambda axis: (_between_nodes_s(answer, axis), axis), default="")


def _groups(job: Job) -> Mapping[str, Any]:
    s = job.case.strategy
    return axis_groups(job.case.cluster, tp=s.tp, cp=s.cp, ep=s.ep, etp=s.etp, dp=s.dp, pp=s.pp, order=s.order)


def _rings(job: Job, axis: str, nodes: Sequence[int]) -> list[tuple[int, ...]]:
    """The groups of an axis as devices of the whole cluster."""
    if not axis:
        return []
    per_node = job.case.cluster.devices_per_node
    place = [node * per_node + slot for node in nodes for slot in range(per_node)]
    tiles = all_groups(_groups(job)[_GROUP_OF[axis]], job.case.cluster.devices)
    return [tuple(place[rank] for rank in ranks) for ranks in tiles]


def _between_nodes_s(answer: Estimate, axis: str) -> float:
    """Seconds of communication on an axis in one step, hidden or not."""
    return answer.time.parts.get(axis, 0.0) + answer.time.hidden.get(axis, 0.0)
