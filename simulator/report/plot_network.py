"""Pictures of a cluster: its topology, and on it how long each axis's traffic takes to drain from every link.

Big clusters are drawn in part: some units of each tier, which stand for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import TYPE_CHECKING, Any

from simulator.cluster.graph import cluster_graph, vertex
from simulator.cluster.survey import AxisSurvey
from simulator.cluster.torus import is_torus
from simulator.report.plot_style import BLUE, INK, RULE, SLATE, new_figure, styled
from simulator.spec.hardware import Cluster
from simulator.units import format_bandwidth, format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_DEVICES, SHOWN_UNITS, SHOWN_TORUS = 8, 3, 8
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Wire:
    """One drawn link: its ends, and which loads it carries."""

    one: Point
    other: Point
    key: str
    """A tier's name; on a torus with the dimension, as "ici/1"."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is drawn of a cluster."""

    devices: Mapping[int, Point]
    switches: Mapping[Point, str]
    """Where they stand, and the label of the first of each tier."""
    wires: tuple[Wire, ...]


def sketch_of(cluster: Cluster) -> Sketch:
    """Positions of devices, switches and links: a tree of tiers, a torus's first plane, or a listed graph."""
    if cluster.links:
        return _listed_sketch(cluster)
    return _torus_sketch(cluster) if is_torus(cluster) else _tree_sketch(cluster)


