"""Gloo, routed tokens, tori and unequal nodes: short closed forms and choices, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.cluster import members
from simulator.cluster.collectives import Wire
from simulator.cluster.dispatch import copies_kept, deduplicated_exchange_s
from simulator.cluster.gloo import gloo_time_s, gloo_wire_bytes
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.cluster.spans import units_spanned
from simulator.cluster.torus import Slice, group_slice, torus_time_s
from simulator.errors import InputError
from simulator.spec.hardware import Cluster, Tier
from tests.support import a100, dgx

WIRE = Wire(alpha_s=3.0, beta_s_per_byte=0.5)


@pytest.mark.parametrize(
    ("kind", "steps", "moved"),
    # Four ranks and 80 bytes: steps of the latency, bytes one after another on a rank's wire.
    [("all_reduce", 6, 120), ("reduce_scatter", 6, 120), ("all_gather", 3, 60), ("all_to_all", 3, 60),
     ("broadcast", 2, 160), ("reduce", 3 + 3, 60 + 60), ("send", 1, 80)],
)  # fmt: skip
def test_gloo_collectives_step_by_step(kind: str, steps: int, moved: float) -> None:
    assert gloo_time_s(kind, 80.0, 4, WIRE) == pytest.approx(3 * steps + 0.5 * moved)


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all_reduce", 120), ("reduce_scatter", 120), ("all_gather", 60), ("all_to_all", 60), ("broadcast", 60),
     # Three of four ranks send a quarter to the root besides.
     ("reduce", 60 + 3 * 20 / 4), ("send", 80)],
)  # fmt: skip
def test_gloo_ranks_send_in_the_mean(kind: str, sent: float) -> None:
    assert gloo_wire_bytes(kind, 80.0, 4) == sent


def test_gloo_refuses_what_it_does_not_have() -> None:
    with pytest.raises(InputError, match=r"gloo has no all_gathr") as refused:
        gloo_time_s("all_gathr", 80.0, 4, WIRE)
    assert "all_gather" in refused.value.problems[0].hint


def test_copies_of_a_token_that_reach_a_node() -> None:
    """By counting: of all ways to draw 3 experts from 2 or 4 nodes, how many nodes are touched on average."""
    for nodes in (2, 4):
        draws = np.stack(np.meshgrid(*[np.arange(nodes)] * 3)).reshape(3, -1).T
        touched = np.mean([len(set(draw)) for draw in draws.tolist()])
        assert copies_kept(nodes, 3) == pytest.approx(touched / 3)
    assert (copies_kept(1, 3), copies_kept(4, 1)) == (1.0, 1.0)
    assert copies_kept(np.array([1, 2]), 1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("size", "stride", "nodes", "per_node"), [(16, 1, 2, 8), (32, 1, 4, 8), (8, 1, 1, 8), (8, 4, 4, 2)]
)
def test_deduplicated_tokens_take_the_slower_stage(size: int, stride: int, nodes: int, per_node: int) -> None:
    cluster, group = dgx(4), Group(size, stride)
    reached = nodes * (1 - (1 - 1 / nodes) ** 4) / 4 if nodes > 1 else 1.0
    network = float(collective_time_s(cluster, "all_to_all", 64e6 * reached, group))
    inside = float(collective_time_s(cluster, "all_to_all", 64e6, Group(per_node, stride)))
    assert float(deduplicated_exchange_s(cluster, 64e6, 4, group)) == pytest.approx(max(network, inside), rel=1e-12)
    fast = replace(cluster, tiers=(replace(cluster.tiers[0], bandwidth_bytes_per_s=3e9), cluster.tiers[1]))
    slow_inside = float(collective_time_s(fast, "all_to_all", 64e6, Group(per_node, stride)))
    assert float(deduplicated_exchange_s(fast, 64e6, 4, group)) >= slow_inside


def test_groups_touch_so_many_units() -> None:
    """Of nodes of 8: blocks of 4 ranks 32 apart; a run that leaves its node; strides as long as a node."""
    assert units_spanned(Group(8, 1, 2, 32), 8) == 2
    assert units_spanned(Group(32, 1, 2, 32), 8) == 4
    assert units_spanned(Group(4, 8), 8) == 4
    assert units_spanned(Group(4, 16), 8) == 4
    assert units_spanned(Group(12, 1, tiled=False), 8) == 2
    assert units_spanned(Group(12, 1), 8) == 2
    assert units_spanned(Group(6, 3), 8, 16) == 2
    assert units_spanned(Group(np.array([4, 16]), 1), 8).tolist() == [1, 2]


TORUS = Tier(name="ici", kind="ici", topology="torus", size=32, bandwidth_bytes_per_s=40.0, latency_s=2.0,
             shape=(4, 8))  # fmt: skip


def test_a_group_covers_the_last_dimension_first() -> None:
    """8 ranks fill the last dimension and close its ring, 4 of them are a line, 16 take two of four rows besides."""
    link = 40.0 / 4 * 0.95
    ring, line, rows = (group_slice(TORUS, Group(size, 1)) for size in (8, 4, 16))
    assert [float(x) for x in ring.extent] == [8, 1]
    assert [bool(x) for x in ring.wrapped] == [True, False]
    assert ([float(x) for x in line.extent], bool(line.wrapped[0])) == ([4, 1], False)
    assert ([float(x) for x in rows.extent], [bool(x) for x in rows.wrapped]) == ([8, 2], [True, False])
    assert (ring.link_bytes_per_s, ring.hop_s) == (pytest.approx(link), 2.0)
    assert group_slice(TORUS, Group(8, 1), 2).link_bytes_per_s == pytest.approx(link / 2)
    column = group_slice(TORUS, Group(4, 8))
    assert ([float(x) for x in column.extent], [float(x) for x in column.apart]) == ([1, 4], [8, 1])
    assert [bool(x) for x in column.wrapped] == [False, True]
    open_ended = replace(TORUS, wrap=(True, False))
    assert [bool(x) for x in group_slice(open_ended, Group(32, 1)).wrapped] == [False, True]
    assert not any(bool(x) for x in group_slice(replace(TORUS, topology="mesh"), Group(32, 1)).wrapped)
    pair = group_slice(replace(TORUS, shape=(16, 2)), Group(2, 1))
    assert bool(pair.wrapped[0]) is False


@pytest.mark.parametrize(
    ("extent", "apart", "wrapped", "kind", "seconds"),
    [
        # A ring of 8, links of 10 bytes per second: 7/8 of 800 over two links; 4 hops of 2 s.
        (8, 1, True, "all_gather", 35.0), (8, 1, True, "reduce_scatter", 35.0), (8, 1, True, "all_reduce", 70.0),
        # Two groups on the same ring share its links; neighbours stand two hops apart.
        (8, 2, True, "all_gather", 70.0), (8, 1, False, "all_gather", 70.0),
        # A quarter of the buffers of 8 ranks over two links each way; a line has one.
        (8, 1, True, "all_to_all", 80.0), (8, 1, False, "all_to_all", 160.0), (8, 3, True, "all_to_all", 240.0),
        (8, 1, True, "send", 82.0), (8, 3, True, "send", 246.0), (1, 3, True, "send", 82.0),
    ],
)  # fmt: skip
def test_collectives_on_one_dimension(extent: float, apart: float, wrapped: bool, kind: str, seconds: float) -> None:
    part = Slice((float(extent),), (float(apart),), (wrapped,), 10.0, 2.0)
    assert float(torus_time_s(kind, 800.0, part)) == pytest.approx(seconds)


@pytest.mark.parametrize(("apart", "wrapped", "hops"), [(1, True, 4), (1, False, 7), (3, True, 12), (3, False, 21)])
def test_few_bytes_wait_for_the_hops(apart: int, wrapped: bool, hops: int) -> None:
    part = Slice((8.0,), (float(apart),), (wrapped,), 1e9, 2.0)
    for kind, times in (("all_gather", 1), ("all_reduce", 2), ("all_to_all", 1)):
        assert float(torus_time_s(kind, 1.0, part)) == pytest.approx(2.0 * hops * times)


def test_two_dimensions_add_their_links_and_their_hops() -> None:
    part = Slice((8.0, 4.0), (1.0, 1.0), (True, False), 10.0, 2.0)
    assert float(torus_time_s("all_gather", 3200.0, part)) == pytest.approx(3200 * 31 / 32 / (3 * 10))
    assert float(torus_time_s("all_gather", 1.0, part)) == pytest.approx(2.0 * (4 + 3))
    # The fuller of the two: the line of 4 and the ring of 8 carry a full buffer alike.
    assert float(torus_time_s("all_to_all", 800.0, part)) == pytest.approx(80.0)


FAST, SLOW = replace(a100(), name="fast"), replace(a100(), name="slow", peak_flops_per_s={"bf16": 100e12},
                                                   memory_bytes=40.0, memory_bandwidth_bytes_per_s=1e12)  # fmt: skip


def _unequal(**changes: Any) -> Cluster:
    cluster = dgx(4, FAST)
    inside, outside = cluster.tiers
    own: dict[str, Any] = {
        "node_devices": (FAST, SLOW, FAST, FAST),
        "node_tiers": (inside, inside, replace(inside, bandwidth_bytes_per_s=100e9), inside),
        "node_uplinks": (outside, outside, outside, replace(outside, bandwidth_bytes_per_s=5e9)),
    }
    return replace(cluster, **{**own, **changes})


def test_a_member_has_its_node_s_device_and_links() -> None:
    cluster = _unequal()
    found = [members.member(cluster, node) for node in range(4)]
    assert [each.device.name for each in found] == ["fast", "slow", "fast", "fast"]
    assert [each.tier.bandwidth_bytes_per_s for each in found] == [300e9, 300e9, 100e9, 300e9]
    assert [each.uplink.bandwidth_bytes_per_s for each in found if each.uplink] == [25e9, 25e9, 25e9, 5e9]
    assert found[1].label == "node 1 (slow, nvlink at 300 GB/s)"
    assert found[3].uplink_label == "node 3 (fast, fabric at 5 GB/s)"
    alone = members.member(replace(dgx(1), nodes=1), 0)
    assert (alone.uplink, alone.uplink_label) == (None, alone.label)


def test_kinds_are_sorted_by_their_links_then_devices() -> None:
    kinds = members.kinds_of(_unequal())
    assert [each.node for each in kinds.members] == [2, 1, 3, 0]
    assert kinds.of_node.tolist() == [3, 1, 0, 2]
    assert kinds.by_uplink[0] == 2
    felt = kinds.felt(1, 0, 2)
    assert (felt.device.name, [tier.bandwidth_bytes_per_s for tier in felt.tiers]) == ("slow", [100e9, 5e9])
    assert kinds.felt(1, 0, 2) is felt
    assert kinds.felt(0, 1, 2) is not felt
    assert (felt.node_devices, felt.node_tiers, felt.node_uplinks) == ((), (), ())


def test_nodes_said_one_by_one_but_alike_are_equal_nodes() -> None:
    same = replace(dgx(4), node_devices=(FAST,) * 4)
    plain = members.plain_if_equal(same)
    assert (plain.node_devices, plain.device, plain.tiers) == ((), FAST, same.tiers)
    for other in (dgx(4), _unequal()):
        assert members.plain_if_equal(other) is other
    assert not members.is_unequal(dgx(4))
    inside, outside = dgx(4).tiers
    for field, value in (("node_devices", FAST), ("node_tiers", inside), ("node_uplinks", outside)):
        assert members.is_unequal(replace(dgx(4), **{field: (value,) * 4}))


def test_every_node_s_device_and_tier_can_be_changed() -> None:
    cluster = _unequal()
    halved = members.with_device(cluster, lambda device: replace(device, memory_bytes=device.memory_bytes / 2))
    half = FAST.memory_bytes / 2
    assert [device.memory_bytes for device in halved.node_devices] == [half, 20.0, half, half]
    assert (halved.device.memory_bytes, halved.device is halved.node_devices[0]) == (half, True)

    def twice(tier: Tier) -> Tier:
        return replace(tier, bandwidth_bytes_per_s=2 * tier.bandwidth_bytes_per_s)

    inside, outside, last = (members.with_tier(cluster, tier, twice) for tier in (0, 1, -1))
    assert [tier.bandwidth_bytes_per_s for tier in inside.node_tiers] == [600e9, 600e9, 200e9, 600e9]
    assert (inside.node_uplinks, inside.tiers) == (cluster.node_uplinks, (twice(cluster.tiers[0]), cluster.tiers[1]))
    assert [tier.bandwidth_bytes_per_s for tier in outside.node_uplinks] == [50e9, 50e9, 50e9, 10e9]
    assert (outside.node_tiers, outside.tiers) == (cluster.node_tiers, (cluster.tiers[0], twice(cluster.tiers[1])))
    assert last == outside
    assert [device.name for device in members.distinct_devices(cluster)] == ["fast", "slow"]
    copied = replace(cluster, node_devices=(FAST, replace(FAST), SLOW, FAST))
    assert members.distinct_devices(copied) == (FAST, SLOW)
    assert members.distinct_devices(dgx(4, SLOW)) == (SLOW,)


def test_a_group_feels_its_slowest_members() -> None:
    """Devices 0 to 7 on node 0, 16 to 23 on node 2 (slow inside), 24 to 31 on node 3 (slow to the network)."""
    cluster = _unequal()
    assert [members.slowest_link(cluster, places).node for places in (None, [0, 8], [1, 17, 25], [31])] == [2, 1, 2, 3]
    assert [members.slowest_uplink(cluster, places).node for places in (None, [0, 8], [1, 25])] == [3, 0, 3]
    assert [members.slowest_device(cluster, "bf16", places).node for places in (None, [0, 16])] == [1, 0]
    vector = replace(cluster, node_devices=(FAST, FAST, replace(FAST, vector_flops_per_s=1.0), FAST))
    assert members.slowest_device(vector, "int8").node == 2
    felt = members.uniform(cluster, [0, 8, 16])
    assert [tier.bandwidth_bytes_per_s for tier in felt.tiers] == [100e9, 25e9]
    assert (felt.device.name, members.is_unequal(felt)) == ("fast", False)
    assert members.uniform(dgx(4), [0]) == dgx(4)


def test_as_the_fastest_and_as_the_slowest_of_all_nodes() -> None:
    roomy = replace(FAST, name="roomy", memory_bytes=1e12, peak_flops_per_s={"bf16": 50e12})
    cluster = _unequal(node_devices=(FAST, SLOW, roomy, FAST))
    best = members.as_fastest(cluster)
    assert (best.device.name, best.device.memory_bytes) == ("fast", 1e12)
    assert [tier.bandwidth_bytes_per_s for tier in best.tiers] == [300e9, 25e9]
    worst, said = members.as_slowest(cluster)
    assert (worst.device.name, worst.device.memory_bytes) == ("roomy", 40.0)
    assert [tier.bandwidth_bytes_per_s for tier in worst.tiers] == [100e9, 5e9]
    of = (("node 2", "bf16"), ("node 2", "within a node"), ("node 3", "to the network"), ("node 1", "memory"))
    assert [label in text and word in text for (label, word), text in zip(of, said, strict=True)] == [True] * 4
    assert len(members.as_slowest(replace(cluster, node_uplinks=()))[1]) == 3
    assert (members.as_fastest(dgx(4)), members.as_slowest(dgx(4))) == (dgx(4), (dgx(4), ()))
    assert members.as_slowest(cluster, "fp32")[0].device.name == "slow"
