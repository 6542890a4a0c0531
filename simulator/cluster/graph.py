"""The cluster as a networkx graph, and the cost of collectives on graphs that no closed form describes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.cluster.constants import network_constants
from simulator.cluster.contention import Floats, max_min_rates
from simulator.cluster.generators import CUBE_MESH_LINKS, Edge, Torus, Vertex, graph_of
from simulator.cluster.placement import Group, axis_ranks
from simulator.errors import InputError
from simulator.spec.hardware import Cluster, Tier

if TYPE_CHECKING:
    import networkx as nx

MAX_VERTICES = 200_000
RING_KINDS = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1, "broadcast": 1, "reduce": 1}


def cluster_graph(cluster: Cluster) -> nx.Graph[Vertex]:
    """Devices 0..n-1, a NIC each, and a switch for every unit of every tier; edges as in `generators.graph_of`.

    A unit's parallel cables and switches are one edge with their capacity, so a 16,384-device cluster has some
    35,000 vertices. Explicit graphs are as their file lists them. Raises InputError above 200,000 vertices.
    """
    if cluster.links:
        return graph_of(cluster.devices, _explicit_edges(cluster))
    if cluster.devices > MAX_VERTICES:
        raise InputError([f"{cluster.devices:,} devices are too many for a graph (limit {MAX_VERTICES:,} vertices)."])
    graph = graph_of(cluster.devices, _tier_edges(cluster))
    if graph.number_of_nodes() > MAX_VERTICES:
        raise InputError([f"{graph.number_of_nodes():,} vertices exceed the limit of {MAX_VERTICES:,}."])
    return graph


def vertex(name: str) -> Vertex:
    """A link's end as a vertex: numbers are devices."""
    return int(name) if name.isdecimal() else name


def _explicit_edges(cluster: Cluster) -> Iterator[Edge]:
    for link in cluster.links:
        yield vertex(link.one), vertex(link.other), link.bandwidth_bytes_per_s, link.latency_s, "graph"


