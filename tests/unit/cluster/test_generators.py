"""Fabrics cable by cable: every edge of small ones, listed by hand, with its rate, its latency and its tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import combinations

import pytest

from simulator.cluster.generators import (
    CUBE_MESH_LINKS,
    Dragonfly,
    FatTree,
    HybridCubeMesh,
    SwitchedNode,
    Torus,
    Vertex,
    composed,
    graph_of,
    leaf_spine,
    links_of_graph,
    oversubscribed,
    pcie_tree,
)
from simulator.errors import InputError
from simulator.spec.hardware import Link
from tests.unit.cluster.fabrics import Cables, cables_of


def alike(pairs: Iterable[tuple[Vertex, Vertex]], rate: float, latency_s: float, tier: str) -> Cables:
    return {frozenset(pair): (rate, latency_s, tier) for pair in pairs}


def test_parallel_cables_are_one_edge_and_every_vertex_has_its_kind() -> None:
    """Two cables of 2 and 3 bytes/s are one of 5 with the first one's latency; device 2 has no cable."""
    graph = graph_of(
        3, [(0, "s", 2.0, 0.5, "a"), ("s", 0, 3.0, 9.0, "b"), (0, 1, 7.0, 0.25, "c"), ("nic1", "s", 1.0, 0.0, "d")]
    )
    kinds = {0: "device", 1: "device", 2: "device", "s": "switch", "nic1": "nic"}
    assert dict(graph.nodes(data="kind")) == kinds
    assert cables_of(graph) == {
        frozenset((0, "s")): (5.0, 0.5, "a"), frozenset((0, 1)): (7.0, 0.25, "c"),
        frozenset(("nic1", "s")): (1.0, 0.0, "d"),
    }  # fmt: skip


def test_a_device_spreads_its_bandwidth_over_the_switches() -> None:
    node = SwitchedNode(devices=3, switches=2, bandwidth_bytes_per_s=10.0, latency_s=0.5)
    pairs: list[tuple[Vertex, Vertex]] = [(device, f"switch{switch}") for device in (0, 1, 2) for switch in (0, 1)]
    assert cables_of(node.graph()) == alike(pairs, 5.0, 0.5, "node")


def test_a_cube_mesh_gives_every_device_six_links() -> None:
    """Quads 0 to 3 and 4 to 7 fully joined, each device to its twin four further on, doubled where they are."""
    graph = HybridCubeMesh(link_bytes_per_s=25.0, latency_s=0.5).graph()
    doubled = {(0, 3), (1, 2), (2, 3), (4, 7), (5, 6), (6, 7), (0, 4), (1, 5)}
    pairs = [*combinations(range(4), 2), *combinations(range(4, 8), 2), *((a, a + 4) for a in range(4))]
    assert cables_of(graph) == {
        frozenset(pair): (50.0 if pair in doubled else 25.0, 0.5, "node") for pair in pairs
    }  # fmt: skip
    assert len(pairs) == len(CUBE_MESH_LINKS) == 16
    assert sorted(graph) == list(range(8))
    per_device = [graph.degree(device, weight="bandwidth_bytes_per_s") for device in range(8)]
    assert per_device == [6 * 25.0] * 8


TREE = FatTree(down=(2, 3), up=(2, 3), bandwidth_bytes_per_s=(10.0, 7.0), latency_s=(0.5, 0.25))


def test_a_fat_tree_joins_copies_as_its_definition_says() -> None:
    """Six devices, two a leaf, every leaf twice; the first copies of the leaves meet at three tops, the second ones at
    three others."""
    below: list[tuple[Vertex, Vertex]] = [
        (device, f"l1.{leaf}.{copy}")
        for leaf, devices in enumerate([(0, 1), (2, 3), (4, 5)])
        for device in devices
        for copy in (0, 1)
    ]
    above: list[tuple[Vertex, Vertex]] = [
        (f"l1.{leaf}.{copy}", f"l2.0.{top}")
        for copy, tops in enumerate([(0, 1, 2), (3, 4, 5)])
        for top in tops
        for leaf in (0, 1, 2)
    ]
    assert cables_of(TREE.graph()) == {**alike(below, 10.0, 0.5, "level1"), **alike(above, 7.0, 0.25, "level2")}
    assert (TREE.devices, TREE.levels) == (6, 2)


