"""Where each axis goes: the outermost tier it crosses, how many groups share a link there, and each link's load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from simulator.cluster.contention import Floats, links_of, placed_spans, ring_flows
from simulator.cluster.network import collective_curve, wire_bytes
from simulator.cluster.placement import Group, axis_ranks
from simulator.spec.hardware import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisPlacement:
    """How the groups of one axis lie on the cluster."""

    axis: str
    size: int
    tier: str
    """Name of the outermost tier that a group crosses."""
    units: Mapping[str, int]
    """Units of each tier that a group touches."""
    sharing: Mapping[str, float]
    """Groups of the axis that share one unit's way into each tier that they cross."""
    up_bytes_per_s: float
    """What one group gets out of its innermost unit; inf inside one."""


def axis_placement(cluster: Cluster, axis: str, group: Group) -> AxisPlacement:
    """The placement of one axis (scalar degrees): in closed form, or as a rank file says."""
    over = placed_spans(cluster, group)
    crossed = [index for index, units in enumerate(over.units[:-1], start=1) if units > 1]
    return AxisPlacement(
        axis=axis,
        size=int(group.size),
        tier=cluster.tiers[max(crossed, default=0)].name,
        units={tier.name: int(units) for tier, units in zip(cluster.tiers, over.units, strict=True)},
        sharing={
            cluster.tiers[index].name: cluster.tiers[index - 1].size / float(over.members[index - 1])
            for index in crossed
        },
        up_bytes_per_s=float(over.up_bytes_per_s),
    )


def ring_loads_bytes(cluster: Cluster, kind: str, size_bytes: float, group: Group) -> Floats:
    """Bytes on each link of `contention.links_of` when every group of the axis runs one ring collective."""
    flows = ring_flows(cluster, axis_ranks(cluster, group))
    links = links_of(cluster)
    ways = np.bincount(flows.edge)[flows.edge]
    each = wire_bytes(kind, size_bytes, int(group.size)) / ways
    flow, link = links.route(flows.source, flows.target)
    loads: Floats = np.bincount(link, weights=each[flow], minlength=len(links.capacity)).astype(float)
    return loads


def times_by_algorithm(cluster: Cluster, kind: str, size_bytes: float, group: Group) -> dict[str, float]:
    """Seconds of every algorithm and protocol that can run the collective, the cheapest first.

    Not for tori and listed graphs, which have one way each.
    """
    curve = collective_curve(cluster, kind, group)
    times = {candidate.name: float(candidate.time_s(size_bytes)) for candidate in curve.candidates}
    return dict(sorted(times.items(), key=lambda item: item[1]))
