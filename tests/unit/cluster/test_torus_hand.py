"""Slices of tori by hand: which links a group covers, how far it reaches, and columns of groups at once."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest

from simulator.cluster.graph import cluster_graph
from simulator.cluster.placement import Group
from simulator.cluster.torus import Slice, group_slice, is_torus, max_of, torus_time_s
from simulator.spec.hardware import Cluster, Tier
from tests.support import a100, dgx

ICI = Tier(name="ici", kind="ici", topology="torus", size=48, bandwidth_bytes_per_s=60.0, latency_s=2.0,
           shape=(2, 4, 6))  # fmt: skip
LINK = 60.0 / 6 * 0.95
"""Three dimensions, two links each, of which collectives reach 0.95."""


@pytest.mark.parametrize(
    ("group", "extent", "apart", "wrapped"),
    [
        # The innermost dimension is the ring of six, the next the ring of four, the last a pair that closes no ring.
        (Group(6), (6, 1, 1), (1, 1, 1), (True, False, False)),
        (Group(12), (6, 2, 1), (1, 1, 1), (True, False, False)),
        (Group(48), (6, 4, 2), (1, 1, 1), (True, True, False)),
        (Group(3), (3, 1, 1), (1, 1, 1), (False, False, False)),
        (Group(3, 2), (3, 1, 1), (2, 1, 1), (True, False, False)),
        # Twelve ranks two apart: three on the ring of six, whose links two groups share, then all four.
        (Group(12, 2), (3, 4, 1), (2, 1, 1), (True, True, False)),
        # Columns have one rank on the ring of six, which closes nothing.
        (Group(4, 6), (1, 4, 1), (6, 1, 1), (False, True, False)),
        (Group(2, 12), (1, 2, 1), (6, 2, 1), (False, True, False)),
        (Group(2, 24), (1, 1, 2), (6, 4, 1), (False, False, False)),
        (Group(8, 6), (1, 4, 2), (6, 1, 1), (False, True, False)),
    ],
)
def test_what_a_group_covers(
    group: Group, extent: tuple[int, ...], apart: tuple[int, ...], wrapped: tuple[bool, ...]
) -> None:
    found = group_slice(ICI, group)
    assert tuple(float(x) for x in found.extent) == extent
    assert tuple(float(x) for x in found.apart) == apart
    assert tuple(bool(x) for x in found.wrapped) == wrapped
    assert (found.link_bytes_per_s, found.hop_s) == (pytest.approx(LINK), 2.0)
    open_ended = group_slice(replace(ICI, wrap=(True, False, True)), group)
    assert tuple(bool(x) for x in open_ended.wrapped) == (wrapped[0], False, wrapped[2])
    assert not any(bool(x) for x in group_slice(replace(ICI, topology="mesh"), group).wrapped)


@pytest.mark.parametrize("wrap", [(True, True), (True, False)])
@pytest.mark.parametrize(
    "group",
    [Group(n, stride) for n, stride in ((8, 1), (4, 1), (2, 1), (16, 1), (32, 1), (4, 2), (2, 4), (4, 8), (2, 8),
                                        (2, 16))],
)  # fmt: skip
def test_few_bytes_wait_for_the_farthest_rank(wrap: tuple[bool, bool], group: Group) -> None:
    """The hops to it are a shortest way on the graph: a column has no way along the rows."""
    tier = replace(ICI, shape=(4, 8), size=32, wrap=wrap)
    base = Cluster(name="torus", title="", device=a100(), devices_per_node=32, nodes=1, tiers=(tier,))
    graph = cluster_graph(base)
    ranks = group.ranks()
    farthest = max(nx.shortest_path_length(graph, one, other) for one in ranks for other in ranks)
    found = float(torus_time_s("all_gather", 1e-9, group_slice(tier, group)))
    assert found == pytest.approx(2.0 * farthest)


def test_a_message_goes_the_widest_step() -> None:
    """Neighbours six devices apart along one dimension, in which two ranks stand; one rank alone has no step."""
    part = Slice((1.0, 2.0, 4.0), (9.0, 6.0, 2.0), (False, False, True), 10.0, 2.0)
    assert float(torus_time_s("send", 800.0, part)) == pytest.approx(6 * (2 + 80))
    assert float(max_of([np.float64(1.0), np.float64(3.0), np.float64(2.0)])) == 3.0


def test_one_rank_gathers_at_once() -> None:
    part = Slice((1.0, 1.0), (1.0, 4.0), (False, False), 10.0, 2.0)
    for kind in ("all_gather", "all_reduce", "all_to_all", "broadcast"):
        assert float(torus_time_s(kind, 800.0, part)) == 0.0


def test_lanes_of_a_shared_dimension_are_shared() -> None:
    """A ring of 4 that three groups share has 2/3 of a lane, the pair beside it one: 7/8 of 800 over 5/3 lanes of 10;
    the pair alone carries 2/4 of the buffers, the ring 4 * 3/8."""
    part = Slice((4.0, 2.0, 1.0), (3.0, 1.0, 5.0), (True, False, False), 10.0, 0.0)
    assert float(torus_time_s("all_gather", 800.0, part)) == pytest.approx(700 / (10 * 5 / 3))
    assert float(torus_time_s("all_reduce", 800.0, part)) == pytest.approx(2 * 700 / (10 * 5 / 3))
    assert float(torus_time_s("all_to_all", 800.0, part)) == pytest.approx(800 * 1.5 / 10)
    pair = Slice((2.0, 2.0), (1.0, 1.0), (False, True), 10.0, 0.0)
    assert float(torus_time_s("all_to_all", 800.0, pair)) == pytest.approx(800 * 0.5 / 10)


def test_shared_pairs_and_the_smallest_ring() -> None:
    """Three groups share a pair's link of 10, which passes half of 800; three devices in a row can close a ring."""
    pair = Slice((2.0,), (3.0,), (False,), 10.0, 0.0)
    assert float(torus_time_s("all_gather", 800.0, pair)) == pytest.approx(400 / (10 / 3))
    three = group_slice(replace(ICI, shape=(3,), size=3), Group(3))
    assert [bool(x) for x in three.wrapped] == [True]
    assert group_slice(ICI, Group(6), 4).link_bytes_per_s == pytest.approx(LINK / 4)