def test_a_deeper_tree_has_the_counts_of_its_definition() -> None:
    """XGFT(3; 2, 3, 2; 2, 3, 1): a vertex has `up` parents and `down` children, one of each subtree below."""
    tree = FatTree(down=(2, 3, 2), up=(2, 3, 1), bandwidth_bytes_per_s=(5.0, 3.0, 2.0))
    graph = tree.graph()
    vertices = Counter("device" if isinstance(v, int) else v.partition(".")[0] for v in graph)
    # 12 devices; 6 leaves of 2 copies; 2 subtrees of 2 * 3 copies; one of 2 * 3 * 1.
    assert vertices == {"device": 12, "l1": 12, "l2": 12, "l3": 6}
    degrees = {"device": 2, "l1": 2 + 3, "l2": 3 + 1, "l3": 2}
    for vertex in graph:
        kind = "device" if isinstance(vertex, int) else vertex.partition(".")[0]
        assert graph.degree(vertex) == degrees[kind]
        children = [v.split(".")[:2] for v in graph[vertex] if isinstance(v, str) and v[:2] < str(vertex)[:2]]
        assert len({tuple(child) for child in children}) == len(children)
    assert {(tier, rate, latency_s) for rate, latency_s, tier in cables_of(graph).values()} == {
        ("level1", 5.0, 0.0), ("level2", 3.0, 0.0), ("level3", 2.0, 0.0),
    }  # fmt: skip


RAILS = FatTree(down=(2, 6), up=(1, 1), bandwidth_bytes_per_s=(5.0, 3.0), rails=3)


def test_rails_join_the_same_devices_of_all_nodes_of_a_unit() -> None:
    """Nodes of three devices, two to a unit: leaf r of the unit holds device r of both."""
    held: dict[Vertex, list[int]] = {f"l1.{leaf}.0": [] for leaf in range(6)}
    for one, other, *_ in RAILS.edges():
        if isinstance(one, int):
            held[other].append(one)
    assert [sorted(devices) for devices in held.values()] == [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]
    assert [RAILS.position(device) for device in (0, 1, 2, 3, 4, 5, 6)] == [0, 2, 4, 1, 3, 5, 6]
    plain = FatTree(down=(2, 3), up=(1, 1), bandwidth_bytes_per_s=(5.0, 3.0))
    assert [plain.position(device) for device in range(6)] == list(range(6))


def test_short_ways_to_name_a_tree() -> None:
    rails = leaf_spine(leaves=6, per_leaf=2, spines=1, bandwidth_bytes_per_s=5.0, uplink_bytes_per_s=3.0, rails=3)
    assert rails == RAILS
    two = leaf_spine(leaves=3, per_leaf=2, spines=5, bandwidth_bytes_per_s=7.0, uplink_bytes_per_s=11.0)
    assert two == FatTree(down=(2, 3), up=(1, 5), bandwidth_bytes_per_s=(7.0, 11.0), rails=1)
    pcie = pcie_tree(sockets=2, switches=3, per_switch=5, bandwidth_bytes_per_s=31.0)
    assert pcie == FatTree(down=(5, 3, 2), up=(1, 1, 1), bandwidth_bytes_per_s=(31.0, 31.0, 31.0))
    # A device gets half of its 12; a leaf of two of those a third of both; three such units a fifth.
    thin = oversubscribed((2, 3, 5), 12.0, (2.0, 3.0, 5.0))
    rates = (12 / 2, 6 * 2 / 3, 4 * 3 / 5)
    assert (thin.down, thin.up, thin.bandwidth_bytes_per_s) == ((2, 3, 5), (1, 1, 1), pytest.approx(rates))


