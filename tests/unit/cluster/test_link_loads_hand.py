"""What collectives put on each kind of link, and where axes lie, counted by hand on a fabric of unlike tiers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.cluster.link_loads import LinkLoad, bottleneck, link_loads
from simulator.cluster.placement import Group
from simulator.cluster.traffic_map import axis_placement, ring_loads_bytes, times_by_algorithm
from simulator.spec.hardware import Cluster, Link, Tier
from tests.support import a100, dgx

NODE = Tier(name="node", kind="nvswitch", topology="switch", size=4, bandwidth_bytes_per_s=60.0, latency_s=1.0)
POD = Tier(name="pod", kind="infiniband", topology="fat-tree", size=12, bandwidth_bytes_per_s=10.0, latency_s=1.0,
           oversubscription=2.0)  # fmt: skip
TOP = Tier(name="top", kind="pcie", topology="fat-tree", size=48, bandwidth_bytes_per_s=7.0, latency_s=1.0,
           oversubscription=3.0)  # fmt: skip
BASE = Cluster(name="base", title="", device=a100(), devices_per_node=4, nodes=12, tiers=(NODE, POD, TOP))
"""Twelve nodes of four, three a pod: collectives reach 0.8, 0.915 and 0.77 of the three tiers' rates."""
FULL = replace(BASE, tiers=(NODE, replace(POD, oversubscription=1.0), TOP))


def inside(load_bytes: float) -> LinkLoad:
    return LinkLoad(tier="node", link="a device's link into node", load_bytes=load_bytes, capacity_bytes_per_s=60.0,
                    usable_fraction=0.8, sharing_factor=1.0)  # fmt: skip


def card(load_bytes: float) -> LinkLoad:
    return LinkLoad(tier="pod", link="a device's link into pod", load_bytes=load_bytes, capacity_bytes_per_s=10.0,
                    usable_fraction=0.915, sharing_factor=1.0)  # fmt: skip


def node_out(load_bytes: float, groups: float) -> LinkLoad:
    # 4 devices of 10 bytes/s at two to one.
    return LinkLoad(tier="pod", link="a unit of 4 devices into pod", load_bytes=load_bytes, capacity_bytes_per_s=20.0,
                    usable_fraction=0.915, sharing_factor=groups)  # fmt: skip


def pod_out(load_bytes: float, groups: float) -> LinkLoad:
    # 12 devices of 7 bytes/s at three to one.
    return LinkLoad(tier="top", link="a unit of 12 devices into top", load_bytes=load_bytes, capacity_bytes_per_s=28.0,
                    usable_fraction=0.77, sharing_factor=groups)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all_reduce", 1200.0), ("reduce_scatter", 600.0), ("all_gather", 600.0), ("all_to_all", 600.0),
     ("broadcast", 800.0), ("reduce", 800.0), ("send", 800.0)],
)  # fmt: skip
def test_a_group_within_a_node_loads_its_own_links(kind: str, sent: float) -> None:
    """Of 800 bytes on 4 ranks three quarters leave a device, twice for an all-reduce; others pass the whole buffer."""
    assert link_loads(BASE, kind, 800.0, Group(4)) == (inside(sent),)
    assert link_loads(BASE, kind, 800.0, Group(1)) == ()


