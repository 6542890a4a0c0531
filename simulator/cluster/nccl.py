"""NCCL's collectives in the form of its own tuning model, with measured constants.

The forms (steps, pipelining, which link bounds what, limits and correction factors) are those of
NVIDIA/nccl v2.30.7, src/graph/tuning.cc, `ncclTopoTuneModel` and `ncclTopoGetAlgoTime`. NCCL's own latencies
and rates only need to rank algorithms; they are replaced on one node by constants fitted to measured tables
(`tools/fit_network.py`), and kept for the network, where they are all there is. Like NCCL, the cheapest
(algorithm, protocol) by the model is taken.

Where a measured form differs from NCCL's: a rank's own share is copied to the output buffer, S / n bytes at a
copy rate (that alone explains why 2 ranks show a lower bus bandwidth than 8); in-switch reduction moves
(n + 1) / n * S per rank through the switch, so bus bandwidth is 2 W (n - 1) / (n + 1) for a usable link rate W.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from simulator.cluster.constants import NetworkConstants, Protocol
from simulator.cluster.elementwise import log2, maximum, minimum, plain, where
from simulator.cluster.placement import Number
from simulator.cluster.spans import NET_KINDS, Spans
from simulator.spec.hardware import Cluster, Tier

PROTOCOLS = ("ll", "ll128", "part", "simple")
"""NCCL's three protocols; "part" is Simple on part of the channels, which is how NCCL runs messages that do not
fill them all (lower start, lower rate)."""
NET_RING_LATENCY_S = {"ll": 2.7e-6, "ll128": 4.0e-6, "part": 14.0e-6, "simple": 14.0e-6}
NET_SEND_LATENCY_S = dict(NET_RING_LATENCY_S)
NET_TREE_LATENCY_S = {"ll": 5.0e-6, "ll128": 8.5e-6, "part": 14.0e-6, "simple": 14.0e-6}
EFA_CROSSING_S = 65.0e-6
"""Beyond the 10 us of the wire, what a collective's step over AWS EFA costs more than over InfiniBand: the five
published sizes of an all-reduce on 4 x 8 B200 over EFA v4 (stas00/ml-engineering network/README.md) all come out
within 15 % with it."""
PCI_LATENCY_S = {"ll": 1.0e-6, "ll128": 2.5e-6, "part": 5.7e-6, "simple": 5.7e-6}
NVLS_NET_LATENCY_S = 18.0e-6
NVLS_TREE_NET_LATENCY_S = 20.9e-6
COLLNET_NET_LATENCY_S = 31.0e-6
PAT_NET_LATENCY_S = 14.0e-6
NET_OVERHEAD_S = {"x86-intel": 1.0e-6, "x86-amd": 2.0e-6}
"""Host overhead of a network operation; three times that for Simple."""
LL_NET_SHARE = {"volta": 20.4 / 39, "ampere": 19 / 87.7, "hopper": 35 / 141, "blackwell": 70 / 282}
"""LL's limit over more than two nodes relative to one node (tuning.cc, llMaxBws)."""
BROADCAST_SHARE = 0.86
"""Broadcast over all-reduce bus bandwidth on the same nodes, 286 of 331 GB/s (4 x 8 H100, NCCL 2.24.3 report)."""
PROTOCOL_SHARE = {"ll": 0.5, "ll128": 0.92, "part": 1.0, "simple": 1.0}
"""LL sends 4 B of data with 4 B of flag, LL128 120 of 128 B (tuning.cc prints 0.92)."""

# By protocol, then by the power of two of bytes over 64 B: treeCorrectionFactor in tuning.cc.
TREE_CORRECTION = {
    "ll": (1, 1, 1, 1, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1, 1, 1),
    "ll128": (1, 1, 1, 1, 1, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.8, 0.9, 0.9, 0.9, 0.9, 1, 1, 1),
    "simple": (
        0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8, 0.9,
        0.9, 0.9,
    ),
}  # fmt: skip