@styled
def network_figure(cluster: Cluster, axes: Sequence[AxisSurvey]) -> Figure:
    """The topology, then one picture per axis in which links are coloured by how long their load takes to drain."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    sketch = sketch_of(cluster)
    panels = 1 + len(axes)
    columns = min(panels, 3)
    figure = new_figure(4.2 * columns, 2.9 * ceil(panels / columns))
    grid = figure.subplots(ceil(panels / columns), columns, squeeze=False)
    places = list(grid.flat)
    _draw(places[0], sketch, {})
    part = f", {len(sketch.devices)} drawn" if len(sketch.devices) < cluster.devices else ""
    places[0].set_title(f"{cluster.name}: {cluster.devices:,} devices{part}", loc="left")
    slowest_s = max((load.drain_s for axis in axes for load in axis.loads), default=1.0)
    shades = colormaps["YlOrRd"]
    scale = ScalarMappable(Normalize(0.0, slowest_s * 1e3), shades)
    for place, axis in zip(places[1:], axes, strict=False):
        _draw(place, sketch, {key: shades(s / slowest_s) for key, s in drains_of(cluster, axis).items()})
        _mark_group(place, sketch, axis)
        words = f"{axis.placement.axis} {axis.placement.size}: {axis.kind}, crosses {axis.placement.tier}"
        place.set_title(words, loc="left")
    for place in places[panels:]:
        place.set_axis_off()
    if axes:
        size = format_bytes(axes[0].size_bytes)
        figure.colorbar(scale, ax=places, shrink=0.6, label=f"ms to drain {size} per rank")
    return figure


def drains_of(cluster: Cluster, axis: AxisSurvey) -> dict[str, float]:
    """Seconds to drain the slowest link of every kind that is drawn."""
    found: dict[str, float] = {}
    for load in axis.loads:
        key = load.tier
        if is_torus(cluster) and load.tier == cluster.tiers[0].name:
            key = f"{load.tier}/{load.link.split('dimension ')[1].split()[0]}"
        found[key] = max(found.get(key, 0.0), load.drain_s)
    return found


def _draw(place: Axes, sketch: Sketch, colours: Mapping[str, Any]) -> None:
    place.set_axis_off()
    for wire in sketch.wires:
        busy = wire.key in colours
        place.plot([wire.one[0], wire.other[0]], [wire.one[1], wire.other[1]], zorder=1,
                   color=colours.get(wire.key, RULE), linewidth=2.4 if busy else 1.2)  # fmt: skip
    devices = list(sketch.devices.values())
    place.scatter([x for x, _ in devices], [y for _, y in devices], s=14, color=BLUE, zorder=3)
    if sketch.switches:
        place.scatter([x for x, _ in sketch.switches], [y for _, y in sketch.switches], s=36, marker="s", color=SLATE,
                      zorder=3)  # fmt: skip
    if not colours:
        for (x, y), label in sketch.switches.items():
            if label:
                place.annotate(label, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=7, color=INK,
                               bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, zorder=5)


def _mark_group(place: Axes, sketch: Sketch, axis: AxisSurvey) -> None:
    """Ring the drawn devices of the first group."""
    ringed = [sketch.devices[device] for device in axis.ranks if device in sketch.devices]
    if ringed:
        place.scatter([x for x, _ in ringed], [y for _, y in ringed], s=60, facecolors="none", edgecolors=INK, zorder=4)


def _some(count: int, most: int) -> list[int]:
    """The first children and the last."""
    return list(range(count)) if count <= most else [*range(most - 1), count - 1]


def _tree_sketch(cluster: Cluster) -> Sketch:
    """Some units of every tier as a tree, devices at the bottom."""
    devices: dict[int, Point] = {}
    switches: dict[Point, str] = {}
    wires: list[Wire] = []
    column = [0.0]
    tiers = cluster.tiers

    def unit(level: int, first: int) -> Point:
        """Draw the unit of tier `level` that begins at device `first`; where its switch stands."""
        below = tiers[level - 1].size if level else 1
        held = min(tiers[level].size, cluster.devices - first)
        starts = [first + index * below for index in _some(-(-held // below), SHOWN_UNITS if level else SHOWN_DEVICES)]
        ends = [unit(level - 1, start) if level else leaf(start) for start in starts]
        here = (sum(x for x, _ in ends) / len(ends), level + 1.0)
        tier = tiers[level]
        rate = format_bandwidth(tier.bandwidth_bytes_per_s)
        thin = f", {tier.oversubscription:g}:1" if tier.oversubscription > 1 else ""
        named = any(label.startswith(tier.name) for label in switches.values())
        switches[here] = "" if named else f"{tier.name} {rate}{thin}"
        wires.extend(Wire(end, here, tier.name) for end in ends)
        column[0] += 0.6
        return here

    def leaf(device: int) -> Point:
        devices[device] = (column[0], 0.0)
        column[0] += 1.0
        return devices[device]

    unit(len(tiers) - 1, 0)
    return Sketch(devices, switches, tuple(wires))


def _torus_sketch(cluster: Cluster) -> Sketch:
    """The last two dimensions of the first slice; a link that wraps leaves the picture as a stub on both sides."""
    tier = cluster.tiers[0]
    rows, columns = (1, *tier.shape)[-2:]
    wrap = (False, *(tier.wrap or (tier.topology == "torus",) * len(tier.shape)))[-2:]
    high, wide = min(rows, SHOWN_TORUS), min(columns, SHOWN_TORUS)
    last = len(tier.shape) - 1
    drawn = list(product(range(high), range(wide)))
    devices = {row * columns + column: (float(column), float(-row)) for row, column in drawn}
    wires = []
    for row, column in drawn:
        here = (float(column), float(-row))
        if column + 1 < wide:
            wires.append(Wire(here, (here[0] + 1, here[1]), f"{tier.name}/{last}"))
        if row + 1 < high:
            wires.append(Wire(here, (here[0], here[1] - 1), f"{tier.name}/{last - 1}"))
    for row in range(high):
        if wrap[1] or wide < columns:
            ends = (0.0, wide - 1.0)
            wires += [Wire((x, float(-row)), (x + out, float(-row)), f"{tier.name}/{last}")
                      for x, out in zip(ends, (-0.4, 0.4), strict=True)]  # fmt: skip
    for column in range(wide):
        if wrap[0] or high < rows:
            tops = (0.0, 1.0 - high)
            wires += [Wire((float(column), y), (float(column), y + out), f"{tier.name}/{last - 1}")
                      for y, out in zip(tops, (0.4, -0.4), strict=True)]  # fmt: skip
    return Sketch(devices, {}, tuple(wires))


def _listed_sketch(cluster: Cluster) -> Sketch:
    """All vertices of a listed graph, by force-directed placement with a fixed seed."""
    import networkx as nx

    graph = cluster_graph(cluster)
    at = {name: (float(x), float(y)) for name, (x, y) in nx.spring_layout(graph, seed=1).items()}
    wires = tuple(Wire(at[vertex(link.one)], at[vertex(link.other)], "graph") for link in cluster.links)
    devices = {name: point for name, point in at.items() if isinstance(name, int)}
    return Sketch(devices, {point: str(name) for name, point in at.items() if isinstance(name, str)}, wires)
