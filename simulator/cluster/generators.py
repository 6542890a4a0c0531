"""Fabrics as graphs: devices are the integers 0..n-1, switches and NICs are strings; one full-duplex edge a cable.

Every fabric is a frozen value with `graph()` (networkx, imported when asked) and closed forms beside it, in
`cluster/closed.py`. An edge carries `bandwidth_bytes_per_s` (one direction), `latency_s` and `tier`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, TypeAlias

from simulator.errors import InputError
from simulator.spec.hardware import Link

if TYPE_CHECKING:
    import networkx as nx

Vertex: TypeAlias = int | str
Edge: TypeAlias = tuple[Vertex, Vertex, float, float, str]
"""One end, the other, bytes/s one way, seconds, tier."""


def graph_of(devices: int, edges: Iterable[Edge]) -> nx.Graph[Vertex]:
    """A graph of devices 0..devices-1 and whatever else the edges name; parallel cables add their bandwidth."""
    import networkx as nx

    graph: nx.Graph[Vertex] = nx.Graph()
    graph.add_nodes_from(range(devices), kind="device")
    for one, other, bandwidth, latency_s, tier in edges:
        if graph.has_edge(one, other):
            graph.edges[one, other]["bandwidth_bytes_per_s"] += bandwidth
            continue
        graph.add_edge(one, other, bandwidth_bytes_per_s=bandwidth, latency_s=latency_s, tier=tier)
    for vertex in graph:
        if isinstance(vertex, str):
            graph.nodes[vertex]["kind"] = "nic" if vertex.startswith("nic") else "switch"
    return graph


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchedNode:
    """Devices that all reach all `switches` (NVSwitch nodes, NVL72: 72 devices, 18 switches; one Ethernet switch)."""

    devices: int
    switches: int
    bandwidth_bytes_per_s: float
    """Per device, over all its links."""
    latency_s: float = 0.0

    def edges(self) -> Iterator[Edge]:
        """Each device's bandwidth spread evenly over the switches."""
        share = self.bandwidth_bytes_per_s / self.switches
        for device, switch in product(range(self.devices), range(self.switches)):
            yield device, f"switch{switch}", share, self.latency_s, "node"

    def graph(self) -> nx.Graph[Vertex]:
        """The fabric as a networkx graph."""
        return graph_of(self.devices, self.edges())


