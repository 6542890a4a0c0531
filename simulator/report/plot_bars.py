"""Where the bytes are and where the seconds go: memory by pipeline rank, the step as a waterfall, strategies side by
side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulator.report.plot_style import BAD, INK, QUIET, colour, grid, legend_beside, new_figure, styled
from simulator.report.svg_bars import MEMORY_ORDER, TIME_ORDER, in_order, shown_ranks, word
from simulator.result import Estimate
from simulator.units import format_bytes, format_percent, format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GIB = 2.0**30


@styled
def memory_picture(answer: Estimate) -> Figure:
    """Stacked bytes of each pipeline rank against the device's memory."""
    figure = new_figure(7.2, 1.5 + 0.26 * len(shown_ranks(len(answer.memory.per_stage))))
    draw_memory(figure.subplots(), answer)
    return figure


def draw_memory(axes: Axes, answer: Estimate) -> None:
    """`memory_picture` on axes that are there already."""
    ranks, limit = answer.memory.per_stage, answer.device_memory_bytes
    shown = shown_ranks(len(ranks))
    names = [name for name, _ in in_order(dict.fromkeys((n for r in ranks for n in r if n != "total"), 1.0),
                                          MEMORY_ORDER)]  # fmt: skip
    left = [0.0] * len(shown)
    for name in names:
        sizes = [ranks[rank].get(name, 0.0) / GIB for rank in shown]
        axes.barh(range(len(shown)), sizes, left=left, height=0.78, color=colour(name), edgecolor="white",
                  linewidth=0.5, label=word(name))  # fmt: skip
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axes.axvline(limit / GIB, color=BAD, linestyle=(0, (5, 3)), linewidth=1.4)
    verdict = "fits" if answer.fits else "does not fit"
    axes.annotate(f"{format_bytes(limit)} per device", (limit / GIB, 1.0), xycoords=("data", "axes fraction"),
                  xytext=(-4, 3), textcoords="offset points", ha="right", color=BAD, fontsize=8.5)  # fmt: skip
    axes.set_yticks(range(len(shown)), [str(rank) for rank in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, max(limit / GIB, *left) * 1.03)
    axes.set(xlabel="GiB per device, at the peak", ylabel="pipeline rank")
    axes.set_title(f"Memory: {format_bytes(answer.peak_memory_bytes)} at most, {verdict}", pad=20)
    grid(axes, "x")
    legend_beside(axes)


@styled
def waterfall_picture(answer: Estimate) -> Figure:
    """The step from its first to its last second: each part begins where the one before ended."""
    figure = new_figure(7.2, 1.2 + 0.3 * (len(answer.time.parts) + 1))
    draw_waterfall(figure.subplots(), answer)
    return figure


def draw_waterfall(axes: Axes, answer: Estimate) -> None:
    """`waterfall_picture` on axes that are there already."""
    parts, step = in_order(dict(answer.time.parts), TIME_ORDER), answer.step_time_s
    at = 0.0
    for row, (name, seconds) in enumerate(parts):
        axes.barh(row, seconds, left=at, height=0.66, color=colour(name))
        at += seconds
        axes.plot([at, at], [row - 0.33, row + 1.33], color=QUIET, linewidth=0.6)
        share = f"{format_time(seconds, 3)}  ({format_percent(seconds / step)})"
        near = at < 0.72 * step or at - seconds < 0.3 * step
        axes.annotate(share, (at if near else at - seconds, row), xytext=(5 if near else -5, 0),
                      textcoords="offset points", va="center", ha="left" if near else "right",
                      fontsize=8.5, color=INK)  # fmt: skip
    row = len(parts)
    axes.barh(row, step, height=0.66, color=INK)
    low, high = answer.step_time_low_s, answer.step_time_high_s
    reach = [[max(step - low, 0.0)], [max(high - step, 0.0)]]
    axes.errorbar(step, row, xerr=reach, color=BAD, capsize=4, linewidth=1.6)
    axes.annotate(f"{format_time(step)}, likely {format_time(low, 3)} to {format_time(high, 3)}", (0, row),
                  xytext=(5, 0), textcoords="offset points", va="center", color="white", fontsize=8.5)  # fmt: skip
    axes.set_yticks(range(len(parts) + 1), [word(name) for name, _ in parts] + ["one step"])
    axes.invert_yaxis()
    axes.set_xlim(0, max(step, high) * 1.03)
    axes.set(xlabel="seconds")
    axes.set_title(f"Where the time goes: MFU {format_percent(answer.mfu)} ({answer.flops_convention} FLOPs)")
    grid(axes, "x")


@styled
def overview_picture(answer: Estimate) -> Figure:
    """Waterfall above, memory beneath: what `shardwise estimate --plot` draws."""
    ranks = len(shown_ranks(len(answer.memory.per_stage)))
    heights = [1.2 + 0.3 * (len(answer.time.parts) + 1), max(1.5 + 0.26 * ranks, 2.4)]
    figure = new_figure(7.6, sum(heights) + 0.3)
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    draw_waterfall(upper, answer)
    draw_memory(lower, answer)
    figure.suptitle(f"{answer.model} on {answer.devices:,} devices of {answer.cluster}", x=0.01, ha="left", fontsize=9,
                    color=QUIET)  # fmt: skip
    return figure


@styled
def compare_picture(answers: Sequence[Estimate], labels: Sequence[str] = ()) -> Figure:
    """Step times of several strategies as stacked bars, the same parts in the same colours."""
    names = labels or [_degrees(answer) for answer in answers]
    figure = new_figure(7.2, 1.3 + 0.34 * len(answers))
    axes = figure.subplots()
    every = dict.fromkeys((name for answer in answers for name in answer.time.parts), 1.0)
    left = [0.0] * len(answers)
    for part, _ in in_order(every, TIME_ORDER):
        seconds = [answer.time.parts.get(part, 0.0) for answer in answers]
        axes.barh(range(len(answers)), seconds, left=left, height=0.7, color=colour(part), edgecolor="white",
                  linewidth=0.4, label=word(part))  # fmt: skip
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    for row, answer in enumerate(answers):
        words = format_time(answer.step_time_s, 3) + ("" if answer.fits else ", out of memory")
        axes.annotate(words, (left[row], row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5,
                      color=INK if answer.fits else BAD)  # fmt: skip
    axes.set_yticks(range(len(answers)), list(names))
    axes.invert_yaxis()
    axes.set_xlim(0, max(left) * (1.2 if all(answer.fits for answer in answers) else 1.45))
    axes.set(xlabel="seconds per step", title="Strategies side by side")
    grid(axes, "x")
    legend_beside(axes)
    return figure


def _degrees(answer: Estimate) -> str:
    return " ".join(f"{axis}{answer.strategy[axis]}" for axis in ("tp", "cp", "ep", "dp", "pp")
                    if answer.strategy[axis] > 1) or "one device"  # fmt: skip
