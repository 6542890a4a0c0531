"""The cluster's graph edge by edge, routes over equal shortest ways, and collectives on listed graphs, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.cluster import graph as module
from simulator.cluster.constants import network_constants
from simulator.cluster.generators import graph_of
from simulator.cluster.graph import (
    Routes,
    cluster_graph,
    exchange_pairs,
    explicit_time_s,
    graph_time_s,
    ring_pairs,
    vertex,
)
from simulator.cluster.placement import Group
from simulator.errors import InputError
from simulator.spec.hardware import Cluster, Link, Tier
from tests.support import a100
from tests.unit.cluster.fabrics import Cables, cables_of


def tier(name: str, size: int, rate: float, latency_s: float, *, thin: float = 1.0, topology: str = "switch") -> Tier:
    return Tier(name=name, kind="infiniband", topology=topology, size=size, bandwidth_bytes_per_s=rate,
                latency_s=latency_s, oversubscription=thin)  # fmt: skip


def cluster(nodes: int, per_node: int, *tiers: Tier, links: tuple[Link, ...] = ()) -> Cluster:
    return Cluster(name="hand", title="", device=a100(), devices_per_node=per_node, nodes=nodes, tiers=tiers,
                   links=links)  # fmt: skip


NODE = tier("node", 2, 100.0, 4.0)
TOP = tier("top", 10, 8.0, 2.0, thin=5.0)


def test_a_switched_fabric_has_a_switch_for_every_unit() -> None:
    """Five nodes of two, pods of four (the last half full) at full bisection, and a top at five to one."""
    found = cables_of(cluster_graph(cluster(5, 2, NODE, tier("pod", 4, 10.0, 6.0), TOP)))
    expected: Cables = {}
    for device, (node, pod) in enumerate([(0, 0), (0, 0), (1, 0), (1, 0), (2, 1), (2, 1), (3, 1), (3, 1), (4, 2),
                                          (4, 2)]):  # fmt: skip
        expected[frozenset((device, f"node.{node}"))] = (100.0, 2.0, "node")
        expected[frozenset((device, f"nic{device}"))] = (10.0, 0.0, "pod")
        expected[frozenset((f"nic{device}", f"pod.{pod}"))] = (10.0, 3.0, "pod")
    for pod in range(3):
        # A pod of 4 devices has 4 * 8 / 5 out.
        expected[frozenset((f"pod.{pod}", "top.0"))] = (6.4, 1.0, "top")
    assert found == expected


def test_a_thin_first_tier_has_one_cable_out_of_each_node() -> None:
    """The cards meet in their node; its two devices have 2 * 10 / 4 into the pod."""
    found = cables_of(cluster_graph(cluster(5, 2, NODE, tier("pod", 4, 10.0, 6.0, thin=4.0), TOP)))
    between = {key: cable for key, cable in found.items() if not any(isinstance(end, int) for end in key)}
    expected: Cables = {frozenset((f"nic{d}", f"nodes.{d // 2}")): (10.0, 3.0, "pod") for d in range(10)}
    for node, pod in enumerate((0, 0, 1, 1, 2)):
        expected[frozenset((f"nodes.{node}", f"pod.{pod}"))] = (5.0, 3.0, "pod")
    for pod in range(3):
        expected[frozenset((f"pod.{pod}", "top.0"))] = (6.4, 1.0, "top")
    assert between == expected


def test_each_node_has_its_own_links_and_cards() -> None:
    base = cluster(3, 2, NODE, tier("pod", 6, 10.0, 6.0))
    slow = tier("slow", 2, 50.0, 8.0)
    cards = tuple(replace(base.tiers[1], bandwidth_bytes_per_s=rate, latency_s=1.0) for rate in (10.0, 7.0, 5.0))
    found = cables_of(cluster_graph(replace(base, node_tiers=(NODE, slow, NODE), node_uplinks=cards)))
    for device, rate in enumerate((10.0, 10.0, 7.0, 7.0, 5.0, 5.0)):
        inside = (50.0, 4.0, "slow") if device in (2, 3) else (100.0, 2.0, "node")
        switch = "slow.1" if device in (2, 3) else f"node.{device // 2}"
        assert found[frozenset((device, switch))] == inside
        assert found[frozenset((device, f"nic{device}"))] == (rate, 0.0, "pod")
        assert found[frozenset((f"nic{device}", "pod.0"))] == (rate, 3.0, "pod")
    assert len(found) == 18


def test_nodes_without_switches_join_their_devices() -> None:
    """Six devices of full meshes of four (the last one half full): a third of the rate to each; a DGX-1's links are
    sixths; a pair has one."""
    mesh = cables_of(cluster_graph(cluster(3, 2, tier("mesh", 4, 30.0, 2.0, topology="full-mesh"))))
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (4, 5)]
    assert mesh == {frozenset(pair): (10.0, 2.0, "mesh") for pair in pairs}
    pair = cables_of(cluster_graph(cluster(1, 2, tier("mesh", 2, 30.0, 2.0, topology="full-mesh"))))
    assert pair == {frozenset((0, 1)): (30.0, 2.0, "mesh")}
    cube = cables_of(cluster_graph(cluster(2, 8, tier("cube", 8, 60.0, 2.0, topology="hybrid-cube-mesh"))))
    assert len(cube) == 32
    assert cube[frozenset((8, 9))] == (10.0, 2.0, "cube")
    assert cube[frozenset((8, 11))] == (20.0, 2.0, "cube")
    assert {frozenset(end - 8 for end in key if isinstance(end, int)) for key in cube if min(map(int, key)) > 7} == {
        key for key in cube if max(map(int, key)) < 8
    }
    bare = cables_of(cluster_graph(cluster(1, 2, tier("board", 2, 30.0, 2.0, topology="mesh"))))
    assert bare == {frozenset((device, "board.0")): (30.0, 1.0, "board") for device in (0, 1)}


def test_tori_have_a_share_of_the_rate_in_every_direction() -> None:
    """Two slices of 2 x 3 whose devices have 24 bytes/s over four links; the second slice starts at device 6."""
    lines = [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)]
    rings = [(0, 2), (3, 5)]
    for topology, wrap, first in (("torus", (), rings), ("mesh", (), []), ("torus", (True, False), []),
                                  ("mesh", (False, True), rings)):  # fmt: skip
        shape = replace(tier("ici", 6, 24.0, 2.0, topology=topology), shape=(2, 3), wrap=wrap)
        found = cables_of(cluster_graph(cluster(2, 6, shape)))
        pairs = [*lines, *first]
        expected = {frozenset((a + slice_, b + slice_)): (6.0, 2.0, "ici") for a, b in pairs for slice_ in (0, 6)}
        assert found == expected
    switched = replace(tier("node", 2, 100.0, 4.0), shape=(2, 1))
    assert set(cables_of(cluster_graph(cluster(1, 2, switched)))) == {frozenset((d, "node.0")) for d in (0, 1)}


def test_graphs_stop_at_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten devices: 10 and 10 cards, 5 nodes, 3 pods and a top are 29 vertices."""
    base = cluster(5, 2, NODE, tier("pod", 4, 10.0, 6.0), TOP)
    few = "10 devices are too many for a graph (limit 9 vertices)."
    for limit, message in ((9, few), *((most, f"29 vertices exceed the limit of {most}.") for most in (10, 28))):
        monkeypatch.setattr(module, "MAX_VERTICES", limit)
        with pytest.raises(InputError) as refused:
            cluster_graph(base)
        assert [problem.message for problem in refused.value.problems] == [message]
    monkeypatch.setattr(module, "MAX_VERTICES", 29)
    assert cluster_graph(base).number_of_nodes() == 29


