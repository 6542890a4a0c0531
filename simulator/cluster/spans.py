"""How a group lies over the tiers of a cluster: units spanned, members in each, and the rate out of a unit.

A unit of tier t is a block of `tiers[t].size` devices. All groups of an axis are active at once, so a unit of
u devices holds u / m groups with m members each, and its up-link capacity u * bandwidth / oversubscription is
shared: each group gets m * bandwidth / oversubscription. That is the max-min fair share on a symmetric fabric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from simulator.cluster.elementwise import gcd, maximum, minimum, plain, where
from simulator.cluster.placement import Group, Number
from simulator.spec.hardware import Cluster, Tier

NET_KINDS = ("infiniband", "roce", "ethernet", "dcn", "efa", "slingshot", "omni-path", "loopback")
NET_EFFICIENCY = 0.915
"""Share of a NIC's line rate that collectives reach over a network: the geometric mean of published multi-node
points of large messages. H100 x 4 nodes 331 and 324 of 400 GB/s, B200 on EFA 382 of 400, DGX A100 192 of 200,
ConnectX-7 46 to 49 of 50, GH200 on NDR 48.5 of 50, an unnamed fabric 92 of 100 (stas00/ml-engineering
network/README.md, nccl-tests issues 267 and 290, nccl issues 812 and 1576, a Voltage Park report)."""
PCIE_EFFICIENCY = 0.77
"""NCCL's PCI model value over a PCIe 3 x16 link's payload rate: 12 GB/s (nccl
src/graph/topo.h) of 8 GT/s x 16 x 128/130 / 8 = 15.75."""


def efficiency(tier: Tier) -> float:
    """Share of a tier's advertised rate that collectives reach when they cross it: as measured there, else as usual.

    >>> efficiency(Tier(name="n", kind="omni-path", topology="fat-tree", size=64, bandwidth_bytes_per_s=12.5e9,
    ...                 latency_s=1e-6, usable_fraction=0.212))
    0.212
    """
    if tier.usable_fraction:
        return tier.usable_fraction
    if tier.kind in NET_KINDS:
        return NET_EFFICIENCY
    return PCIE_EFFICIENCY if tier.kind == "pcie" else 0.8


@dataclass(frozen=True, slots=True)
class Spans:
    """One group (or an array of them) over the tiers.

    `units[t]` is how many units of tier t the group touches (the worst of its shifts); `members[t]` its ranks
    in each.
    """

    size: Number
    units: tuple[Number, ...]
    members: tuple[Number, ...]
    up_bytes_per_s: Number
    """Rate of the whole group out of its innermost unit, limited by every tier it crosses (rings and trees)."""
    exchange_s_per_byte: Number
    """Seconds per byte of a rank's all-to-all buffer at the slowest tier: S (n - m) / n leave a unit of m members."""
    hop_bytes_per_s: Number
    """Rate of a message from each rank to the next, where that crosses a tier: one device's own link, and of m
    ranks in a unit only one sends out of it."""

    @property
    def nodes(self) -> Number:
        return self.units[0]

    @property
    def per_node(self) -> Number:
        return self.members[0]


def _run_units(run: Number, stride: Number, unit: int, *, tiled: bool) -> Number:
    """Units of `unit` devices that a run touches, in the worst of its positions.

    Runs start at multiples of their extent, so offsets in a unit are multiples of gcd(extent, unit).
    """
    extent = run * stride
    offset = unit - gcd(extent, unit) if tiled else 0
    touched = -(-(offset + extent) // unit)
    return where(stride >= unit, run, minimum(touched, run))


def units_spanned(group: Group, unit: int, devices: int = 0) -> Number:
    """Units of `unit` consecutive devices that the group touches, of `devices` in all (0: no limit).

    >>> int(units_spanned(Group(8, 1), 8)), int(units_spanned(Group(6, 1), 8)), int(units_spanned(Group(8, 4), 8))
    (1, 2, 4)
    """
    size, stride, blocks, block_stride = (
        plain(field) for field in (group.size, group.stride, group.blocks, group.block_stride)
    )
    run = size // blocks
    one = _run_units(run, stride, unit, tiled=group.tiled)
    several = _run_units(blocks, block_stride, unit, tiled=group.tiled)
    touched = maximum(several, 1) * one
    return minimum(touched, -(-devices // unit)) if devices else touched


def spans(cluster: Cluster, group: Group, concurrent: Number = 1) -> Spans:
    """How `group` lies over the cluster's tiers, with `concurrent` equal loads on its links."""
    size = plain(group.size)
    units = tuple(units_spanned(group, tier.size, cluster.devices) for tier in cluster.tiers)
    members = tuple(size / unit for unit in units)
    rate: Number = math.inf
    exchange: Number = 0.0
    hop: Number = math.inf
    for inner, tier in enumerate(cluster.tiers[1:]):
        own = tier.bandwidth_bytes_per_s * efficiency(tier) / concurrent
        crossed = units[inner] > 1
        rate = minimum(rate, where(crossed, members[inner] * own / tier.oversubscription, math.inf))
        leaving = (size - members[inner]) / size * tier.oversubscription / own
        exchange = maximum(exchange, where(crossed, leaving, 0.0))
        hop = minimum(hop, where(crossed, own * minimum(1.0, members[inner] / tier.oversubscription), math.inf))
    return Spans(size, units, members, rate, exchange, hop)