def test_pairs_and_tiers_at_full_bisection() -> None:
    """A pair in a node halves 800; between pods at full bisection twelve devices have all of their 7 bytes/s."""
    assert link_loads(BASE, "all_gather", 800.0, Group(2)) == (inside(400.0),)
    full = replace(BASE, tiers=(NODE, POD, replace(TOP, oversubscription=1.0)))
    assert link_loads(full, "all_gather", 100.0, Group(2, 12)) == (
        card(50.0), node_out(200.0, 4.0), replace(pod_out(600.0, 12.0), capacity_bytes_per_s=84.0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # 24 ranks on six nodes and two pods. A ring passes 23/24 of 2400, over four channels out of each node.
        ("all_gather", (inside(2300.0), card(575.0), node_out(2300.0, 1.0), pod_out(2300.0, 1.0))),
        ("broadcast", (inside(2400.0), card(600.0), node_out(2400.0, 1.0), pod_out(2400.0, 1.0))),
        # Each rank has 100 for every other: 3 in its node, 20 beyond; a pod's 12 ranks have 100 for each of 12.
        ("all_to_all", (inside(300.0), card(2000.0), node_out(8000.0, 1.0), pod_out(14400.0, 1.0))),
        # One message out of each unit, over one card.
        ("send", (inside(2400.0), card(2400.0), node_out(2400.0, 1.0), pod_out(2400.0, 1.0))),
    ],
)
def test_a_group_of_whole_pods(kind: str, expected: tuple[LinkLoad, ...]) -> None:
    assert link_loads(BASE, kind, 2400.0, Group(24)) == expected
    assert link_loads(FULL, kind, 2400.0, Group(24)) == (*expected[:2], expected[3])


@pytest.mark.parametrize(
    ("kind", "each"), [("all_gather", 50.0), ("all_reduce", 100.0), ("all_to_all", 50.0), ("send", 100.0)]
)
def test_pairs_in_different_pods_share_the_ways_out(kind: str, each: float) -> None:
    """Twelve apart: one rank of each pair in a node and a pod, so four pairs share a node's way and twelve a pod's."""
    expected = (card(each), node_out(4 * each, 4.0), pod_out(12 * each, 12.0))
    assert link_loads(BASE, kind, 100.0, Group(2, 12)) == expected


def test_the_bottleneck_drains_longest() -> None:
    """Per byte a pair puts 12 halves on a pod's 28 * 0.77 bytes/s, more than 4 on a node's 20 * 0.915."""
    found = bottleneck(BASE, "all_gather", Group(2, 12))
    assert found == pod_out(6.0, 12.0)
    assert found.drain_s == pytest.approx(6 / (28 * 0.77))
    assert bottleneck(BASE, "all_gather", Group(4)) == inside(0.75)
    assert bottleneck(BASE, "all_gather", Group(1)) is None
    # With a node's way out at twenty to one that is the fuller one.
    thin = replace(BASE, tiers=(NODE, replace(POD, oversubscription=20.0), TOP))
    assert bottleneck(thin, "all_gather", Group(2, 12)) == replace(node_out(2.0, 4.0), capacity_bytes_per_s=2.0)


ICI = Tier(name="ici", kind="ici", topology="torus", size=24, bandwidth_bytes_per_s=40.0, latency_s=1.0, shape=(4, 6),
           wrap=(True, False))  # fmt: skip
DCN = Tier(name="dcn", kind="dcn", topology="fat-tree", size=48, bandwidth_bytes_per_s=5.0, latency_s=1.0,
           oversubscription=2.0)  # fmt: skip
SLICES = Cluster(name="slices", title="", device=a100(), devices_per_node=24, nodes=2, tiers=(ICI, DCN))
"""Two slices of 4 x 6, rings of four and lines of six, with links of 40 / 4 bytes/s each way."""


def along(dim: int, shape: str, load_bytes: float, sharing: float = 1.0) -> LinkLoad:
    return LinkLoad(tier="ici", link=f"a link of dimension {dim} ({shape})", load_bytes=load_bytes,
                    capacity_bytes_per_s=10.0, usable_fraction=0.95, sharing_factor=sharing)  # fmt: skip


def out_of_slice(card_bytes: float, load_bytes: float, groups: float) -> tuple[LinkLoad, LinkLoad]:
    own = LinkLoad(tier="dcn", link="a device's link into dcn", load_bytes=card_bytes, capacity_bytes_per_s=5.0,
                   usable_fraction=0.915, sharing_factor=1.0)  # fmt: skip
    unit = LinkLoad(tier="dcn", link="a unit of 24 devices into dcn", load_bytes=load_bytes,
                    capacity_bytes_per_s=24 * 5 / 2, usable_fraction=0.915, sharing_factor=groups)  # fmt: skip
    return own, unit