def test_listed_links_are_the_graph() -> None:
    links = (Link(one="0", other="s1", bandwidth_bytes_per_s=3.0, latency_s=0.5),
             Link(one="1", other="s1", bandwidth_bytes_per_s=4.0, latency_s=0.25))  # fmt: skip
    graph = cluster_graph(cluster(1, 3, tier("board", 3, 1.0, 1.0), links=links))
    assert cables_of(graph) == {frozenset((0, "s1")): (3.0, 0.5, "graph"), frozenset((1, "s1")): (4.0, 0.25, "graph")}
    assert set(graph) == {0, 1, 2, "s1"}
    assert [vertex(name) for name in ("12", "s1", "1s")] == [12, "s1", "1s"]


# 0 to a (device 2) and b; a to c and d, b to d; c and d to 1: three equal ways from 0 to 1, two of them over d.
# Besides, 3 to 4 alone. Rates are whole, latencies powers of two, so that each cable shows.
FORK = graph_of(5, [
    (0, 2, 12.0, 0.5, ""), (0, "b", 12.0, 0.5, ""), (2, "c", 12.0, 0.25, ""), (2, "d", 12.0, 0.25, ""),
    ("b", "d", 12.0, 0.25, ""), ("c", 1, 12.0, 0.125, ""), ("d", 1, 6.0, 0.125, ""), (3, 4, 5.0, 0.0625, ""),
])  # fmt: skip


