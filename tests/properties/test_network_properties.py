"""What any network model must obey, and where the closed form and the flow solution on the links must agree."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.contention import graph_spans, links_of, max_min_rates, ring_rates
from simulator.cluster.generators import Torus
from simulator.cluster.graph import Routes, cluster_graph, graph_time_s, ring_pairs
from simulator.cluster.network import KINDS, collective_time_on_graph_s, collective_time_s, wire_bytes
from simulator.cluster.placement import Group, all_groups
from simulator.cluster.spans import spans
from simulator.spec.hardware import Cluster, Link, Tier
from tests.unit.cluster.fabrics import cluster, net_tier, pods

GENERATIONS = ("volta", "ampere", "hopper", "blackwell")
kinds = st.sampled_from(KINDS)
sizes = st.floats(1.0, 1e10)
groups = st.builds(Group, st.integers(1, 64), st.sampled_from([1, 2, 3, 4, 8, 16]))
clusters = st.builds(cluster, st.sampled_from(GENERATIONS), st.sampled_from([8, 32, 128]))


def torus(shape: tuple[int, ...], wrap: bool = True) -> Cluster:
    devices = int(np.prod(shape))
    tier = Tier(
        name="ici",
        kind="ici",
        topology="torus",
        size=devices,
        bandwidth_bytes_per_s=90e9 * len(shape),
        latency_s=1e-6,
        shape=shape,
        wrap=(wrap,) * len(shape),
    )
    base = cluster("hopper", 1)
    return replace(base, tiers=(tier,), devices_per_node=4, nodes=devices // 4)


def scaled(base: Cluster, *, bandwidth: float = 1.0, latency_s: float = 0.0) -> Cluster:
    """All tiers with more bandwidth and more latency."""
    tiers = tuple(
        replace(t, bandwidth_bytes_per_s=t.bandwidth_bytes_per_s * bandwidth, latency_s=t.latency_s + latency_s)
        for t in base.tiers
    )
    return replace(base, tiers=tiers)


@settings(max_examples=150, deadline=None)
@given(clusters, kinds, sizes, groups, st.floats(1.0, 8.0), st.floats(0.0, 1e-4))
def test_bandwidth_helps_and_latency_hurts(
    base: Cluster, kind: str, size: float, group: Group, faster: float, later: float
) -> None:
    time = collective_time_s(base, kind, size, group)
    assert collective_time_s(scaled(base, bandwidth=faster), kind, size, group) <= time * (1 + 1e-12)
    assert collective_time_s(scaled(base, latency_s=later), kind, size, group) >= time * (1 - 1e-12)


@settings(max_examples=150, deadline=None)
@given(clusters, kinds, sizes, groups, st.floats(1.0, 4.0))
def test_more_bytes_take_longer_and_no_jump(base: Cluster, kind: str, size: float, group: Group, more: float) -> None:
    time = collective_time_s(base, kind, size, group)
    assert collective_time_s(base, kind, size * more, group) >= time * (1 - 1e-12)
    assert collective_time_s(base, kind, size * (1 + 1e-9), group) == pytest.approx(time, rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(clusters, kinds, sizes, groups, st.floats(1.0, 8.0))
def test_sharing_links_costs(base: Cluster, kind: str, size: float, group: Group, load: float) -> None:
    alone = collective_time_s(base, kind, size, group)
    assert collective_time_s(base, kind, size, group, concurrent=load) >= alone * (1 - 1e-12)


@given(kinds, sizes)
def test_one_rank_and_no_bytes_cost_nothing(kind: str, size: float) -> None:
    base = cluster()
    assert collective_time_s(base, kind, size, Group(1, 8)) == 0.0
    assert collective_time_s(base, kind, 0.0, Group(8, 1)) == 0.0
    assert wire_bytes(kind, size, 1) == 0.0


@settings(max_examples=40, deadline=None)
@given(clusters, kinds, st.lists(st.tuples(sizes, st.integers(1, 64), st.sampled_from([1, 2, 4, 8])), min_size=1))
def test_arrays_agree_with_scalars(base: Cluster, kind: str, rows: list[tuple[float, int, int]]) -> None:
    size, n, stride = (np.array(column) for column in zip(*rows, strict=True))
    column = collective_time_s(base, kind, size, Group(n, stride))
    for i, row in enumerate(rows):
        assert column[i] == pytest.approx(collective_time_s(base, kind, row[0], Group(row[1], row[2])), rel=1e-12)


@given(clusters, sizes, groups)
def test_ring_all_reduce_moves_what_reduce_scatter_and_all_gather_move(
    base: Cluster, size: float, group: Group
) -> None:
    parts = [wire_bytes(kind, size, group.size) for kind in ("reduce_scatter", "all_gather")]
    assert wire_bytes("all_reduce", size, group.size) == pytest.approx(sum(parts))
    whole, scatter, gather = (
        collective_time_s(base, kind, size, group, algorithm="ring/ll")
        for kind in ("all_reduce", "reduce_scatter", "all_gather")
    )
    start = collective_time_s(base, "all_gather", 1e-9, Group(2, 1), algorithm="ring/ll")
    assert whole == pytest.approx(scatter + gather, abs=start + 1e-12)


# Every group of these axes lies alike: the closed form must equal the flows on the links, exactly.
SYMMETRIC = [
    (cluster("hopper", 8), Group(8, 8)),
    (cluster("hopper", 8), Group(16, 4)),
    (cluster("ampere", 4), Group(32, 1)),
    (cluster("ampere", 4), Group(4, 1)),
    (cluster("hopper", 16, net_tier(32, 50e9), net_tier(128, 50e9, oversubscription=4.0)), Group(8, 16)),
    (cluster("hopper", 16, net_tier(32, 50e9), net_tier(128, 50e9, oversubscription=4.0)), Group(16, 8)),
    (
        cluster("hopper", 16, net_tier(64, 50e9, oversubscription=2.0), net_tier(128, 50e9, oversubscription=3.0)),
        Group(64, 2),
    ),
    (cluster("blackwell", 2, net_tier(144, 50e9), per_node=72), Group(36, 4)),
    (cluster("hopper", 8), Group(8, 4, blocks=2, block_stride=32)),
]


@pytest.mark.parametrize(("base", "group"), SYMMETRIC)
@pytest.mark.parametrize("kind", KINDS)
def test_closed_form_is_the_flow_solution(base: Cluster, group: Group, kind: str) -> None:
    closed, solved = spans(base, group), graph_spans(base, group)
    assert closed.up_bytes_per_s == pytest.approx(solved.up_bytes_per_s, rel=1e-12)
    assert closed.exchange_s_per_byte == pytest.approx(solved.exchange_s_per_byte, rel=1e-12)
    assert collective_time_on_graph_s(base, kind, 1e8, group) == pytest.approx(
        collective_time_s(base, kind, 1e8, group), rel=1e-9
    )


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([2, 4, 8, 16]), st.sampled_from([1, 2, 4, 8]), st.floats(1.0, 8.0), st.sampled_from([2, 4]))
def test_closed_form_is_the_flow_solution_on_any_even_tiling(n: int, stride: int, ratio: float, pods_of: int) -> None:
    base = cluster("hopper", 16, net_tier(8 * pods_of, 50e9), net_tier(128, 50e9, oversubscription=ratio))
    group = Group(n, stride)
    assert spans(base, group).up_bytes_per_s == pytest.approx(graph_spans(base, group).up_bytes_per_s, rel=1e-9)


def test_asymmetric_placement_is_slower_on_the_graph() -> None:
    """Pairs placed across the pods' thin links instead of inside a pod: only the flows see it."""
    base = cluster("hopper", 4, net_tier(16, 50e9), net_tier(32, 50e9, oversubscription=4.0))
    inside = [(d, d + 8) for d in range(8)] + [(d, d + 8) for d in range(16, 24)]
    across = [(d, d + 16) for d in range(16)]
    near, far = (collective_time_on_graph_s(base, "all_reduce", 1e9, g) for g in (inside, across))
    assert far / near == pytest.approx(4.0, rel=0.05)


