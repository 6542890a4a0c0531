"""The cluster as its graph, with what one step of a strategy puts on every link drawn.

Devices stand in a row: inside a node their links go down, to switches of the scale-up network; out of it they go up,
tier by tier. Tori are drawn on their grid. Of a large cluster only the first units are drawn; loads are those of the
whole cluster.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from simulator.cluster.generators import Vertex
from simulator.cluster.graph import Routes, cluster_graph, exchange_pairs, ring_pairs
from simulator.cluster.placement import axis_ranks
from simulator.parallel.setting import groups_of
from simulator.report.plot_style import BLUE, GREY, INK, QUIET, SLATE, new_figure, styled
from simulator.result import Estimate
from simulator.spec.hardware import Cluster, Tier
from simulator.spec.strategy import Strategy
from simulator.units import format_bandwidth, format_bytes

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = (("tp", "tp"), ("cp", "cp"), ("ep", "ep"), ("etp", "etp"), ("dp", "dp_cp"), ("pp", "pp"))
"""Axis of a strategy and the communicator that carries its traffic."""
SHOWN_DEVICES, SHOWN_UNITS, LOADED_DEVICES = 72, 4, 20_000
CORNER = {1: 32, 2: 16, 3: 4}
"""Devices of each dimension that are drawn of a torus of 1, 2, 3 dimensions."""
AROUND = 8.0
"""A longer line between two devices is drawn as stubs."""
Link = tuple[Vertex, Vertex]
Places = dict[Vertex, tuple[float, float]]


@styled
def topology_picture(cluster: Cluster, answer: Estimate | None = None) -> Figure:
    """The first units of the cluster and the way out of them; with an estimate, coloured by bytes per step.

    Raises InputError for clusters whose graph is too large (see `cluster_graph`).
    """
    graph = cluster_graph(cluster)
    drawn = _drawn_devices(cluster)
    places = _places(cluster, graph, drawn)
    loads = link_bytes(cluster, answer, drawn, graph) if answer is not None else {}
    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    _draw_links(axes, graph, places, loads)
    _draw_vertices(axes, places, len(drawn))
    part = "" if len(drawn) == cluster.devices else f", {len(drawn)} drawn"
    axes.set_title(f"{cluster.name}: {cluster.devices:,} devices{part}")
    axes.set_axis_off()
    axes.margins(0.06)
    words = [f"{t.name}: {format_bandwidth(t.bandwidth_bytes_per_s, 3)} per device, {t.topology}" +
             (f", {t.oversubscription:g}:1" if t.oversubscription > 1 else "") for t in cluster.tiers]  # fmt: skip
    figure.text(0.01, 0.01, "\n".join(words), fontsize=8, color=QUIET, va="bottom")
    figure.set_layout_engine("constrained", rect=(0, 0.045 * len(words), 1, 1 - 0.045 * len(words)))
    if loads:
        _scale(figure, axes, loads)
    return figure


def link_bytes(
    cluster: Cluster, answer: Estimate, sources: tuple[int, ...], graph: nx.Graph[Vertex]
) -> dict[Link, float]:
    """Bytes per step that the `sources` put on each link: rings to the next rank, all-to-alls to every rank, pipeline
    sends to the next stage, each over equal shortest ways [B]. Keys are unordered pairs in the graph's own order.
    """
    strategy = Strategy(**{**answer.strategy, "order": tuple(answer.strategy["order"])})
    groups = groups_of(cluster, strategy)
    routes = Routes(graph)
    named = {number: way for way, number in routes.number.items()}
    mine = set(sources)
    found: dict[Link, float] = defaultdict(float)
    for axis, communicator in AXES:
        sent = answer.traffic_bytes.get(axis, 0.0)
        if not sent or cluster.devices > LOADED_DEVICES:
            continue
        held = [ranks for ranks in axis_ranks(cluster, groups[communicator]) if mine.intersection(ranks)]
        pairs = exchange_pairs(held) if axis == "ep" else ring_pairs(held)
        pairs = [(one, other) for one, other in pairs if one in mine and one != other]
        each = sent / (len(held[0]) - 1) if axis == "ep" else sent
        for one, other in pairs:
            for link, share in routes.shares(one, other).items():
                found[named[link]] += share * each
    return _one_way(found, graph)


def _one_way(found: dict[Link, float], graph: nx.Graph[Vertex]) -> dict[Link, float]:
    """The busier direction of each cable, under the graph's own order of its ends."""
    return {(one, other): max(found.get((one, other), 0.0), found.get((other, one), 0.0)) for one, other in graph.edges
            if (one, other) in found or (other, one) in found}  # fmt: skip


