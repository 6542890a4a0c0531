"""Scaling curves and deadlines as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simulator.report.plan import bill_words, hanging, strategy_words
from simulator.report.text import rendered, table
from simulator.units import format_bytes, format_count, format_percent, format_time, format_usd

if TYPE_CHECKING:
    from simulator.plan.scaling import Deadline, Point, Scaling

_TITLES = {
    "strong": "Strong scaling: the same batch on more devices",
    "weak": "Weak scaling: a batch that grows with the devices",
}


def scaling_text(curves: Sequence[Scaling]) -> str:
    """Curves of one question, each with its knee, and the strategy of every count."""
    first = curves[0]
    items: list[Any] = [f"{first.model} on {first.cluster}, best strategy of every count, objective {first.objective}"]
    for curve in curves:
        items += ["", _curve_table(curve), *_refused(curve.points), *_verdicts(curve), "", _strategies(curve.planned)]
    return rendered(items)


def deadline_text(answer: Deadline) -> str:
    """The count, what training takes on it, and every count that was tried."""
    point = answer.point
    items: list[Any] = [
        f"{answer.model} on {answer.cluster}: {format_count(answer.tokens)} tokens in {_days(answer.deadline_s)}",
        "",
        hanging("devices     ", f"{point.devices:,} ({point.nodes:,} nodes): {answer.claim}"),
    ]
    if point.plan is not None and point.bill is not None:
        late = f"{_days((point.days_high or 0.0) * 86400.0)} at the slow end of the likely range"
        items += [
            hanging("training    ", f"{bill_words(point.bill)}; {late}"),
            hanging("best        ", strategy_words(point.plan[0].strategy)),
            f"step time   {format_time(point.plan[0].estimate.step_time_s)}",
        ]
    rows = [(*row, _verdict(each, answer)) for each, row in zip(answer.tried, map(_tried, answer.tried), strict=True)]
    columns = ("devices", "step", "days", "slow end", "cost", "")
    return rendered([*items, "", table("Counts tried", columns, rows), *_refused(answer.tried)])


def _days(time_s: float) -> str:
    return f"{time_s / 86400.0:,.4g} days"


def _tried(point: Point) -> tuple[str, ...]:
    if point.plan is None or point.bill is None:
        return (f"{point.devices:,}", "-", "-", "-", "-")
    paid = point.bill
    return (f"{point.devices:,}", format_time(point.plan[0].estimate.step_time_s), f"{paid.days:,.4g}",
            f"{point.days_high:,.4g}", "-" if paid.usd is None else format_usd(paid.usd))  # fmt: skip


def _verdict(point: Point, answer: Deadline) -> str:
    if point.plan is None or point.bill is None:
        return "no strategy"
    proof = "" if point.plan.proof.optimal else " (best so far)"
    return ("in time" if point.bill.days * 86400.0 <= answer.deadline_s else "too late") + proof


def _curve_table(curve: Scaling) -> Any:
    rows = []
    for point, share, marginal in zip(curve.planned, curve.efficiencies(), curve.marginals(), strict=True):
        if point.plan is None or point.bill is None:
            continue
        step, paid = point.plan[0].estimate, point.bill
        mark = "knee" if point is curve.knee and point is not curve.planned[-1] else ""
        added = "" if marginal is None else format_percent(marginal)
        cost = "-" if paid.usd is None else f"${format_count(paid.usd)}"
        rows.append((
            f"{point.devices:,}", f"{point.global_batch:,}", format_time(step.step_time_s),
            format_count(step.tokens_per_s), format_percent(share), added, format_percent(step.mfu),
            f"{paid.days:,.4g}", cost, mark,
        ))  # fmt: skip
    columns = ("devices", "batch", "step", "tokens/s", "of best", "added", "MFU", "days", "cost", "")
    return table(_TITLES[curve.kind], columns, rows)


def _verdicts(curve: Scaling) -> list[str]:
    """The knee and the best count in words."""
    from simulator.plan.scaling import KNEE_FRACTION

    knee, last = curve.knee, curve.planned[-1]
    share = f"{format_percent(KNEE_FRACTION)} or more of what a device does at best"
    words = f"{knee.devices:,} devices: the last that each do {share}"
    if knee is last:
        words = f"none up to {last.devices:,} devices: each still does {share}"
    unproven = [f"{point.devices:,}" for point in curve.planned if point.plan and not point.plan.proof.optimal]
    best = f"{curve.best.devices:,} devices, by {curve.objective}"
    proofs = f"not proven at {', '.join(unproven)}: time ran out" if unproven else "every strategy is proven best"
    paid = curve.planned[0].bill
    return [
        hanging("knee        ", words),
        hanging("best        ", f"{best}; {proofs} ({curve.wall_s:.1f} s)"),
        hanging("of best     ", "tokens/s of a device over those at the best count"),
        hanging("added       ", "what each added device brings, over what each of those before it does"),
        hanging("days, cost  ", _billing(paid.tokens) if paid else "-"),
    ]


def _billing(tokens: float) -> str:
    return f"{format_count(tokens)} tokens, failures included"


def _refused(points: Sequence[Point]) -> list[str]:
    return [f"- {point.devices:,} devices: {point.refused[0]}" for point in points if point.refused]


def _strategies(points: Sequence[Point]) -> str:
    lines = [
        hanging(f"{point.devices:>9,}  {format_bytes(point.plan[0].estimate.peak_memory_bytes, 3):>9}  ",
                strategy_words(point.plan[0].strategy))
        for point in points
        if point.plan
    ]  # fmt: skip
    return "\n".join(["  devices     memory  best strategy", *lines])