def test_renaming_nodes_changes_nothing() -> None:
    base = cluster("hopper", 8)
    swap = np.random.default_rng(1).permutation(8)
    groups_here = all_groups(Group(8, 8), 64)
    moved = [tuple(int(swap[d // 8]) * 8 + d % 8 for d in ranks) for ranks in groups_here]
    for kind in KINDS:
        times = [collective_time_on_graph_s(base, kind, 1e8, g) for g in (groups_here, moved)]
        assert times[0] == pytest.approx(times[1], rel=1e-12)


def test_max_min_rates_are_fair_and_full() -> None:
    """Every flow has a saturated link on which none is faster: the definition of max-min fairness."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        flows, links = int(rng.integers(2, 30)), int(rng.integers(2, 10))
        use = rng.random((flows, links)) < 0.4
        use[np.arange(flows), rng.integers(0, links, flows)] = True
        capacity = rng.uniform(1, 10, links)
        flow, link = np.nonzero(use)
        rates = max_min_rates(flow, link, capacity, flows)
        load = rates @ use
        assert (load <= capacity * (1 + 1e-9)).all()
        for i in range(flows):
            full = use[i] & (load >= capacity * (1 - 1e-9))
            assert any(rates[use[:, k]].max() <= rates[i] * (1 + 1e-9) for k in np.nonzero(full)[0])


@pytest.mark.parametrize("base", [cluster("hopper", 4), pods(7.0, nodes=16, pod=32), SYMMETRIC[6][0]])
def test_routes_of_the_links_are_the_graphs_shortest_ways(base: Cluster) -> None:
    """The arrays that carry big clusters hold the same capacities, in sum over a way, as the graph's edges."""
    graph, links = cluster_graph(base), links_of(base)
    source, target = np.array([0, 0, 0, 5]), np.array([9, 17, base.devices - 1, 20])
    flow, link = links.route(source, target)
    for i in range(4):
        way = nx.shortest_path(graph, int(source[i]), int(target[i]))
        rates = {round(graph.edges[e]["bandwidth_bytes_per_s"]) for e in pairwise(way)}
        assert {round(c / 0.915) for c in links.capacity[link[flow == i]]} == rates


def test_rings_and_routes_agree_on_a_generated_cluster() -> None:
    """One rank per node: NCCL's channel is the plain ring of ranks, which the general router also solves."""
    base = cluster("hopper", 8)
    ranks = all_groups(Group(8, 8), 64)
    general = Routes(cluster_graph(base)).rates(ring_pairs(ranks)).min()
    assert ring_rates(base, ranks).min() == pytest.approx(general * 0.915)


def test_explicit_links_cost_what_the_same_torus_costs_on_the_graph() -> None:
    """A ring of devices with its links listed: two rings of neighbours, then one of every second device."""
    fabric = Torus(shape=(8,), wrap=(True,), link_bytes_per_s=50e9, latency_s=1e-6)
    listed = tuple(
        Link(one=str(a), other=str(b), bandwidth_bytes_per_s=r, latency_s=lat) for a, b, r, lat, _ in fabric.edges()
    )
    base = replace(cluster("hopper", 1), links=listed)
    near = collective_time_s(base, "all_gather", 1e9, Group(8, 1))
    far = collective_time_s(base, "all_gather", 1e9, Group(4, 2))
    assert near == graph_time_s(base, "all_gather", 1e9, [tuple(range(8))])
    # Both rings of four use every link: twice the load, 3/4 of the bytes instead of 7/8.
    assert far / near == pytest.approx(2 * (3 / 4) / (7 / 8), rel=0.05)
    assert (
        collective_time_s(base, "all_gather", np.array([1e9, 1e9]), Group(np.array([8, 4]), np.array([1, 2])))[1] == far
    )


@settings(max_examples=40, deadline=None)
@given(kinds, st.floats(1e3, 1e10), st.sampled_from([2, 4, 8, 16, 64]), st.floats(1.0, 4.0))
def test_tori_obey_too(kind: str, size: float, n: int, faster: float) -> None:
    base = torus((4, 4, 4))
    time = collective_time_s(base, kind, size, Group(n, 1))
    assert time > 0
    assert collective_time_s(scaled(base, bandwidth=faster), kind, size, Group(n, 1)) <= time
    assert collective_time_s(torus((4, 4, 4), wrap=False), kind, size, Group(n, 1)) >= time * (1 - 1e-12)


def test_torus_all_to_all_is_bound_by_its_bisection() -> None:
    """Half of every rank's buffer crosses the middle, half of that each way: S * n / 4 over the bisection."""
    for shape in ((8,), (8, 4), (8, 4, 4)):
        base = torus(shape)
        n = base.devices
        link = 45e9 * 0.95
        crossing = 2 * n / 8 * link
        time = collective_time_s(base, "all_to_all", 1e9, Group(n, 1))
        assert time == pytest.approx(1e9 * n / 4 / crossing, rel=1e-9)


def test_torus_axes_add_their_links() -> None:
    """A group over a whole 8 x 8 torus gathers twice as fast as one over a row, per byte (scaling-book)."""
    base = torus((8, 8))
    row, all_of_it = (collective_time_s(base, "all_gather", 1e10, Group(n, 1)) for n in (8, 64))
    assert (row / (7 / 8)) / (all_of_it / (63 / 64)) == pytest.approx(2.0, rel=1e-9)


@pytest.mark.parametrize(
    ("shape", "group"), [((16,), Group(2, 8)), ((16,), Group(4, 4)), ((4, 8), Group(4, 8)), ((4, 8), Group(8, 1))]
)
def test_torus_groups_that_interleave_share_links_as_the_graph_says(shape: tuple[int, ...], group: Group) -> None:
    """Rings both ways at once, over the graph's equal shortest ways, against the closed form."""
    base = torus(shape)
    tiles = all_groups(group, base.devices)
    both = ring_pairs(tiles) + [(b, a) for a, b in ring_pairs(tiles)]
    if group.size == 2:
        both = ring_pairs(tiles)
    rate = Routes(cluster_graph(base)).rates(both).min() * (1 if group.size == 2 else 2) * 0.95
    n = group.size
    assert collective_time_s(base, "all_gather", 1e10, group) == pytest.approx(1e10 * (n - 1) / n / rate, rel=1e-6)


def test_long_columns_agree_with_short_ones() -> None:
    """A column is worked out by distinct group; slices of it, below that length, are not."""
    rng = np.random.default_rng(3)
    size, stride = 2 ** rng.integers(0, 8, 600), 2 ** rng.integers(0, 5, 600)
    load = rng.uniform(1, 1e9, 600)
    base = pods(7.0, nodes=512, pod=512)
    for kind in KINDS:
        whole = collective_time_s(base, kind, load, Group(size, stride))
        parts = [
            collective_time_s(base, kind, load[i : i + 100], Group(size[i : i + 100], stride[i : i + 100]))
            for i in range(0, 600, 100)
        ]
        assert np.allclose(whole, np.concatenate(parts), rtol=1e-13, atol=0)
    square = collective_time_s(base, "all_reduce", load.reshape(30, 20), Group(size.reshape(30, 20), 8))
    assert square.shape == (30, 20)
