"""A cluster of a given number of nodes from what a cluster file says: which tiers exist, and how full they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product as products

from simulator.errors import InputError, Problem
from simulator.numbers import divisors
from simulator.spec.hardware import Cluster, Device, Tier
from simulator.spec.hardware_file import ClusterFile, TierFile, links_of_file

MAX_DEVICES = 10_000_000
NETWORK_KINDS = ("infiniband", "roce", "ethernet", "efa", "slingshot", "omni-path", "dcn")


def filled(
    file: ClusterFile,
    name: str,
    devices_by_name: Mapping[str, Device],
    *,
    nodes: int | None = None,
    devices_per_node: int | None = None,
    nic_bytes_per_s: float | None = None,
) -> Cluster:
    """The cluster of `nodes` nodes (default: the file's) with the tiers that so many devices need.

    A scale-up tier or torus that does not divide the devices is filled evenly (128 devices over NVL72 racks take 64
    of each); a network tier keeps its size and its last group is part-filled. Raises InputError when the nodes are
    out of range or the tiers do not hold them.
    """
    per_node = devices_per_node or file.devices_per_node
    node_devices = tuple(devices_by_name[group.device] for group in file.node_groups for _ in range(group.nodes))
    count = nodes if nodes is not None else file.nodes or len(node_devices)
    _check(name, count, per_node, len(node_devices), nodes)
    links = links_of_file(file)
    if links and count * per_node != (file.nodes or len(node_devices)) * file.devices_per_node:
        raise InputError([Problem(f"{name} lists its links, so only its own number of nodes is described.", "--nodes")])
    device = node_devices[0] if node_devices else devices_by_name[file.device or ""]
    price = file.price_per_device if file.price_per_device is not None else _mean_price(node_devices or (device,))
    tiers = _tiers(file, name, count * per_node, per_node, nic_bytes_per_s)
    return Cluster(
        name=name,
        title=file.title,
        device=device,
        devices_per_node=per_node,
        nodes=count,
        tiers=tiers,
        host=file.host,
        host_slowdown_factor=file.host_slowdown_factor,
        host_link_bytes_per_s=file.host_link or 0.0,
        host_memory_bytes_per_s=file.host_memory_bandwidth or 0.0,
        price_usd_per_device_hour=price,
        node_devices=node_devices,
        node_tiers=_node_tiers(file, tiers[0], "bandwidth"),
        node_uplinks=_node_tiers(file, tiers[1], "network_bandwidth") if len(tiers) > 1 else (),
        links=links,
        sources={"status": file.status, "cluster": file.source, "host": file.host_source or "not stated"},
    )


def _mean_price(devices: tuple[Device, ...]) -> float:
    """Of the nodes' devices [USD per hour]; 0, unknown, where that of one of them is."""
    prices = [device.price_usd_per_hour for device in devices]
    return sum(prices) / len(prices) if all(prices) else 0.0


def _node_tiers(file: ClusterFile, tier: Tier, key: str) -> tuple[Tier, ...]:
    """A tier as each node reaches it, where groups of nodes say their own bandwidth under `key`."""
    if all(getattr(group, key) is None for group in file.node_groups):
        return ()
    return tuple(
        replace(tier, bandwidth_bytes_per_s=getattr(group, key) or tier.bandwidth_bytes_per_s)
        for group in file.node_groups
        for _ in range(group.nodes)
    )


def _check(name: str, count: int, per_node: int, groups: int, asked: int | None) -> None:
    if count < 1:
        raise InputError([Problem(f"{name} cannot have {count} nodes; it needs at least 1.", "--nodes")])
    if groups and asked is not None and asked != groups:
        message = f"{name} lists the devices of its {groups} nodes one by one, so {asked} nodes are not described."
        raise InputError([Problem(message, "--nodes", "Leave --nodes out, or change node_groups in its file.")])
    if count * per_node > MAX_DEVICES:
        message = f"nodes({count:,}) * devices_per_node({per_node}) = {count * per_node:,} devices > {MAX_DEVICES:,}."
        raise InputError([Problem(message, "--nodes", f"At most {MAX_DEVICES // per_node:,} nodes are modelled.")])


def _tiers(
    file: ClusterFile, name: str, devices: int, per_node: int, nic_bytes_per_s: float | None
) -> tuple[Tier, ...]:
    tiers: list[Tier] = []
    below = 1
    for tier in file.tiers:
        limit = tier.size or devices
        if tier.size == file.devices_per_node:
            limit = per_node
        grain = per_node if below < per_node < limit else below
        size = _size(tier, min(limit, devices), devices, grain)
        if size > below or not tiers:
            tiers.append(_tier(tier, size, nic_bytes_per_s))
            below = size
        if below >= devices:
            break
    if below < devices:
        message = f"{devices:,} devices, but the outermost tier ({file.tiers[-1].name}) joins {below:,}."
        raise InputError([Problem(f"{name}: {message}", "--nodes", f"At most {below // per_node:,} nodes.")])
    return tuple(tiers)


def _size(tier: TierFile, limit: int, devices: int, grain: int) -> int:
    if tier.kind in NETWORK_KINDS or devices % limit == 0:
        return limit
    return max((d for d in divisors(devices) if d <= limit and d % grain == 0), default=limit)


def _tier(tier: TierFile, size: int, nic_bytes_per_s: float | None) -> Tier:
    override = nic_bytes_per_s if nic_bytes_per_s and tier.kind in NETWORK_KINDS else None
    shape = _shape(tier, size)
    source = tier.source if override is None else f"given for this run; otherwise {tier.source}"
    return Tier(
        name=tier.name,
        kind=tier.kind,
        topology=tier.topology,
        size=size,
        bandwidth_bytes_per_s=override or tier.bandwidth,
        latency_s=tier.latency,
        usable_fraction=tier.usable_fraction or 0.0,
        oversubscription=tier.oversubscription,
        channels=tier.channels,
        shape=shape,
        wrap=_wrap(tier, shape),
        reduce_in_switch=tier.reduce_in_switch,
        rail_optimised=tier.rail_optimised,
        sources={"tier": source},
    )


def _shape(tier: TierFile, size: int) -> tuple[int, ...]:
    """The most cubic slice of `size` devices that fits the full shape, whole cubes first; () where there is none."""
    if not tier.shape:
        return ()
    full = sorted(tier.shape)
    if size == tier.size:
        return tuple(full)
    several = len(full) > 2 and tier.wrap_multiple > 1
    best: tuple[tuple[bool, int], tuple[int, ...]] | None = None
    for inner in products(*(divisors(size) for _ in full[1:])):
        last, rest = size, 0
        for length in inner:
            last, rest = divmod(last, length)
            if rest:
                break
        lengths = tuple(sorted((*inner, last)))
        if rest or any(length > most for length, most in zip(lengths, full, strict=True)):
            continue
        whole = not several or all(length % tier.wrap_multiple == 0 for length in lengths)
        key = (not whole, sum(lengths))
        if best is None or key < best[0]:
            best = (key, lengths)
    if best is None:
        full_text = "x".join(map(str, full))
        raise InputError(
            [Problem(f"no slice of {size} devices fits into the {full_text} torus {tier.name}.", "--nodes")]
        )
    return best[1]


def _wrap(tier: TierFile, shape: tuple[int, ...]) -> tuple[bool, ...]:
    if tier.topology != "torus":
        return (False,) * len(shape)
    if tier.wrap_multiple < 2:
        return tuple(length > 2 for length in shape)
    whole = tuple(length % tier.wrap_multiple == 0 for length in shape)
    return whole if len(shape) < 3 else (all(whole),) * len(shape)
