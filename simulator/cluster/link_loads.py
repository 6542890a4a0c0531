"""What each axis puts on the links of every tier, in closed form, and which link holds a collective back.

`traffic_map.ring_loads_bytes` answers the same link by link on explicit flows; both agree on symmetric placements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from simulator.cluster import torus
from simulator.cluster.contention import placed_spans
from simulator.cluster.graph import Routes, cluster_graph, exchange_pairs, ring_pairs
from simulator.cluster.network import wire_bytes
from simulator.cluster.placement import Group, axis_ranks
from simulator.cluster.spans import Spans, efficiency, spans
from simulator.spec.hardware import Cluster

AXIS_KINDS = {
    "tp": "all_reduce", "cp": "all_gather", "ep": "all_to_all", "etp": "all_reduce", "dp": "all_reduce",
    "dp_cp": "all_reduce", "edp": "all_reduce", "pp": "send",
}  # fmt: skip
"""The collective that an axis mainly runs (facts_formulas b to d)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLoad:
    """The busiest link of one kind while all groups of an axis run one collective."""

    tier: str
    link: str
    """In words: "a device's link into nvswitch", "a unit of 3072 devices into aggregation"."""
    load_bytes: float
    """Over one such link, one direction."""
    capacity_bytes_per_s: float
    """One direction, as advertised."""
    usable_fraction: float
    """Share of it that collectives reach."""
    sharing_factor: float
    """Groups that share it."""

    @property
    def drain_s(self) -> float:
        """Seconds in which the link carries its load: no collective is faster."""
        return self.load_bytes / (self.capacity_bytes_per_s * self.usable_fraction)


def link_loads(cluster: Cluster, kind: str, size_bytes: float, group: Group) -> tuple[LinkLoad, ...]:
    """Loads from the inside out (scalar groups): a device's link into each tier, then the way out of whole units.

    Rings (and chains of them) put their wire volume on every link they pass, spread over one channel per member of
    a unit; all-to-all puts on a tier what is meant for ranks beyond it; a send crosses once per group and unit.
    Rank files are solved on the links, and listed graphs give their one busiest cable.
    """
    if int(group.size) <= 1:
        return ()
    if cluster.links:
        return (_listed(cluster, kind, size_bytes, group),)
    if torus.is_torus(cluster):
        return _torus_loads(cluster, kind, size_bytes, group)
    over = placed_spans(cluster, group)
    found = []
    members = float(over.members[0])
    if members > 1:
        tier = cluster.tiers[0]
        load = _inside_bytes(kind, size_bytes, int(group.size), members)
        found.append(
            LinkLoad(tier=tier.name, link=f"a device's link into {tier.name}", load_bytes=load, sharing_factor=1.0,
                     capacity_bytes_per_s=tier.bandwidth_bytes_per_s, usable_fraction=efficiency(tier))
        )  # fmt: skip
    return (*found, *_outer_loads(cluster, kind, size_bytes, over))


def bottleneck(cluster: Cluster, kind: str, group: Group) -> LinkLoad | None:
    """The link that takes longest to carry its load of a byte of every rank's buffer; None for one rank."""
    loads = link_loads(cluster, kind, 1.0, group)
    return max(loads, key=lambda load: load.drain_s) if loads else None


def _inside_bytes(kind: str, size_bytes: float, n: int, members: float) -> float:
    """What a device sends inside its unit."""
    if kind == "all_to_all":
        return size_bytes * (members - 1) / n
    return _passed_bytes(kind, size_bytes, n)


def _passed_bytes(kind: str, size_bytes: float, n: int) -> float:
    """What passes between two neighbours of a ring or a chain: a broadcast's whole buffer, else the wire volume."""
    return size_bytes if kind in ("broadcast", "reduce") else float(wire_bytes(kind, size_bytes, n))


def _outer_loads(cluster: Cluster, kind: str, size_bytes: float, over: Spans) -> Iterator[LinkLoad]:
    """Of every tier above the first that the group crosses."""
    for index, units in enumerate(over.units[:-1], start=1):
        if units > 1:
            yield from _tier_loads(cluster, index, kind, size_bytes, over)


