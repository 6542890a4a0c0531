"""Measured steps beside their predictions, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def measured_text(scored: Sequence[Any], summary: Mapping[str, Any]) -> str:
    """A table of cases and a summary, for a terminal and for a report alike (Markdown tables).

    `scored` are `simulator.measure.score.Scored`, `summary` their summary.
    """
    return "\n".join([*_summary_lines(summary), "", *_case_lines(scored)])


def _summary_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = ["| class | cases | mean error | worst | bias | at the moment's speed: mean | worst | bias | "
             "spread of repeats | one rate for all: mean error |", "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for kind, s in summary["by_class"].items():
        lines.append(f"| {kind} | {s['cases']} | {s['mean']:.1%} | {s['worst']:.1%} | {s['bias']:+.1%} | {s['drifted_mean']:.1%} | "
                     f"{s['drifted_worst']:.1%} | {s['drifted_bias']:+.1%} | "
                     f"{s['spread']:.1%} | {s['one_rate_mean']:.1%} |")  # fmt: skip
    taus = summary["tau"]
    if taus:
        lines += ["", "Kendall's tau of the ranking of strategies, by model and batch: "
                      + ", ".join(f"{name} {tau:.2f}" for name, tau in taus.items()) + "."]  # fmt: skip
    return lines


def _case_lines(scored: Sequence[Any]) -> list[str]:
    lines = ["| case | ranks | class | measured CPU ms | spread | predicted | error | machine drift | error at that speed | one rate |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for entry in scored:
        measured = entry.measured
        lines.append(f"| {measured.case} | {measured.ranks} | {entry.kind} | {1e3 * measured.cpu_s:.0f} | "
                     f"{measured.spread_fraction:.1%} | {1e3 * entry.predicted.cpu_s:.0f} | {entry.error:+.1%} | "
                     f"{entry.product_drift - 1:+.1%} {entry.memory_drift - 1:+.1%} | {entry.drifted_error:+.1%} | "
                     f"{entry.one_rate_error:+.1%} |")  # fmt: skip
    return lines
