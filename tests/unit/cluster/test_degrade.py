"""Collisions and off-rail traffic, against enumeration and by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import comb

import pytest

from simulator.cluster.degrade import ecmp_slowdown, off_rail, with_collisions
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.errors import InputError
from tests.unit.cluster.fabrics import cluster, net_tier


@pytest.mark.parametrize(("flows", "paths"), [(1, 4), (2, 3), (4, 3), (6, 3), (5, 4)])
def test_slowdown_is_the_mean_over_all_hashes(flows: int, paths: int) -> None:
    fullest = [max(way.count(p) for p in range(paths)) for way in product(range(paths), repeat=flows)]
    assert ecmp_slowdown(flows, paths) == pytest.approx(sum(fullest) / len(fullest) / (flows / paths), rel=1e-9)


def test_many_flows_even_out() -> None:
    slow = [ecmp_slowdown(flows, 8) for flows in (8, 32, 128, 512, 512_000)]
    assert slow == sorted(slow, reverse=True)
    assert 1.0 < slow[-1] < 1.02
    assert ecmp_slowdown(100, 1) == 1.0


def test_collisions_slow_the_tier_they_are_on() -> None:
    base = cluster("hopper", 16, net_tier(32, 50e9), net_tier(128, 50e9))
    worse = with_collisions(base, flows_per_device=1, paths=16)
    ratio = base.tiers[-1].bandwidth_bytes_per_s / worse.tiers[-1].bandwidth_bytes_per_s
    assert ratio == pytest.approx(ecmp_slowdown(16, 16))
    assert worse.tiers[:-1] == base.tiers[:-1]
    # Rings of two ranks across the outer tier feel all of it; inside a pod nothing.
    assert collective_time_s(worse, "send", 1e9, Group(2, 64)) > 1.5 * collective_time_s(
        base, "send", 1e9, Group(2, 64)
    )
    assert collective_time_s(worse, "send", 1e9, Group(2, 8)) == collective_time_s(base, "send", 1e9, Group(2, 8))


def test_off_rail_traffic_pays_the_next_tier() -> None:
    rails = replace(net_tier(32, 50e9), rail_optimised=True)
    base = cluster("hopper", 16, rails, net_tier(128, 50e9, oversubscription=3.0))
    half = off_rail(base, 0.5)
    assert half.tiers[1].bandwidth_bytes_per_s == pytest.approx(50e9 / (0.5 + 0.5 * 3.0))
    assert half.tiers[1].latency_s == pytest.approx(2e-6)
    assert off_rail(base, 0.0).tiers[1].bandwidth_bytes_per_s == pytest.approx(50e9)


def test_off_rail_needs_rails_and_a_share() -> None:
    with pytest.raises(InputError, match="no rail-optimised tier"):
        off_rail(cluster(), 0.5)
    with pytest.raises(InputError, match=r"share\(1.5\)"):
        off_rail(cluster(), 1.5)
    with pytest.raises(InputError, match=r"flows\(0\)"):
        ecmp_slowdown(0, 4)


def test_collisions_need_a_network() -> None:
    with pytest.raises(InputError, match="no network above node whose flows could collide"):
        with_collisions(cluster("hopper", 1), flows_per_device=1, paths=4)


def test_one_flow_fills_one_path() -> None:
    """A flow alone loads its path with all there is: `paths` times the mean; one path carries the mean."""
    assert [ecmp_slowdown(1, paths) for paths in (1, 2, 7)] == pytest.approx([1, 2, 7], rel=1e-12)
    assert ecmp_slowdown(2, 1) == 1.0
    for flows, paths in ((0, 1), (1, 0), (-1, 2)):
        with pytest.raises(InputError, match=rf"flows\({flows}\) and paths\({paths}\) must be at least 1"):
            ecmp_slowdown(flows, paths)


@pytest.mark.parametrize("paths", [2, 3])
def test_the_excess_of_many_flows_falls_with_their_square_root(paths: int) -> None:
    """Two paths exactly: of n flows, the fuller path has n/2 (1 + C(n, n/2) / 2^n); 512 flows exceed half as 128 do."""
    if paths == 2:
        assert ecmp_slowdown(128, 2) == pytest.approx(1 + comb(128, 64) / 2**128, rel=1e-12)
        assert ecmp_slowdown(127, 2) == pytest.approx(1 + comb(126, 63) / 2**126, rel=1e-12)
    assert ecmp_slowdown(512, paths) - 1 == pytest.approx((ecmp_slowdown(128, paths) - 1) / 2, rel=1e-12)
    assert ecmp_slowdown(288, paths) - 1 == pytest.approx((ecmp_slowdown(128, paths) - 1) / 1.5, rel=1e-12)


@pytest.mark.parametrize(("paths", "flows"), [(5, 3 * 5), (20, 3 * 8)])
def test_a_unit_hashes_the_flows_of_its_devices_onto_no_more_paths_than_there_are(paths: int, flows: int) -> None:
    """Three flows from each of 8 devices of a node, or of as many as there are paths."""
    base = cluster("hopper", 4)
    worse = with_collisions(base, flows_per_device=3, paths=paths)
    expected = replace(base.tiers[1], bandwidth_bytes_per_s=50e9 / ecmp_slowdown(flows, paths))
    assert worse.tiers[1].bandwidth_bytes_per_s == pytest.approx(expected.bandwidth_bytes_per_s, rel=1e-12)
    assert replace(worse.tiers[1], bandwidth_bytes_per_s=50e9) == base.tiers[1]


@pytest.mark.parametrize(
    ("share", "ratio", "slowed", "latency_s"),
    # Onto the spine of the same tier: 1:3 there, or not oversubscribed, when the device's own card is the limit.
    [(0.25, 3.0, 0.75 + 0.25 * 3, 1.5e-6), (1.0, 3.0, 3.0, 3e-6), (0.0, 3.0, 1.0, 1e-6), (1.0, 1.0, 1.0, 3e-6),
     (0.5, 0.5, 1.0, 2e-6)],
)  # fmt: skip
def test_rails_without_a_tier_above_cross_their_own_spine(
    share: float, ratio: float, slowed: float, latency_s: float
) -> None:
    base = cluster("hopper", 4, replace(net_tier(32, 50e9, oversubscription=ratio), rail_optimised=True))
    found = off_rail(base, share)
    assert found.tiers[0] == base.tiers[0]
    assert found.tiers[1].bandwidth_bytes_per_s == pytest.approx(50e9 / slowed, rel=1e-12)
    assert found.tiers[1].latency_s == pytest.approx(latency_s, rel=1e-12)


def test_off_rail_traffic_waits_for_the_slower_of_the_card_and_the_tier_above() -> None:
    """A fifth of the bytes at 50 / 4 GB/s of the tier above, and 2 x 7 us more for a fifth; a faster tier changes
    nothing but the way."""
    rails = replace(net_tier(32, 50e9), rail_optimised=True)
    for above, slowed in ((net_tier(128, 25e9, oversubscription=2.0, latency_s=7e-6), 0.8 + 0.2 * 4),
                          (net_tier(128, 400e9, oversubscription=2.0, latency_s=7e-6), 1.0)):  # fmt: skip
        base = cluster("hopper", 16, rails, above, net_tier(256, 1e9))
        found = off_rail(base, 0.2)
        assert found.tiers[1].bandwidth_bytes_per_s == pytest.approx(50e9 / slowed, rel=1e-12)
        assert found.tiers[1].latency_s == pytest.approx(1e-6 + 0.2 * 2 * 7e-6, rel=1e-12)
        assert (found.tiers[0], *found.tiers[2:]) == (base.tiers[0], *base.tiers[2:])


@pytest.mark.parametrize("share", [-0.01, 1.01])
def test_shares_are_fractions(share: float) -> None:
    rails = replace(net_tier(32, 50e9), rail_optimised=True)
    with pytest.raises(InputError, match=r"must be within 0..1"):
        off_rail(cluster("hopper", 4, rails), share)