def test_every_dimension_needs_all_it_is_said_to_have() -> None:
    with pytest.raises(ValueError, match="shorter"):
        torus_time_s("send", 1.0, Slice((2.0, 2.0), (1.0,), (False, False), 10.0, 0.0))
    with pytest.raises(ValueError, match="shorter"):
        group_slice(replace(ICI, wrap=(True, False)), Group(2))


def test_columns_of_groups_are_as_each_alone() -> None:
    sizes, strides = np.array([6, 1, 3, 12, 4, 48]), np.array([1, 1, 2, 1, 6, 1])
    shared = np.array([1.0, 1.0, 2.0, 1.0, 4.0, 1.0])
    for kind in ("all_gather", "all_reduce", "all_to_all", "send"):
        found = torus_time_s(kind, 4800.0, group_slice(ICI, Group(sizes, strides), shared))
        for place, (size, stride, load) in enumerate(zip(sizes, strides, shared, strict=True)):
            alone = torus_time_s(kind, 4800.0, group_slice(ICI, Group(int(size), int(stride)), float(load)))
            assert found[place] == pytest.approx(float(alone)), (kind, place)


def test_tori_are_tiers_of_direct_links_with_a_shape() -> None:
    base = dgx(1)
    for topology, shape, wanted in (("torus", (2, 4), True), ("mesh", (2, 4), True), ("switch", (2, 4), False),
                                    ("mesh", (), False)):  # fmt: skip
        tier = replace(base.tiers[0], topology=topology, shape=shape)
        assert is_torus(replace(base, tiers=(tier,))) is wanted
