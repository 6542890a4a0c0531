"""Collectives on tori and meshes without switches (TPU slices, Trainium instances).

Source: jax-ml/scaling-book, sharding.md: an axis of X devices with links of W bytes/s both ways gathers V bytes
in max(X / 2 * hop, V / W) and several axes add their links; all-reduce is twice that; all-to-all takes V / (4 W)
on a ring; an axis without wrap-around is a line with half the bandwidth (tpus.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.cluster.placement import Group, Number
from simulator.spec.hardware import Cluster, Tier

LINK_EFFICIENCY = 0.95
"""Share of the ICI line rate that collectives reach (scaling-book: "around 95% of the claimed peak")."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a torus that a group covers: devices per dimension (arrays over strategies) and wrap-around."""

    extent: tuple[Number, ...]
    wrapped: tuple[Number, ...]
    link_bytes_per_s: float
    """One link, one direction."""
    hop_s: float


def group_slice(tier: Tier, group: Group, concurrent: Number = 1) -> Slice:
    """Devices are numbered with the last dimension of `shape` fastest; a group covers consecutive dimensions.

    A group with stride s and n ranks covers, of each dimension, what is left of s and then of n (a partly
    covered dimension is a line: no wrap-around).
    """
    left, skip = np.asarray(group.size, dtype=float), np.asarray(group.stride, dtype=float)
    extents, wraps = [], []
    wrap = tier.wrap or (True,) * len(tier.shape)
    for length, around in zip(reversed(tier.shape), reversed(wrap), strict=True):
        free = np.maximum(length / skip, 1.0)
        covered = np.minimum(left, free)
        extents.append(covered)
        wraps.append((covered >= length) & bool(around))
        skip = np.maximum(skip / length, 1.0)
        left = np.maximum(left / covered, 1.0)
    link = tier.bandwidth_bytes_per_s / (2 * max(len(tier.shape), 1)) * LINK_EFFICIENCY / concurrent
    return Slice(tuple(extents), tuple(wraps), link, tier.latency_s)


def torus_time_s(kind: str, size_bytes: Number, part: Slice) -> Number:
    """Seconds of one collective on a slice; kinds as in `collective_time_s`.

    >>> part = Slice((4.0,), (True,), 45e9, 1e-6)
    >>> round(torus_time_s("all_gather", 90e6, part) * 1e6)
    750
    """
    if kind == "send":
        return part.hop_s + size_bytes / part.link_bytes_per_s
    hops = sum(np.where(wrapped, x / 2, x - 1) for x, wrapped in zip(part.extent, part.wrapped, strict=True))
    latency = hops * part.hop_s
    if kind == "all_to_all":
        return np.maximum(latency, size_bytes * _all_to_all_seconds_per_byte(part))
    n = np.prod(np.broadcast_arrays(*part.extent), axis=0)
    lanes = sum(
        np.where(x > 1, np.where(wrapped & (x > 2), 2.0, 1.0), 0.0)
        for x, wrapped in zip(part.extent, part.wrapped, strict=True)
    )
    once = np.maximum(latency, size_bytes * (n - 1) / n / (np.maximum(lanes, 1.0) * part.link_bytes_per_s))
    return 2 * once if kind == "all_reduce" else once


def _all_to_all_seconds_per_byte(part: Slice) -> Number:
    """A ring of X carries X / 8 of what one rank holds over each link both ways; a line X / 4.

    Half of the data crosses the middle of the longest dimension: X * S / 2 * 1/2 each way over 2 links (ring).
    """
    worst: Number = 0.0
    for x, wrapped in zip(part.extent, part.wrapped, strict=True):
        crossing = np.where(x > 1, np.where(wrapped & (x > 2), x / 8, x / 4), 0.0)
        worst = np.maximum(worst, crossing / part.link_bytes_per_s)
    return worst


def ring_axes(shape: Sequence[int]) -> int:
    """Dimensions of a torus along which a ring exists (longer than 2)."""
    return sum(1 for length in shape if length > 2)


def is_torus(cluster: Cluster) -> bool:
    """True when the innermost tier is a torus or mesh of direct links."""
    return cluster.tiers[0].topology in ("torus", "mesh") and bool(cluster.tiers[0].shape)
