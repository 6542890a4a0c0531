"""Rates of a group out of its units, counted by hand on three tiers of unequal sizes, rates and oversubscription."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from simulator.cluster.placement import Group, single_node_group
from simulator.cluster.spans import NET_EFFICIENCY, NET_KINDS, PCIE_EFFICIENCY, efficiency, spans, units_spanned
from simulator.spec.hardware import Cluster, Tier
from tests.support import a100

NODE = Tier(name="node", kind="nvlink", topology="switch", size=4, bandwidth_bytes_per_s=1e3, latency_s=0.0)
LEAF = Tier(name="leaf", kind="other", topology="fat-tree", size=12, bandwidth_bytes_per_s=100.0, latency_s=0.0,
            oversubscription=2.0, usable_fraction=1.0)  # fmt: skip
TOP = Tier(name="top", kind="other", topology="fat-tree", size=24, bandwidth_bytes_per_s=14.0, latency_s=0.0,
           oversubscription=3.0, usable_fraction=0.5)  # fmt: skip
THREE = Cluster(name="three", title="", device=a100(), devices_per_node=4, nodes=6, tiers=(NODE, LEAF, TOP))


@pytest.mark.parametrize("kind", ["infiniband", "roce", "ethernet", "dcn", "efa", "slingshot", "omni-path", "loopback"])
def test_networks_reach_what_was_published_of_them(kind: str) -> None:
    assert kind in NET_KINDS
    assert efficiency(replace(LEAF, kind=kind, usable_fraction=0.0)) == NET_EFFICIENCY == 0.915


def test_other_links_reach_their_model_value_or_what_was_measured() -> None:
    assert efficiency(replace(LEAF, kind="pcie", usable_fraction=0.0)) == PCIE_EFFICIENCY == 0.77
    assert efficiency(replace(LEAF, kind="xgmi", usable_fraction=0.0)) == 0.8
    for kind in ("infiniband", "pcie", "xgmi"):
        assert efficiency(replace(LEAF, kind=kind, usable_fraction=0.3)) == 0.3


@pytest.mark.parametrize(
    ("group", "units", "up", "exchange", "hop"),
    [
        # Inside a node nothing is crossed.
        (Group(4), (1, 1, 1), math.inf, 0.0, math.inf),
        # One rank in each of three nodes under one leaf: 1 x 100 / 2; two thirds leave at that; half a card a hop.
        (Group(3, 4), (3, 1, 1), 50.0, 2 / 3 * 2 / 100, 50.0),
        # Six ranks, one in each node, three under each leaf: 3 x 7 / 3 out of a leaf, and half of the bytes at 7 / 3.
        (Group(6, 4), (6, 2, 1), 7.0, 1 / 2 * 3 / 7, 7.0),
        # Every device: 4 x 100 / 2 out of a node, 12 x 7 / 3 out of a leaf.
        (Group(24), (6, 2, 1), 28.0, 1 / 2 * 3 / 7, 7.0),
        # Runs of six start at every sixth device: three of them in each of two nodes.
        (Group(6), (2, 1, 1), 150.0, 1 / 2 * 2 / 100, 100.0),
        # Two ranks twelve apart, one under each leaf: a third of the device's own 7 bytes per second.
        (Group(2, 12), (2, 2, 1), 7 / 3, 1 / 2 * 3 / 7, 7 / 3),
    ],
)
def test_a_group_s_rates_are_those_of_the_tightest_tier(
    group: Group, units: tuple[int, ...], up: float, exchange: float, hop: float
) -> None:
    one, three = spans(THREE, group), spans(THREE, group, 3)
    assert one.units == units
    assert one.members == tuple(group.size / unit for unit in units)
    assert (one.size, one.nodes, one.per_node) == (group.size, units[0], group.size / units[0])
    assert (one.up_bytes_per_s, one.exchange_s_per_byte, one.hop_bytes_per_s) == pytest.approx((up, exchange, hop))
    shared = (three.up_bytes_per_s, three.exchange_s_per_byte, three.hop_bytes_per_s)
    assert shared == pytest.approx((up / 3, exchange * 3, hop / 3))


def test_a_run_is_counted_where_it_lies_worst() -> None:
    """Runs of 3 start at 0, 3, 6, ...: the one at 3 leaves its node of 4. The only run starts at a node's first."""
    assert (units_spanned(Group(3), 4), units_spanned(single_node_group(3), 4)) == (2, 1)
    # Of 10 in 4s: 2 to 11 and 6 to 15 touch three nodes, as 0 to 9 do; runs of 9 may begin on a node's last device.
    assert [units_spanned(group, 4) for group in (Group(10), Group(9), single_node_group(9))] == [3, 3, 3]
    assert (units_spanned(Group(13), 4), units_spanned(single_node_group(13), 4)) == (4, 4)
    assert (units_spanned(Group(6, 2), 4), units_spanned(Group(2, 3), 4)) == (3, 2)
    # A cluster of 22 devices has six such nodes, the last half full.
    assert [units_spanned(Group(8, 4), 4, devices) for devices in (22, 24, 0)] == [6, 6, 8]
    # The only run starts on a boundary and may end on one.
    assert (units_spanned(single_node_group(8), 4), units_spanned(single_node_group(9), 4)) == (2, 3)
    # Ranks 0 and 3, 1 and 4, 2 and 5, then 6 and 9: of units of 8 the worst pair touches two, the first pair one.
    assert [units_spanned(Group(2, 1, 2, 3, tiled), 8) for tiled in (True, False)] == [2, 1]
    # Two blocks of 3: each in two nodes; the blocks' starts 24 apart never share one.
    assert (units_spanned(Group(6, 1, 2, 24), 4), units_spanned(Group(6, 4, 2, 24), 4)) == (4, 6)
    assert type(units_spanned(Group(6, 1, 2, 24), 4)) is int


def test_a_cluster_ends_before_its_last_units_are_full() -> None:
    """20 devices: two leaves of 12 and one top of 24, though a run of 20 could lie over three and two."""
    assert spans(replace(THREE, nodes=5), Group(20)).units == (5, 2, 1)
