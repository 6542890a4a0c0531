"""Repeating middles of written-out signatures: where they begin, end, and how far they read."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.schedule.steady import LEAST_NODES, Zone, steady_zones


def _signature(before: int, period: int, times: int, after: int) -> np.ndarray:
    """Different nodes, then so many repetitions of a pattern, then different nodes."""
    pattern = np.resize(np.arange(period), period * times)
    return np.concatenate([1000 + np.arange(before), pattern, 5000 + np.arange(after)]).astype(np.int64)


@pytest.mark.parametrize(("before", "period", "times", "after"), [(100, 5, 100, 100), (37, 7, 90, 61), (0, 4, 200, 0),
                                                                  (0, 5, 100, 90), (90, 5, 100, 0), (150, 1, 300,
                                                                   2)])  # fmt: skip
def test_a_repeating_middle_is_found_from_end_to_end(before: int, period: int, times: int, after: int) -> None:
    signature = _signature(before, period, times, after)
    reads = np.full(len(signature), -1)
    stop = before + period * times
    assert steady_zones(signature, reads) == (Zone(first=before, stop=stop, period=period, lookback=0, reach=0),)


def test_zones_tell_how_far_they_read_and_are_read() -> None:
    """Node 150 reads 140 and node 500 reads 470; after the zone, node 650 reads 590 and node 660 node 620."""
    signature, reads = _signature(100, 5, 100, 100), np.full(700, -1)
    reads[[150, 500, 650, 660]] = [140, 470, 590, 620]
    (zone,) = steady_zones(signature, reads)
    assert (zone.lookback, zone.reach) == (30, 10)
    reads[101] = 0
    assert steady_zones(signature, reads)[0].lookback == 101
    reads[699] = 0
    assert steady_zones(signature, reads)[0].reach == 600


def test_two_middles_are_two_zones() -> None:
    """GPipe's: forwards over and over, then backwards."""
    signature = np.concatenate([np.resize([1, 2, 3], 300), np.resize([7, 8], 300)])
    first, second = steady_zones(signature, np.full(600, -1))
    assert (first.first, first.stop, first.period) == (0, 300, 3)
    assert (second.first, second.stop, second.period) == (300, 600, 2)


def test_few_nodes_and_few_repetitions_are_left_alone() -> None:
    none = np.full(LEAST_NODES, -1)
    assert steady_zones(np.resize([1, 2], LEAST_NODES - 1), none[1:]) == ()
    assert len(steady_zones(np.resize([1, 2], LEAST_NODES), none)) == 1
    assert steady_zones(np.arange(LEAST_NODES), none) == ()
    # Three times 150 nodes are no steady state; four times are.
    assert steady_zones(np.resize(np.arange(150), 450), np.full(450, -1)) == ()
    (zone,) = steady_zones(np.resize(np.arange(150), 600), np.full(600, -1))
    assert (zone.period, zone.stop - zone.first) == (150, 600)


def _spans(*parts: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, stop, period) of the zones of these nodes, which read nothing."""
    signature = np.concatenate(parts).astype(np.int64)
    zones = steady_zones(signature, np.full(len(signature), -1))
    return [(zone.first, zone.stop, zone.period) for zone in zones]


def _noise(count: int, start: int = 10_000) -> np.ndarray:
    """Nodes that are all different."""
    return start + np.arange(count)


def test_a_repetition_may_begin_where_it_is_looked_for() -> None:
    """Of 800 nodes, at 200, 400 and 600, and nowhere else in each of these."""
    for at in (200, 400, 600):
        assert _spans(_noise(at), np.resize(np.arange(5), 190), _noise(610 - at, 90_000)) == [(at, at + 190, 5)]


def test_the_second_zone_begins_where_the_first_one_stops() -> None:
    """At a half, at three quarters, and one node later where the first zone takes its first node."""
    ones, twos = np.full(400, 1), np.resize([7, 8], 190)
    assert _spans(ones, twos, _noise(210)) == [(0, 400, 1), (400, 590, 2)]
    assert _spans(np.full(600, 1), np.resize([7, 8], 200)) == [(0, 600, 1), (600, 800, 2)]
    assert _spans(np.full(300, 1), np.resize([1, 8], 300)) == [(0, 301, 1), (301, 600, 2)]


def test_fewer_than_four_periods_are_no_zone_wherever_they_stand() -> None:
    pattern = np.arange(100)
    assert _spans(_noise(300), np.resize(pattern, 300)) == []
    assert _spans(_noise(300), np.resize(pattern, 400)) == [(300, 700, 100)]
    # Two periods after three quarters of the nodes are enough to find it.
    assert _spans(_noise(700), np.resize(np.arange(101), 500)) == [(700, 1200, 101)]


def test_what_ends_where_it_is_looked_for_is_not_found() -> None:
    """A hundred equal nodes up to the one at a quarter, none of them later."""
    assert _spans(_noise(101), np.full(100, 1), _noise(599, 90_000)) == []


def test_a_period_is_one_in_all_of_its_nodes() -> None:
    """Halves of 32 nodes that differ in their second node alone, which a quick look at each other node misses."""
    half = np.arange(32)
    other = np.where(half == 1, 99, half)
    assert _spans(np.resize(np.concatenate([half, other]), 640)) == [(0, 640, 64)]
