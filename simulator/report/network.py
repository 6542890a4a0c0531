"""A cluster's network as a person reads it: tiers, times by size and algorithm, and what each axis crosses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.cluster.link_loads import LinkLoad
from simulator.cluster.members import distinct_devices
from simulator.cluster.survey import AxisSurvey, CollectiveSurvey, SizeRow
from simulator.report.text import rendered, table
from simulator.spec.hardware import Cluster, Tier
from simulator.units import format_bandwidth, format_bytes, format_count, format_time

SHOWN_ALGORITHMS = 4


def network_text(
    cluster: Cluster, collective: CollectiveSurvey | None, axes: Sequence[AxisSurvey], said: Sequence[str] = ()
) -> str:
    """Tiers, then the collective by size, then the axes, then what was assumed."""
    names = ", ".join(device.name for device in distinct_devices(cluster))
    head = f"{cluster.name}: {cluster.devices:,} devices ({names}), {cluster.nodes:,} nodes"
    items: list[Any] = [head, "", _tiers(cluster)]
    if collective is not None:
        items += [_times(collective), *_held_back(collective.bottleneck), ""]
        if collective.rows[-1].by_member_s:
            last = collective.rows[-1]
            items.append(_members(last.size_bytes, [(f"{collective.group.size} ranks", last.by_member_s)]))
    if axes:
        items += [_axes(axes), _loads(axes)]
        if any(found.by_member_s for found in axes):
            items.append(_members(axes[0].size_bytes, [(found.placement.axis, found.by_member_s) for found in axes]))
    return rendered([*items, *(f"- {note}" for note in said)])


def _tiers(cluster: Cluster) -> Any:
    rows = []
    below = 1
    for tier in cluster.tiers:
        units = -(-cluster.devices // tier.size)
        joins = f"{tier.size // below} x {below}" if below > 1 else f"{tier.size} devices"
        thin = f"{tier.oversubscription:g}:1" if tier.oversubscription > 1 else ""
        shape = "x".join(map(str, tier.shape))
        rows.append((tier.name, f"{tier.topology} {shape}".strip(), joins, f"{units:,}",
                     tier_rates(cluster, tier), format_time(tier.latency_s), thin))  # fmt: skip
        below = tier.size
    columns = ("tier", "topology", "joins", "units", "per device, one way", "latency", "oversubscribed")
    return table("Tiers, from the inside out", columns, rows)


def tier_rates(cluster: Cluster, tier: Tier) -> str:
    """A tier's bandwidth, or that of the slowest and of the fastest node."""
    own = {0: cluster.node_tiers, 1: cluster.node_uplinks}.get(cluster.tiers.index(tier), ()) or (tier,)
    rates = sorted({each.bandwidth_bytes_per_s for each in own})
    return " to ".join(format_bandwidth(rate) for rate in dict.fromkeys((rates[0], rates[-1])))


def _members(size_bytes: float, groups: Sequence[tuple[str, Mapping[str, float]]]) -> Any:
    """Groups of unequal nodes by their slowest member."""
    rows = [(name, label, format_time(seconds)) for name, by_member in groups for label, seconds in by_member.items()]
    columns = ("axis", "slowest member", f"time of {format_bytes(size_bytes)}")
    return table("Groups by their slowest member", columns, rows)


def _times(found: CollectiveSurvey) -> Any:
    group = found.group
    where = f" {group.stride} apart" if group.stride > 1 else ""
    title = f"{found.kind} on {group.size} ranks{where}, all such groups at once"
    rows = [
        (format_bytes(row.size_bytes), format_time(row.time_s), format_bandwidth(row.bus_bytes_per_s), row.algorithm,
         _others(row))
        for row in found.rows
    ]  # fmt: skip
    return table(title, ("size", "time", "bus bandwidth", "algorithm", "next best"), rows)


def _others(row: SizeRow) -> str:
    others = [(name, seconds) for name, seconds in row.by_algorithm_s.items() if name != row.algorithm]
    return ", ".join(f"{name} {format_time(seconds, 3)}" for name, seconds in others[: SHOWN_ALGORITHMS - 2])


def _held_back(load: LinkLoad | None) -> list[str]:
    if load is None:
        return ["One rank sends nothing."]
    shared = f", shared by {format_count(load.sharing_factor)} groups" if load.sharing_factor > 1 else ""
    return [
        (f"bottleneck  {load.link}: {format_bandwidth(load.capacity_bytes_per_s)} one way{shared}, "
         f"{load.load_bytes:.3g} bytes over it per byte of buffer")
    ]  # fmt: skip


def _axes(axes: Sequence[AxisSurvey]) -> Any:
    rows = []
    for found in axes:
        place = found.placement
        sharing = ", ".join(f"{format_count(groups)} into {tier}" for tier, groups in place.sharing.items()) or "-"
        units = ", ".join(f"{count} {tier}" for tier, count in place.units.items() if count > 1) or "one unit"
        rows.append((place.axis, str(place.size), place.tier, units, sharing, format_time(found.time_s)))
    size = format_bytes(axes[0].size_bytes)
    columns = ("axis", "ranks", "crosses", "units touched", "groups that share a unit's way", f"time of {size}")
    return table("What each axis crosses", columns, rows)


def _loads(axes: Sequence[AxisSurvey]) -> Any:
    rows = [
        (found.placement.axis, found.kind, load.link, format_bytes(load.load_bytes), format_count(load.sharing_factor),
         format_time(load.drain_s))
        for found in axes
        for load in found.loads
    ]  # fmt: skip
    size = format_bytes(axes[0].size_bytes)
    columns = ("axis", "collective", "link", "bytes over it", "groups", "drains in")
    title = f"What {size} per rank put on the links (rings; trees and reduction in switches send less)"
    return table(title, columns, rows)
