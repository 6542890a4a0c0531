"""What goes wrong on real fabrics, as a cluster with less: hash collisions of flows, and ranks off their rail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.members import with_tier
from simulator.errors import InputError
from simulator.spec.hardware import Cluster, Tier

Floats = NDArray[np.float64]
EXACT_FLOWS = 128
"""Up to so many flows the expectation is computed exactly; beyond, its excess falls with the square root."""


def ecmp_slowdown(flows: int, paths: int) -> float:
    """Expected load of the fullest of `paths` equal paths over the mean, when `flows` flows are hashed onto them.

    Balls into bins: the expectation is the sum over k of 1 - P(max <= k).

    >>> ecmp_slowdown(2, 2)
    1.5
    """
    if flows < 1 or paths < 1:
        raise InputError([f"flows({flows}) and paths({paths}) must be at least 1."])
    mean = flows / paths
    if paths == 1:
        return 1.0
    if flows > EXACT_FLOWS:
        return 1.0 + (ecmp_slowdown(EXACT_FLOWS, paths) - 1.0) * math.sqrt(EXACT_FLOWS / flows)
    shares = [_shares(flows, 1.0 / left) for left in range(paths, 0, -1)]
    total = 0.0
    for load in range(flows):
        within = _at_most(load, shares) if load * paths >= flows else 0.0
        total += 1.0 - within
        if within > 1.0 - 1e-13:
            break
    return total / mean


def _shares(flows: int, p: float) -> Floats:
    """[waiting, left over] of a path that takes each waiting flow with probability p."""
    table = np.zeros((flows + 1, flows + 1))
    table[0, 0] = 1.0
    for waiting in range(1, flows + 1):
        table[waiting, 1:] = (1 - p) * table[waiting - 1, :-1]
        table[waiting] += p * table[waiting - 1]
    return table


def _at_most(load: int, shares: Sequence[Floats]) -> float:
    """Probability that no path has more than `load` flows: one path after another takes its binomial share."""
    flows = len(shares[0]) - 1
    waiting = np.arange(flows + 1)
    allowed = waiting[:, None] - waiting[None, :] <= load
    reach = np.zeros(flows + 1)
    reach[flows] = 1.0
    for share in shares:
        reach = reach @ (share * allowed)
    return float(reach[0])


def with_collisions(cluster: Cluster, *, flows_per_device: int, paths: int) -> Cluster:
    """The cluster with the outermost tier's bandwidth divided by the slowdown of hashing flows onto its paths.

    `flows_per_device` is how many connections a device spreads its traffic over (Llama 3: 16 flows a pair of
    racks, so that hashing balances). Switches that spray packets have no collisions: leave this out. Raises InputError
    where no network joins units.
    """
    if len(cluster.tiers) == 1:
        raise InputError([f"{cluster.name} has no network above {cluster.tiers[0].name} whose flows could collide."])
    units = cluster.tiers[-2].size
    slow = ecmp_slowdown(flows_per_device * min(units, paths), paths)
    return with_tier(
        cluster, -1, lambda own: replace(own, bandwidth_bytes_per_s=own.bandwidth_bytes_per_s / slow)
    )


def off_rail(cluster: Cluster, share: float) -> Cluster:
    """The cluster when `share` of the traffic of a rail-optimised tier is between unequal local ranks.

    It leaves its leaf and crosses the next tier (or the spine of the same tier, one more switch each way).
    """
    if not 0.0 <= share <= 1.0:
        raise InputError([f"share({share}) of off-rail traffic must be within 0..1."])
    for index, tier in enumerate(cluster.tiers):
        if not tier.rail_optimised:
            continue
        above = cluster.tiers[index + 1] if index + 1 < len(cluster.tiers) else None

        def slower(own: Tier, above: Tier | None = above) -> Tier:
            beyond = above or own
            per_byte = (1 - share) / own.bandwidth_bytes_per_s
            per_byte += share * max(
                beyond.oversubscription / beyond.bandwidth_bytes_per_s, 1 / own.bandwidth_bytes_per_s
            )
            latency_s = own.latency_s + share * 2 * beyond.latency_s
            return replace(own, bandwidth_bytes_per_s=1 / per_byte, latency_s=latency_s)

        return with_tier(cluster, index, slower)
    raise InputError([f"{cluster.name} has no rail-optimised tier, so no traffic can be off its rail."])
