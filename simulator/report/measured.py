"""Measured steps beside their predictions, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_CLASSES = (
    "class", "cases", "mean error", "worst", "bias", "at the moment's speed: mean", "worst", "bias",
    "spread of repeats", "one rate for all: mean error",
)  # fmt: skip
_CASES = (
    "case", "ranks", "class", "measured CPU ms", "spread", "predicted", "error", "machine drift (product, memory)",
    "error at that speed", "one rate", "peak memory", "elapsed",
)  # fmt: skip


def measured_text(scored: Sequence[Any], summary: Mapping[str, Any]) -> str:
    """A summary by class and a table of cases, for a terminal and for a report alike (Markdown tables).

    `scored` are `simulator.measure.score.Scored`, `summary` their summary.
    """
    return "\n".join([*_summary_lines(summary), "", *_case_lines(scored)])


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), _row(["---"] * len(names))]


def _summary_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = _head(_CLASSES)
    for kind, s in summary["by_class"].items():
        drifted = [f"{s['drifted_mean']:.1%}", f"{s['drifted_worst']:.1%}", f"{s['drifted_bias']:+.1%}"]
        lines.append(_row([kind, s["cases"], f"{s['mean']:.1%}", f"{s['worst']:.1%}", f"{s['bias']:+.1%}", *drifted,
                           f"{s['spread']:.1%}", f"{s['one_rate_mean']:.1%}"]))  # fmt: skip
    if summary["tau"]:
        listed = ", ".join(f"{name} {tau:.2f}" for name, tau in summary["tau"].items())
        lines += ["", f"Kendall's tau of the ranking of strategies, by model and batch: {listed}."]
    if summary["order"]["pairs"]:
        pairs, tau = summary["order"]["pairs"], summary["order"]["tau"]
        lines += ["", f"Over the {pairs} pairs of them that differ by more than their repeats spread: tau {tau:.2f}."]
    lines += _figure_lines(summary, "memory", "Peak memory against torch's tracker")
    lines += _figure_lines(summary, "pipeline_wall", "Elapsed time of pipelines, on no more ranks than cores")
    lines += _figure_lines(summary, "wall", "Elapsed time of all cases on no more ranks than cores")
    return lines


def _figure_lines(summary: Mapping[str, Any], key: str, words: str) -> list[str]:
    found = summary[key]
    if not found:
        return []
    return ["", f"{words}: mean {found['mean']:.2%}, worst {found['worst']:.2%} of {found['cases']} cases."]


def _case_lines(scored: Sequence[Any]) -> list[str]:
    lines = _head(_CASES)
    for entry in scored:
        measured = entry.measured
        drift = f"{entry.product_drift - 1:+.0%} {entry.memory_drift - 1:+.0%}"
        lines.append(_row([
            measured.case, measured.ranks, entry.kind, f"{1e3 * measured.cpu_s:.0f}",
            f"{measured.spread_fraction:.1%}", f"{1e3 * entry.predicted.cpu_s:.0f}", f"{entry.error:+.1%}", drift,
            f"{entry.drifted_error:+.1%}", f"{entry.one_rate_error:+.1%}",
            "" if entry.memory_error is None else f"{entry.memory_error:+.2%}",
            "" if entry.wall_error is None else f"{entry.wall_error:+.1%}",
        ]))  # fmt: skip
    return lines


def sets_text(sets: Sequence[Any], apart: Mapping[str, Any] | None, *, cases: bool) -> str:
    """Measured sets (`simulator.measure.sets.MeasuredSet`) as Markdown: summaries, with every case if asked.

    `apart` is how far the calibrations of the last two sets predict from each other.
    """
    lines = []
    if apart:
        far = f"{apart['mean']:.1%} apart in the mean, {apart['worst']:.1%} at worst"
        held = f"The calibrations of the last two sets predict the {apart['cases']} cases that both hold {far}"
        lines += [f"{held}: what the machine itself drifted between them.", ""]
    for found in sets:
        lines += [f"### Set {found.name}", "", *_summary_lines(found.summary), ""]
        lines += [*_case_lines(found.scored), ""] if cases else []
    return "\n".join(lines)
