"""The pipeline as a Gantt chart, with what each rank holds beneath."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.report.memory_curve import memory_curve
from simulator.report.plot_style import BAD, BLUE, GREEN, INK, ORANGE, QUIET, RED, SKY, grid, new_figure, styled
from simulator.report.svg_bars import shown_ranks
from simulator.result import Estimate
from simulator.schedule.memory import Footprint, MemoryTimeline, memory_over_time
from simulator.schedule.order import KINDS
from simulator.schedule.timeline import Timeline
from simulator.units import format_percent, format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

COLOUR = {"F": BLUE, "B": ORANGE, "BW": ORANGE, "W": GREEN}
SECOND = {"F": SKY, "B": "#f3c969", "BW": "#f3c969", "W": "#7fd1b5"}
"""Colours of virtual stages with an odd number."""
WORDS = {"F": "forward", "BW": "backward", "B": "input gradient", "W": "weight gradient"}
GIB = 2.0**30
NUMBERED_TASKS = 56
"""Tasks of a rank that have room for a number."""
SHOWN_TASKS = 160
"""Tasks of a rank that can be told apart."""


@styled
def timeline_picture(of: Estimate | Timeline, *, until_s: float = 0.0) -> Figure:
    """Tasks of every pipeline rank over time, and beneath what the first, middle and last rank hold.

    Of a step with many tasks only the opening and the end are drawn; `until_s` draws everything up to there instead.
    Of an estimate the lower part is in GiB against the device's memory, of a bare timeline in micro-batches.
    """
    line = of.timeline() if isinstance(of, Estimate) else of
    rows = 0.24 * len(shown_ranks(line.order.pp))
    figure = new_figure(7.6, 2.9 + rows)
    spans = [(0.0, min(until_s, line.makespan_s))] if until_s else _spans(line)
    axes = figure.subplots(2, len(spans), sharex="col", sharey="row", squeeze=False, height_ratios=[rows + 0.4, 1.5])
    for column, span in enumerate(spans):
        draw_tasks(axes[0][column], line, span)
        _memory(axes[1][column], of, line)
        axes[1][column].set(xlim=span, xlabel="seconds")
    for column in range(1, len(spans)):
        for each in (axes[0][column], axes[1][column]):
            each.set_ylabel("")
            each.spines["left"].set_visible(False)
            each.tick_params(left=False)
    axes[0][-1].legend(handles=_legend(line), loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, borderaxespad=0.2,
                       columnspacing=1.2)
    axes[1][-1].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderaxespad=0.1, labelcolor=QUIET)
    cut = "" if len(spans) == 1 else ", its opening and its end"
    axes[0][0].set_title(f"{line.order.schedule}: {format_time(line.makespan_s)}, "
                         f"bubble {format_percent(line.bubble_fraction)}{cut}", pad=22)  # fmt: skip
    return figure


def _spans(line: Timeline) -> list[tuple[float, float]]:
    each = line.order.tasks / line.order.pp
    if each <= SHOWN_TASKS:
        return [(0.0, line.makespan_s)]
    part = line.makespan_s * SHOWN_TASKS / 2 / each
    return [(0.0, part), (line.makespan_s - part, line.makespan_s)]


def draw_tasks(axes: Axes, line: Timeline, span: tuple[float, float] | None = None) -> None:
    """One row a rank, between two moments; numbers of micro-batches where there is room for them."""
    from matplotlib.collections import PolyCollection

    order = line.order
    start_s, end_s = span or (0.0, line.makespan_s)
    row_of = {rank: row for row, rank in enumerate(shown_ranks(order.pp))}
    inside = (line.start_s < end_s) & (line.end_s > start_s)
    taken = np.flatnonzero(np.isin(order.rank, list(row_of)) & inside)
    row = np.array([row_of[int(rank)] for rank in order.rank[taken]])
    begin, finish = np.maximum(line.start_s[taken], start_s), np.minimum(line.end_s[taken], end_s)
    # The two tasks of a pair share an interval: one above the other.
    half = np.where(line.paired[taken], 0.4, 0.8)
    top = row - 0.4 + np.where(line.second[taken], 0.4, 0.0)
    corners = np.stack([np.stack([begin, top], 1), np.stack([finish, top], 1),
                        np.stack([finish, top + half], 1), np.stack([begin, top + half], 1)], 1)  # fmt: skip
    kinds = [KINDS[kind] for kind in order.kind[taken]]
    faces = [(SECOND if second else COLOUR)[kind] for kind, second in zip(kinds, _odd(line)[taken], strict=True)]
    each = int(np.bincount(row).max()) if len(row) else 0
    axes.add_collection(PolyCollection(list(corners), facecolors=faces, edgecolors="white",
                                       linewidths=0.5 if each < 100 else 0.2))  # fmt: skip
    if each <= NUMBERED_TASKS:
        size = 6.5 if each <= 36 else 4.8
        for x, y, number in zip((begin + finish) / 2, top + half / 2, order.micro_batch[taken], strict=True):
            axes.text(x, y, str(number), ha="center", va="center", fontsize=size, color=INK, clip_on=True)
    axes.set_ylim(len(row_of) - 0.5, -0.5)
    axes.set_xlim(start_s, end_s)
    axes.set_yticks(range(len(row_of)), [str(rank) for rank in row_of])
    axes.set_ylabel("pipeline rank")


def _odd(line: Timeline) -> npt.NDArray[np.bool_]:
    """Tasks of virtual stages with an odd number."""
    odd: npt.NDArray[np.bool_] = (line.order.stage // line.order.pp) % 2 == 1
    return odd


def _legend(line: Timeline) -> list[Patch]:
    from matplotlib.patches import Patch

    found = {KINDS[kind] for kind in np.unique(line.order.kind)}
    handles = [Patch(color=COLOUR[kind], label=WORDS[kind]) for kind in WORDS if kind in found]
    if _odd(line).any():
        handles.append(Patch(color=SECOND["F"], label="other virtual stage"))
    return handles


def _memory(axes: Axes, of: Estimate | Timeline, line: Timeline) -> None:
    if isinstance(of, Estimate):
        _held(axes, memory_curve(of), line, GIB)
        axes.axhline(of.device_memory_bytes / GIB, color=BAD, linestyle=(0, (5, 3)), linewidth=1.2)
        axes.set_ylabel("GiB held")
        return
    share = line.order.pp / line.order.stages
    _held(axes, memory_over_time(line, Footprint(activation_bytes=share, weight_gradient_bytes=share)), line, 1.0)
    axes.set_ylabel("micro-batches\nheld")


def _held(axes: Axes, held: MemoryTimeline, line: Timeline, unit: float) -> None:
    ranks = sorted({0, (line.order.pp - 1) // 2, line.order.pp - 1})
    for rank, shade in zip(ranks, (BLUE, GREEN, RED), strict=False):
        seconds, size = held.of_rank(rank)
        axes.step(np.append(seconds, line.makespan_s), np.append(size, size[-1]) / unit, where="post", color=shade,
                  linewidth=1.2, label=f"rank {rank}")  # fmt: skip
    axes.set_ylim(bottom=0)
    grid(axes, "y")