@pytest.mark.parametrize(
    ("kind", "group", "expected"),
    [
        # A line has one lane, a ring two: 23/24 of 2400 over three.
        ("all_gather", Group(24), (along(1, "line of 6", 2300 / 3), along(0, "ring of 4", 2300 / 3))),
        ("broadcast", Group(24), (along(1, "line of 6", 800.0), along(0, "ring of 4", 800.0))),
        # A line's middle carries 6/4 buffers, a ring's links 4/8 each.
        ("all_to_all", Group(24), (along(1, "line of 6", 3600.0), along(0, "ring of 4", 1200.0))),
        ("send", Group(24), (along(1, "line of 6", 2400.0), along(0, "ring of 4", 2400.0))),
        # Three ranks two apart on a line that two groups share: 2/3 of 2400 over half a lane.
        ("all_gather", Group(3, 2), (along(1, "line of 3", 3200.0, 2.0),)),
        ("all_to_all", Group(3, 2), (along(1, "line of 3", 2400 * 3 * 2 / 4, 2.0),)),
        ("send", Group(3, 2), (along(1, "line of 3", 4800.0, 2.0),)),
        # Pairs along either dimension have one lane.
        ("all_gather", Group(2), (along(1, "line of 2", 1200.0),)),
        ("all_gather", Group(2, 6), (along(0, "line of 2", 1200.0),)),
        # A column: a ring of four.
        ("all_gather", Group(4, 6), (along(0, "ring of 4", 900.0),)),
        # Pairs over two slices: half of 2400 a device, and 24 pairs share a slice's way out.
        ("all_gather", Group(2, 24), out_of_slice(1200.0, 24 * 1200.0, 24.0)),
        # Both slices whole: inside as above, and 47/48 over 24 members' cards.
        ("all_gather", Group(48), (along(1, "line of 6", 2300 / 3), along(0, "ring of 4", 2300 / 3),
                                   *out_of_slice(2350 / 24, 2350.0, 1.0))),
    ],
)  # fmt: skip
def test_loads_of_slices_and_between_them(kind: str, group: Group, expected: tuple[LinkLoad, ...]) -> None:
    found = link_loads(SLICES, kind, 2400.0, group)
    loads = [load.load_bytes for load in found]
    assert loads == pytest.approx([load.load_bytes for load in expected])
    assert tuple(replace(load, load_bytes=0.0) for load in found) == tuple(
        replace(load, load_bytes=0.0) for load in expected
    )


RING = tuple(
    Link(one=str(one), other=str((one + 1) % 4), bandwidth_bytes_per_s=20.0 if one == 2 else 100.0) for one in range(4)
)
LISTED = replace(BASE, nodes=1, tiers=(NODE,), links=RING)


@pytest.mark.parametrize(
    ("kind", "load_bytes", "sharing"),
    # On the thin cable from 2 to 3: 3/4 of 400 once or twice, or all of it; in an exchange its own 100 and, twice,
    # half of what goes between opposite devices.
    [("all_gather", 300.0, 1.0), ("all_reduce", 600.0, 1.0), ("broadcast", 400.0, 1.0), ("send", 400.0, 1.0),
     ("all_to_all", 200.0, 2.0)],
)  # fmt: skip
def test_a_listed_ring_s_thin_cable(kind: str, load_bytes: float, sharing: float) -> None:
    (found,) = link_loads(LISTED, kind, 400.0, Group(4))
    assert found.link == "the cable from 2 to 3"
    assert (found.tier, found.capacity_bytes_per_s, found.usable_fraction) == ("graph", 20.0, 1.0)
    assert (found.load_bytes, found.sharing_factor) == (pytest.approx(load_bytes), pytest.approx(sharing))
    assert link_loads(LISTED, kind, 400.0, Group(1)) == ()