def test_a_pair_s_bytes_are_spread_over_all_equal_ways() -> None:
    routes = Routes(FORK)
    named = {number: way for way, number in routes.number.items()}
    found = {named[number]: share for number, share in routes.shares(0, 1).items()}
    assert found == pytest.approx({
        (0, 2): 2 / 3, (0, "b"): 1 / 3, (2, "c"): 1 / 3, (2, "d"): 1 / 3, ("b", "d"): 1 / 3, ("c", 1): 1 / 3,
        ("d", 1): 2 / 3,
    })  # fmt: skip
    back = {named[number]: share for number, share in routes.shares(1, 0).items()}
    assert back == pytest.approx({(other, one): share for (one, other), share in found.items()})
    assert routes.shares(0, 0) == {}
    assert sorted(routes.number.values()) == list(range(16))
    assert routes.capacity[routes.number["d", 1]] == routes.capacity[routes.number[1, "d"]] == 6.0
    with pytest.raises(InputError) as refused:
        routes.shares(0, 3)
    assert [problem.message for problem in refused.value.problems] == ["device 3 cannot be reached from device 0."]


def test_rates_are_what_the_fullest_cable_leaves() -> None:
    """d to 1 carries 2/3 of the bytes from 0 and half of those from device 2: 6 / (7/6); alone, 6 / (2/3)."""
    routes = Routes(FORK)
    assert routes.rates([(3, 4), (0, 1), (2, 1)]).tolist() == pytest.approx([5.0, 36 / 7, 36 / 7])
    assert routes.rates([(0, 1)]).tolist() == pytest.approx([9.0])
    assert routes.bottleneck([(3, 4), (0, 1)])[2] == pytest.approx(5.0)
    one, other, rate = routes.bottleneck([(0, 1), (2, 1)])
    assert (one, other, rate) == ("d", 1, pytest.approx(36 / 7))
    one, other, rate = routes.bottleneck([(1, 0)])
    assert (one, other, rate) == (1, "d", pytest.approx(9.0))


def test_the_longest_way_counts() -> None:
    """From 0 to 1 half, a quarter and an eighth of a second, whichever way; from device 2 without the half."""
    routes = Routes(FORK)
    for pairs, seconds in (([(0, 1)], 0.875), ([(3, 4), (0, 1), (2, 1)], 0.875), ([(2, 1), (3, 4)], 0.375),
                           ([(3, 4)], 0.0625), ([], 0.0), ([(0, 0)], 0.0)):  # fmt: skip
        assert routes.latency_s(pairs) == seconds


def test_pairs_of_rings_and_of_exchanges() -> None:
    assert ring_pairs([(0, 2, 5), (1, 3)]) == [(0, 2), (2, 5), (5, 0), (1, 3), (3, 1)]
    assert exchange_pairs([(0, 2, 5), (1, 3)]) == [
        (0, 2), (0, 5), (2, 0), (2, 5), (5, 0), (5, 2), (1, 3), (3, 1),
    ]  # fmt: skip


def line(rate: float, latency_s: float) -> Cluster:
    """Four devices in a row of three cables."""
    links = tuple(Link(one=str(d), other=str(d + 1), bandwidth_bytes_per_s=rate, latency_s=latency_s) for d in range(3))
    return cluster(1, 4, tier("board", 4, rate, latency_s), links=links)


LINE = line(100.0, 2.0)


def quickest_s(
    family: str, steps: int, way_s: float, share_bytes: float, rate: float, *, generation: str = "ampere"
) -> float:
    """The least over a device's protocols: a start, the steps, and the bytes at what kernel and cable allow."""
    return min(
        p.base_s + steps * (p.hop_s + way_s) + share_bytes / min(p.rate_bytes_per_s, p.link_fraction * rate)
        for p in getattr(network_constants(generation), family).values()
    )


