"""Clusters of unequal nodes: which kinds of nodes there are, and what a group on some of them feels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from simulator.spec.hardware import Cluster, Device, Tier

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Member:
    """A node, its device, its innermost tier, and the tier above as its network cards reach it."""

    node: int
    device: Device
    tier: Tier
    uplink: Tier | None = None
    """None where there is no tier above."""

    @property
    def label(self) -> str:
        """For reports: "node 3 (a100-sxm-80gb, nvswitch at 300 GB/s)"."""
        return self._with(self.tier)

    @property
    def uplink_label(self) -> str:
        """For reports, of its links to the network: "node 3 (a100-sxm-80gb, infiniband at 25 GB/s)"."""
        return self._with(self.uplink or self.tier)

    def _with(self, tier: Tier) -> str:
        return f"node {self.node} ({self.device.name}, {tier.name} at {tier.bandwidth_bytes_per_s / 1e9:g} GB/s)"


def member(cluster: Cluster, node: int) -> Member:
    """The node's own device and tiers."""
    above = cluster.tiers[1] if len(cluster.tiers) > 1 else None
    return Member(
        node,
        cluster.node_devices[node] if cluster.node_devices else cluster.device,
        cluster.node_tiers[node] if cluster.node_tiers else cluster.tiers[0],
        cluster.node_uplinks[node] if cluster.node_uplinks else above,
    )


@dataclass(frozen=True, slots=True)
class Kinds:
    """The distinct kinds of nodes of a cluster, those with the slowest links inside first.

    Equal links are ordered by the device, and never by where a node stands, so that numbering the nodes differently
    changes nothing.
    """

    cluster: Cluster
    members: tuple[Member, ...]
    """The first node of each kind."""
    of_node: Ints
    """Kind of every node."""
    by_uplink: Ints
    """Kinds, those with the slowest links to the network first."""
    _felt: dict[tuple[int, int, int], Cluster] = field(default_factory=dict, compare=False, repr=False)

    def felt(self, device: int, inside: int, uplink: int) -> Cluster:
        """A cluster of equal nodes: the devices of one kind, the links inside nodes of another, the network cards of a
        third. Asked again, the same value.
        """
        key = (device, inside, uplink)
        if key not in self._felt:
            self._felt[key] = _equal(self.cluster, self.members[device].device, self.members[inside].tier,
                                     self.members[uplink].uplink)  # fmt: skip
        return self._felt[key]


def _equal(cluster: Cluster, device: Device, tier: Tier, uplink: Tier | None) -> Cluster:
    """The cluster with these devices and tiers in every node."""
    tiers = (tier, *((uplink,) if uplink is not None else ()), *cluster.tiers[2:])
    return replace(cluster, device=device, tiers=tiers, node_devices=(), node_tiers=(), node_uplinks=())


def _pace(found: Member) -> tuple[float, ...]:
    """Slower links inside the node first; then slower devices."""
    tier, device = found.tier, found.device
    return (tier.bandwidth_bytes_per_s, -tier.latency_s, max(device.peak_flops_per_s.values(), default=0.0),
            device.memory_bandwidth_bytes_per_s, device.memory_bytes)  # fmt: skip


def _card_pace(found: Member) -> tuple[float, ...]:
    """Slower links to the network first."""
    return (found.uplink.bandwidth_bytes_per_s, -found.uplink.latency_s) if found.uplink else (0.0, 0.0)


def _compute_pace(device: Device, dtype: str) -> tuple[float, float]:
    """Slower devices first."""
    return device.peak_flops_per_s.get(dtype, device.vector_flops_per_s), device.memory_bandwidth_bytes_per_s


def is_unequal(cluster: Cluster) -> bool:
    """Whether a cluster says of its nodes one by one what they are."""
    return bool(cluster.node_devices or cluster.node_tiers or cluster.node_uplinks)


def kinds_of(cluster: Cluster) -> Kinds:
    """The kinds of nodes of a cluster; one where all nodes are equal."""
    distinct: list[Member] = []
    seen: dict[tuple[int, int, int], int] = {}
    of_node = np.zeros(cluster.nodes, np.int64)
    for node in range(cluster.nodes) if is_unequal(cluster) else range(1):
        found = member(cluster, node)
        parts = (found.device, found.tier, found.uplink)
        key = (id(parts[0]), id(parts[1]), id(parts[2]))
        if key not in seen:
            same = (i for i, m in enumerate(distinct) if (m.device, m.tier, m.uplink) == parts)
            seen[key] = next(same, len(distinct))
            if seen[key] == len(distinct):
                distinct.append(found)
        of_node[node] = seen[key]
    order = sorted(range(len(distinct)), key=lambda i: (_pace(distinct[i]), _card_pace(distinct[i])))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    members = tuple(distinct[i] for i in order)
    by_uplink = sorted(range(len(members)), key=lambda i: _card_pace(members[i]))
    return Kinds(cluster, members, place[of_node], np.array(by_uplink))