_TREE_FACTOR = {name: np.array([*table, 1.0, 1.0]) for name, table in TREE_CORRECTION.items()}
_TREE_STEP = {name: np.append(np.diff(table), 0.0) for name, table in _TREE_FACTOR.items()}
Place: TypeAlias = tuple[Any, Any]


def correction_place(size_bytes: Number) -> Place:
    """Where sizes stand in the tree's correction tables: entry below, and how far to the next one."""
    if isinstance(size_bytes, (int, float)):
        place = min(max(math.log2(max(size_bytes, 64.0) / 64.0), 0.0), 24.0)
        return int(place), place - int(place)
    places = np.minimum(np.log2(np.maximum(size_bytes, 64.0) / 64.0), 24.0)
    index = places.astype(np.int64)
    return index, places - index


HYBRID_CUBE_MESH_RINGS = (0, 1, 1, 2, 3.8, 1.65, 2, 2, 6)
"""Bus bandwidth over one link's, among the first n devices of a DGX-1 (V100), by n: measured 22.6, 45.1, 85.4,
37.2 and 45.7 GB/s for 2 to 6 devices (vTrain's nccl-tests tables), one ring a link on all
eight and what 6 devices have for 7 (both assumed)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a collective: seconds = latency_s + bytes * s_per_byte [/ the tree's correction]."""

    algorithm: str
    protocol: str
    latency_s: Number
    s_per_byte: Number
    corrected: bool = False

    @property
    def name(self) -> str:
        return f"{self.algorithm}/{self.protocol}"

    def time_s(self, size_bytes: Number, place: Place | None = None) -> Number:
        """Seconds for a buffer of `size_bytes`; `place` is `correction_place` of it, when that is known already."""
        if not self.corrected:
            return self.latency_s + size_bytes * self.s_per_byte
        index, part = place or correction_place(size_bytes)
        factor = _TREE_FACTOR[self.protocol][index] + part * _TREE_STEP[self.protocol][index]
        return self.latency_s + size_bytes * self.s_per_byte / factor


@dataclass(frozen=True, slots=True)
class Setting:
    """What every candidate needs: the cluster's innermost tier, the group's spans and the constants."""

    cluster: Cluster
    constants: NetworkConstants
    spans: Spans
    concurrent: Number

    @property
    def tier(self) -> Tier:
        return self.cluster.tiers[0]

    def link_bytes_per_s(self, members: Number) -> Number:
        """One device's share of the innermost tier that `members` ranks of it can use, one direction."""
        tier = self.tier
        bandwidth = tier.bandwidth_bytes_per_s / self.concurrent
        if tier.topology == "full-mesh":
            return bandwidth * maximum(minimum(members - 1.0, tier.size - 1), 0.25) / max(tier.size - 1, 1)
        if tier.topology == "hybrid-cube-mesh":
            rings = plain(np.interp(members, np.arange(len(HYBRID_CUBE_MESH_RINGS)), HYBRID_CUBE_MESH_RINGS))
            return bandwidth * maximum(rings, 1.0) / HYBRID_CUBE_MESH_RINGS[-1]
        return bandwidth

    def inner_rate(self, protocol: Protocol) -> Number:
        """Ring rate inside a unit of the innermost tier, bytes/s; unlimited where each unit has one member."""
        members = self.spans.per_node
        rate = minimum(
            protocol.rate_bytes_per_s / self.concurrent, protocol.link_fraction * self.link_bytes_per_s(members)
        )
        return where(members > 1, rate, math.inf)

    def crossings(self, protocol: str, per_protocol_s: dict[str, float]) -> Iterator[tuple[Number, Number]]:
        """For each tier above the first: units joined there, and the latency of one crossing in seconds."""
        overhead = NET_OVERHEAD_S.get(self.cluster.host, 1.0e-6) * (3.0 if protocol in ("part", "simple") else 1.0)
        for inner, tier in enumerate(self.cluster.tiers[1:]):
            joined = self.spans.units[inner] - self.spans.units[inner + 1]
            if tier.kind in NET_KINDS:
                software = EFA_CROSSING_S if tier.kind == "efa" and per_protocol_s is not NET_SEND_LATENCY_S else 0.0
                yield joined, maximum(per_protocol_s[protocol], overhead) + tier.latency_s + software
            else:
                yield joined, PCI_LATENCY_S[protocol] + tier.latency_s


