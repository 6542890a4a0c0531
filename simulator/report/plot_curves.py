"""Curves and clouds: time against memory with the front, predicted against measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.errors import InputError
from simulator.report import plot_style
from simulator.report.plot_style import BAD, BLUE, GREEN, GREY, INK, QUIET, SKY, grid, new_figure, styled
from simulator.report.svg_scatter import Point, front
from simulator.result import Estimate
from simulator.units import format_bytes, format_percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIB = 2.0**30
FEW = 10
"""Points that each get a tick."""


@styled
def pareto_picture(answers: Sequence[Estimate], *, title: str = "Time against memory") -> Figure:
    """Each strategy by step time and peak memory; a line joins those that nothing beats in both.

    Raises InputError where there is no estimate.
    """
    if not answers:
        raise InputError(["A Pareto front needs at least one estimate."])
    limit = answers[0].device_memory_bytes
    points = [Point(label=_label(a), kind="planned", step_time_s=a.step_time_s, peak_bytes=a.peak_memory_bytes)
              for a in answers]  # fmt: skip
    best = front(points, limit)
    figure = new_figure(7.2, 4.2)
    axes = figure.subplots()
    for inside, shade, words in ((True, SKY, "fits"), (False, "none", "does not fit")):
        mine = [p for p in points if (p.peak_bytes <= limit) == inside]
        if mine:
            axes.scatter([p.step_time_s for p in mine], [p.peak_bytes / GIB for p in mine], s=22, facecolor=shade,
                         edgecolor=BLUE if inside else BAD, linewidth=0.8, label=words)  # fmt: skip
    axes.step([p.step_time_s for p in best], [p.peak_bytes / GIB for p in best], where="post", color=GREEN,
              marker="o", markersize=6, linewidth=1.4, label="Pareto front")  # fmt: skip
    for index, point in enumerate(best[:: max(1, len(best) // 4)]):
        axes.annotate(point.label, (point.step_time_s, point.peak_bytes / GIB), xytext=(5, -11 - 9 * (index % 2)),
                      fontsize=7.5, textcoords="offset points", color=INK)  # fmt: skip
    axes.axhline(limit / GIB, color=BAD, linestyle=(0, (5, 3)), linewidth=1.2)
    axes.annotate(f"{format_bytes(limit)} per device", (1.0, limit / GIB), xycoords=("axes fraction", "data"),
                  xytext=(0, 3), textcoords="offset points", ha="right", color=BAD, fontsize=8.5)  # fmt: skip
    times = [p.step_time_s for p in points]
    if max(times) > 10 * min(times):
        axes.set_xscale("log")
    axes.margins(x=0.16)
    sizes = [p.peak_bytes for p in points]
    axes.set_ylim(min(sizes) * 0.92 / GIB, min(max(limit, *sizes) * 1.05, 2.2 * limit) / GIB)
    axes.set(xlabel="seconds per step", ylabel="peak memory, GiB")
    axes.set_title(title)
    axes.legend(loc="best")
    grid(axes)
    return figure


def _label(answer: Estimate) -> str:
    said = answer.strategy
    degrees = [f"{axis}{said[axis]}" for axis in ("tp", "cp", "ep", "pp", "dp") if said[axis] > 1]
    extra = [said["schedule"]] if said["pp"] > 1 else []
    return " ".join([*degrees, f"mb{said['micro_batch']}", *extra])


@styled
def measured_picture(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Predicted against measured step times: rows of `shardwise validate --json`, coloured by family.

    A row needs family, predicted_s and measured_s; others are left out. Raises InputError where none is left.
    """
    timed = [row for row in rows if row.get("predicted_s") and row.get("measured_s")]
    if not timed:
        raise InputError(["There is no row with a predicted and a measured time to draw."])
    figure = new_figure(7.4, 4.8)
    axes = figure.subplots()
    measured = np.array([row["measured_s"] for row in timed])
    predicted = np.array([row["predicted_s"] for row in timed])
    error = np.abs(predicted / measured - 1)
    families = sorted({row["family"] for row in timed})
    shades, marks = plot_style.FAMILIES, "o^sD"
    for index, family in enumerate(families):
        mine = np.array([row["family"] == family for row in timed])
        axes.scatter(measured[mine], predicted[mine], s=10, color=shades[index % len(shades)], linewidth=0, alpha=0.75,
                     marker=marks[index // len(shades) % len(marks)], label=f"{family} ({mine.sum()})")  # fmt: skip
    ends = np.array([min(measured.min(), predicted.min()) / 1.3, max(measured.max(), predicted.max()) * 1.3])
    axes.plot(ends, ends, color=INK, linewidth=1.0)
    axes.fill_between(ends, ends * 0.9, ends * 1.1, color=GREY, alpha=0.35, linewidth=0)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured step time, s",
             ylabel="predicted step time, s")  # fmt: skip
    axes.set_title(f"{len(timed):,} published runs: median error {format_percent(float(np.median(error)))}, "
                   f"mean {format_percent(float(error.mean()))}")  # fmt: skip
    axes.annotate("grey: within 10 %", (0.98, 0.02), xycoords="axes fraction", ha="right", fontsize=8, color=QUIET)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, fontsize=7.5, markerscale=2)
    grid(axes)
    return figure


@styled
def lines_picture(
    across: Sequence[float], lines: Mapping[str, Sequence[float]], *, title: str, x: str, y: str,
    logarithmic: str = "", points: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:  # fmt: skip
    """Named curves over one axis, with points (measured, published) beside them.

    `logarithmic`: axes in logarithmic steps, as "x", "y" or "xy".
    """
    figure = new_figure(6.8, 3.6)
    axes = figure.subplots()
    for name, values in lines.items():
        axes.plot(across, values, label=name)
    for name, (at, value) in (points or {}).items():
        axes.plot([at], [value], marker="D", linestyle="none", color=INK, markersize=5)
        axes.annotate(name, (at, value), xytext=(6, -3), textcoords="offset points", fontsize=8)
    if "x" in logarithmic:
        axes.set_xscale("log")
        if len(across) <= FEW:
            axes.set_xticks(list(across), [f"{value:,g}" for value in across])
            axes.minorticks_off()
    if "y" in logarithmic:
        axes.set_yscale("log")
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title)
    axes.legend(loc="best")
    grid(axes)
    return figure
