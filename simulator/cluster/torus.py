"""Collectives on tori and meshes without switches (TPU slices, Trainium instances).

Source: jax-ml/scaling-book, sharding.md: an axis of X devices with links of W bytes/s both ways gathers V bytes
in max(X / 2 * hop, V / W) and several axes add their links; all-reduce is twice that; all-to-all takes V / (4 W)
on a ring; an axis without wrap-around is a line with half the bandwidth (tpus.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from simulator.cluster.placement import Group, Number
from simulator.spec.hardware import Cluster, Tier

LINK_EFFICIENCY = 0.95
"""Share of the ICI line rate that collectives reach: assumed, no measured TPU collective is at hand."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a torus that a group covers; one entry a dimension, innermost first (arrays over strategies)."""

    extent: tuple[Number, ...]
    """Ranks along the dimension."""
    apart: tuple[Number, ...]
    """Devices between neighbouring ranks; so many groups share the dimension's links."""
    wrapped: tuple[Number, ...]
    """True where the ranks close a ring."""
    link_bytes_per_s: float
    """One link, one direction."""
    hop_s: float

    @property
    def dimensions(self) -> tuple[tuple[Number, Number, Number], ...]:
        """Extent, distance and closure of each dimension."""
        return tuple(zip(self.extent, self.apart, self.wrapped, strict=True))


def group_slice(tier: Tier, group: Group, concurrent: Number = 1) -> Slice:
    """Devices are numbered with the last dimension of `shape` fastest; a group covers consecutive dimensions.

    A group of stride s and n ranks covers of each dimension what s leaves of it and n still needs. A dimension
    covered in part is a line: no wrap-around.
    """
    left, skip = group.size, group.stride
    extents, aparts, wraps = [], [], []
    wrap = tier.wrap or (tier.topology == "torus",) * len(tier.shape)
    for length, around in zip(reversed(tier.shape), reversed(wrap), strict=True):
        covered = np.minimum(left, np.maximum(length / skip, 1.0))
        extents.append(covered)
        aparts.append(np.minimum(skip, length))
        wraps.append((covered > 1) & (covered * skip >= length) & (length > 2) & bool(around))
        skip = np.maximum(skip / length, 1.0)
        left = left / covered
    link = tier.bandwidth_bytes_per_s / (2 * len(tier.shape)) * LINK_EFFICIENCY / concurrent
    return Slice(tuple(extents), tuple(aparts), tuple(wraps), link, tier.latency_s)


def torus_time_s(kind: str, size_bytes: Number, part: Slice) -> Number:
    """Seconds of one collective on a slice; kinds as in `collective_time_s`.

    >>> part = Slice((4.0,), (1.0,), (True,), 45e9, 1e-6)
    >>> round(float(torus_time_s("all_gather", 90e6, part)) * 1e6)
    750
    """
    used = part.dimensions
    if kind == "send":
        apart = max_of(np.where(x > 1, apart, 1.0) for x, apart, _ in used)
        return apart * (part.hop_s + size_bytes / part.link_bytes_per_s)
    latency = part.hop_s * sum(np.where(ring, x / 2, x - 1) * apart for x, apart, ring in used)
    if kind == "all_to_all":
        return np.maximum(latency, size_bytes * _all_to_all_seconds_per_byte(part))
    n = math.prod(part.extent)
    lanes = sum(np.where(x > 1, np.where(ring, 2.0, 1.0) / apart, 0.0) for x, apart, ring in used)
    once = np.maximum(latency, size_bytes * (n - 1) / n / (np.where(n > 1, lanes, 1.0) * part.link_bytes_per_s))
    return 2 * once if kind == "all_reduce" else once


def _all_to_all_seconds_per_byte(part: Slice) -> Number:
    """The fullest link, in seconds per byte of a rank's buffer.

    Of the X ranks of a ring, half of whose data crosses the middle, half of that each way: X / 4 buffers over
    two links each way, X / 8 a link; a line has one, X / 4. Groups that share the ring add up.
    """
    return max_of(
        np.where(x > 1, x * apart * np.where(ring, 1 / 8, 1 / 4), 0.0) / part.link_bytes_per_s
        for x, apart, ring in part.dimensions
    )


def max_of(values: Iterable[Number]) -> Number:
    """The largest, elementwise."""
    return reduce(np.maximum, values)


def is_torus(cluster: Cluster) -> bool:
    """True when the innermost tier is a torus or mesh of direct links."""
    return cluster.tiers[0].topology in ("torus", "mesh") and bool(cluster.tiers[0].shape)