def _drawn_devices(cluster: Cluster) -> tuple[int, ...]:
    """Whole innermost units from the first: four, or fewer where they are large. Of a torus one corner."""
    tier = cluster.tiers[0]
    if cluster.links:
        return tuple(range(cluster.devices))
    if _is_torus(tier):
        side = CORNER[min(len(tier.shape), 3)]
        return tuple(d for d in range(tier.size) if all(x < side for x in _coordinates(tier.shape, d)))
    units = max(1, min(SHOWN_UNITS, SHOWN_DEVICES // tier.size))
    return tuple(range(min(tier.size * units, cluster.devices, 4 * SHOWN_DEVICES)))


def _places(cluster: Cluster, graph: nx.Graph[Vertex], drawn: tuple[int, ...]) -> Places:
    tier = cluster.tiers[0]
    if cluster.links:
        import networkx as nx

        found = nx.kamada_kawai_layout(graph)
        return {vertex: (float(x), float(y)) for vertex, (x, y) in found.items()}
    if _is_torus(tier):
        return _grid(tier.shape, drawn)
    places: Places = {device: _in_row(tier, device) for device in drawn}
    for level, (size, name) in enumerate(_units(cluster)):
        under: dict[Vertex, list[float]] = defaultdict(list)
        for device in drawn:
            switch = f"{name}.{device // size}"
            if switch in graph:
                under[switch].append(places[device][0])
        height = -1.0 if level == 0 else float(level)
        places |= {switch: (sum(xs) / len(xs), height) for switch, xs in under.items()}
    return places


def _units(cluster: Cluster) -> list[tuple[int, str]]:
    """Devices under one switch, and the switches' name, from the inside out (as `cluster_graph` names them)."""
    inner = cluster.tiers[0]
    return [(inner.size, inner.name), (inner.size, "nodes"), *((t.size, t.name) for t in cluster.tiers[1:])]


def _is_torus(tier: Tier) -> bool:
    return bool(tier.shape) and tier.topology in ("torus", "mesh")


def _in_row(tier: Tier, device: int) -> tuple[float, float]:
    """A device's place: in a row, node by node; cube meshes as a cube, full meshes bent so that links show."""
    unit, inside = divmod(device, tier.size)
    if tier.topology == "hybrid-cube-mesh":
        half, corner = divmod(inside, 4)
        return unit * 9.0 + half * 3.4 + (corner % 2) * 2.0, -1.0 + (corner // 2) * 1.0 + half * 0.25
    x = device + 1.6 * unit
    if tier.topology == "full-mesh":
        middle = (tier.size - 1) / 2
        return x, -0.9 * (1 - ((inside - middle) / max(middle, 0.5)) ** 2)
    return x, 0.0


def _coordinates(shape: tuple[int, ...], device: int) -> tuple[int, ...]:
    """Where a device stands in a torus, the fastest-running dimension first."""
    at = []
    for extent in reversed(shape):
        device, here = divmod(device, extent)
        at.append(here)
    return tuple(at)


def _grid(shape: tuple[int, ...], drawn: tuple[int, ...]) -> Places:
    """Places of a torus: two dimensions as a grid, a third shifted behind."""
    places: Places = {}
    for device in drawn:
        x, y, z = (*_coordinates(shape, device), 0, 0)[:3]
        places[device] = (x + 0.4 * z, y + 0.28 * z)
    return places


def _draw_links(axes: Axes, graph: nx.Graph[Vertex], places: Places, loads: dict[Link, float]) -> None:
    from matplotlib.collections import LineCollection

    lines: list[Any] = []
    shades: list[Any] = []
    widths: list[float] = []
    most = max(loads.values(), default=1.0)
    fastest = max(data["bandwidth_bytes_per_s"] for _, _, data in graph.edges(data=True))
    thin = min(1.0, (40 / len(places)) ** 0.7)
    for one, other, data in graph.edges(data=True):
        for ends in _drawn_ends(one, other, places):
            lines.append(ends)
            shades.append(_shade(loads.get((one, other), 0.0) / most) if loads else SLATE)
            widths.append(thin * (0.6 + 2.2 * (data["bandwidth_bytes_per_s"] / fastest) ** 0.5))
    axes.add_collection(LineCollection(lines, colors=shades, linewidths=widths, zorder=1, capstyle="round"))


def _drawn_ends(one: Vertex, other: Vertex, places: Places) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """A link as lines: one; none where an end is not drawn; two stubs where it leads around a torus."""
    begin, end = (
        places.get(int(v.removeprefix("nic")) if isinstance(v, str) and v.startswith("nic") else v)
        for v in (one, other)
    )
    if begin is None or end is None or begin == end:
        return []
    (x, y), (u, v) = begin, end
    if not (isinstance(one, int) and isinstance(other, int)) or max(abs(x - u), abs(y - v)) <= AROUND:
        return [((x, y), (u, v))]
    away = 0.4 / max(abs(x - u), abs(y - v))
    return [((x, y), (x + away * (x - u), y + away * (y - v))), ((u, v), (u - away * (x - u), v - away * (y - v)))]


def _shade(share: float) -> Any:
    from matplotlib import colormaps

    return colormaps["YlOrRd"](0.12 + 0.88 * share**0.5) if share else RULE_GREY


RULE_GREY = (0.83, 0.85, 0.87, 1.0)


def _draw_vertices(axes: Axes, places: Places, devices: int) -> None:
    size = 90 if devices <= 40 else 40
    for vertex, (x, y) in places.items():
        if isinstance(vertex, int):
            axes.scatter([x], [y], s=size, color=BLUE, edgecolor="white", linewidth=0.6, zorder=3)
            if devices <= 40:
                axes.annotate(str(vertex), (x, y), ha="center", va="center", fontsize=6, color="white", zorder=4)
        else:
            axes.scatter([x], [y], s=110, marker="s", color=GREY, edgecolor=INK, linewidth=0.6, zorder=3)
            below = y < 0
            axes.annotate(str(vertex), (x, y), xytext=(0, -10) if below else (8, 2), textcoords="offset points",
                          ha="center" if below else "left", va="top" if below else "bottom", fontsize=7, color=QUIET,
                          zorder=4)  # fmt: skip


def _scale(figure: Figure, axes: Axes, loads: dict[Link, float]) -> None:
    """The colours of loads: the square root of the share of the busiest link."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import FuncNorm, ListedColormap

    most = max(loads.values())
    norm = FuncNorm((lambda value: (value / most) ** 0.5, lambda share: most * share**2), vmin=0.0, vmax=most)
    shades = ListedColormap([_shade(max(i / 255, 1e-6) ** 2) for i in range(256)])
    bar = figure.colorbar(ScalarMappable(norm, shades), ax=axes, shrink=0.6, pad=0.02)
    marks = [most / 16, most / 4, most]
    bar.set_ticks([0.0, *marks], labels=["0", *(format_bytes(mark, 3) for mark in marks)])
    bar.set_label("bytes per step and link, busier direction", fontsize=8)