CUBE_MESH_LINKS = (
    (0, 1, 1), (0, 2, 1), (0, 3, 2), (1, 2, 2), (1, 3, 1), (2, 3, 2),
    (4, 5, 1), (4, 6, 1), (4, 7, 2), (5, 6, 2), (5, 7, 1), (6, 7, 2),
    (0, 4, 2), (1, 5, 2), (2, 6, 1), (3, 7, 1),
)  # fmt: skip
"""NVLinks of a DGX-1 with V100: six a device, two quads joined rank to rank. As `nvidia-smi topo -m` prints them on
such machines; the counts agree with the measured ring bandwidths of two, three and four devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridCubeMesh:
    """DGX-1: eight devices, two fully joined quads, and a link from each device to its twin."""

    link_bytes_per_s: float
    latency_s: float = 0.0
    devices: int = 8

    def edges(self) -> Iterator[Edge]:
        """Single and double NVLinks."""
        for one, other, links in CUBE_MESH_LINKS:
            yield one, other, links * self.link_bytes_per_s, self.latency_s, "node"

    def graph(self) -> nx.Graph[Vertex]:
        """The fabric as a networkx graph."""
        return graph_of(8, self.edges())


@dataclass(frozen=True, slots=True, kw_only=True)
class FatTree:
    """An extended generalised fat tree XGFT(h; m_1..m_h; w_1..w_h) (Oehring, Ibel, Das, Kumar 1995).

    A vertex of level i has `down[i-1]` children and `up[i]` parents; level 0 are the devices. PCIe trees
    (up all 1), leaf-spine, two- and three-tier fat trees at any oversubscription, multi-rack NVLink domains
    and rail-optimised fabrics are all of this form. `bandwidth_bytes_per_s[i]` is one cable between levels
    i and i + 1. With `rails` r > 1 the devices of one node spread over r leaves (device d on rail d % r).
    """

    down: tuple[int, ...]
    up: tuple[int, ...]
    bandwidth_bytes_per_s: tuple[float, ...]
    latency_s: tuple[float, ...] = ()
    rails: int = 1

    def __post_init__(self) -> None:
        if not len(self.down) == len(self.up) == len(self.bandwidth_bytes_per_s):
            message = f"a fat tree of {len(self.down)} levels needs as many entries in up({len(self.up)}) and "
            raise InputError([message + f"bandwidth({len(self.bandwidth_bytes_per_s)})."])
        if self.rails > 1 and (len(self.down) < 2 or self.down[1] % self.rails):
            raise InputError([f"rails({self.rails}) do not divide the leaves of a unit ({self.down[1:2]})."])

    @property
    def devices(self) -> int:
        return prod(self.down)

    @property
    def levels(self) -> int:
        return len(self.down)

    def position(self, device: int) -> int:
        """Where a device hangs in the plain tree: on rail-optimised fabrics neighbours hang on different leaves.

        A unit of rails * down[0] devices (down[0] nodes of `rails` devices) fills `rails` leaves.
        """
        block = self.rails * self.down[0]
        inside = device % block
        return device - inside + (inside % self.rails) * self.down[0] + inside // self.rails

    def latency(self, level: int) -> float:
        """Seconds over one cable between `level` and `level` + 1."""
        return self.latency_s[level] if self.latency_s else 0.0

    def edges(self) -> Iterator[Edge]:
        """Cables level by level: vertex (subtree, copy) of level i to the copies of its parent subtree."""
        for level in range(self.levels):
            copies, parents = prod(self.up[:level]), self.up[level]
            for tree in range(prod(self.down[level:])):
                for copy, parent in product(range(copies), range(parents)):
                    lower = self.name(level, tree, copy)
                    upper = self.name(level + 1, tree // self.down[level], copy * parents + parent)
                    yield lower, upper, self.bandwidth_bytes_per_s[level], self.latency(level), f"level{level + 1}"

    def name(self, level: int, tree: int, copy: int) -> Vertex:
        """The vertex `copy` of subtree `tree` at `level`; devices by number."""
        return self._device_at(tree) if level == 0 else f"l{level}.{tree}.{copy}"

    def _device_at(self, position: int) -> int:
        block = self.rails * self.down[0]
        inside = position % block
        return position - inside + (inside % self.down[0]) * self.rails + inside // self.down[0]

    def graph(self) -> nx.Graph[Vertex]:
        """The fabric as a networkx graph."""
        return graph_of(self.devices, self.edges())


def leaf_spine(
    *, leaves: int, per_leaf: int, spines: int, bandwidth_bytes_per_s: float, uplink_bytes_per_s: float, rails: int = 1
) -> FatTree:
    """Two tiers: every leaf has one cable to every spine."""
    return FatTree(
        down=(per_leaf, leaves),
        up=(1, spines),
        bandwidth_bytes_per_s=(bandwidth_bytes_per_s, uplink_bytes_per_s),
        rails=rails,
    )


def oversubscribed(down: tuple[int, ...], bandwidth_bytes_per_s: float, ratios: tuple[float, ...]) -> FatTree:
    """A tree of single fat cables: the cable out of a subtree carries its devices' bandwidth over `ratios`."""
    rates = []
    capacity = bandwidth_bytes_per_s
    for children, ratio in zip(down, ratios, strict=True):
        capacity = capacity / ratio
        rates.append(capacity)
        capacity = capacity * children
    return FatTree(down=down, up=(1,) * len(down), bandwidth_bytes_per_s=tuple(rates))