@pytest.mark.parametrize(
    ("kind", "expected_s"),
    [
        # A send goes one cable on; a ring closes over all three of them, and each cable's way back is its own.
        ("send", quickest_s("send", 1, 2.0, 400.0, 100.0)),
        ("all_gather", quickest_s("protocols", 3, 6.0, 300.0, 100.0)),
        ("all_reduce", quickest_s("protocols", 6, 6.0, 600.0, 100.0)),
        ("broadcast", quickest_s("protocols", 3, 6.0, 400.0, 100.0)),
        # Of twelve messages the middle cable carries four each way; the longest way is three cables.
        ("all_to_all", quickest_s("all_to_all", 1, 6.0, 100.0, 25.0)),
    ],
)
def test_collectives_on_a_listed_row(kind: str, expected_s: float) -> None:
    assert graph_time_s(LINE, kind, 400.0, [(0, 1, 2, 3)]) == pytest.approx(expected_s)


def test_two_ranks_one_byte_and_the_slower_group() -> None:
    """Two pairs of neighbours each on its cable; two pairs that cross share the middle one, over two cables each."""
    near = quickest_s("protocols", 1, 2.0, 200.0, 100.0)
    far = quickest_s("protocols", 1, 4.0, 200.0, 50.0)
    assert graph_time_s(LINE, "all_gather", 400.0, [(0, 1), (2, 3)]) == pytest.approx(near)
    assert graph_time_s(LINE, "all_gather", 400.0, [(0, 2), (1, 3)]) == pytest.approx(far)
    assert explicit_time_s(LINE, "all_gather", 400.0, Group(2, 2)) == pytest.approx(far)
    one = quickest_s("protocols", 1, 2.0, 0.5, 100.0)
    assert graph_time_s(LINE, "all_gather", 1.0, [(0, 1), (2, 3)]) == pytest.approx(one)
    assert explicit_time_s(LINE, "all_gather", 1.0, Group(2)) == pytest.approx(one)
    later = replace(LINE, device=replace(LINE.device, generation="hopper"))
    assert graph_time_s(later, "all_gather", 400.0, [(0, 1), (2, 3)]) == pytest.approx(
        quickest_s("protocols", 1, 2.0, 200.0, 100.0, generation="hopper")
    )
    assert explicit_time_s(LINE, "all_gather", 400.0, Group(1)) == 0.0
    assert explicit_time_s(LINE, "all_gather", 0.0, Group(2)) == 0.0


def test_a_fast_cable_leaves_the_protocols_own_rates() -> None:
    """LL moves 75 kB soonest, at what its kernel can."""
    ll = network_constants("ampere").protocols["ll"]
    assert ll.rate_bytes_per_s < ll.link_fraction * 1e12
    expected = ll.base_s + 3 * ll.hop_s + 75e3 / ll.rate_bytes_per_s
    assert graph_time_s(line(1e12, 0.0), "all_gather", 1e5, [(0, 1, 2, 3)]) == pytest.approx(expected)


def test_each_axis_is_routed_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other as alone: kinds, groups and clusters do not take each other's ways, and few are kept."""
    module._ways.clear()
    slow = line(50.0, 2.0)
    asked = [(LINE, "all_gather", Group(4)), (LINE, "all_to_all", Group(4)), (LINE, "send", Group(4)),
             (LINE, "all_reduce", Group(4)), (LINE, "all_gather", Group(2)), (LINE, "all_gather", Group(2, 2)),
             (slow, "all_gather", Group(4)), (LINE, "broadcast", Group(4))]  # fmt: skip
    found = [explicit_time_s(base, kind, 400.0, group) for base, kind, group in asked]
    tiles = {Group(4): [(0, 1, 2, 3)], Group(2): [(0, 1), (2, 3)], Group(2, 2): [(0, 2), (1, 3)]}
    assert found == [graph_time_s(base, kind, 400.0, tiles[group]) for base, kind, group in asked]
    # Rings of any kind share their ways: of eight questions six are routed.
    assert len(module._ways) == 6
    with monkeypatch.context() as patched:
        patched.setattr(module, "Routes", None)
        assert [explicit_time_s(base, kind, 400.0, group) for base, kind, group in asked] == found
    monkeypatch.setattr(module, "_WAYS_KEPT", 2)
    module._ways.clear()
    for base, kind, group in asked:
        assert explicit_time_s(base, kind, 400.0, group) == graph_time_s(base, kind, 400.0, tiles[group])
        assert len(module._ways) <= 2