def test_trees_that_do_not_fit_together_are_refused() -> None:
    for up, rates in (((1,), (1.0, 1.0)), ((1, 1), (1.0,))):
        with pytest.raises(InputError) as refused:
            FatTree(down=(2, 3), up=up, bandwidth_bytes_per_s=rates)
        wanted = f"a fat tree of 2 levels needs as many entries in up({len(up)}) and bandwidth({len(rates)})."
        assert [problem.message for problem in refused.value.problems] == [wanted]
    with pytest.raises(InputError) as refused:
        FatTree(down=(2, 3, 4), up=(1, 1, 1), bandwidth_bytes_per_s=(1.0, 1.0, 1.0), rails=2)
    wanted = "rails(2) do not divide the leaves of a unit ((3,))."
    assert [problem.message for problem in refused.value.problems] == [wanted]
    with pytest.raises(InputError, match="leaves of a unit"):
        FatTree(down=(4,), up=(1,), bandwidth_bytes_per_s=(1.0,), rails=2)
    assert FatTree(down=(4,), up=(1,), bandwidth_bytes_per_s=(1.0,)).devices == 4
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        oversubscribed((2, 3), 12.0, (2.0,))


TORUS = Torus(shape=(3, 2, 4), wrap=(True, True, False), link_bytes_per_s=45.0, latency_s=0.5)


