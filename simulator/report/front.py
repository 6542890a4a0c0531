"""A Pareto front as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.report.plan import hanging, strategy_words
from simulator.report.text import rendered
from simulator.units import format_bytes, format_count, format_time

if TYPE_CHECKING:
    from simulator.plan.front import Front, FrontPoint


def front_text(front: Front) -> str:
    """The points, by devices and then the fastest first, and what is proven."""
    several = len({point.estimate.devices for point in front.points}) > 1
    what = "step time, memory, devices and dollars" if several else "step time and memory"
    lines = [_line(point) for point in front.points]
    tokens = front.points[0].bill.tokens
    return rendered([
        f"Pareto front: {len(lines)} strategies that none beats in {what}",
        "",
        f"{'devices':>9}  {'step':>9}  {'memory':>9}  {'days':>7}  {'cost':>8}  strategy",
        *lines,
        "",
        f"{front.claim}.",
        (f"{front.searches} searches, {front.engine_runs} runs of the engine, {front.wall_s:.1f} s. Days and cost: "
         f"{format_count(tokens)} tokens, failures included."),
    ])  # fmt: skip


def _line(point: FrontPoint) -> str:
    step, paid = point.estimate, point.bill
    cost = "-" if paid.usd is None else f"${format_count(paid.usd)}"
    head = (
        f"{step.devices:>9,}  {format_time(step.step_time_s):>9}  {format_bytes(step.peak_memory_bytes, 3):>9}  "
        f"{paid.days:>7,.4g}  {cost:>8}  "
    )
    return hanging(head, strategy_words(point.strategy))
