"""A cluster's network at a glance: time by size and algorithm, the link that holds back, and what each axis crosses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simulator.cluster import torus
from simulator.cluster.link_loads import AXIS_KINDS, LinkLoad, bottleneck, link_loads
from simulator.cluster.members import Kinds, is_unequal, kinds_of, uniform
from simulator.cluster.network import bus_bandwidth_bytes_per_s, collective_time_s
from simulator.cluster.placement import Group, axis_ranks, placed_ranks
from simulator.cluster.traffic_map import AxisPlacement, axis_placement, times_by_algorithm
from simulator.errors import InputError, Problem
from simulator.spec.hardware import Cluster

SIZES_BYTES = tuple(float(2**power) for power in (10, 14, 17, 20, 23, 26, 28, 30, 33))
"""1 KiB to 8 GiB, as nccl-tests sweeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRow:
    """One collective at one size."""

    size_bytes: float
    time_s: float
    bus_bytes_per_s: float
    """nccl-tests' bus bandwidth."""
    algorithm: str
    """What was chosen, or forced."""
    by_algorithm_s: Mapping[str, float]
    """Seconds of every way to run it, the quickest first."""
    by_member_s: Mapping[str, float]
    """On unequal nodes, seconds of groups by their slowest member; the slowest group is `time_s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveSurvey:
    """One collective on one group over sizes, and the link that limits it."""

    kind: str
    group: Group
    rows: tuple[SizeRow, ...]
    bottleneck: LinkLoad | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisSurvey:
    """One axis of a strategy: where its groups lie, its collective, and what that puts on every link."""

    placement: AxisPlacement
    kind: str
    size_bytes: float
    time_s: float
    by_member_s: Mapping[str, float]
    """On unequal nodes, seconds of groups by their slowest member; the slowest group is `time_s`."""
    loads: tuple[LinkLoad, ...]
    ranks: tuple[int, ...]
    """Devices of the first group."""


def survey_collective(
    cluster: Cluster, kind: str, group: Group, sizes: Sequence[float] = SIZES_BYTES, *, algorithm: str | None = None
) -> CollectiveSurvey:
    """Times of a collective on one group while all groups like it run; on unequal nodes the slowest of them.

    Raises InputError for groups larger than the cluster, unknown kinds, and algorithms that cannot run it.
    """
    ranks = group.ranks() if group.stride >= 1 else ()
    if not ranks or max(ranks) >= cluster.devices:
        reached = f"reaches device {max(ranks)}" if ranks else "holds no device"
        message = f"group({group.size}) * stride({group.stride}) {reached} of {cluster.devices}."
        raise InputError([Problem(message, "--group", f"At most {-(-cluster.devices // max(group.stride, 1))} ranks.")])
    rows = tuple(_row(cluster, kind, group, size, algorithm) for size in sizes)
    return CollectiveSurvey(kind=kind, group=group, rows=rows, bottleneck=bottleneck(uniform(cluster), kind, group))


def _row(cluster: Cluster, kind: str, group: Group, size_bytes: float, algorithm: str | None) -> SizeRow:
    members = times_by_member(cluster, kind, size_bytes, group, algorithm=algorithm)
    slow = uniform(cluster)
    time_s = (
        max(members.values())
        if members
        else float(collective_time_s(slow, kind, size_bytes, group, algorithm=algorithm))
    )
    by = _by_algorithm(slow, kind, group, size_bytes, time_s)
    bus = float(bus_bandwidth_bytes_per_s(kind, size_bytes, int(group.size), time_s)) if time_s else 0.0
    return SizeRow(size_bytes=size_bytes, time_s=time_s, bus_bytes_per_s=bus, by_algorithm_s=by, by_member_s=members,
                   algorithm=algorithm or next(iter(by), "none"))  # fmt: skip


def times_by_member(
    cluster: Cluster, kind: str, size_bytes: float, group: Group, *, algorithm: str | None = None
) -> dict[str, float]:
    """Seconds of the groups of an axis by their slowest member, the slowest first; empty on equal nodes [s]."""
    if not is_unequal(cluster):
        return {}
    kinds = kinds_of(cluster)
    found: dict[str, float] = {}
    for inside, uplink, several in sorted(_slowest_members(kinds, group)):
        felt = kinds.felt(inside, inside, uplink)
        label = kinds.members[uplink].uplink_label if several else kinds.members[inside].label
        seconds = float(collective_time_s(felt, kind, size_bytes, group, algorithm=algorithm))
        found[label] = max(found.get(label, 0.0), seconds)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _slowest_members(kinds: Kinds, group: Group) -> set[tuple[int, int, bool]]:
    """Of every group: the kind with the slowest links inside, to the network, and whether it spans several nodes."""
    cluster, order = kinds.cluster, kinds.by_uplink.tolist()
    found = set()
    for ranks in _groups_like(cluster, group):
        nodes = {rank // cluster.devices_per_node for rank in ranks}
        held = {int(kinds.of_node[node]) for node in nodes}
        found.add((min(held), next(kind for kind in order if kind in held), len(nodes) > 1))
    return found


def _groups_like(cluster: Cluster, group: Group) -> Sequence[Sequence[int]]:
    """Every group of an axis; of groups that do not tile the cluster, those that fit one after the other."""
    if int(group.blocks) > 1:
        return axis_ranks(cluster, group)
    extent = int(group.size) * int(group.stride)
    starts = (first + i for first in range(0, cluster.devices - extent + 1, extent) for i in range(int(group.stride)))
    place = cluster.rank_devices
    return [[place[rank] for rank in group.ranks(start)] if place else group.ranks(start) for start in starts]


def _by_algorithm(
    cluster: Cluster, kind: str, group: Group, size_bytes: float, time_s: float
) -> dict[str, float]:
    """Every way there is; measured machines, tori and listed graphs have one each."""
    if not time_s:
        return {}
    if cluster.curves:
        return {"measured": time_s}
    if cluster.links:
        return {"pairwise" if kind in ("all_to_all", "send") else "ring": time_s}
    if torus.is_torus(cluster):
        return {"torus": time_s}
    return times_by_algorithm(cluster, kind, size_bytes, group)


def survey_axes(
    cluster: Cluster, groups: Mapping[str, Group], size_bytes: float, kinds: Mapping[str, str] = AXIS_KINDS
) -> tuple[AxisSurvey, ...]:
    """Every axis of more than one rank, with `size_bytes` of its own collective on all its groups at once.

    On unequal nodes the slowest group counts, and loads are those of the slowest links.
    """
    slow = uniform(cluster)
    several = {axis: group for axis, group in groups.items() if int(group.size) > 1}
    members = {axis: times_by_member(cluster, kinds[axis], size_bytes, group) for axis, group in several.items()}
    return tuple(
        AxisSurvey(
            placement=axis_placement(slow, axis, group),
            kind=kinds[axis],
            size_bytes=size_bytes,
            time_s=max(members[axis].values())
            if members[axis]
            else float(collective_time_s(slow, kinds[axis], size_bytes, group)),
            by_member_s=members[axis],
            loads=link_loads(slow, kinds[axis], size_bytes, group),
            ranks=placed_ranks(group, cluster.rank_devices) if cluster.rank_devices else group.ranks(),
        )
        for axis, group in several.items()
    )


def collective_document(found: CollectiveSurvey) -> dict[str, Any]:
    """As JSON holds it."""
    group = found.group
    return {
        "kind": found.kind,
        "group": int(group.size),
        "stride": int(group.stride),
        "rows": [asdict(row) for row in found.rows],
        "bottleneck": _load_document(found.bottleneck) if found.bottleneck else None,
    }


def axis_document(found: AxisSurvey) -> dict[str, Any]:
    """As JSON holds it; what never leaves its innermost unit has no rate out of it."""
    placement = asdict(found.placement)
    if not math.isfinite(found.placement.up_bytes_per_s):
        placement["up_bytes_per_s"] = None
    return {
        **placement,
        "kind": found.kind,
        "size_bytes": found.size_bytes,
        "time_s": found.time_s,
        "by_member_s": dict(found.by_member_s),
        "first_group": list(found.ranks),
        "loads": [_load_document(load) for load in found.loads],
    }


def _load_document(load: LinkLoad) -> dict[str, Any]:
    return {**asdict(load), "drain_s": load.drain_s}