def ring(setting: Setting, kind: str) -> Iterator[Candidate]:
    """Ring all-reduce, reduce-scatter, all-gather, broadcast and reduce, in the three protocols."""
    n = setting.spans.size
    passes = 2 if kind == "all_reduce" else 1
    wire: Number = 1.0 if kind in ("broadcast", "reduce") else passes * (n - 1) / n
    share = BROADCAST_SHARE if kind in ("broadcast", "reduce") else 1.0
    copy = setting.constants.copy_bytes_per_s.get(kind, math.inf)
    ll_net = LL_NET_SHARE.get(setting.constants.generation, 0.25)
    for name in PROTOCOLS:
        protocol = setting.constants.protocols[name]
        latency = protocol.base_s + protocol.hop_s * passes * maximum(n - setting.spans.nodes, 0)
        for joined, hop_s in setting.crossings(name, NET_RING_LATENCY_S):
            latency = latency + passes * joined * hop_s
        rate = setting.inner_rate(protocol)
        outer = setting.spans.up_bytes_per_s * PROTOCOL_SHARE[name]
        if name == "ll":
            outer = minimum(outer, protocol.rate_bytes_per_s * ll_net / setting.concurrent)
        rate = minimum(rate, where(setting.spans.nodes > 1, outer, math.inf)) * share
        copied = 0.0 if name == "ll" else 1.0 / (n * copy)
        yield Candidate("ring", name, latency, wire / rate + copied)


def tree(setting: Setting) -> Iterator[Candidate]:
    """Double binary tree over nodes, chains inside them (all-reduce; Sanders, Speck, Traeff 2009).

    Each rank moves twice the buffer; over two nodes a node's links carry it once each way.
    """
    spans = setting.spans
    for name in TREE_CORRECTION:
        protocol = setting.constants.protocols[name]
        latency = protocol.base_s + 2 * maximum(spans.per_node - 1, 0) * protocol.hop_s
        for depth, hop_s in _tree_depths(setting, name, NET_TREE_LATENCY_S):
            latency = latency + 2 * depth * hop_s
        inner = 2.0 / setting.inner_rate(protocol)
        outer = where(spans.nodes > 2, 2.0, 1.0) / (spans.up_bytes_per_s * PROTOCOL_SHARE[name])
        yield Candidate("tree", name, where(spans.nodes > 1, latency, math.inf), maximum(inner, outer), corrected=True)


def _tree_depths(setting: Setting, protocol: str, latency_s: dict[str, float]) -> Iterator[tuple[Number, Number]]:
    """Levels of a tree over units at each tier: log2 of the units joined there."""
    for inner, (_, hop_s) in enumerate(setting.crossings(protocol, latency_s)):
        yield log2(setting.spans.units[inner] / setting.spans.units[inner + 1]), hop_s


def nvls(setting: Setting) -> Iterator[Candidate]:
    """In-switch reduction on one node (NVLS), and with a tree over nodes (NVLSTree): all-reduce only."""
    constants, spans = setting.constants, setting.spans
    if not (setting.tier.reduce_in_switch and constants.nvls_link_fraction):
        return
    link = constants.nvls_link_fraction * setting.tier.bandwidth_bytes_per_s / setting.concurrent
    inner = (spans.per_node + 1) / spans.per_node / link
    yield Candidate("nvls", "simple", where(spans.nodes > 1, math.inf, constants.nvls_base_s), inner)
    latency: Number = constants.nvls_base_s
    for depth, hop_s in _tree_depths(setting, "simple", {"simple": NVLS_TREE_NET_LATENCY_S}):
        latency = latency + 2 * depth * hop_s
    usable = (spans.nodes > 1) & (spans.per_node > 1)
    outer = where(spans.nodes > 2, 2.0, 1.0) / spans.up_bytes_per_s
    yield Candidate("nvls_tree", "simple", where(usable, latency, math.inf), maximum(inner, outer))


