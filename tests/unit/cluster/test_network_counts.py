"""Which ways of running a collective there are, for single groups and for columns, and what is kept between calls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.cluster import network as module
from simulator.cluster.graph import graph_time_s
from simulator.cluster.network import (
    KINDS,
    collective_curve,
    collective_time_on_graph_s,
    collective_time_s,
)
from simulator.cluster.placement import Group
from simulator.cluster.spans import efficiency
from simulator.cluster.torus import group_slice, torus_time_s
from simulator.errors import InputError
from simulator.spec.hardware import Cluster, Link, Tier
from tests.support import a100, dgx
from tests.unit.cluster import fabrics

RING = {"ring/ll", "ring/ll128", "ring/part", "ring/simple"}
TREE = {"tree/ll", "tree/ll128", "tree/simple"}


@pytest.mark.parametrize(
    ("kind", "group", "names"),
    [
        # Trees join nodes; parallel aggregated trees only where a node has one rank; reduction in the switch needs it.
        ("all_reduce", Group(32), RING | TREE | {"nvls_tree/simple"}),
        ("all_reduce", Group(8), RING | {"nvls/simple"}),
        ("all_reduce", Group(4, 8), RING | TREE),
        ("all_gather", Group(4, 8), RING | {"pat/simple"}),
        ("reduce_scatter", Group(4, 8), RING | {"pat/simple"}),
        ("all_gather", Group(8), RING),
        ("broadcast", Group(4, 8), RING),
        ("reduce", Group(4, 8), RING),
        ("all_to_all", Group(4, 8), {"pairwise/ll", "pairwise/part", "pairwise/simple"}),
        ("send", Group(4, 8), {"send/ll", "send/simple"}),
    ],
)
def test_ways_to_run_each_kind(kind: str, group: Group, names: set[str]) -> None:
    """A column of such groups has the same ways, and a column's times are those of its groups."""
    base = fabrics.cluster("hopper", 4)
    assert {candidate.name for candidate in collective_curve(base, kind, group).candidates} == names
    for count in (3, 300):
        column = Group(np.full(count, group.size), np.full(count, group.stride))
        found = module._column_curve(base, kind, column, None, 1)
        assert {candidate.name for candidate in found.candidates} == names
        for name in names:
            forced = collective_time_s(base, kind, 1e6, column, algorithm=name)
            assert forced.tolist() == pytest.approx([collective_time_s(base, kind, 1e6, group, algorithm=name)] * count)


def test_reduction_in_the_network_is_run_only_where_it_is_asked_for() -> None:
    base = fabrics.cluster("hopper", 4)
    names = {c.name for c in collective_curve(base, "all_reduce", Group(32), algorithm="collnet").candidates}
    assert names == {"collnet/simple"}