def _tier_edges(cluster: Cluster) -> Iterator[Edge]:
    for unit in range(-(-cluster.devices // cluster.tiers[0].size)):
        tier = cluster.node_tiers[unit] if cluster.node_tiers else cluster.tiers[0]
        yield from _node_edges(tier, unit, cluster.tiers[0].size, cluster.devices)
    for index, tier in enumerate(cluster.tiers[1:], start=1):
        below = cluster.tiers[index - 1].size
        direct = index == 1 and tier.oversubscription == 1.0
        if index == 1:
            for device in range(cluster.devices):
                top = f"{tier.name}.{device // tier.size}" if direct else f"nodes.{device // below}"
                card = cluster.node_uplinks[device // cluster.devices_per_node] if cluster.node_uplinks else tier
                yield device, f"nic{device}", card.bandwidth_bytes_per_s, 0.0, tier.name
                yield f"nic{device}", top, card.bandwidth_bytes_per_s, tier.latency_s / 2, tier.name
        if not direct:
            lower = cluster.tiers[index - 1].name if index > 1 else "nodes"
            capacity = below * tier.bandwidth_bytes_per_s / tier.oversubscription
            for unit in range(-(-cluster.devices // below)):
                upper = f"{tier.name}.{unit * below // tier.size}"
                yield f"{lower}.{unit}", upper, capacity, tier.latency_s / 2, tier.name


def _node_edges(tier: Tier, unit: int, size: int, devices: int) -> Iterator[Edge]:
    """The edges inside one unit of the innermost tier."""
    first = unit * size
    last = min(first + size, devices)
    rate = tier.bandwidth_bytes_per_s
    if tier.topology in ("torus", "mesh") and tier.shape:
        wrap = tier.wrap or (tier.topology == "torus",) * len(tier.shape)
        torus = Torus(
            shape=tier.shape, wrap=wrap, link_bytes_per_s=rate / (2 * len(tier.shape)), latency_s=tier.latency_s
        )
        for one, other, link, latency_s, name in torus.edges():
            yield first + int(one), first + int(other), link, latency_s, name
    elif tier.topology == "hybrid-cube-mesh":
        for a, b, links in CUBE_MESH_LINKS:
            yield first + a, first + b, links * rate / 6, tier.latency_s, tier.name
    elif tier.topology == "full-mesh":
        for a in range(first, last):
            for b in range(a + 1, last):
                yield a, b, rate / (size - 1), tier.latency_s, tier.name
    else:
        for device in range(first, last):
            yield device, f"{tier.name}.{unit}", rate, tier.latency_s / 2, tier.name


class Routes:
    """Equal shortest ways on a graph as directed links, each pair's traffic spread evenly over all of them."""

    def __init__(self, graph: nx.Graph[Vertex]) -> None:
        self.graph = graph
        self.number: dict[tuple[Vertex, Vertex], int] = {}
        capacity: list[float] = []
        for one, other, data in graph.edges(data=True):
            for way in ((one, other), (other, one)):
                self.number[way] = len(capacity)
                capacity.append(data["bandwidth_bytes_per_s"])
        self.capacity: Floats = np.array(capacity)
        self._counts: dict[Vertex, tuple[dict[Vertex, list[Vertex]], dict[Vertex, int]]] = {}

    def _search(self, source: Vertex) -> tuple[dict[Vertex, list[Vertex]], dict[Vertex, int]]:
        """Predecessors on shortest ways from the source, and how many ways there are to each vertex."""
        import networkx as nx

        if source not in self._counts:
            before: Any = nx.predecessor(self.graph, source)
            ways: dict[Vertex, int] = {source: 1}
            for here, previous in before.items():
                if previous:
                    ways[here] = sum(ways[p] for p in previous)
            self._counts[source] = (before, ways)
        return self._counts[source]

    def shares(self, source: Vertex, target: Vertex) -> dict[int, float]:
        """The share of a pair's traffic on each directed link; raises InputError where there is no way."""
        before, ways = self._search(source)
        if target not in before:
            raise InputError([f"device {target} cannot be reached from device {source}."])
        carried = {target: 1.0}
        found: dict[int, float] = {}
        wave = [target]
        while wave:
            earlier: dict[Vertex, float] = {}
            for here in wave:
                for previous in before[here]:
                    part = carried[here] * ways[previous] / ways[here]
                    found[self.number[previous, here]] = part
                    earlier[previous] = earlier.get(previous, 0.0) + part
            carried, wave = earlier, list(earlier)
        return found

    def _uses(self, pairs: Sequence[tuple[int, int]]) -> tuple[list[int], list[int], list[float]]:
        flow: list[int] = []
        link: list[int] = []
        share: list[float] = []
        for index, (source, target) in enumerate(pairs):
            found = self.shares(source, target)
            flow += [index] * len(found)
            link += found.keys()
            share += found.values()
        return flow, link, share

    def rates(self, pairs: Sequence[tuple[int, int]]) -> Floats:
        """Max-min fair rates when all pairs send at once, bytes/s."""
        flow, link, share = self._uses(pairs)
        return max_min_rates(np.array(flow), np.array(link), self.capacity, len(pairs), np.array(share))

    def latency_s(self, pairs: Sequence[tuple[int, int]]) -> float:
        """The longest of the pairs' ways (one shortest way each), in seconds."""
        longest = 0.0
        for source, target in pairs:
            before, _ = self._search(source)
            here: Vertex = target
            total = 0.0
            while before[here]:
                total += float(self.graph.edges[before[here][0], here]["latency_s"])
                here = before[here][0]
            longest = max(longest, total)
        return longest

    def bottleneck(self, pairs: Sequence[tuple[int, int]]) -> tuple[Vertex, Vertex, float]:
        """The directed link with the most traffic for its rate, and the rate it leaves each pair in bytes/s."""
        _, link, share = self._uses(pairs)
        load = np.bincount(link, weights=share, minlength=len(self.capacity))
        level = np.divide(self.capacity, load, out=np.full(len(load), np.inf), where=load > 0)
        one, other = list(self.number)[int(level.argmin())]
        return one, other, float(level.min())


def ring_pairs(groups: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Each rank to the next, and the last to the first."""
    return [pair for ranks in groups for pair in pairwise([*ranks, ranks[0]])]


def exchange_pairs(groups: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Each rank to every other of its group."""
    return [(a, b) for ranks in groups for a in ranks for b in ranks if a != b]


def graph_time_s(cluster: Cluster, kind: str, size_bytes: float, groups: Sequence[Sequence[int]]) -> float:
    """Seconds of a collective that all `groups` run at once, ring or pairwise, over shortest ways on the graph.

    The slowest group counts. Latencies and protocols are the device generation's, the rest is the graph's.
    """
    n = len(groups[0])
    if n == 1 or size_bytes <= 0:
        return 0.0
    return _time_s(cluster, kind, size_bytes, n, _slowest_way(cluster, kind, groups))


def _slowest_way(cluster: Cluster, kind: str, groups: Sequence[Sequence[int]]) -> tuple[float, float]:
    """The least rate of a message of any group in bytes/s, and the longest way in seconds."""
    if kind == "all_to_all":
        pairs = exchange_pairs(groups)
    elif kind == "send":
        pairs = [pair for ranks in groups for pair in pairwise(ranks)]
    else:
        pairs = ring_pairs(groups)
    routes = Routes(cluster_graph(cluster))
    return float(routes.rates(pairs).min()), routes.latency_s(pairs)


def _time_s(cluster: Cluster, kind: str, size_bytes: float, n: int, way: tuple[float, float]) -> float:
    constants = network_constants(cluster.device.generation)
    if kind == "all_to_all":
        family, steps, wire = constants.all_to_all, 1, 1.0 / n
    elif kind == "send":
        family, steps, wire = constants.send, 1, 1.0
    else:
        passes = RING_KINDS[kind]
        family, steps = constants.protocols, passes * (n - 1)
        wire = 1.0 if kind in ("broadcast", "reduce") else passes * (n - 1) / n
    rate, latency_s = way
    return min(
        p.base_s + steps * (p.hop_s + latency_s) + size_bytes * wire / min(p.rate_bytes_per_s, p.link_fraction * rate)
        for p in family.values()
    )


_ways: dict[tuple[int, str, Group], tuple[Cluster, tuple[float, float]]] = {}
"""Slowest ways of listed graphs; the cluster is kept beside, so its id stays its own."""
_WAYS_KEPT = 4096


def explicit_time_s(cluster: Cluster, kind: str, size_bytes: float, group: Group) -> float:
    """`graph_time_s` for all groups of an axis on a cluster whose links are listed; each axis is routed once."""
    if group.size == 1 or size_bytes <= 0:
        return 0.0
    pattern = kind if kind in ("all_to_all", "send") else "ring"
    key = (id(cluster), pattern, group)
    found = _ways.get(key)
    if found is None:
        if len(_ways) >= _WAYS_KEPT:
            _ways.clear()
        _ways[key] = found = (cluster, _slowest_way(cluster, kind, axis_ranks(cluster, group)))
    return _time_s(cluster, kind, size_bytes, int(group.size), found[1])
