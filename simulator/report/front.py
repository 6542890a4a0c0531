"""A Pareto front as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.report.plan import hanging, strategy_words
from simulator.report.text import rendered
from simulator.units import format_bytes, format_count, format_time

if TYPE_CHECKING:
    from simulator.plan.front import Front, FrontPoint

MOST_LINES = 40
"""Points of a front that are listed; of more, some."""


def front_text(front: Front) -> str:
    """The points, by devices and then the fastest first, and what is proven."""
    several = len({point.estimate.devices for point in front.points}) > 1
    what = "step time, memory, devices and dollars" if several else "step time and memory"
    every = -(-len(front.points) // MOST_LINES)
    shown = front.points if every == 1 else (*front.points[:-1:every], front.points[-1])
    lines = [_line(point) for point in shown]
    thinned = [f"{len(shown)} of {len(front.points)} points; --json has all.", ""] if every > 1 else []
    tokens = front.points[0].bill.tokens
    return rendered([
        f"Pareto front: {len(front.points)} strategies that none beats in {what}",
        "",
        f"{'devices':>9}  {'step':>9}  {'memory':>9}  {'days':>7}  {'cost':>8}  strategy",
        *lines,
        "",
        *thinned,
        hanging("", f"{front.claim}."),
        hanging("", f"{front.searches} searches, {front.engine_runs} runs of the engine, {front.wall_s:.1f} s. Days "
                f"and cost: {format_count(tokens)} tokens, failures included."),
        *(hanging("- ", note) for note in front.notes),
    ])  # fmt: skip


def _line(point: FrontPoint) -> str:
    step, paid = point.estimate, point.bill
    cost = "-" if paid.usd is None else f"${format_count(paid.usd)}"
    head = (
        f"{step.devices:>9,}  {format_time(step.step_time_s):>9}  {format_bytes(step.peak_memory_bytes, 3):>9}  "
        f"{paid.days:>7,.4g}  {cost:>8}  "
    )
    return hanging(head, strategy_words(point.strategy))
