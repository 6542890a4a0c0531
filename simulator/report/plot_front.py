"""The picture of a Pareto front: time against memory, and days against dollars where devices differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.plan.front import Front, FrontPoint
from simulator.report.plot_style import BAD, FAMILIES, INK, grid, new_figure, styled
from simulator.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GIB = 2.0**30
_NAMED = 5
"""Points of a single front that carry their strategy."""


@styled
def front_picture(front: Front) -> Figure:
    """Each front as a staircase: nothing lies below and to the left of it."""
    counts = sorted({point.estimate.devices for point in front.points})
    figure = new_figure(9.6 if len(counts) > 1 else 7.2, 4.2)
    left, *others = figure.subplots(1, 2 if len(counts) > 1 else 1, squeeze=False)[0]
    for index, count in enumerate(counts):
        mine = [point for point in front.points if point.estimate.devices == count]
        shade = FAMILIES[index % len(FAMILIES)]
        left.step([p.estimate.step_time_s for p in mine], [p.estimate.peak_memory_bytes / GIB for p in mine],
                  where="post", color=shade, marker="o", label=f"{count:,} devices")  # fmt: skip
        for axes in others:
            _cost(axes, mine, shade)
    if len(counts) == 1:
        _name(left, front.points)
    limit = front.points[0].estimate.device_memory_bytes / GIB
    most = max(point.estimate.peak_memory_bytes for point in front.points) / GIB
    near = most > 0.5 * limit
    if near:
        left.axhline(limit, color=BAD, linestyle=(0, (5, 3)), linewidth=1.2)
        left.annotate(f"{limit:.4g} GiB per device", (1.0, limit), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", ha="right", color=BAD, fontsize=8.5)  # fmt: skip
    left.set(xlabel="seconds per step", ylabel="peak memory, GiB", ylim=(0, 1.1 * (limit if near else most)))
    left.set_title(f"{front.model} on {front.cluster}: what nothing beats")
    if len(counts) > 1:
        _logarithmic(left)
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
    else:
        left.margins(x=0.2)
    grid(left)
    return figure


def _cost(axes: Axes, points: list[FrontPoint], shade: str) -> None:
    """Days against dollars, or device hours where no price is known."""
    known = all(point.bill.usd is not None for point in points)
    paid = [p.bill.usd if p.bill.usd is not None else p.bill.device_hours for p in points]
    axes.plot([p.bill.days for p in points], paid, color=shade, marker="o", linestyle="none")
    axes.set(xlabel="days of training", ylabel="dollars" if known else "device hours")
    _logarithmic(axes)
    axes.set_title(f"{format_count(points[0].bill.tokens)} tokens")
    axes.yaxis.set_major_formatter(lambda value, _: format_count(value, 3))
    grid(axes)


def _logarithmic(axes: Axes) -> None:
    """Logarithmic across, with numbers as people write them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name(axes: Axes, points: tuple[FrontPoint, ...]) -> None:
    """Some of the points with their degrees."""
    for index, point in enumerate(points[:: -(-len(points) // _NAMED)]):
        said = point.strategy
        degrees = [f"{axis}{getattr(said, axis)}" for axis in ("tp", "cp", "ep", "pp", "dp") if getattr(said, axis) > 1]
        words = " ".join([*degrees, f"mb{said.micro_batch}", "" if said.recompute == "none" else said.recompute])
        where = (point.estimate.step_time_s, point.estimate.peak_memory_bytes / GIB)
        axes.annotate(words.strip(), where, xytext=(6, 5 - 4 * (index % 2)), textcoords="offset points", fontsize=7.5,
                      color=INK)  # fmt: skip
