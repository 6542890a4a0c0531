"""Properties of what is solved on links: listed graphs, ranks placed by a file, and the loads of axes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.contention import links_of
from simulator.cluster.graph import graph_time_s
from simulator.cluster.link_loads import bottleneck, link_loads
from simulator.cluster.network import KINDS, collective_time_s, wire_bytes
from simulator.cluster.placement import Group
from simulator.cluster.traffic_map import ring_loads_bytes
from simulator.spec.hardware import Cluster, Link
from tests.unit.cluster.fabrics import cluster, net_tier

kinds = st.sampled_from(KINDS)
RINGS = ("all_reduce", "reduce_scatter", "all_gather")


@st.composite
def listed(draw: st.DrawFn) -> Cluster:
    """Eight devices and up to four switches, joined at random so that all can reach all."""
    switches = draw(st.integers(0, 4))
    ends = [str(device) for device in range(8)] + [f"s{index}" for index in range(switches)]
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    order = list(rng.permutation(ends))
    pairs = {tuple(sorted((order[i], order[int(rng.integers(0, i))]))) for i in range(1, len(order))}
    pairs |= {tuple(sorted(rng.choice(ends, 2, replace=False))) for _ in range(draw(st.integers(0, 8)))}
    links = tuple(
        Link(one=str(one), other=str(other), bandwidth_bytes_per_s=float(rng.uniform(1e9, 1e11)),
             latency_s=float(rng.uniform(0, 1e-5)))
        for one, other in sorted(pairs)
    )  # fmt: skip
    return replace(cluster("hopper", 1), links=links)


even_groups = st.sampled_from([Group(8, 1), Group(4, 1), Group(4, 2), Group(2, 4), Group(2, 1)])


@settings(max_examples=40, deadline=None)
@given(listed(), kinds, even_groups, st.integers(0, 30), st.floats(1.0, 8.0))
def test_a_faster_cable_never_slows_a_listed_graph(
    base: Cluster, kind: str, group: Group, which: int, faster: float
) -> None:
    """Routes go by hops, so that one cable's rate changes no way, and max-min rates grow with every capacity."""
    index = which % len(base.links)
    links = list(base.links)
    links[index] = replace(links[index], bandwidth_bytes_per_s=links[index].bandwidth_bytes_per_s * faster)
    before, after = (collective_time_s(c, kind, 1e8, group) for c in (base, replace(base, links=tuple(links))))
    assert after <= before * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(listed(), kinds, even_groups, st.floats(0.0, 1e-3))
def test_longer_cables_never_speed_a_listed_graph_up(base: Cluster, kind: str, group: Group, later_s: float) -> None:
    links = tuple(replace(link, latency_s=link.latency_s + later_s) for link in base.links)
    before, after = (collective_time_s(c, kind, 1e6, group) for c in (base, replace(base, links=links)))
    assert after >= before * (1 - 1e-9)


@settings(max_examples=40, deadline=None)
@given(listed(), kinds, even_groups, st.permutations(range(8)))
def test_renaming_devices_and_switches_changes_nothing(
    base: Cluster, kind: str, group: Group, numbers: list[int]
) -> None:
    """The same graph under other names, with the groups renamed along. One shortest way's latency stands for all, so
    latencies are equal here."""
    names = {str(device): str(numbers[device]) for device in range(8)}
    links = tuple(replace(link, latency_s=1e-6) for link in base.links)
    renamed = tuple(
        replace(link, one=names.get(link.one, f"other-{link.one}"), other=names.get(link.other, f"other-{link.other}"))
        for link in links
    )
    ranks = [group.ranks(first) for first in range(group.stride)] if group.stride > 1 else [group.ranks()]
    moved = [tuple(numbers[device] for device in each) for each in ranks]
    before = graph_time_s(replace(base, links=links), kind, 1e8, ranks)
    assert graph_time_s(replace(base, links=renamed), kind, 1e8, moved) == pytest.approx(before, rel=1e-9)


