"""Clusters of unequal nodes: a group runs at its slowest member, and the estimate names it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from simulator.spec.hardware import Cluster, Device, Tier


@dataclass(frozen=True, slots=True)
class Member:
    """A node, its device, and its innermost tier."""

    node: int
    device: Device
    tier: Tier

    @property
    def label(self) -> str:
        """For reports: "node 3 (a100-sxm-80gb, nvswitch at 300 GB/s)"."""
        return (
            f"node {self.node} ({self.device.name}, {self.tier.name} at {self.tier.bandwidth_bytes_per_s / 1e9:g} GB/s)"
        )


def member(cluster: Cluster, node: int) -> Member:
    """The node's own device and tier."""
    return Member(
        node,
        cluster.node_devices[node] if cluster.node_devices else cluster.device,
        cluster.node_tiers[node] if cluster.node_tiers else cluster.tiers[0],
    )


def _nodes(cluster: Cluster, devices: Iterable[int] | None) -> Iterable[int]:
    if devices is None:
        return range(cluster.nodes)
    return sorted({device // cluster.devices_per_node for device in devices})


def slowest_link(cluster: Cluster, devices: Iterable[int] | None = None) -> Member:
    """The member (of `devices`, or of all) whose node has the least bandwidth; the first of equals."""
    found = (member(cluster, node) for node in _nodes(cluster, devices))
    return min(found, key=lambda m: m.tier.bandwidth_bytes_per_s)


def slowest_device(cluster: Cluster, dtype: str = "bf16", devices: Iterable[int] | None = None) -> Member:
    """The member whose device has the lowest peak for `dtype` (its vector peak where it has none)."""
    found = (member(cluster, node) for node in _nodes(cluster, devices))
    return min(found, key=lambda m: m.device.peak_flops_per_s.get(dtype, m.device.vector_flops_per_s))


def uniform(cluster: Cluster, devices: Iterable[int] | None = None) -> Cluster:
    """The cluster as a group that spans these devices feels it: all links as slow as the slowest member's.

    Clusters of equal nodes are returned as they are.
    """
    if not (cluster.node_devices or cluster.node_tiers):
        return cluster
    slow = slowest_link(cluster, devices)
    return replace(cluster, device=slow.device, tiers=(slow.tier, *cluster.tiers[1:]), node_devices=(), node_tiers=())


def as_slowest(cluster: Cluster, dtype: str = "bf16") -> tuple[Cluster, tuple[str, ...]]:
    """A cluster of unequal nodes as synchronous training feels it, and what was taken from which node, in words.

    Every group waits for its slowest member, and a pipeline of even stages for its slowest stage: all devices compute
    as the one with the lowest peak for `dtype`, hold what the smallest holds, and exchange as fast as the slowest
    node's links. (A pipeline that gives slow nodes fewer layers is thus costed too high.) Clusters of equal nodes are
    returned as they are, with nothing to say.
    """
    if not (cluster.node_devices or cluster.node_tiers):
        return cluster, ()
    device, link = slowest_device(cluster, dtype), slowest_link(cluster)
    small = min((member(cluster, node) for node in range(cluster.nodes)), key=lambda m: m.device.memory_bytes)
    equal = replace(
        cluster,
        device=replace(device.device, memory_bytes=small.device.memory_bytes),
        tiers=(link.tier, *cluster.tiers[1:]),
        node_devices=(),
        node_tiers=(),
    )
    said = (
        f"Unequal nodes: every step waits for {device.label}, the slowest in {dtype}; MFU is of its peak.",
        f"The slowest links within a node are those of {link.label}.",
        f"The least memory per device is that of {small.label}: {small.device.memory_bytes / 2**30:g} GiB.",
    )
    return equal, said
