"""Published runs against predictions: the answer of `shardwise validate RUNS.csv`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from simulator.errors import InputError
from simulator.intervals import Residual, fits_confidence, interval
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from simulator.validate.configure import Configuration, Facts, configure
from simulator.validate.metrics import (
    constant_errors,
    coverage,
    error_summary,
    ranking_summary,
    verdict_summary,
)
from simulator.validate.models import Skip
from simulator.validate.peaks import peak_meaning
from simulator.validate.runs import PublishedRun


class Predicted(Protocol):
    """What a score reads of an `Estimate`."""

    @property
    def step_time_s(self) -> float: ...
    @property
    def peak_memory_bytes(self) -> float: ...
    @property
    def device_memory_bytes(self) -> float: ...
    @property
    def fits(self) -> bool: ...
    @property
    def mfu(self) -> float: ...
    @property
    def regime(self) -> Mapping[str, str]: ...
    def peak_as(self, meaning: str) -> float: ...


Estimator = Callable[[ModelSpec, Cluster, Run, Strategy], Predicted]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """One row against its prediction. `error` is signed and relative; None where the row measured no time."""

    run_id: str
    family: str
    measured_s: float | None
    measured_peak_bytes: float | None
    outcome: str
    predicted_s: float
    low_s: float
    high_s: float
    predicted_peak_bytes: float
    predicted_fits: bool
    filled_fraction: float
    """Predicted peak over the device's memory."""
    fits_confidence: float
    """Probability that `predicted_fits` is right, from the peaks of other families."""
    ideal_s: float
    """Model FLOPs over the cluster's peak: the step time at an MFU of 1."""
    error: float | None
    regime: Mapping[str, str]
    peers: tuple[Any, ...]
    """Rows with the same value compete: same source, model, devices, batch and sequence length."""
    framework: str
    strategy: str
    defaults: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedRow:
    """One row that was not scored, and why."""

    run_id: str
    family: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Scores:
    """All rows, scored or skipped, and every figure derived from them."""

    rows: tuple[ScoredRow, ...]
    skipped: tuple[SkippedRow, ...]
    residuals: tuple[Residual, ...] = ()
    """ln(measured / predicted) of these runs, and of the known ones that are not among them."""

    def by_family(self) -> dict[str, dict[str, Any]]:
        """Figures of each family, in the order of the table."""
        groups = _grouped(self.rows, lambda row: [row.family])
        skipped = Counter(row.family for row in self.skipped)
        found: dict[str, dict[str, Any]] = {}
        for family in dict.fromkeys([*groups, *skipped]):
            found[family] = summary(groups.get(family, [])) | {"skipped": skipped[family]}
        return found

    def by_regime(self) -> dict[str, dict[str, Any]]:
        """Figures of each regime, keyed "kind=moe", "device=...", "bound=...", "pipeline=...", "precision=..."."""
        groups = _grouped(self.rows, lambda row: [f"{key}={value}" for key, value in row.regime.items()])
        return {key: summary(groups[key]) for key in sorted(groups)}

    def to_json(self) -> dict[str, Any]:
        """The document of `shardwise validate --json`."""
        return {
            "runs": len(self.rows) + len(self.skipped),
            "scored": len(self.rows),
            "skipped": dict(Counter(row.reason for row in self.skipped).most_common()),
            "overall": summary(self.rows),
            "by_family": self.by_family(),
            "by_regime": self.by_regime(),
            "rows": [_row_json(row) for row in self.rows],
            "skipped_rows": [
                {"run_id": s.run_id, "family": s.family, "reason": s.reason, "detail": s.detail} for s in self.skipped
            ],
        }