FABRICS = (
    cluster("hopper", 8),
    cluster("ampere", 8, net_tier(16, 25e9), net_tier(64, 25e9, oversubscription=4.0)),
    cluster("blackwell", 8, net_tier(32, 50e9, oversubscription=2.0), net_tier(64, 50e9, oversubscription=3.0)),
)
fabrics = st.sampled_from(FABRICS)
tilings = st.sampled_from([Group(n, stride) for n in (2, 4, 8, 16) for stride in (1, 2, 4, 8) if n * stride <= 64])


@settings(max_examples=60, deadline=None)
@given(fabrics, kinds, tilings, st.permutations(range(8)))
def test_renaming_the_nodes_of_a_rank_file_changes_nothing(
    base: Cluster, kind: str, group: Group, nodes: list[int]
) -> None:
    """Where every node is as every other: on one tier above them."""
    flat = FABRICS[0]
    placed = replace(flat, rank_devices=tuple(nodes[r // 8] * 8 + r % 8 for r in range(64)))
    assert collective_time_s(placed, kind, 1e8, group) == pytest.approx(
        collective_time_s(flat, kind, 1e8, group), rel=1e-9
    )
    # On more tiers, swapping the two nodes of every rack.
    swapped = replace(base, rank_devices=tuple((r // 8 ^ 1) * 8 + r % 8 for r in range(64)))
    assert collective_time_s(swapped, kind, 1e8, group) == pytest.approx(
        collective_time_s(replace(base, rank_devices=tuple(range(64))), kind, 1e8, group), rel=1e-9
    )


@settings(max_examples=40, deadline=None)
@given(fabrics, kinds, st.permutations(range(64)))
def test_no_rank_file_beats_whole_nodes(base: Cluster, kind: str, devices: list[int]) -> None:
    """Eight neighbouring ranks inside a node: the best placement there is for them."""
    placed = replace(base, rank_devices=tuple(devices))
    best = collective_time_s(base, kind, 1e8, Group(8, 1))
    assert collective_time_s(placed, kind, 1e8, Group(8, 1)) >= best * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(fabrics, st.sampled_from(RINGS), tilings, st.permutations(range(64)))
def test_bytes_sent_are_bytes_received(base: Cluster, kind: str, group: Group, devices: list[int]) -> None:
    """On the NICs, and at every tier's up- and down-links, wherever the ranks are."""
    loads = ring_loads_bytes(replace(base, rank_devices=tuple(devices)), kind, 1e9, group)
    links = links_of(base)
    n = base.devices
    assert loads[:n].sum() == pytest.approx(loads[n : 2 * n].sum(), rel=1e-9)
    for size, start in zip(links.unit_sizes, links.unit_starts, strict=True):
        count = -(-n // size)
        assert loads[start : start + count].sum() == pytest.approx(loads[start + count : start + 2 * count].sum())
    # A ring of one member a unit puts its whole wire volume on a NIC; more members share it.
    assert (loads[:n] <= wire_bytes(kind, 1e9, group.size) * (1 + 1e-9)).all()


@settings(max_examples=80, deadline=None)
@given(fabrics, kinds, tilings, st.floats(1.0, 1e10), st.floats(1.0, 8.0))
def test_loads_grow_with_the_buffer_and_bound_the_time(
    base: Cluster, kind: str, group: Group, size: float, more: float
) -> None:
    loads, larger = (link_loads(base, kind, s, group) for s in (size, more * size))
    for one, other in zip(loads, larger, strict=True):
        assert other.load_bytes == pytest.approx(more * one.load_bytes)
        assert (one.link, one.sharing_factor) == (other.link, other.sharing_factor)
    slowest = bottleneck(base, kind, group)
    assert slowest is not None
    # These are a ring's loads. Reduction in switches sends 16/9 times less, a tree between two nodes half as much.
    assert 1e10 * slowest.drain_s <= collective_time_s(base, kind, 1e10, group) * 2
