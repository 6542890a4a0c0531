"""Fair rates of a few flows, the links of a small fabric, and the rings and exchanges on them, by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from simulator.cluster.contention import (
    exchange_s_per_byte,
    graph_spans,
    hop_rates,
    links_of,
    max_min_rates,
    placed_spans,
    ring_flows,
    ring_rates,
)
from simulator.cluster.placement import Group
from simulator.cluster.spans import spans
from simulator.spec.hardware import Cluster, Tier
from tests.support import a100

NODE = Tier(name="node", kind="nvswitch", topology="switch", size=4, bandwidth_bytes_per_s=60.0, latency_s=1.0)
POD = Tier(name="pod", kind="infiniband", topology="fat-tree", size=12, bandwidth_bytes_per_s=10.0, latency_s=1.0,
           oversubscription=2.0, usable_fraction=0.5)  # fmt: skip
TOP = Tier(name="top", kind="infiniband", topology="fat-tree", size=48, bandwidth_bytes_per_s=7.0, latency_s=1.0,
           oversubscription=3.0, usable_fraction=0.25)  # fmt: skip
BASE = Cluster(name="base", title="", device=a100(), devices_per_node=4, nodes=12, tiers=(NODE, POD, TOP))
"""Twelve nodes of four, three a pod. Used are 5 bytes/s of a card, 4 * 5 / 2 = 10 out of a node, and of a pod
12 * 7 / 4 / 3 = 7."""


def rates(uses: list[tuple[int, int, float]], capacity: list[float], flows: int) -> list[float]:
    flow, link, share = (np.array(column) for column in zip(*uses, strict=True))
    found: list[float] = max_min_rates(flow, link, np.array(capacity), flows, share).tolist()
    return found


def test_the_tightest_link_fixes_its_flows_first() -> None:
    """Link 0 leaves 5 each to flows 0 and 1; half of flow 1 passes link 1, which has 6 for it alone; a quarter of flow
    3 passes link 2; flow 2 passes none."""
    uses = [(0, 0, 1.0), (1, 0, 1.0), (1, 1, 0.5), (3, 2, 0.25)]
    assert rates(uses, [10.0, 3.0, 8.0], 4) == [5.0, 5.0, inf, 32.0]
    # Link 1 now holds flow 1 to 4, so that flow 0 has the other 6.
    assert rates(uses, [10.0, 2.0, 8.0], 4) == [6.0, 4.0, inf, 32.0]


def test_what_fixed_flows_leave_is_shared_on() -> None:
    """Link 0 holds flow 0 to 0.25; link 1 keeps 0.5 of its 0.75 for flow 1, which leaves 2.5 of link 2's 3 for flow 2.
    A quarter of flow 0 passes link 3, and flow 3 has the rest of its 8."""
    uses = [(0, 0, 1.0), (0, 1, 1.0), (1, 1, 1.0), (1, 2, 1.0), (2, 2, 1.0), (0, 3, 0.25), (3, 3, 1.0)]
    assert rates(uses, [0.25, 0.75, 3.0, 8.0], 4) == [0.25, 0.5, 2.5, 7.9375]


def test_flows_that_are_held_alike_are_fixed_alike() -> None:
    """Two links of 0.3 and one flow over both: 0.1 + 0.2 is a little more, but all three flows have 0.15."""
    third = 0.1 + 0.2
    uses = [(0, 0, 1.0), (1, 1, 1.0), (2, 0, 1.0), (2, 1, 1.0)]
    assert rates(uses, [third, 0.3], 3) == pytest.approx([0.15, 0.15, 0.15], rel=1e-9)
    whole = max_min_rates(np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([10.0, 3.0]), 2)
    assert whole.tolist() == [7.0, 3.0]
    # A cut link carries nothing.
    assert rates([(0, 0, 1.0), (1, 1, 1.0)], [0.0, 2.0], 2) == [0.0, 2.0]


def test_links_have_what_collectives_reach_of_them() -> None:
    links = links_of(BASE)
    assert (links.unit_sizes, links.unit_starts) == ((4, 12), (96, 120))
    assert links.capacity.tolist() == pytest.approx([5.0] * 96 + [10.0] * 24 + [7.0] * 8)
    full = links_of(replace(BASE, tiers=(NODE, replace(POD, oversubscription=1.0), replace(TOP, oversubscription=1.0))))
    assert (full.unit_sizes, full.unit_starts) == ((12,), (96,))
    assert full.capacity.tolist() == pytest.approx([5.0] * 96 + [21.0] * 8)
    # A top of 30 devices has three pods, the last of them half full.
    part = links_of(replace(BASE, nodes=8, devices_per_node=4, tiers=(NODE, POD, replace(TOP, size=32))))
    assert (part.unit_sizes, part.unit_starts) == ((4, 12), (64, 80))
    assert len(part.capacity) == 64 + 16 + 6
    alone = links_of(replace(BASE, nodes=1, tiers=(NODE,)))
    assert (alone.capacity.tolist(), alone.unit_sizes, alone.unit_starts) == ([], (), ())


def test_ways_lead_out_of_every_unit_and_into_the_other() -> None:
    """By card out and in (d, 48 + d), a node's way up and down (96 + n, 108 + n), a pod's (120 + p, 124 + p)."""
    links = links_of(BASE)
    flow, link = links.route(np.array([0, 0, 47]), np.array([1, 5, 13]))
    used = [sorted(link[flow == index].tolist()) for index in range(3)]
    assert used == [[], [0, 48 + 5, 96 + 0, 108 + 1], sorted([47, 48 + 13, 96 + 11, 108 + 3, 120 + 3, 124 + 1])]
    # 32 devices: eight nodes and three pods, of which the last is not full.
    part = links_of(replace(BASE, nodes=8, tiers=(NODE, POD, replace(TOP, size=32))))
    flow, link = part.route(np.array([30]), np.array([2]))
    assert sorted(link.tolist()) == sorted([30, 32 + 2, 64 + 7, 72 + 0, 80 + 2, 83 + 0])


GROUPS = [(2, 3), (0, 1, 4, 5, 8), (9, 13)]


def test_rings_run_in_channels_between_units() -> None:
    """Of the second group two channels lead from the first node to the second, one to the third, one back."""
    flows = ring_flows(BASE, GROUPS)
    found = list(zip(flows.source, flows.target, flows.group, flows.edge, strict=True))
    assert found == [(0, 4, 1, 0), (1, 5, 1, 0), (4, 8, 1, 1), (8, 0, 1, 2), (9, 13, 2, 3), (13, 9, 2, 4)]


def test_a_ring_is_as_fast_as_its_slowest_edge() -> None:
    """A group in one node has no edge out. Two channels of 5 leave node 0; one leaves nodes 1 and 2. The third group
    shares node 2's way out, 10, with it."""
    assert ring_rates(BASE, GROUPS).tolist() == [inf, 5.0, 5.0]
    assert ring_rates(BASE, [(2, 3), (0, 1)]).tolist() == [inf, inf]
    # Two channels of 5 each way, and two groups that share a node's 10.
    assert ring_rates(BASE, [(0, 1, 4, 5)]).tolist() == [10.0]
    assert ring_rates(BASE, [(0, 1, 4, 5), (2, 3, 6, 7)]).tolist() == [5.0, 5.0]
    # Four pairs across pods have a quarter of 7 each.
    assert ring_rates(BASE, [(d, d + 12) for d in range(4)]).tolist() == pytest.approx([1.75] * 4)
    alone = replace(BASE, nodes=1, tiers=(NODE,))
    assert ring_rates(alone, [(0, 1), (2, 3)]).tolist() == [inf, inf]


