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
