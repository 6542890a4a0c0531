"""`validation/REPORT.md`: the scores as tables and scatter plots, and the worst rows with the reason found for each.

The figures are those of `Scores.to_json()`; nothing is computed here. Reasons are data: `validation/reasons.toml` maps
a `run_id`, or an expression that run ids or families match, to a sentence.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulator.errors import InputError, Problem
from simulator.intervals import write_residuals
from simulator.plan.ties import published_differences, write_differences
from simulator.validate.counted import counts_section
from simulator.validate.pairs import PROVENANCE as PAIRS
from simulator.validate.pairs import differences_of
from simulator.validate.score import ScoredRow, Scores, SkippedRow

WORST = 20
PROVENANCE = "ln(measured / predicted) of published runs, written by `make validate`; intervals are read off it"
AIMS: Mapping[str, float] = {
    "korthikanti": 0.03, "megatron_lm": 0.04, "vtrain": 0.10, "colm_parallel_layouts": 0.08, "llm_foundry": 0.08,
    "nvidia_megatron_bridge": 0.08, "nvidia_nemo_docs": 0.08, "nvidia_dgxc": 0.08, "nemo_launcher_a100": 0.08,
    "bert_dle": 0.12, "bigscience": 0.10, "pipeline_schedules": 0.08, "simumax": 0.05, "internevo": 0.10,
    "fsdp_pytorch": 0.10, "alpa_v100": 0.12, "tpu_maxtext": 0.12, "google_moe_tpu": 0.12,
}  # fmt: skip
"""Mean absolute step-time error each family is meant to reach (mixtures of experts among NVIDIA's: 0.15)."""


def write_report(
    scores: Scores, folder: Path, *, reasons: Mapping[str, str] | None = None,
    newcomers: Mapping[str, Mapping[str, Any]] | None = None, own_machine: str = "", plots: bool = True,
) -> Path:  # fmt: skip
    """Write REPORT.md, residuals.csv, differences.csv and scatter plots (SVG) into `folder`; returns the report's path.

    `newcomers` are figures of families without the profiles written for them alone (`validate/newcomer.py`),
    `own_machine` the summary of steps measured on our own machines, as Markdown. Raises InputError when the folder
    cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        images = scatter_plots(scores, folder / "plots") if plots else {}
        path = folder / "REPORT.md"
        text = report_text(scores, reasons or {}, images, newcomers or {}) + _own_section(own_machine)
        path.write_text(text + counts_section(folder), encoding="utf-8")
        write_residuals(folder / "residuals.csv", scores.residuals, PROVENANCE)
        apart = differences_of(scores.rows, published_differences())
        write_differences(folder / "differences.csv", apart, PAIRS)
    except OSError as error:
        raise InputError([Problem(f"cannot be written: {error.strerror}.", str(folder))]) from None
    return path


def _own_section(text: str) -> str:
    """What was measured on our own machines, under its heading."""
    heading = "\n## Training steps on our own machine\n\nReal torch steps beside what a calibration alone predicts"
    return f"{heading} ([every case](measured/REPORT.md)).\n\n{text}" if text else ""


def report_text(
    scores: Scores, reasons: Mapping[str, str], images: Mapping[str, Path], newcomers: Mapping[str, Mapping[str, Any]]
) -> str:
    """The report as Markdown."""
    document = scores.to_json()
    sections = [
        "# Predicted against published step times\n",
        _opening(document),
        "## By family\n",
        _family_table(document["by_family"], document["overall"], newcomers),
        "## By regime\n",
        _regime_table(document["by_regime"]),
        "## Ranking, memory and out-of-memory verdicts\n",
        _second_table(document["by_family"], document["overall"]),
        "## The worst rows\n",
        worst_table(scores.rows, reasons),
        "## Rows that were not scored\n",
        skipped_table(scores.skipped),
        "## Defaults that were taken\n",
        defaults_table(scores.rows),
    ]
    if images:
        sections.append("## Predicted against measured\n")
        sections += [f"![{name}]({path.as_posix()})\n" for name, path in images.items()]
    return "\n".join(sections)


def _opening(document: Mapping[str, Any]) -> str:
    overall = document["overall"]
    mean, median = _percent(overall.get("mean")), _percent(overall.get("median"))
    bar = _percent(overall["constant"].get("mean"))
    return (
        f"{document['runs']} published runs, {document['scored']} of them predicted, from the catalogue, the kernel\n"
        f"calibration and the framework profiles alone: no constant here was fitted to a step time. Mean absolute\n"
        f"error {mean}, median {median}; one constant (an MFU) fitted to the same rows: {bar}. Errors are\n"
        f"(predicted - measured) / measured. Intervals are for 90 %, from the residuals of other families.\n"
        '"As a newcomer" is the mean error without the framework profiles that only this family uses (empty where it\n'
        "has none): what the profile is worth, and about what to expect of software that nobody here has read.\n"
    )


def _percent(value: Any, digits: int = 1) -> str:
    return "" if value is None else f"{100 * float(value):.{digits}f} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [" | ".join(header), " | ".join("---" for _ in header), *(" | ".join(map(str, row)) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)


def _family_table(
    families: Mapping[str, Any], overall: Mapping[str, Any], newcomers: Mapping[str, Mapping[str, Any]]
) -> str:
    header = ["family", "timed", "skipped", "mean", "aim", "median", "p90", "worst", "bias", "as a newcomer, mean",
              "one constant, in sample", "interval covers"]  # fmt: skip
    rows = []
    for name, f in [*families.items(), ("**all**", overall)]:
        figures = [_percent(f.get(key)) for key in ("mean",)] + [_percent(AIMS.get(name), 0)]
        figures += [_percent(f.get(key)) for key in ("median", "p90", "worst", "bias")]
        covered = f["interval"].get("covered")
        fresh = newcomers.get(name, {}).get("mean")
        figures += [_percent(fresh), _percent(f["constant"].get("mean")), _percent(covered, 0)]
        rows.append([name, f["rows"], f.get("skipped", ""), *figures])  # fmt: skip
    return _table(header, rows)


def _regime_table(regimes: Mapping[str, Any]) -> str:
    header = ["regime", "timed", "mean", "median", "p90", "worst", "bias", "one constant, in sample", "interval covers"]
    rows = [
        [name, r["rows"], *(_percent(r.get(key)) for key in ("mean", "median", "p90", "worst", "bias")),
         _percent(r["constant"].get("mean")), _percent(r["interval"].get("covered"), 0)]
        for name, r in regimes.items()
    ]  # fmt: skip
    return _table(header, rows)


def _second_table(families: Mapping[str, Any], overall: Mapping[str, Any]) -> str:
    header = ["family", "sets", "Kendall's tau", "loss of the top pick", "worst loss", "peaks", "peak memory, mean",
              "peak memory, bias", "out of memory", "precision", "recall", "verdicts right", "confidence, mean",
              "sure verdicts", "right of the sure"]  # fmt: skip
    rows = []
    for name, f in [*families.items(), ("**all**", overall)]:
        rank, memory, verdict = f["ranking"], f["memory"], f["out_of_memory"]
        tau = f"{rank['tau']:.2f}" if "tau" in rank else ""
        rows.append([
            name, rank["sets"], tau, _percent(rank.get("top_pick_loss")), _percent(rank.get("top_pick_loss_worst")),
            memory["rows"], _percent(memory.get("mean")), _percent(memory.get("bias")),
            verdict.get("out_of_memory", ""),
            *(_percent(verdict.get(key), 0) for key in ("precision", "recall", "accuracy", "confidence")),
            verdict.get("sure", ""), _percent(verdict.get("sure_accuracy"), 0),
        ])  # fmt: skip
    return _table(header, rows)


def worst_table(rows: Sequence[ScoredRow], reasons: Mapping[str, str], count: int = WORST) -> str:
    """The rows with the largest absolute errors, with the reason found for each."""
    timed = sorted((r for r in rows if r.error is not None), key=lambda r: -abs(r.error or 0.0))[:count]
    return _table(
        ["run", "family", "strategy", "bound by", "measured", "predicted", "error", "reason"],
        [
            [r.run_id, r.family, r.strategy, r.regime.get("bound", ""), f"{r.measured_s:.4g} s",
             f"{r.predicted_s:.4g} s", _percent(r.error), reason_of(r.run_id, r.family, reasons)]
            for r in timed
        ],
    )  # fmt: skip


def skipped_table(skipped: Sequence[SkippedRow]) -> str:
    """Reasons with their counts by family, and one example each."""
    groups: dict[tuple[str, str], list[SkippedRow]] = {}
    for row in skipped:
        groups.setdefault((row.family, row.reason), []).append(row)
    if not groups:
        return "None.\n"
    return _table(
        ["family", "rows", "reason", "for example"],
        [
            [family, len(rows), reason, f"{rows[0].run_id}: {rows[0].detail[:160]}"]
            for (family, reason), rows in groups.items()
        ],
    )


def defaults_table(rows: Sequence[ScoredRow]) -> str:
    """How often each default was taken, by family."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        for default in row.defaults:
            kind = re.sub(r"fastest of \d+", "fastest of the", default)
            counts[row.family, kind] = counts.get((row.family, kind), 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], -item[1]))
    return _table(["family", "default", "rows"], [[family, text, count] for (family, text), count in ordered])


