"""Collisions and off-rail traffic, against enumeration and by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

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
