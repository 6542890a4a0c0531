"""Which of unequal nodes is slower: one property at a time, in the order in which they decide, and what is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.cluster import members
from simulator.spec.hardware import Cluster, Device, Tier
from tests.support import a100, dgx

GIB = 2.0**30
INSIDE, OUTSIDE = dgx(2).tiers
BASE = replace(a100(), name="base", peak_flops_per_s={"bf16": 5e12, "fp8": 9e12}, vector_flops_per_s=3e12,
               memory_bandwidth_bytes_per_s=2e12, memory_bytes=24 * GIB)  # fmt: skip


def _cluster(devices: list[Device], inside: list[Tier], outside: list[Tier]) -> Cluster:
    base = dgx(len(devices), devices[0])
    return replace(base, node_devices=tuple(devices), node_tiers=tuple(inside), node_uplinks=tuple(outside))


def test_kinds_come_slowest_first_by_the_first_property_that_differs() -> None:
    """Each node is better than the last in all that counts less: links, their latency, peak, memory's speed and size,
    and then the cards and their latency. The node of all the best comes last."""
    fast = {"bandwidth_bytes_per_s": 9e11, "latency_s": 1e-9}
    best = replace(BASE, name="best", peak_flops_per_s={"bf16": 9e12}, memory_bandwidth_bytes_per_s=9e12,
                   memory_bytes=90 * GIB)  # fmt: skip
    slow_links = replace(INSIDE, bandwidth_bytes_per_s=1e11, latency_s=1e-9)
    late_links = replace(INSIDE, latency_s=9e-6)
    good_cards = replace(OUTSIDE, **fast)
    devices = [
        best, best, replace(best, peak_flops_per_s={}), replace(best, peak_flops_per_s={"bf16": 8e12, "fp8": 8.5e12}),
        replace(best, peak_flops_per_s={"bf16": 1e12, "fp8": 9e12}, memory_bandwidth_bytes_per_s=1e12),
        replace(best, memory_bytes=1 * GIB), best, best, best,
    ]  # fmt: skip
    inside = [slow_links, late_links, *[INSIDE] * 7]
    outside = [*[good_cards] * 6, replace(OUTSIDE, bandwidth_bytes_per_s=1e10, latency_s=1e-9),
               replace(good_cards, latency_s=1e-6), good_cards]  # fmt: skip
    wanted = list(range(9))
    shuffled = [4, 8, 0, 6, 2, 7, 5, 1, 3]
    mixed = _cluster(*([column[node] for node in shuffled] for column in (devices, inside, outside)))
    kinds = members.kinds_of(mixed)
    assert [shuffled[each.node] for each in kinds.members] == wanted
    assert kinds.of_node.tolist() == shuffled
    # Cards alone: the slow ones, then the late ones; the others in the order of their kinds.
    assert kinds.by_uplink.tolist() == [6, 7, 0, 1, 2, 3, 4, 5, 8]
    assert members.slowest_link(mixed).node == shuffled.index(0)
    assert members.slowest_uplink(mixed).node == shuffled.index(6)


def test_equal_nodes_are_one_kind_wherever_they_are_said() -> None:
    """Nodes 0 and 2 are alike in copies of their values; of equal ones the first stands for the kind."""
    slow = replace(BASE, name="slow", peak_flops_per_s={"bf16": 1e12})
    mixed = _cluster([BASE, slow, replace(BASE), slow], [INSIDE] * 4, [OUTSIDE, OUTSIDE, replace(OUTSIDE), OUTSIDE])
    kinds = members.kinds_of(mixed)
    assert [each.node for each in kinds.members] == [1, 0]
    assert kinds.of_node.tolist() == [1, 0, 1, 0]
    for nodes in (1, 3):
        plain = members.kinds_of(dgx(nodes, BASE))
        assert [(each.node, each.device, each.tier) for each in plain.members] == [(0, BASE, INSIDE)]
        assert (plain.of_node.tolist(), plain.by_uplink.tolist()) == ([0] * nodes, [0])
        assert plain.members[0].uplink == (replace(OUTSIDE, size=8 * nodes) if nodes > 1 else None)


def test_single_nodes_of_their_own_need_no_network() -> None:
    """One tier only: nothing above to be slow; felt clusters have that tier alone."""
    tiers = (replace(INSIDE, bandwidth_bytes_per_s=2e11), INSIDE)
    apart = replace(dgx(2, BASE), tiers=(INSIDE,), node_tiers=tiers)
    kinds = members.kinds_of(apart)
    assert [each.uplink for each in kinds.members] == [None, None]
    assert kinds.by_uplink.tolist() == [0, 1]
    assert kinds.felt(0, 1, 0).tiers == (INSIDE,)
    assert kinds.felt(1, 0, 1).tiers == (tiers[0],)
    assert members.uniform(apart).tiers == (tiers[0],)


def test_tiers_above_the_network_stay() -> None:
    third = replace(OUTSIDE, name="spine", size=64)
    base = replace(dgx(2, BASE), tiers=(INSIDE, OUTSIDE, third))
    mixed = replace(base, node_devices=(BASE, replace(BASE, name="other")))
    assert members.kinds_of(mixed).felt(1, 0, 0).tiers == (INSIDE, OUTSIDE, third)

    def late(tier: Tier) -> Tier:
        return replace(tier, latency_s=1.0)

    cards = replace(base, node_tiers=(INSIDE, INSIDE), node_uplinks=(OUTSIDE, OUTSIDE))
    for index in (2, -1):
        changed = members.with_tier(cards, index, late)
        assert changed == replace(cards, tiers=(INSIDE, OUTSIDE, late(third)))


@pytest.mark.parametrize(
    ("dtype", "slowest", "fastest"),
    # Node 1 lacks fp8: its vector peak counts; of equal peaks the slower memory is slower.
    [("bf16", 2, 3), ("fp8", 1, 3), ("fp16", 2, 3)],
)
def test_the_slowest_and_fastest_device_of_a_dtype(dtype: str, slowest: int, fastest: int) -> None:
    devices = [
        BASE, replace(BASE, name="no8", peak_flops_per_s={"bf16": 6e12}),
        replace(BASE, name="slow", memory_bandwidth_bytes_per_s=1e12, memory_bytes=96 * GIB),
        replace(BASE, name="fast", peak_flops_per_s={"bf16": 6e12, "fp8": 9e12}, memory_bandwidth_bytes_per_s=3e12),
    ]  # fmt: skip
    mixed = _cluster(devices, [INSIDE] * 4, [OUTSIDE] * 4)
    assert members.slowest_device(mixed, dtype).node == slowest
    best, worst = members.as_fastest(mixed, dtype), members.as_slowest(mixed, dtype)[0]
    assert (best.device.name, best.device.memory_bytes) == (devices[fastest].name, 96 * GIB)
    assert (worst.device.name, worst.device.memory_bytes) == (devices[slowest].name, 24 * GIB)


def test_the_default_dtype_is_bf16() -> None:
    """By bf16 node 1 is slower, by any other word, of equal vector peaks, node 0's memory is."""
    other = replace(BASE, name="other", peak_flops_per_s={"bf16": 4e12}, memory_bandwidth_bytes_per_s=3e12)
    mixed = _cluster([BASE, other], [INSIDE] * 2, [OUTSIDE] * 2)
    assert members.slowest_device(mixed).node == 1
    assert members.as_slowest(mixed)[0].device.name == "other"
    assert members.as_fastest(mixed).device.name == "base"


