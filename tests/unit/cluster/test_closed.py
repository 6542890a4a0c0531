"""Closed forms at the edges: groups of one or two routers, odd numbers of devices, devices outside the fabric."""

from __future__ import annotations

import networkx as nx
import pytest

from simulator.cluster.closed import bisection_bytes_per_s, cables, diameter, hops, shortest_paths
from simulator.cluster.generators import Dragonfly, FatTree, SwitchedNode, Torus
from simulator.errors import InputError


def _dragonfly(routers: int, global_links: int) -> Dragonfly:
    return Dragonfly(routers=routers, per_router=1, global_links=global_links, bandwidth_bytes_per_s=1.0,
                     local_bytes_per_s=1.0, global_bytes_per_s=1.0)  # fmt: skip


@pytest.mark.parametrize(("routers", "global_links", "longest"), [(1, 3, 3), (2, 1, 5), (2, 3, 5), (3, 4, 5)])
def test_dragonflies_of_few_routers_and_many_cables(routers: int, global_links: int, longest: int) -> None:
    """One router a group: two device cables and a global one. From two on a local hop each side besides; several third
    groups then join the same two routers. networkx's ways from every router of the first group."""
    fabric = _dragonfly(routers, global_links)
    graph = fabric.graph()
    assert diameter(fabric) == longest
    assert max(hops(fabric, one, other) for one in range(routers) for other in range(fabric.devices)) == longest
    for one in range(routers):
        for other in range(fabric.devices):
            ways = list(nx.all_shortest_paths(graph, one, other))
            assert (hops(fabric, one, other), shortest_paths(fabric, one, other)) == (len(ways[0]) - 1, len(ways))


def test_odd_numbers_of_units_halve_downwards() -> None:
    """Three of seven devices send; one of three pods, of two devices on two cables of 5 up to the third level."""
    assert bisection_bytes_per_s(SwitchedNode(devices=7, switches=2, bandwidth_bytes_per_s=11.0)) == 33.0
    tree = FatTree(down=(2, 3), up=(1, 2), bandwidth_bytes_per_s=(50.0, 5.0))
    assert bisection_bytes_per_s(tree) == 2 * 5.0
    # Two groups of five: 2 x 3 global cables, or the 2 routers' devices of each.
    assert bisection_bytes_per_s(_dragonfly(2, 2)) == min(2 * 3, 2 * 2)


def test_cables_are_counted_in_whole_numbers() -> None:
    """5 rows of 3 open links, 4 columns closed over 5."""
    found = cables(Torus(shape=(5, 4), wrap=(True, False), link_bytes_per_s=1.0))
    assert (found, type(found)) == (5 * 3 + 4 * 5, int)


@pytest.mark.parametrize(("one", "other"), [(0, 99), (99, 0), (-7, 30)])
def test_devices_outside_the_tree_are_refused(one: int, other: int) -> None:
    tree = FatTree(down=(2, 3, 4), up=(1, 1, 1), bandwidth_bytes_per_s=(1.0, 1.0, 1.0))
    for asked in (hops, shortest_paths):
        with pytest.raises(InputError, match=f"device {max(one, other)} is outside the 24 devices of the fabric"):
            asked(tree, one, other)
