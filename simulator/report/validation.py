"""Validation figures as text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.report.text import rendered, table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def scores_text(document: Mapping[str, Any]) -> str:
    """Errors by family and by regime, and what was skipped."""
    columns = ("", "rows", "mean", "median", "p90", "worst", "bias", "tau", "pick loss", "one constant", "verdicts")
    skipped = [(reason, str(count)) for reason, count in document["skipped"].items()]
    items: list[Any] = [f"{document['scored']} of {document['runs']} runs scored"]
    for title, groups in (("By family", document["by_family"]), ("By regime", document["by_regime"])):
        rows = [(name, *_figures(summary)) for name, summary in groups.items()]
        rows += [("all", *_figures(document["overall"]))] if title == "By family" else []
        items.append(table(title, columns, rows))
    if skipped:
        items.append(table("Skipped", ("reason", "rows"), skipped))
    return rendered(items, width=150)


def _figures(summary: Mapping[str, Any]) -> tuple[str, ...]:
    ranking, verdicts = summary["ranking"], summary["out_of_memory"]
    tau = ranking.get("tau")
    return (
        str(summary.get("rows", 0)),
        *(_percent(summary.get(name)) for name in ("mean", "median", "p90", "worst", "bias")),
        "-" if tau is None else f"{tau:.2f}",
        _percent(ranking.get("top_pick_loss")),
        _percent(summary["constant"].get("mean")),
        _percent(verdicts.get("accuracy")),
    )


def kernels_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Errors of kernel times by table, device and kind."""
    columns = ("table", "device", "kind", "rows", "mean", "median", "p90", "bias")
    lines = [
        (
            row["table"], row["device"], row["kind"], str(row["scored"]),
            *(_percent(row[name]) for name in ("mean", "median", "p90", "bias")),
        )
        for row in rows
    ]  # fmt: skip
    return rendered([table("Kernels", columns, lines)], width=120)


def counts_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Our counts beside torch's."""
    columns = ("model", "what", "ours", "torch", "difference", "note")
    lines = [
        (row["model"], row["what"], f"{row['ours']:,}", f"{row['torch']:,}", f"{row['difference']:,}", row["note"])
        for row in rows
    ]
    return rendered([table("Counts", columns, lines)], width=150)
