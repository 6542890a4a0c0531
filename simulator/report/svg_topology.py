"""What each parallel axis crosses: the cluster's tiers from the inside out, and the bytes each axis sends."""

from __future__ import annotations

from simulator.cluster.traffic_map import axis_placement
from simulator.errors import InputError
from simulator.parallel.setting import groups_of
from simulator.report.svg import Scene, Shape, circle, line, rect, text
from simulator.result import Estimate
from simulator.spec.hardware import Cluster, Tier
from simulator.spec.strategy import Strategy
from simulator.units import format_bandwidth, format_bytes, format_time

AXES = (("tp", "tp"), ("cp", "cp"), ("ep", "ep"), ("etp", "etp"), ("dp", "dp_cp"), ("pp", "pp"))
"""Axis of a strategy and the communicator that carries its traffic."""
LEFT, HEAD, ROW = 52, 108, 30


def topology_scene(cluster: Cluster, strategy: Strategy, answer: Estimate, width: int) -> Scene:
    """One column per tier, one row per axis: the row reaches as far out as the axis does."""
    tiers = cluster.tiers
    column = (width - LEFT - 8) / len(tiers)
    shapes: list[Shape] = []
    for index, tier in enumerate(tiers):
        inner = tiers[index - 1].size if index else 1
        shapes += _tier(tier, inner, cluster, LEFT + index * column, column)
    rows = [(axis, group) for axis, group in AXES if getattr(strategy, axis) > 1]
    said = []
    for index, (axis, group) in enumerate(rows):
        size, reach = getattr(strategy, axis), _reach(cluster, strategy, group)
        y = HEAD + index * ROW
        sent = answer.traffic_bytes.get(axis, 0.0)
        amount = f"{format_bytes(sent, 3)} per step" if sent else "nothing sent"
        said.append(f"{axis} {size} reaches {tiers[reach].name}, {amount}")
        shapes += [
            text(LEFT - 8, y + 18, f"{axis} {size}", "label strong", "end"),
            rect(LEFT, y + 4, (reach + 1) * column - 4, ROW - 8, f"part k-{axis}", tip=said[-1],
                 term=f"traffic.{axis}"),
            text(LEFT + 8, y + 19, amount, f"value on-{axis}"),
        ]  # fmt: skip
    if not rows:
        shapes.append(text(LEFT, HEAD + 18, "One device per model copy: nothing is sent between devices.", "label"))
    words = f"Topology of {cluster.name}, {cluster.devices} devices: " + ("; ".join(said) or "nothing is split") + "."
    return Scene(name="topology", title="What crosses which link", words=words, width=width,
                 height=HEAD + max(len(rows), 1) * ROW + 6, shapes=tuple(shapes))  # fmt: skip


def _reach(cluster: Cluster, strategy: Strategy, group: str) -> int:
    """Index of the outermost tier that the axis crosses."""
    try:
        name = axis_placement(cluster, group, groups_of(cluster, strategy)[group]).tier
    except InputError:
        # Listed graphs have no closed form; their traffic may take any link.
        return len(cluster.tiers) - 1
    return [tier.name for tier in cluster.tiers].index(name)


def _tier(tier: Tier, inner: int, cluster: Cluster, x: float, column: float) -> list[Shape]:
    size = tier.size or cluster.devices
    units = size // inner
    narrow = column < 130
    what = "devices" if inner == 1 else f"groups of {inner}"
    lines = [
        tier.name,
        f"{units} {what}",
        f"{format_bandwidth(tier.bandwidth_bytes_per_s, 3)}" + ("" if narrow else " per device"),
        f"{format_time(tier.latency_s, 2)}" + ("" if narrow else f", {tier.topology}"),
    ]
    if tier.oversubscription > 1 and not narrow:
        lines[3] += f", {tier.oversubscription:g}:1"
    shapes = _glyph(units, x + 4, 6, min(column - 16, 150.0), "torus" in tier.topology or "mesh" in tier.topology)
    for index, words in enumerate(lines):
        shapes.append(text(x + 4, 50 + index * 15, words, "label strong" if index == 0 else "axis"))
    return [line(x, 4, x, HEAD - 4, "grid"), *shapes]


def _glyph(units: int, x: float, y: float, width: float, chain: bool) -> list[Shape]:
    """Up to eight units under a switch, or side by side in a chain."""
    shown = min(units, 8)
    step = width / 8
    at = [x + step * (i + 0.5) for i in range(shown)]
    low = y + 22
    shapes: list[Shape] = []
    if chain:
        shapes.append(line(at[0], low, at[-1], low, "wire"))
    else:
        shapes += [line(each, low, each, y + 6, "wire") for each in at]
        shapes.append(rect(at[0] - 4, y + 2, at[-1] - at[0] + 8, 6, "switch", tip="switch"))
    shapes += [circle(each, low, 4.5, "unit") for each in at]
    if units > shown:
        shapes.append(text(at[-1] + 9, low + 4, "...", "axis"))
    return shapes
