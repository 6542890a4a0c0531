"""Closed forms of every generator equal networkx's own answers on the graph."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.closed import bisection_bytes_per_s, cables, diameter, hops, shortest_paths
from simulator.cluster.generators import (
    Dragonfly,
    Fabric,
    FatTree,
    HybridCubeMesh,
    SwitchedNode,
    Torus,
    composed,
    leaf_spine,
    links_of_graph,
    oversubscribed,
    pcie_tree,
)
from simulator.cluster.graph import cluster_graph
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.cluster.spans import units_spanned
from simulator.errors import InputError
from tests.unit.cluster.fabrics import cluster

FABRICS: dict[str, Fabric] = {
    "dgx-a100": SwitchedNode(devices=8, switches=6, bandwidth_bytes_per_s=300.0),
    "nvl72": SwitchedNode(devices=72, switches=18, bandwidth_bytes_per_s=900.0),
    "dgx-1": HybridCubeMesh(link_bytes_per_s=25.0),
    "pcie": pcie_tree(sockets=2, switches=2, per_switch=2, bandwidth_bytes_per_s=31.0),
    "leaf-spine": leaf_spine(leaves=6, per_leaf=4, spines=3, bandwidth_bytes_per_s=50.0, uplink_bytes_per_s=50.0),
    "rails": leaf_spine(leaves=8, per_leaf=3, spines=2, bandwidth_bytes_per_s=50.0, uplink_bytes_per_s=75.0, rails=4),
    "three-tier": FatTree(down=(2, 3, 4), up=(1, 2, 2), bandwidth_bytes_per_s=(10.0, 7.0, 3.0)),
    "nvlink-racks": FatTree(down=(4, 2), up=(3, 2), bandwidth_bytes_per_s=(100.0, 50.0)),
    "one-to-seven": oversubscribed((8, 4, 4), 50.0, (1.0, 1.0, 7.0)),
    "torus-2d": Torus(shape=(4, 6), wrap=(True, True), link_bytes_per_s=45.0),
    "torus-3d": Torus(shape=(4, 4, 3), wrap=(True, False, True), link_bytes_per_s=45.0),
    "mesh": Torus(shape=(4, 2, 3), wrap=(False, True, False), link_bytes_per_s=45.0),
    "dragonfly": Dragonfly(
        routers=3,
        per_router=2,
        global_links=2,
        bandwidth_bytes_per_s=25.0,
        local_bytes_per_s=25.0,
        global_bytes_per_s=25.0,
    ),
    "dragonfly-thin": Dragonfly(
        routers=4,
        per_router=2,
        global_links=1,
        bandwidth_bytes_per_s=25.0,
        local_bytes_per_s=25.0,
        global_bytes_per_s=25.0,
    ),
}
GRAPHS = {name: fabric.graph() for name, fabric in FABRICS.items()}


def max_flow(graph: nx.Graph, devices: int, half: int) -> float:
    """Flow between the first `half` devices and the rest."""
    directed = nx.DiGraph()
    for one, other, data in graph.edges(data=True):
        directed.add_edge(one, other, capacity=data["bandwidth_bytes_per_s"])
        directed.add_edge(other, one, capacity=data["bandwidth_bytes_per_s"])
    for device in range(half):
        directed.add_edge("source", device)
    for device in range(half, devices):
        directed.add_edge(device, "sink")
    return float(nx.maximum_flow_value(directed, "source", "sink"))


@pytest.mark.parametrize("name", FABRICS)
def test_hops_and_paths_from_every_kind_of_device(name: str) -> None:
    fabric, graph = FABRICS[name], GRAPHS[name]
    for one in range(0, fabric.devices, max(fabric.devices // 5, 1)):
        lengths = nx.single_source_shortest_path_length(graph, one)
        counts = path_counts(graph, one)
        for other in range(fabric.devices):
            assert hops(fabric, one, other) == lengths[other], (one, other)
            assert shortest_paths(fabric, one, other) == counts[other], (one, other)


def path_counts(graph: nx.Graph, source: object) -> dict[object, int]:
    """Shortest ways to every vertex: sums over predecessors in breadth-first order (Brandes 2001)."""
    counts = {source: 1}
    for vertex, before in nx.predecessor(graph, source).items():
        if before:
            counts[vertex] = sum(counts[p] for p in before)
    return counts


@pytest.mark.parametrize("name", FABRICS)
def test_diameter_and_cables(name: str) -> None:
    fabric, graph = FABRICS[name], GRAPHS[name]
    longest = max(
        nx.single_source_shortest_path_length(graph, one)[other]
        for one in range(fabric.devices)
        for other in (range(fabric.devices) if fabric.devices < 50 else (fabric.devices - 1,))
    )
    assert diameter(fabric) == longest
    assert cables(fabric) == graph.number_of_edges()


@pytest.mark.parametrize("name", FABRICS)
def test_bisection_is_the_maximum_flow(name: str) -> None:
    fabric = FABRICS[name]
    outer = {
        "rails": 12, "dragonfly": 3 * 6, "dragonfly-thin": 2 * 8,
    }.get(name, fabric.devices // 2)  # fmt: skip
    if name == "leaf-spine":
        outer = 12
    assert bisection_bytes_per_s(fabric) == pytest.approx(max_flow(GRAPHS[name], fabric.devices, outer))


@settings(max_examples=25, deadline=None)
@given(
    down=st.lists(st.integers(2, 3), min_size=1, max_size=3),
    data=st.data(),
)
def test_any_fat_tree(down: list[int], data: st.DataObject) -> None:
    up = tuple(data.draw(st.integers(1, 3)) for _ in down)
    rates = tuple(float(data.draw(st.integers(1, 9))) for _ in down)
    tree = FatTree(down=tuple(down), up=up, bandwidth_bytes_per_s=rates)
    graph = tree.graph()
    assert graph.number_of_edges() == cables(tree)
    lengths, counts = nx.single_source_shortest_path_length(graph, 0), path_counts(graph, 0)
    for device in range(tree.devices):
        assert (hops(tree, 0, device), shortest_paths(tree, 0, device)) == (lengths[device], counts[device])
    if down[-1] == 2:
        flow = max_flow(graph, tree.devices, tree.devices // 2)
        assert bisection_bytes_per_s(tree) == pytest.approx(flow)


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(2, 5), min_size=1, max_size=3), data=st.data())
def test_any_torus(shape: list[int], data: st.DataObject) -> None:
    wrap = tuple(data.draw(st.booleans()) for _ in shape)
    torus = Torus(shape=tuple(shape), wrap=wrap, link_bytes_per_s=1.0)
    graph = torus.graph()
    one = data.draw(st.integers(0, torus.devices - 1))
    lengths, counts = nx.single_source_shortest_path_length(graph, one), path_counts(graph, one)
    for device in range(torus.devices):
        assert (hops(torus, one, device), shortest_paths(torus, one, device)) == (lengths[device], counts[device])


def test_ten_million_devices_in_closed_form() -> None:
    """Nothing is enumerated: a tree of 10^7 devices answers at once, and as a small one of the same kind does."""
    tree = FatTree(down=(100, 100, 1000), up=(1, 50, 20), bandwidth_bytes_per_s=(50e9, 50e9, 50e9))
    assert tree.devices == 10_000_000
    assert hops(tree, 0, 9_999_999) == 6
    assert shortest_paths(tree, 0, 9_999_999) == 1000
    assert bisection_bytes_per_s(tree) == 500 * 50 * 20 * 50e9


def test_composed_fabrics_keep_both_parts_ways() -> None:
    """DGX-1 nodes under a leaf-spine: inside, the cube mesh's hops; across, the outer hops and two NICs."""
    node, outer = FABRICS["dgx-1"], FABRICS["leaf-spine"]
    graph = composed(node, 3, outer, nic_bytes_per_s=12.5)
    assert graph.number_of_edges() == 3 * cables(node) + 24 + cables(outer)
    lengths = nx.single_source_shortest_path_length(graph, 1)
    for device in range(24):
        want = hops(node, 1, device) if device < 8 else 2 + hops(outer, 1, device)
        if device >= 8:
            # A NIC of the node may be nearer to the target's leaf: up to two links inside first.
            want = min(want, *(hops(node, 1, near) + 2 + hops(outer, near, device) for near in range(8)))
            want = min(
                want,
                *(
                    2 + hops(outer, 1, near) + hops(node, near % 8, device % 8)
                    for near in range(device // 8 * 8, device // 8 * 8 + 8)
                ),
            )
        assert lengths[device] == want
    with pytest.raises(InputError, match=r"nodes\(4\) \* devices\(8\) = 32 NICs exceed the 24 places"):
        composed(node, 4, outer, nic_bytes_per_s=12.5)


def test_a_graph_survives_as_a_clusters_links() -> None:
    graph = composed(FABRICS["dgx-1"], 2, FABRICS["leaf-spine"], nic_bytes_per_s=12.5)
    base = replace(cluster("volta", 2), links=links_of_graph(graph))
    again = cluster_graph(base)
    assert set(map(frozenset, again.edges)) == set(map(frozenset, graph.edges))
    # Two quads' twins are one double link apart; across nodes everything shares 12.5 bytes a second.
    near, far = (collective_time_s(base, "send", 1e3, group) for group in (Group(2, 4), Group(2, 8)))
    assert far > near


def test_part_filled_outer_units_count() -> None:
    """1016 devices in units of 256: a group over all of them touches four."""
    assert int(units_spanned(Group(127, 8), 256, 1016)) == 4