def pat(setting: Setting) -> Iterator[Candidate]:
    """Parallel aggregated trees: all-gather and reduce-scatter with one rank per node (logarithmic latency)."""
    n, protocol = setting.spans.size, setting.constants.protocols["simple"]
    latency: Number = 8.0e-6 + 2.8e-6 * n
    for depth, hop_s in _tree_depths(setting, "simple", {"simple": PAT_NET_LATENCY_S}):
        latency = latency + depth * hop_s / 3.5
    usable = (setting.spans.per_node == 1) & (setting.spans.nodes > 1)
    rate = minimum(setting.inner_rate(protocol), setting.spans.up_bytes_per_s) * 0.75
    yield Candidate("pat", "simple", where(usable, latency, math.inf), (n - 1) / n / rate)


def collnet(setting: Setting) -> Iterator[Candidate]:
    """All-reduce with reduction in the network's switches (SHARP): each rank sends and receives its share once.

    Only where it is asked for: NCCL uses it when the plug-in is installed and enabled.
    """
    spans, protocol = setting.spans, setting.constants.protocols["simple"]
    latency = protocol.base_s + 2 * minimum(1, spans.per_node - 1) * protocol.hop_s + COLLNET_NET_LATENCY_S
    latency = latency + 0.8e-6 * (spans.per_node - 1) + setting.cluster.tiers[-1].latency_s
    inner = 2 * (spans.per_node - 1) / spans.per_node / setting.inner_rate(protocol)
    yield Candidate(
        "collnet", "simple", where(spans.nodes > 1, latency, math.inf), maximum(inner, 1.0 / spans.up_bytes_per_s)
    )


def all_to_all(setting: Setting) -> Iterator[Candidate]:
    """Pairwise exchange: a rank sends 1/n of its buffer to every peer; peers on other nodes over the NIC.

    Bytes that leave a unit of a tier per member are S (n - m) / n with m members in it; the slowest tier bounds
    (NVLink and NICs work at once). A remote peer costs one network operation on the host.
    """
    n, constants = setting.spans.size, setting.constants
    overhead = NET_OVERHEAD_S.get(setting.cluster.host, 1.0e-6)
    remote = maximum(n - setting.spans.per_node, 0)
    for name, protocol in constants.all_to_all.items():
        latency = protocol.base_s + protocol.hop_s * (minimum(setting.spans.per_node, n) - 1) + overhead * remote
        for joined, hop_s in setting.crossings(name, NET_SEND_LATENCY_S):
            latency = latency + where(joined > 0, hop_s, 0.0)
        inside = (setting.spans.per_node - 1) / n / setting.inner_rate(protocol)
        copied = 0.0 if name == "ll" else 1.0 / (n * constants.copy_bytes_per_s["all_to_all"])
        yield Candidate(
            "pairwise",
            name,
            latency,
            maximum(inside, setting.spans.exchange_s_per_byte / PROTOCOL_SHARE[name]) + copied,
        )


def send(setting: Setting) -> Iterator[Candidate]:
    """One message to the next rank of the group, every rank sending at once; the slowest hop of the group."""
    spans = setting.spans
    for name, protocol in setting.constants.send.items():
        latency: Number = protocol.base_s
        for joined, hop_s in setting.crossings(name, NET_SEND_LATENCY_S):
            latency = latency + where(joined > 0, hop_s, 0.0)
        link = protocol.link_fraction * setting.link_bytes_per_s(2)
        rate = minimum(protocol.rate_bytes_per_s / setting.concurrent, link)
        rate = minimum(rate, spans.hop_bytes_per_s * PROTOCOL_SHARE[name])
        yield Candidate("send", name, latency, 1.0 / rate)
