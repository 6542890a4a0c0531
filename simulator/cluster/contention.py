"""Who shares a link with whom: max-min fair rates of flows, and of all groups of an axis, on the graph's links.

The closed form in `cluster/spans.py` counts groups per link; on symmetric fabrics both agree exactly, and only
this one answers for explicit placements, unequal nodes and groups that do not divide the units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.placement import Group, all_groups, axis_ranks
from simulator.cluster.spans import Spans, efficiency, spans
from simulator.spec.hardware import Cluster

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def max_min_rates(flow_of: Ints, link_of: Ints, capacity: Floats, flows: int, share_of: Floats | None = None) -> Floats:
    """Max-min fair rates: `flow_of[i]` uses `link_of[i]` with the share `share_of[i]` of its rate (1 by default).

    Flows without a link are unlimited. Progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2): the
    link with the smallest fair share fixes its flows, again and again.

    >>> max_min_rates(np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([10.0, 3.0]), 2).tolist()
    [7.0, 3.0]
    """
    weight = np.ones(len(flow_of)) if share_of is None else share_of
    rates = np.full(flows, np.inf)
    left = capacity.copy()
    waiting = np.zeros(flows, dtype=bool)
    waiting[flow_of] = True
    while waiting.any():
        using = waiting[flow_of]
        load = np.bincount(link_of[using], weights=weight[using], minlength=len(left))
        level_of = np.divide(left, load, out=np.full(len(left), np.inf), where=load > 0)
        level = level_of.min()
        tight = level_of <= level * (1 + 1e-12)
        fixed = np.unique(flow_of[using & tight[link_of]])
        rates[fixed] = level
        waiting[fixed] = False
        done = using & ~waiting[flow_of]
        left -= level * np.bincount(link_of[done], weights=weight[done], minlength=len(left))
        np.maximum(left, 0.0, out=left)
    return rates


@dataclass(frozen=True, slots=True)
class Links:
    """The directed links outside the innermost tier, as arrays, and the way between two devices over them.

    Device d has link d out and link devices + d in (its NIC); unit u of a tier with units below the outermost
    has one link up and one down with all its cables' capacity.
    """

    cluster: Cluster
    capacity: Floats
    unit_sizes: tuple[int, ...]
    unit_starts: tuple[int, ...]

    def route(self, source: Ints, target: Ints) -> tuple[Ints, Ints]:
        """Flow and link of every use, for flows from `source[i]` to `target[i]`."""
        devices = self.cluster.devices
        flow = np.arange(len(source))
        away = source // self.cluster.tiers[0].size != target // self.cluster.tiers[0].size
        flows, links = [flow[away], flow[away]], [source[away], devices + target[away]]
        for size, start in zip(self.unit_sizes, self.unit_starts, strict=True):
            up, down = source // size, target // size
            crossing = up != down
            count = -(-devices // size)
            flows += [flow[crossing], flow[crossing]]
            links += [start + up[crossing], start + count + down[crossing]]
        return np.concatenate(flows), np.concatenate(links)


def links_of(cluster: Cluster) -> Links:
    """The links of a cluster, with what collectives reach of their rate."""
    devices = cluster.devices
    if len(cluster.tiers) == 1:
        return Links(cluster, np.zeros(0), (), ())
    nic = cluster.tiers[1].bandwidth_bytes_per_s * efficiency(cluster.tiers[1])
    capacity = [np.full(2 * devices, nic)]
    sizes, starts, used = [], [], 2 * devices
    for below, tier in pairwise(cluster.tiers):
        if tier is cluster.tiers[1] and tier.oversubscription == 1.0:
            continue
        count = -(-devices // below.size)
        total = below.size * tier.bandwidth_bytes_per_s * efficiency(tier) / tier.oversubscription
        sizes.append(below.size)
        starts.append(used)
        capacity.append(np.full(2 * count, total))
        used += 2 * count
    return Links(cluster, np.concatenate(capacity), tuple(sizes), tuple(starts))


@dataclass(frozen=True, slots=True)
class Flows:
    """Messages of a ring between units: `groups[i]` is the group of flow i, `edge[i]` the pair of units it joins."""

    source: Ints
    target: Ints
    group: Ints
    edge: Ints


def ring_flows(cluster: Cluster, groups: Sequence[Sequence[int]]) -> Flows:
    """What rings send between innermost units: member j of one unit to member j of the next, as NCCL's channels."""
    size = cluster.tiers[0].size
    source, target, group, edge = [], [], [], []
    edges = 0
    for index, ranks in enumerate(groups):
        units: dict[int, list[int]] = {}
        for rank in ranks:
            units.setdefault(rank // size, []).append(rank)
        if len(units) == 1:
            continue
        blocks = list(units.values())
        for here, there in pairwise([*blocks, blocks[0]]):
            channels = min(len(here), len(there))
            source += here[:channels]
            target += there[:channels]
            group += [index] * channels
            edge += [edges] * channels
            edges += 1
    return Flows(*(np.array(column, dtype=np.int64) for column in (source, target, group, edge)))


def ring_rates(cluster: Cluster, groups: Sequence[Sequence[int]]) -> Floats:
    """Bytes per second of every group's ring out of its units when all groups run at once; inf inside one unit."""
    rates = np.full(len(groups), np.inf)
    flows = ring_flows(cluster, groups)
    links = links_of(cluster)
    each = max_min_rates(*links.route(flows.source, flows.target), links.capacity, len(flows.source))
    total = np.bincount(flows.edge, weights=each)
    first = np.unique(flows.edge, return_index=True)[1]
    np.minimum.at(rates, flows.group[first], total)
    return rates


def hop_rates(cluster: Cluster, groups: Sequence[Sequence[int]]) -> Floats:
    """Bytes per second of every group's slowest message from a rank to the next, all of them at once."""
    rates = np.full(len(groups), np.inf)
    pairs = [(a, b, i) for i, ranks in enumerate(groups) for a, b in pairwise(ranks)]
    if not pairs:
        return rates
    source, target, group = np.array(pairs).T
    links = links_of(cluster)
    each = max_min_rates(*links.route(source, target), links.capacity, len(source))
    np.minimum.at(rates, group, each)
    return rates


def exchange_s_per_byte(cluster: Cluster, groups: Sequence[Sequence[int]]) -> float:
    """Seconds per byte of a rank's buffer that an all-to-all of all groups takes on the fullest link."""
    worst = 0.0
    of = np.concatenate([np.full(len(ranks), i) for i, ranks in enumerate(groups)])
    device = np.concatenate([np.asarray(ranks) for ranks in groups])
    n = np.array([len(ranks) for ranks in groups])
    for below, tier in pairwise(cluster.tiers):
        unit = device // below.size
        _, place, here = np.unique(np.stack([of, unit]), axis=1, return_inverse=True, return_counts=True)
        members = here[np.ravel(place)]
        leaving = (n[of] - members) / n[of]
        rate = tier.bandwidth_bytes_per_s * efficiency(tier)
        load = np.bincount(unit, weights=leaving) / (below.size * rate / tier.oversubscription)
        worst = max(worst, float(load.max()), float(leaving.max()) / rate)
    return worst


def graph_spans(cluster: Cluster, groups: Sequence[Sequence[int]] | Group) -> Spans:
    """The spans of the slowest group of an axis, with every rate solved on the links instead of counted.

    `groups` are explicit lists of devices (of one size), or a regular group that tiles the cluster.
    """
    explicit = all_groups(groups, cluster.devices) if isinstance(groups, Group) else groups
    size = len(explicit[0])
    units = tuple(max(len({rank // tier.size for rank in ranks}) for ranks in explicit) for tier in cluster.tiers)
    return Spans(
        size,
        units,
        tuple(size / unit for unit in units),
        float(ring_rates(cluster, explicit).min()),
        exchange_s_per_byte(cluster, explicit),
        float(hop_rates(cluster, explicit).min()),
    )


def placed_spans(cluster: Cluster, group: Group) -> Spans:
    """How a group lies over the tiers: counted, or solved on the links where a rank file places the ranks."""
    return graph_spans(cluster, axis_ranks(cluster, group)) if cluster.rank_devices else spans(cluster, group)