def score(
    rows: Iterable[PublishedRun],
    estimator: Estimator,
    facts: Facts,
    *,
    residuals: Sequence[Residual] = (),
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Predict every row that can be expressed.

    Intervals come from the residuals of these rows and the known `residuals` of other runs; that of a row never uses
    its own family's.

    `estimator(model, cluster, run, strategy)` is `simulator.estimate`; what it refuses with InputError is a skip with
    its reason.
    """
    scored: list[ScoredRow] = []
    skipped: list[SkippedRow] = []
    for number, row in enumerate(rows, start=1):
        outcome = _score_row(row, estimator, facts)
        if isinstance(outcome, Skip):
            skipped.append(
                SkippedRow(run_id=row.run_id, family=row.family, reason=outcome.reason, detail=outcome.detail)
            )
        else:
            scored.append(outcome)
        if progress is not None:
            progress(number)
    ratios = _merged(residuals, scored)
    return Scores(_with_intervals(scored, ratios), tuple(skipped), ratios)


def residuals_of(rows: Iterable[ScoredRow]) -> list[Residual]:
    """ln(measured / predicted) of the step time and of the peak memory of every row that states one."""
    return [
        Residual(row.run_id, row.family, row.regime, _log_ratio(row.measured_s, row.predicted_s),
                 _log_ratio(row.measured_peak_bytes, row.predicted_peak_bytes))
        for row in rows
        if row.measured_s or row.measured_peak_bytes
    ]  # fmt: skip


def _log_ratio(measured: float | None, predicted: float) -> float | None:
    return math.log(measured / predicted) if measured and predicted > 0 else None


def _merged(known: Sequence[Residual], rows: Sequence[ScoredRow]) -> tuple[Residual, ...]:
    """The residuals of these rows, and the known ones of runs that are not among them."""
    own = residuals_of(rows)
    ids = {residual.run_id for residual in own}
    return (*(residual for residual in known if residual.run_id not in ids), *own)


def _with_intervals(rows: Sequence[ScoredRow], residuals: Sequence[Residual]) -> tuple[ScoredRow, ...]:
    ranges: dict[tuple[str, ...], tuple[float, float]] = {}
    found = []
    for row in rows:
        key = (row.family, *sorted(row.regime.values()))
        if key not in ranges:
            ranges[key] = interval(row.regime, residuals, without=row.family)
        low, high = ranges[key]
        sure = fits_confidence(row.filled_fraction, 1.0, residuals, without=row.family)
        found.append(replace(row, low_s=low * row.predicted_s, high_s=high * row.predicted_s, fits_confidence=sure))
    return tuple(found)


def _score_row(row: PublishedRun, estimator: Estimator, facts: Facts) -> ScoredRow | Skip:
    found = configure(row, facts)
    if isinstance(found, Skip):
        return found
    picked = _fastest(found, estimator)
    if isinstance(picked, Skip):
        return picked
    predicted, strategy = picked
    measured = row.step_time_s if row.outcome == "ok" else None
    return ScoredRow(
        run_id=row.run_id, family=row.family, measured_s=measured, outcome=row.outcome,
        measured_peak_bytes=row.peak_memory_bytes if row.outcome == "ok" else None,
        predicted_s=predicted.step_time_s, low_s=0.0, high_s=math.inf,
        predicted_peak_bytes=predicted.peak_as(peak_meaning(row)), predicted_fits=predicted.fits,
        filled_fraction=predicted.peak_memory_bytes / predicted.device_memory_bytes, fits_confidence=0.5,
        ideal_s=predicted.mfu * predicted.step_time_s,
        error=predicted.step_time_s / measured - 1 if measured else None, regime=predicted.regime,
        peers=(row.family, row.model, row.device, row.devices, row.global_batch, row.seq_len),
        framework=found.framework.name, strategy=brief(strategy), defaults=found.defaults,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Together:
    """Models trained one after the other in the same step: times and memory add."""

    parts: tuple[Predicted, ...]

    @property
    def step_time_s(self) -> float:
        return sum(part.step_time_s for part in self.parts)

    @property
    def peak_memory_bytes(self) -> float:
        return sum(part.peak_memory_bytes for part in self.parts)

    @property
    def device_memory_bytes(self) -> float:
        return self.parts[0].device_memory_bytes

    @property
    def fits(self) -> bool:
        return all(part.fits for part in self.parts)

    @property
    def mfu(self) -> float:
        return sum(part.mfu * part.step_time_s for part in self.parts) / self.step_time_s

    def peak_as(self, meaning: str) -> float:
        return sum(part.peak_as(meaning) for part in self.parts)

    @property
    def regime(self) -> Mapping[str, str]:
        return max(self.parts, key=lambda part: part.step_time_s).regime


def _fastest(found: Configuration, estimator: Estimator) -> tuple[Predicted, Strategy] | Skip:
    """The fastest that fits, of the first rung where one does; else the smallest; a skip when none is legal."""
    answers: list[tuple[Predicted, Strategy]] = []
    refusals: list[str] = []
    for rung in found.rungs:
        for strategy in rung:
            try:
                parts = [estimator(model, found.cluster, found.run, strategy) for model in found.models]
                answers.append((parts[0] if len(parts) == 1 else _Together(tuple(parts)), strategy))
            except InputError as error:
                refusals += [f"{p.where}: {p.message}" if p.where else p.message for p in error.problems]
        fitting = [answer for answer in answers if answer[0].fits]
        if fitting:
            return min(fitting, key=lambda answer: answer[0].step_time_s)
    if not answers:
        place = refusals[0].split(":", 1)[0] if refusals else ""
        return Skip(f"refused by the model of the software: {place}", "; ".join(refusals[:3]))
    return min(answers, key=lambda answer: answer[0].peak_memory_bytes)


def brief(strategy: Strategy) -> str:
    """A strategy in a few words: what differs from one device.

    >>> brief(Strategy(tp=8, dp=4, zero=1, micro_batch=2))
    'tp8 dp4 mb2 zero1'
    """
    degrees = [f"{n}{v}" for n in ("tp", "cp", "pp", "vp", "dp", "ep", "etp") if (v := getattr(strategy, n)) > 1]
    words = [*degrees, f"mb{strategy.micro_batch}"]
    words += [f"zero{strategy.zero}"] if strategy.zero else []
    words += [strategy.schedule] if strategy.pp > 1 else []
    if strategy.recompute != "none":
        layers = f"{strategy.recompute_layers}-layers" if strategy.recompute_layers else ""
        words.append(f"recompute-{'+'.join(strategy.recompute_modules) or layers or strategy.recompute}")
    return " ".join(words)


def summary(rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """Every figure of a group of rows."""
    timed = [row for row in rows if row.measured_s is not None and row.error is not None]
    measured = [row.measured_s for row in timed if row.measured_s]
    sets = _grouped(timed, lambda row: [row.peers]).values()
    sized = [row for row in rows if row.measured_peak_bytes]
    return {
        **error_summary([row.error for row in timed if row.error is not None]),
        "constant": error_summary(constant_errors([row.ideal_s for row in timed], measured)),
        "interval": coverage([r.low_s for r in timed], [r.high_s for r in timed], measured),
        "ranking": ranking_summary(
            [([r.predicted_s for r in group], [r.measured_s or 0.0 for r in group]) for group in sets]
        ),
        "memory": error_summary([r.predicted_peak_bytes / (r.measured_peak_bytes or 1.0) - 1 for r in sized]),
        "out_of_memory": verdict_summary(
            [r.predicted_fits for r in rows], [r.outcome == "ok" for r in rows], [r.fits_confidence for r in rows]
        ),
    }


def _grouped(
    rows: Iterable[ScoredRow], keys: Callable[[ScoredRow], Sequence[Any]]
) -> dict[Any, list[ScoredRow]]:
    groups: dict[Any, list[ScoredRow]] = defaultdict(list)
    for row in rows:
        for key in keys(row):
            groups[key].append(row)
    return groups


def _row_json(row: ScoredRow) -> dict[str, Any]:
    finite = math.isfinite(row.high_s)
    return {
        "run_id": row.run_id, "family": row.family, "predicted_s": row.predicted_s,
        "low_s": row.low_s if finite else None, "high_s": row.high_s if finite else None,
        "measured_s": row.measured_s, "error": row.error,
        "predicted_peak_bytes": row.predicted_peak_bytes, "measured_peak_bytes": row.measured_peak_bytes,
        "predicted_fits": row.predicted_fits, "fits_confidence": row.fits_confidence, "outcome": row.outcome,
        "framework": row.framework,
        "strategy": row.strategy, "regime": dict(row.regime), "defaults": list(row.defaults),
    }  # fmt: skip