def test_a_chain_is_as_fast_as_its_slowest_message() -> None:
    """In a node there is no limit here; a card has 5; three that leave one node 10 / 3; four out of a pod 7 / 4."""
    assert hop_rates(BASE, [(0, 1), (4, 8)]).tolist() == [inf, 5.0]
    assert hop_rates(BASE, [(0, 1, 4), (8, 9)]).tolist() == [5.0, inf]
    assert hop_rates(BASE, [(d, d + 4) for d in range(3)]).tolist() == pytest.approx([10 / 3] * 3)
    assert hop_rates(BASE, [(d, d + 12) for d in range(4)]).tolist() == pytest.approx([1.75] * 4)
    # A chain of three pods, of which the middle one has others beside: 7 / 2.
    assert hop_rates(BASE, [(0, 12, 24), (13, 37)]).tolist() == pytest.approx([3.5, 3.5])
    assert hop_rates(BASE, [(0,), (1,)]).tolist() == [inf, inf]
    alone = replace(BASE, nodes=1, tiers=(NODE,))
    assert hop_rates(alone, [(0, 1), (2, 3)]).tolist() == [inf, inf]


def test_an_exchange_takes_what_leaves_the_fullest_link() -> None:
    """Of (0, 1, 4) a third of a rank's bytes leaves node 0 twice, over 10; two thirds leave device 4's card, of 5."""
    assert exchange_s_per_byte(BASE, [(0, 1, 4), (2, 3)]) == pytest.approx((2 / 3) / 5)
    # Four pairs: half of every buffer leaves node 0, over 10.
    assert exchange_s_per_byte(BASE, [(d, d + 4) for d in range(4)]) == pytest.approx(4 * 0.5 / 10)
    # Across pods 7 bytes/s take the same.
    assert exchange_s_per_byte(BASE, [(d, d + 12) for d in range(4)]) == pytest.approx(4 * 0.5 / 7)
    assert exchange_s_per_byte(BASE, [(0, 1), (2, 3)]) == 0.0
    # Groups of unlike sizes: 2/3 of three buffers, then half of one more from the same node.
    found = exchange_s_per_byte(BASE, [(0, 4, 8), (1, 5), (2, 6), (3, 7)])
    assert found == pytest.approx((2 / 3 + 3 * 0.5) / 10)


def test_spans_of_explicit_groups() -> None:
    """The worst of each: five ranks on three nodes and two pods, the other group on one of each."""
    found = graph_spans(BASE, [(16, 17, 18, 20, 21), (0, 1, 4, 5, 12)])
    assert (found.size, found.units) == (5, (3, 2, 1))
    assert found.members == (5 / 3, 5 / 2, 5.0)
    # One channel of 5 leaves node 1 of the second group.
    assert (found.up_bytes_per_s, found.hop_bytes_per_s) == (5.0, 5.0)
    # Device 12's card: four fifths of its buffer; its pod has 7 for that, and the first pod 4/5 in all.
    assert found.exchange_s_per_byte == pytest.approx((4 / 5) / (7 / 4))
    placed = replace(BASE, rank_devices=tuple(d % 4 * 12 + d // 4 for d in range(48)))
    # Neighbouring ranks are 12 devices apart then: one in each pod.
    group = placed_spans(placed, Group(4))
    assert (group.units, group.members) == ((4, 4, 1), (1.0, 1.0, 4.0))
    assert group.up_bytes_per_s == pytest.approx(7 / 12)
    assert placed_spans(BASE, Group(4)) == spans(BASE, Group(4))