def test_links_are_taken_from_the_fastest_or_the_slowest_of_them() -> None:
    slow, late = replace(INSIDE, bandwidth_bytes_per_s=1e11), replace(OUTSIDE, latency_s=9e-6)
    mixed = _cluster([BASE] * 3, [INSIDE, slow, INSIDE], [late, OUTSIDE, OUTSIDE])
    mixed = replace(mixed, node_devices=(BASE, BASE, replace(BASE, memory_bytes=8 * GIB)))
    assert members.as_fastest(mixed).tiers == (INSIDE, OUTSIDE)
    worst, said = members.as_slowest(mixed)
    assert worst.tiers == (slow, late)
    assert said == (
        (
            "Unequal nodes: every step waits for node 0 (base, nvlink at 300 GB/s), the slowest in bf16; "
            "MFU is of its peak."
        ),
        "The slowest links within a node are those of node 1 (base, nvlink at 100 GB/s).",
        "The slowest links to the network are those of node 0 (base, fabric at 25 GB/s).",
        "The least memory per device is that of node 2 (base, nvlink at 300 GB/s): 8 GiB.",
    )


@pytest.mark.parametrize("places", [(8, 16), (23, 9), (15, 8, 16)])
def test_devices_belong_to_the_node_that_holds_them(places: tuple[int, ...]) -> None:
    """Devices 8 to 15 are node 1, 16 to 23 node 2; node 0, the slowest in all, is not asked."""
    slow: dict[str, Any] = {"bandwidth_bytes_per_s": 1e9}
    worst = replace(BASE, peak_flops_per_s={"bf16": 1e12})
    mixed = _cluster([worst, BASE, BASE], [replace(INSIDE, **slow), INSIDE, INSIDE],
                     [replace(OUTSIDE, **slow), OUTSIDE, OUTSIDE])  # fmt: skip
    assert members.slowest_link(mixed, places).node == 1
    assert members.slowest_uplink(mixed, places).node == 1
    assert members.slowest_device(mixed, "bf16", places).node == 1
    assert members.uniform(mixed, places).tiers == (INSIDE, OUTSIDE)
    assert members.uniform(mixed, [7]).tiers == tuple(replace(tier, **slow) for tier in (INSIDE, OUTSIDE))