def _tier_loads(cluster: Cluster, index: int, kind: str, size_bytes: float, over: Spans) -> list[LinkLoad]:
    """The device's own link into a tier, and the up-link of a unit below it where that is narrower."""
    tier, below = cluster.tiers[index], cluster.tiers[index - 1].size
    n, members = int(over.size), float(over.members[index - 1])
    exchanged = members * size_bytes * (n - members) / n
    leaving = exchanged if kind == "all_to_all" else _passed_bytes(kind, size_bytes, n)
    groups = below / members
    senders = 1.0 if kind == "send" else members
    found = []
    if index == 1:
        found.append(
            LinkLoad(tier=tier.name, link=f"a device's link into {tier.name}", load_bytes=leaving / senders,
                     capacity_bytes_per_s=tier.bandwidth_bytes_per_s, usable_fraction=efficiency(tier),
                     sharing_factor=1.0)
        )  # fmt: skip
    if index > 1 or tier.oversubscription > 1:
        capacity = below * tier.bandwidth_bytes_per_s / tier.oversubscription
        found.append(
            LinkLoad(tier=tier.name, link=f"a unit of {below} devices into {tier.name}", load_bytes=leaving * groups,
                     sharing_factor=groups, capacity_bytes_per_s=capacity, usable_fraction=efficiency(tier))
        )  # fmt: skip
    return found


def _torus_loads(cluster: Cluster, kind: str, size_bytes: float, group: Group) -> tuple[LinkLoad, ...]:
    """Every dimension that the group covers; the data-centre network between slices where it crosses that."""
    over, tier = spans(cluster, group), cluster.tiers[0]
    part = torus.group_slice(tier, Group(int(over.per_node), int(group.stride)))
    used = [(float(x), float(apart), bool(ring)) for x, apart, ring in part.dimensions]
    lanes = sum((2.0 if ring else 1.0) / apart for x, apart, ring in used if x > 1)
    found = []
    for dim, (x, apart, ring) in enumerate(used):
        if x <= 1:
            continue
        if kind == "all_to_all":
            load = size_bytes * x * apart / (8 if ring else 4)
        elif kind == "send":
            load = apart * size_bytes
        else:
            load = _passed_bytes(kind, size_bytes, int(math.prod(x for x, _, _ in used))) / lanes
        found.append(
            LinkLoad(tier=tier.name, load_bytes=load, sharing_factor=apart, usable_fraction=torus.LINK_EFFICIENCY,
                     link=f"a link of dimension {len(tier.shape) - 1 - dim} ({'ring' if ring else 'line'} of {x:g})",
                     capacity_bytes_per_s=tier.bandwidth_bytes_per_s / (2 * len(tier.shape)))
        )  # fmt: skip
    return (*found, *_outer_loads(cluster, kind, size_bytes, over))


def _listed(cluster: Cluster, kind: str, size_bytes: float, group: Group) -> LinkLoad:
    """The busiest cable of a listed graph, over equal shortest ways."""
    groups = axis_ranks(cluster, group)
    n = len(groups[0])
    if kind == "all_to_all":
        pairs, each = exchange_pairs(groups), size_bytes / n
    elif kind == "send":
        pairs, each = [pair for ranks in groups for pair in pairwise(ranks)], size_bytes
    else:
        pairs, each = ring_pairs(groups), _passed_bytes(kind, size_bytes, n)
    one, other, left = Routes(cluster_graph(cluster)).bottleneck(pairs)
    capacity = float(cluster_graph(cluster).edges[one, other]["bandwidth_bytes_per_s"])
    sharing = capacity / left
    return LinkLoad(tier="graph", link=f"the cable from {one} to {other}", load_bytes=each * sharing,
                    sharing_factor=sharing, capacity_bytes_per_s=capacity, usable_fraction=1.0)  # fmt: skip