def test_a_torus_joins_neighbours_along_each_dimension() -> None:
    """3 x 2 x 4: a ring of three; a pair, which cannot close one; a line of four."""
    places = [(x, y, z) for x in range(3) for y in range(2) for z in range(4)]
    assert [TORUS.place(device) for device in range(24)] == places
    assert [TORUS.around(dim) for dim in range(3)] == [True, False, False]

    def neighbours(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        apart = [abs(i - j) for i, j in zip(a, b, strict=True)]
        return sorted(apart) == [0, 0, 1] or apart == [2, 0, 0]

    pairs: list[tuple[Vertex, Vertex]] = [
        (one, other) for one, other in combinations(range(24), 2) if neighbours(places[one], places[other])
    ]
    # 8 rings of 3 cables, 12 pairs, 6 lines of 3 cables.
    assert len(pairs) == 24 + 12 + 18
    assert cables_of(TORUS.graph()) == alike(pairs, 45.0, 0.5, "ici")
    # No cable is listed from both of its ends.
    assert len(list(TORUS.edges())) == 54


FLY = Dragonfly(
    routers=3, per_router=2, global_links=2, bandwidth_bytes_per_s=25.0, local_bytes_per_s=10.0,
    global_bytes_per_s=5.0, latency_s=0.5,
)  # fmt: skip


def test_a_dragonfly_has_one_global_cable_between_each_two_groups() -> None:
    """3 routers with 2 global cables each: 7 groups, 42 devices. Router r of group g owns those to g + 1 + 2 r, + 2."""
    assert (FLY.groups, FLY.devices) == (7, 42)
    owners = {0: (0, 0, 1, 1, 2, 2), 4: (0, 0, 1, 1, 2, 2)}
    others = {0: (1, 2, 3, 4, 5, 6), 4: (5, 6, 0, 1, 2, 3)}
    for group, routers in owners.items():
        assert tuple(FLY.gateway(group, other) for other in others[group]) == routers
    by_tier: dict[str, Cables] = {}
    for pair, cable in cables_of(FLY.graph()).items():
        by_tier.setdefault(cable[2], {})[pair] = cable
    assert {tier: set(cables.values()) for tier, cables in by_tier.items()} == {
        "router": {(25.0, 0.5, "router")}, "local": {(10.0, 0.5, "local")}, "global": {(5.0, 0.5, "global")},
    }  # fmt: skip
    homes = {frozenset((device, f"r{device // 6}.{device % 6 // 2}")) for device in range(42)}
    assert set(by_tier["router"]) == homes
    local = {frozenset((f"r{g}.{a}", f"r{g}.{b}")) for g in range(7) for a, b in ((0, 1), (0, 2), (1, 2))}
    assert set(by_tier["local"]) == local
    ends = [tuple(sorted(str(end)[1:].split(".") for end in pair)) for pair in by_tier["global"]]
    assert sorted((int(one[0]), int(other[0])) for one, other in ends) == list(combinations(range(7), 2))
    # Group 0 reaches 1 to 6 by routers 0 0 1 1 2 2; seen from there it is 6, 5, 4, 3, 2, 1 further on: 2 2 1 1 0 0.
    from_first = sorted((int(b[0]), int(a[1]), int(b[1])) for a, b in ends if a[0] == "0")
    assert from_first == [(1, 0, 2), (2, 0, 2), (3, 1, 1), (4, 1, 1), (5, 2, 0), (6, 2, 0)]


def test_nodes_hang_by_their_cards_in_the_outer_fabric() -> None:
    """Two nodes of two devices under leaves of three: cards 0 to 2 on the first leaf, 3 on the second; places 4 and 5
    stay empty."""
    node = SwitchedNode(devices=2, switches=1, bandwidth_bytes_per_s=10.0, latency_s=0.5)
    outer = leaf_spine(leaves=2, per_leaf=3, spines=1, bandwidth_bytes_per_s=50.0, uplink_bytes_per_s=20.0)
    graph = composed(node, 2, outer, nic_bytes_per_s=5.0, nic_latency_s=0.25)
    inside: list[tuple[Vertex, Vertex]] = [(d, f"node{d // 2}.switch0") for d in range(4)]
    cards: list[tuple[Vertex, Vertex]] = [(d, f"nic{d}") for d in range(4)]
    leaves: list[tuple[Vertex, Vertex]] = [(f"nic{d}", f"l1.{d // 3}.0") for d in range(4)]
    assert cables_of(graph) == {
        **alike(inside, 10.0, 0.5, "node"),
        **alike(cards, 5.0, 0.25, "nic"),
        **alike(leaves, 50.0, 0.0, "level1"),
        **alike([("l1.0.0", "l2.0.0"), ("l1.1.0", "l2.0.0")], 20.0, 0.0, "level2"),
    }
    kinds = Counter(kind for _, kind in graph.nodes(data="kind"))
    assert kinds == {"device": 4, "nic": 4, "switch": 2 + 3}
    plain = composed(node, 2, outer, nic_bytes_per_s=5.0)
    assert plain.edges[3, "nic3"]["latency_s"] == 0.0


def test_cards_may_be_joined_directly() -> None:
    """Three pairs whose six cards are the first of a line of seven: the seventh place has no card and no cable."""
    pair = Torus(shape=(2,), wrap=(False,), link_bytes_per_s=9.0, latency_s=0.5)
    line = Torus(shape=(7,), wrap=(False,), link_bytes_per_s=4.0, latency_s=0.125)
    cables = cables_of(composed(pair, 3, line, nic_bytes_per_s=5.0))
    assert {key for key in cables if all(isinstance(end, int) for end in key)} == {
        frozenset((0, 1)), frozenset((2, 3)), frozenset((4, 5)),
    }  # fmt: skip
    between = alike([(f"nic{d}", f"nic{d + 1}") for d in range(5)], 4.0, 0.125, "ici")
    assert {key: cable for key, cable in cables.items() if not any(isinstance(end, int) for end in key)} == between
    with pytest.raises(InputError) as refused:
        composed(pair, 4, line, nic_bytes_per_s=5.0)
    wanted = "nodes(4) * devices(2) = 8 NICs exceed the 7 places."
    assert [problem.message for problem in refused.value.problems] == [wanted]


def test_edges_become_links() -> None:
    graph = graph_of(2, [(0, "s", 2.0, 0.5, "a"), ("s", 1, 3.0, 0.25, "b")])
    assert set(links_of_graph(graph)) == {
        Link(one="0", other="s", bandwidth_bytes_per_s=2.0, latency_s=0.5),
        Link(one="1", other="s", bandwidth_bytes_per_s=3.0, latency_s=0.25),
    }