def pcie_tree(*, sockets: int, switches: int, per_switch: int, bandwidth_bytes_per_s: float) -> FatTree:
    """Devices under PCIe switches under processors that share one socket link."""
    return FatTree(
        down=(per_switch, switches, sockets), up=(1, 1, 1), bandwidth_bytes_per_s=(bandwidth_bytes_per_s,) * 3
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Torus:
    """A torus or mesh of any number of dimensions; the last dimension of `shape` counts fastest."""

    shape: tuple[int, ...]
    wrap: tuple[bool, ...]
    link_bytes_per_s: float
    latency_s: float = 1e-6

    @property
    def devices(self) -> int:
        return prod(self.shape)

    def around(self, dim: int) -> bool:
        """True when dimension `dim` is a ring: it wraps and is longer than two."""
        return self.wrap[dim] and self.shape[dim] > 2

    def place(self, device: int) -> tuple[int, ...]:
        """Coordinates of a device."""
        digits = []
        for length in reversed(self.shape):
            device, digit = divmod(device, length)
            digits.append(digit)
        return tuple(reversed(digits))

    def edges(self) -> Iterator[Edge]:
        """Each device to the next one along each dimension."""
        strides = [prod(self.shape[dim + 1 :]) for dim in range(len(self.shape))]
        for device in range(self.devices):
            for dim, digit in enumerate(self.place(device)):
                if digit + 1 < self.shape[dim]:
                    yield device, device + strides[dim], self.link_bytes_per_s, self.latency_s, "ici"
                elif self.around(dim):
                    yield device, device - digit * strides[dim], self.link_bytes_per_s, self.latency_s, "ici"

    def graph(self) -> nx.Graph[Vertex]:
        """The fabric as a networkx graph."""
        return graph_of(self.devices, self.edges())


@dataclass(frozen=True, slots=True, kw_only=True)
class Dragonfly:
    """Groups of fully joined routers, every pair of groups joined by one global cable (Kim, Dally, Scott, Abts 2008).

    The canonical size: groups = routers * global_links + 1. Router r of group g owns the cables to the groups
    g + 1 + r * global_links and on (the consecutive arrangement).
    """

    routers: int
    per_router: int
    global_links: int
    bandwidth_bytes_per_s: float
    local_bytes_per_s: float
    global_bytes_per_s: float
    latency_s: float = 1e-6

    @property
    def groups(self) -> int:
        return self.routers * self.global_links + 1

    @property
    def devices(self) -> int:
        return self.groups * self.routers * self.per_router

    def gateway(self, group: int, other: int) -> int:
        """The router of `group` that owns the cable to `other`."""
        return ((other - group) % self.groups - 1) // self.global_links

    def edges(self) -> Iterator[Edge]:
        """Devices to routers, routers within a group, and one cable between each pair of groups."""
        for device in range(self.devices):
            group, router = divmod(device // self.per_router, self.routers)
            yield device, f"r{group}.{router}", self.bandwidth_bytes_per_s, self.latency_s, "router"
        for group in range(self.groups):
            for one in range(self.routers):
                for other in range(one + 1, self.routers):
                    yield f"r{group}.{one}", f"r{group}.{other}", self.local_bytes_per_s, self.latency_s, "local"
            for other in range(group + 1, self.groups):
                here, there = self.gateway(group, other), self.gateway(other, group)
                yield f"r{group}.{here}", f"r{other}.{there}", self.global_bytes_per_s, self.latency_s, "global"

    def graph(self) -> nx.Graph[Vertex]:
        """The fabric as a networkx graph."""
        return graph_of(self.devices, self.edges())


Fabric: TypeAlias = SwitchedNode | HybridCubeMesh | FatTree | Torus | Dragonfly


def composed(
    node: Fabric, nodes: int, outer: Fabric, nic_bytes_per_s: float, nic_latency_s: float = 0.0
) -> nx.Graph[Vertex]:
    """`nodes` copies of one fabric, every device with a NIC that takes a device's place in the outer fabric.

    Raises InputError where the outer fabric has too few places.
    """
    total = nodes * node.devices
    if outer.devices < total:
        raise InputError(
            [f"nodes({nodes}) * devices({node.devices}) = {total} NICs exceed the {outer.devices} places."]
        )

    def edges() -> Iterator[Edge]:
        for copy in range(nodes):
            for one, other, rate, latency_s, tier in node.edges():
                yield _shifted(one, copy, node.devices), _shifted(other, copy, node.devices), rate, latency_s, tier
        for device in range(total):
            yield device, f"nic{device}", nic_bytes_per_s, nic_latency_s, "nic"
        for one, other, rate, latency_s, tier in outer.edges():
            ends = [end if isinstance(end, str) else f"nic{end}" for end in (one, other)]
            if all(not isinstance(end, int) or end < total for end in (one, other)):
                yield ends[0], ends[1], rate, latency_s, tier

    return graph_of(total, edges())


def _shifted(vertex: Vertex, copy: int, devices: int) -> Vertex:
    return f"node{copy}.{vertex}" if isinstance(vertex, str) else vertex + copy * devices


def links_of_graph(graph: nx.Graph[Vertex]) -> tuple[Link, ...]:
    """A graph's edges as the `links` of a cluster."""
    return tuple(
        Link(
            one=str(one),
            other=str(other),
            bandwidth_bytes_per_s=data["bandwidth_bytes_per_s"],
            latency_s=data["latency_s"],
        )
        for one, other, data in graph.edges(data=True)
    )