def plain_if_equal(cluster: Cluster) -> Cluster:
    """A cluster whose nodes are said one by one but all alike as one of equal nodes; any other as it is."""
    if not is_unequal(cluster):
        return cluster
    kinds = kinds_of(cluster)
    return kinds.felt(0, 0, 0) if len(kinds.members) == 1 else cluster


def with_device(cluster: Cluster, change: Callable[[Device], Device]) -> Cluster:
    """The cluster with every node's device changed."""
    new = {id(device): change(device) for device in (cluster.device, *cluster.node_devices)}
    return replace(cluster, device=new[id(cluster.device)],
                   node_devices=tuple(new[id(device)] for device in cluster.node_devices))  # fmt: skip


def with_tier(cluster: Cluster, tier: int, change: Callable[[Tier], Tier]) -> Cluster:
    """The cluster with one tier changed, as every node reaches it."""
    index = tier % len(cluster.tiers)
    tiers = (*cluster.tiers[:index], change(cluster.tiers[index]), *cluster.tiers[index + 1 :])
    inside = tuple(change(own) for own in cluster.node_tiers) if index == 0 else cluster.node_tiers
    cards = tuple(change(own) for own in cluster.node_uplinks) if index == 1 else cluster.node_uplinks
    return replace(cluster, tiers=tiers, node_tiers=inside, node_uplinks=cards)


def distinct_devices(cluster: Cluster) -> tuple[Device, ...]:
    """Every device of a cluster once, in the order of its nodes."""
    if not cluster.node_devices:
        return (cluster.device,)
    found: list[Device] = []
    for device in {id(device): device for device in cluster.node_devices}.values():
        if device not in found:
            found.append(device)
    return tuple(found)


def _nodes(cluster: Cluster, devices: Iterable[int] | None) -> Iterable[int]:
    if devices is None:
        return range(cluster.nodes)
    return sorted({device // cluster.devices_per_node for device in devices})


def slowest_link(cluster: Cluster, devices: Iterable[int] | None = None) -> Member:
    """The member (of `devices`, or of all) whose node has the slowest links inside; the first of equals."""
    return min((member(cluster, node) for node in _nodes(cluster, devices)), key=_pace)


def slowest_uplink(cluster: Cluster, devices: Iterable[int] | None = None) -> Member:
    """The member whose node has the slowest links to the network; the first of equals."""
    return min((member(cluster, node) for node in _nodes(cluster, devices)), key=_card_pace)


def slowest_device(cluster: Cluster, dtype: str = "bf16", devices: Iterable[int] | None = None) -> Member:
    """The member whose device has the lowest peak for `dtype` (its vector peak where it has none); of equals, the one
    with the slowest memory.
    """
    found = (member(cluster, node) for node in _nodes(cluster, devices))
    return min(found, key=lambda m: _compute_pace(m.device, dtype))


def uniform(cluster: Cluster, devices: Sequence[int] | None = None) -> Cluster:
    """The cluster as a group that spans these devices feels it: all links as slow as the slowest member's.

    Clusters of equal nodes are returned as they are.
    """
    if not is_unequal(cluster):
        return cluster
    inside = slowest_link(cluster, devices)
    return _equal(cluster, inside.device, inside.tier, slowest_uplink(cluster, devices).uplink)


def as_fastest(cluster: Cluster, dtype: str = "bf16") -> Cluster:
    """A cluster of unequal nodes as if every node were its fastest: the device with the highest peak for `dtype`, with
    the most memory of any, on the fastest links.
    """
    if not is_unequal(cluster):
        return cluster
    every = [member(cluster, node) for node in range(cluster.nodes)]
    device = max(every, key=lambda m: _compute_pace(m.device, dtype)).device
    memory = max(each.device.memory_bytes for each in every)
    inside, outside = max(every, key=_pace), max(every, key=_card_pace)
    return _equal(cluster, replace(device, memory_bytes=memory), inside.tier, outside.uplink)


def as_slowest(cluster: Cluster, dtype: str = "bf16") -> tuple[Cluster, tuple[str, ...]]:
    """A cluster of unequal nodes as if every node were its slowest, and what was taken from which node, in words.

    All devices compute as the one with the lowest peak for `dtype`, hold what the smallest holds, and exchange as fast
    as the slowest node's links. Clusters of equal nodes are returned as they are, with nothing to say.
    """
    if not is_unequal(cluster):
        return cluster, ()
    device, inside, outside = slowest_device(cluster, dtype), slowest_link(cluster), slowest_uplink(cluster)
    small = min((member(cluster, node) for node in range(cluster.nodes)), key=lambda m: m.device.memory_bytes)
    equal = _equal(cluster, replace(device.device, memory_bytes=small.device.memory_bytes), inside.tier, outside.uplink)
    said = [
        f"Unequal nodes: every step waits for {device.label}, the slowest in {dtype}; MFU is of its peak.",
        f"The slowest links within a node are those of {inside.label}.",
        f"The least memory per device is that of {small.label}: {small.device.memory_bytes / 2**30:g} GiB.",
    ]
    if cluster.node_uplinks:
        said.insert(2, f"The slowest links to the network are those of {outside.uplink_label}.")
    return equal, tuple(said)