def test_trees_of_one_node_and_of_one_rank() -> None:
    """Two ranks of a node cannot run one; one rank has nothing to run, by whatever way; columns never end it."""
    base = dgx(2)
    for ranks in (2, 8):
        with pytest.raises(InputError, match=f"tree cannot run all_reduce on {ranks} ranks of dgx-test"):
            collective_time_s(base, "all_reduce", 1e6, Group(ranks), algorithm="tree")
    assert collective_time_s(base, "all_reduce", 1e6, Group(1), algorithm="tree") == 0.0
    column = collective_time_s(base, "all_reduce", 1e6, Group(np.array([2, 8, 1])), algorithm="tree")
    assert column.tolist() == [np.inf, np.inf, 0.0]
    some = collective_time_s(base, "all_reduce", 1e6, Group(np.array([2, 16])), algorithm="tree")
    assert (some[0], some[1]) == (np.inf, collective_time_s(base, "all_reduce", 1e6, Group(16), algorithm="tree"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_byte_costs_and_none_does_not(kind: str) -> None:
    base = dgx(4)
    for size in (0.5, 1.0):
        one = collective_time_s(base, kind, size, Group(32))
        assert one > 0
        column = collective_time_s(base, kind, np.array([0.0, size, -1.0]), Group(32))
        assert column.tolist() == [0.0, pytest.approx(one), 0.0]
    assert collective_time_s(base, kind, 0.0, Group(32)) == 0.0
    assert collective_time_s(base, kind, 0, Group(32)) == 0.0
    listed = collective_time_s(LISTED, kind, 1.0, Group(8))
    assert isinstance(listed, float)
    assert listed > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [6, 300])
def test_columns_on_one_node_are_as_each_group_alone(kind: str, count: int) -> None:
    """Where a send costs the same whatever the group, that is one number for the whole column."""
    base = dgx(1)
    sizes = np.resize([1, 2, 8, 4, 2, 2], count)
    found = collective_time_s(base, kind, 1e6, Group(sizes))
    alone = [collective_time_s(base, kind, 1e6, Group(int(size))) for size in sizes[:6]]
    assert found[:6].tolist() == pytest.approx(alone)
    assert found.shape == (count,)
    square = collective_time_s(base, kind, 1e6, Group(sizes.reshape(-1, 3)))
    assert square.ravel().tolist() == pytest.approx(found.tolist())
    assert square.shape == (count // 3, 3)


def test_long_columns_keep_where_their_groups_stand() -> None:
    """Of groups of six that tile nodes of eight some straddle two; a lone one from a node's start does not."""
    base = dgx(3)
    for tiled, nodes in ((True, 2), (False, 1)):
        alone = collective_time_s(base, "all_gather", 1e8, Group(6, tiled=tiled))
        column = collective_time_s(base, "all_gather", 1e8, Group(np.full(300, 6), tiled=tiled))
        assert column.tolist() == pytest.approx([alone] * 300)
        inside = collective_time_s(dgx(1), "all_gather", 1e8, Group(6, tiled=False))
        assert (alone == pytest.approx(inside)) is (nodes == 1)


@pytest.mark.parametrize(("kind", "name"), [("all_gather", "ring/ll"), ("send", "send/ll")])
def test_two_loads_on_the_network_take_twice_the_time_a_byte(kind: str, name: str) -> None:
    """One rank a node: all bytes go by the cards, which both loads share."""
    (one,), (two,) = (
        collective_curve(dgx(4), kind, Group(4, 8), algorithm=name, concurrent=loads).candidates for loads in (1, 2)
    )
    assert two.s_per_byte == pytest.approx(2 * one.s_per_byte)
    assert two.latency_s == one.latency_s


def test_few_curves_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    base = dgx(2)
    module._curves.clear()
    expected = [float(collective_curve(base, "all_gather", Group(n)).time_s(1e6)) for n in (2, 4, 8, 16)]
    monkeypatch.setattr(module, "_CURVES_KEPT", 2)
    kept = []
    for group, time_s in zip((Group(2), Group(4), Group(8), Group(16)), expected, strict=True):
        assert collective_time_s(base, "all_gather", 1e6, group) == time_s
        kept.append(len(module._curves))
    assert kept == [1, 2, 1, 2]
    assert collective_time_s(base, "all_gather", 1e6, Group(16)) == expected[-1]
    assert len(module._curves) == 2


def test_what_distinguishes_a_kept_curve() -> None:
    """Asked one after the other as alone: another kind, group, way, load or cluster is another curve."""
    base, other = dgx(2), dgx(4)
    asked = [(base, "all_gather", Group(16), None, 1), (base, "all_reduce", Group(16), None, 1),
             (base, "all_gather", Group(8), None, 1), (base, "all_gather", Group(16), "ring/ll", 1),
             (base, "all_gather", Group(16), None, 2), (other, "all_gather", Group(2, 16), None, 1)]  # fmt: skip
    module._curves.clear()
    for cluster, kind, group, algorithm, concurrent in asked:
        found = collective_time_s(cluster, kind, 1e8, group, algorithm=algorithm, concurrent=concurrent)
        curve = collective_curve(cluster, kind, group, algorithm=algorithm, concurrent=concurrent)
        assert found == curve.time_s(1e8)
    assert len(module._curves) == 6


def test_ranks_placed_by_a_file_run_where_they_are() -> None:
    """Eight neighbouring ranks dealt over eight nodes cost what a stride of a node costs; columns are refused."""
    base = dgx(8)
    dealt = replace(base, rank_devices=tuple(rank % 8 * 8 + rank // 8 for rank in range(64)))
    for kind in ("all_reduce", "all_to_all", "send"):
        found = collective_time_s(dealt, kind, 64e6, Group(8))
        assert found == pytest.approx(collective_time_s(base, kind, 64e6, Group(8, 8)), rel=1e-9)
        assert found > 2 * collective_time_s(base, kind, 64e6, Group(8))
    with pytest.raises(InputError, match="places one strategy, not a column"):
        collective_time_s(dealt, "send", 64e6, Group(np.array([2, 4])))


def test_explicit_groups_feel_their_own_members() -> None:
    """Node 2 is slow inside: groups on the others run as on equal nodes."""
    base = dgx(4)
    slow = replace(base.tiers[0], bandwidth_bytes_per_s=20e9)
    mixed = replace(base, node_tiers=(base.tiers[0], base.tiers[0], slow, base.tiers[0]))
    fast, clogged = ([list(range(8))], [list(range(16, 24))])
    assert collective_time_on_graph_s(mixed, "all_gather", 1e8, fast) == pytest.approx(
        float(collective_time_s(base, "all_gather", 1e8, Group(8)))
    )
    assert collective_time_on_graph_s(mixed, "all_gather", 1e8, clogged) == pytest.approx(
        float(collective_time_s(replace(base, tiers=(slow, base.tiers[1])), "all_gather", 1e8, Group(8)))
    )
    assert collective_time_on_graph_s(mixed, "all_gather", 1e8, clogged + fast) > 2 * collective_time_on_graph_s(
        mixed, "all_gather", 1e8, fast
    )


LINKS = tuple(Link(one=str(d), other=str((d + 1) % 8), bandwidth_bytes_per_s=1e9, latency_s=2e-6) for d in range(8))
HOST = Tier(name="host", kind="nvlink", topology="switch", size=8, bandwidth_bytes_per_s=1e9, latency_s=2e-6)
LISTED = Cluster(name="listed", title="", device=a100(), devices_per_node=8, nodes=1, tiers=(HOST,), links=LINKS)


def test_blocks_and_ways_on_a_listed_ring() -> None:
    """Runs of two, four apart, go by the cable between; (0, 1, 2, 3) and (4, 5, 6, 7) would be the plain groups."""
    blocks = collective_time_s(LISTED, "all_gather", 1e6, Group(4, 1, 2, 4))
    assert isinstance(blocks, float)
    assert blocks == graph_time_s(LISTED, "all_gather", 1e6, [(0, 1, 4, 5), (2, 3, 6, 7)])
    assert blocks > 1.5 * collective_time_s(LISTED, "all_gather", 1e6, Group(4))
    exchange = collective_time_s(LISTED, "all_to_all", 1e6, Group(4))
    assert collective_time_s(LISTED, "all_to_all", 1e6, Group(4), algorithm="pairwise") == exchange
    column = collective_time_s(LISTED, "all_gather", 1e6, Group(4, 1, np.array([1, 2]), np.array([0, 4])))
    assert column.tolist() == [collective_time_s(LISTED, "all_gather", 1e6, Group(4)), blocks]


ICI = Tier(name="ici", kind="ici", topology="torus", size=16, bandwidth_bytes_per_s=160e9, latency_s=1e-6, shape=(2, 8))
POD = Tier(name="pod", kind="dcn", topology="fat-tree", size=64, bandwidth_bytes_per_s=6.25e9, latency_s=10e-6,
           oversubscription=2.0)  # fmt: skip
DCN = Tier(name="dcn", kind="dcn", topology="fat-tree", size=128, bandwidth_bytes_per_s=6.25e9, latency_s=30e-6)
SLICES = Cluster(name="slices", title="", device=replace(a100(), generation="tpu"), devices_per_node=16, nodes=8,
                 tiers=(ICI, POD, DCN))  # fmt: skip


@pytest.mark.parametrize("kind", ["all_gather", "all_reduce", "send"])
@pytest.mark.parametrize("load", [1, 2])
@pytest.mark.parametrize(
    ("group", "per_slice", "slices", "hops_s"),
    [
        (Group(2), 2, 1, 0.0), (Group(4, 2), 4, 1, 0.0),
        # Four slices of one pod are three hops; eight of two pods six and one between the pods.
        (Group(64), 16, 4, 3 * 10e-6), (Group(128), 16, 8, 6 * 10e-6 + 30e-6), (Group(8, 16), 1, 8, 90e-6),
        (Group(2, 64), 1, 2, 30e-6),
    ],
)  # fmt: skip
def test_slices_over_two_tiers(kind: str, load: int, group: Group, per_slice: int, slices: int, hops_s: float) -> None:
    """On the slice's own links, then a ring over the slices of every member's share, each way out at half a card."""
    part = group_slice(ICI, Group(per_slice, group.stride), load)
    inside = float(torus_time_s(kind, 64e6, part)) if per_slice > 1 else 0.0
    between = 0.0
    if slices > 1:
        # All that leave a slice pass its thin way out.
        rate = per_slice * 6.25e9 * efficiency(POD) / 2 / load
        share = 1.0 if kind == "send" else (slices - 1) / slices
        between = hops_s + share * 64e6 / rate
    expected = inside + (2 if kind == "all_reduce" else 1) * between
    assert collective_time_s(SLICES, kind, 64e6, group, concurrent=load) == pytest.approx(expected, rel=1e-9)
    assert 0 < collective_time_s(SLICES, kind, 1.0, group) < collective_time_s(SLICES, kind, 64e6, group)
    assert collective_time_s(SLICES, kind, 64e6, Group(1)) == collective_time_s(SLICES, kind, 0.0, group) == 0.0
