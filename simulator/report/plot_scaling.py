"""Pictures of how many devices: scaling curves with their knees, days against a deadline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.errors import InputError
from simulator.plan.scaling import KNEE_FRACTION, Deadline, Scaling, knee_index
from simulator.report.plot_style import BAD, BLUE, GREEN, GREY, INK, ORANGE, QUIET, SKY, grid, new_figure, styled
from simulator.result import Estimate
from simulator.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DAY_S = 86400.0
_COLOURS = (BLUE, GREEN)
_APART = 0.07
"""Least distance of two ticks, as a share of a logarithmic axis."""


def knee(answers: Sequence[Estimate], least_fraction: float = KNEE_FRACTION) -> Estimate:
    """The largest cluster on which a device still does at least `least_fraction` of what it does at best."""
    ordered = sorted(answers, key=lambda answer: answer.devices)
    return ordered[knee_index([answer.tokens_per_s_per_device for answer in ordered], least_fraction)]


@styled
def scaling_picture(
    answers: Sequence[Estimate] | Mapping[str, Sequence[Estimate]], *, title: str = "Scaling"
) -> Figure:
    """Tokens/s over devices beside the ideal line, efficiency beneath, and the knee: where it falls below 80 %.

    Several curves by name, or one. Raises InputError for fewer than two estimates.
    """
    curves = dict(answers) if isinstance(answers, Mapping) else {"predicted": answers}
    ordered = {name: sorted(curve, key=lambda answer: answer.devices) for name, curve in curves.items()}
    if not ordered or min(len(curve) for curve in ordered.values()) < 2:
        raise InputError(["A scaling curve needs at least two estimates."])
    figure = new_figure(7.2, 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    counts = sorted({answer.devices for curve in ordered.values() for answer in curve})
    most = max(a.tokens_per_s_per_device for curve in ordered.values() for a in curve)
    upper.loglog(counts, most * np.array(counts), color=GREY, linestyle="--", linewidth=1.2, label="ideal")
    lower.axhline(KNEE_FRACTION, color=QUIET, linewidth=0.8, linestyle=":")
    for (name, curve), shade in zip(ordered.items(), _COLOURS, strict=False):
        _draw_curve(upper, lower, curve, name, shade)
    for axes in (upper, lower):
        grid(axes, "y")
    _finish(upper, lower, counts, title)
    return figure


def _draw_curve(upper: Axes, lower: Axes, curve: Sequence[Estimate], name: str, shade: str) -> None:
    """One curve with its likely range and its knee."""
    devices = np.array([answer.devices for answer in curve])
    rates = np.array([answer.tokens_per_s for answer in curve])
    slow = [a.tokens_per_s * a.step_time_s / a.step_time_high_s for a in curve]
    quick = [a.tokens_per_s * a.step_time_s / a.step_time_low_s for a in curve]
    upper.fill_between(devices, slow, quick, color=SKY if shade == BLUE else shade, alpha=0.2, linewidth=0)
    upper.loglog(devices, rates, color=shade, marker="o", label=f"{name}, and its likely range")
    each = rates / devices
    lower.semilogx(devices, each / each.max(), color=shade, marker="o")
    found = knee(curve)
    if found is not curve[-1]:
        share = found.tokens_per_s_per_device / each.max()
        lower.plot([found.devices], [share], marker="o", markersize=10, markerfacecolor="none", color=ORANGE)
        upper.plot([found.devices], [found.tokens_per_s], marker="o", markersize=10, markerfacecolor="none",
                   color=ORANGE)  # fmt: skip
        upper.annotate(f"knee: {found.devices:,}", (found.devices, found.tokens_per_s), xytext=(6, -13),
                       textcoords="offset points", color=INK, fontsize=8.5)  # fmt: skip


def _finish(upper: Axes, lower: Axes, counts: Sequence[int], title: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    upper.set(ylabel="tokens/s")
    upper.set_title(title)
    upper.legend(loc="upper left")
    lower.set(xlabel="devices", ylabel="efficiency", ylim=(0, 1.08))
    _ticks(lower, counts)
    lower.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    upper.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    upper.yaxis.set_minor_locator(NullLocator())
    upper.yaxis.set_major_formatter(lambda value, _: format_count(value, 3))


def _ticks(axes: Axes, counts: Sequence[int]) -> None:
    """Ticks at the counts, from the largest down, but none too near another."""
    whole = math.log(counts[-1] / counts[0]) or 1.0
    shown: list[int] = []
    for count in reversed(counts):
        if not shown or math.log(shown[-1] / count) >= _APART * whole:
            shown.append(count)
    axes.set_xticks(shown, [f"{count:,}" for count in shown], minor=False)
    axes.xaxis.minorticks_off()


def curves_picture(curves: Sequence[Scaling]) -> Figure:
    """Scaling curves of one question, strong and weak in one picture."""
    named = {f"{curve.kind} scaling": [p.plan[0].estimate for p in curve.planned if p.plan] for curve in curves}
    return scaling_picture(named, title=f"{curves[0].model} on {curves[0].cluster}, best strategy of every count")


@styled
def deadline_picture(answer: Deadline) -> Figure:
    """Days of training over devices, with the likely range and the deadline."""
    from matplotlib.ticker import LogLocator, NullLocator

    met = [point for point in answer.tried if point.plan and point.bill]
    figure = new_figure(6.8, 3.8)
    axes = figure.subplots()
    devices = [point.devices for point in met]
    days = np.array([point.bill.days if point.bill else np.nan for point in met])
    steps = [point.plan[0].estimate for point in met if point.plan]
    high = days * np.array([step.step_time_high_s / step.step_time_s for step in steps])
    low = days * np.array([step.step_time_low_s / step.step_time_s for step in steps])
    axes.fill_between(devices, low, high, color=SKY, alpha=0.3, linewidth=0, label="likely range")
    axes.plot(devices, days, color=BLUE, marker="o", label="best strategy, failures included")
    axes.axhline(answer.deadline_s / DAY_S, color=BAD, linestyle=(0, (5, 3)), linewidth=1.2, label="deadline")
    axes.plot([answer.point.devices], [answer.point.bill.days if answer.point.bill else np.nan], marker="o",
              markersize=11, markerfacecolor="none", linestyle="none", color=ORANGE,
              label=f"{answer.point.devices:,} devices")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="devices", ylabel="days")
    _ticks(axes, devices)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_title(f"{answer.model} on {answer.cluster}: {format_count(answer.tokens)} tokens")
    axes.legend(loc="upper right")
    grid(axes)
    return figure