def test_a_send_along_a_chain_does_not_close_it() -> None:
    """The thin cable joins the last device to the first: a ring passes it, a chain does not."""
    links = tuple(
        Link(one=str(one), other=str((one + 1) % 4), bandwidth_bytes_per_s=20.0 if one == 3 else 100.0)
        for one in range(4)
    )
    closed = replace(LISTED, links=links)
    (ring,), (chain,) = (link_loads(closed, kind, 400.0, Group(4)) for kind in ("all_gather", "send"))
    assert (ring.link, ring.capacity_bytes_per_s) == ("the cable from 3 to 0", 20.0)
    assert (chain.capacity_bytes_per_s, chain.load_bytes) == (100.0, 400.0)


def test_where_axes_lie() -> None:
    """A pair twelve apart gets a twelfth of a pod's way out, which is less than half of a card."""
    far = axis_placement(BASE, "dp", Group(2, 12))
    assert (far.axis, far.size, far.tier) == ("dp", 2, "top")
    assert far.units == {"node": 2, "pod": 2, "top": 1}
    assert far.sharing == {"pod": 4.0, "top": 12.0}
    assert far.up_bytes_per_s == pytest.approx(min(10 * 0.915 / 2, 7 * 0.77 / 3))
    near = axis_placement(BASE, "cp", Group(3, 4))
    assert (near.tier, near.units, near.sharing) == ("pod", {"node": 3, "pod": 1, "top": 1}, {"pod": 4.0})
    assert near.up_bytes_per_s == pytest.approx(10 * 0.915 / 2)
    here = axis_placement(BASE, "tp", Group(4))
    assert (here.tier, here.units, here.sharing) == ("node", {"node": 1, "pod": 1, "top": 1}, {})
    assert here.up_bytes_per_s == float("inf")
    assert all(isinstance(units, int) for units in far.units.values())


def test_what_rings_put_on_each_link() -> None:
    """Two nodes of two. Apart by two, each device passes half of 100 by its own card; a ring of all four passes 3/4 of
    100 over the two channels from either node to the other."""
    small = Tier(name="node", kind="nvswitch", topology="switch", size=2, bandwidth_bytes_per_s=60.0, latency_s=1.0)
    outer = replace(POD, size=4, oversubscription=1.0)
    two = Cluster(name="two", title="", device=a100(), devices_per_node=2, nodes=2, tiers=(small, outer))
    assert ring_loads_bytes(two, "all_gather", 100.0, Group(2, 2)).tolist() == [50.0] * 8
    assert ring_loads_bytes(two, "all_reduce", 100.0, Group(4)).tolist() == [75.0] * 8
    assert ring_loads_bytes(two, "all_gather", 100.0, Group(2)).tolist() == [0.0] * 8
    thin = replace(two, tiers=(small, replace(outer, oversubscription=4.0)))
    # The cards, out and in; then each node's way up and down, which both of its devices share.
    assert ring_loads_bytes(thin, "all_gather", 100.0, Group(2, 2)).tolist() == [50.0] * 8 + [100.0] * 4
    alone = replace(two, nodes=1, tiers=(small,))
    assert ring_loads_bytes(alone, "all_gather", 100.0, Group(2)).tolist() == []


def test_ways_to_run_a_collective_are_listed_by_time() -> None:
    found = times_by_algorithm(dgx(2), "all_reduce", 3e5, Group(16))
    assert list(found.values()) == sorted(found.values())
    assert list(found) != sorted(found)
    assert all(isinstance(seconds, float) for seconds in found.values())
    assert set(found) == {"ring/ll", "ring/ll128", "ring/part", "ring/simple", "tree/ll", "tree/ll128", "tree/simple"}