def reason_of(run_id: str, family: str, reasons: Mapping[str, str]) -> str:
    """The sentence for a run: by its id, else by the first expression that its id or family matches whole."""
    if run_id in reasons:
        return reasons[run_id]
    return next((text for pattern, text in reasons.items() if re.fullmatch(f"(?:{pattern})", run_id)
                 or re.fullmatch(f"(?:{pattern})", family)), "")  # fmt: skip


def read_reasons(path: Path) -> dict[str, str]:
    """Read `reasons.toml`: one table, `"run id or expression" = "sentence"`. Raises InputError when it is not that."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError([Problem(f"not a table of reasons: {error}.", str(path))]) from None
    faults = [Problem(f"{key!r} must be a sentence.", str(path)) for key, v in table.items() if not isinstance(v, str)]
    for key in table:
        try:
            re.compile(key)
        except re.error as error:
            faults.append(Problem(f"{key!r} is not a regular expression: {error}.", str(path)))
    if faults:
        raise InputError(faults)
    return {key: str(value) for key, value in table.items()}


def scatter_plots(scores: Scores, folder: Path) -> dict[str, Path]:
    """One log-log scatter of predicted against measured for each family, as SVG; paths are relative to the report."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    with mpl.rc_context({"svg.hashsalt": "shardwise", "svg.fonttype": "none"}):
        for family in dict.fromkeys(row.family for row in scores.rows):
            points = [(r.measured_s, r.predicted_s) for r in scores.rows if r.family == family and r.measured_s]
            if not points:
                continue
            measured, predicted = zip(*points, strict=True)
            figure, axes = plt.subplots(figsize=(4, 4))
            axes.scatter(measured, predicted, s=8, alpha=0.5)
            ends = [min(*measured, *predicted), max(*measured, *predicted)]
            axes.plot(ends, ends, color="black", linewidth=0.8)
            axes.set(xscale="log", yscale="log", xlabel="measured step time [s]", ylabel="predicted [s]", title=family)
            figure.tight_layout()
            figure.savefig(folder / f"{family}.svg", metadata={"Date": None})
            plt.close(figure)
            found[family] = Path(folder.name) / f"{family}.svg"
    return found
