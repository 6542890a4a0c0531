"""Predictions from calibration beside measured steps: errors by class of case, and the ranking of strategies."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from simulator.arch.parameters import parameters
from simulator.measure.predict import Prediction, predict
from simulator.measure.suite import GPU, Case, model_of, suite_of
from simulator.measure.table import Measured
from simulator.spec.machine_file import slowdown
from simulator.spec.reading import read_document
from simulator.validate.metrics import kendall_tau

OVERHEAD_S, OVERHEAD_TOKENS, SMALL_PARAMETERS = 0.1, 128, 8e6
"""A processor's steps shorter than this (per rank), with no more tokens per rank, or of smaller models on several ranks
are dominated by overhead."""
QUIET_LOAD = 3.0
"""Runnable processes besides the ranks above which elapsed times are not scored: the one-minute average still holds
the ranks of the cases before."""
CLASSES = ("single process", "several ranks", "overhead", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A measured case and its prediction."""

    case: Case
    measured: Measured
    predicted: Prediction
    product_drift: float
    memory_drift: float
    """Time of the reference kernels beside the steps over that beside the calibration."""
    cores: int
    """Of the calibrated machine."""

    @property
    def error(self) -> float:
        """Signed relative error of the processor seconds."""
        return self.predicted.cpu_s / self.measured.cpu_s - 1.0

    @property
    def drifted_cpu_s(self) -> float:
        """The prediction at the speed that the reference kernels had beside the measured steps [s]."""
        matrix = self.predicted.matrix_cpu_s
        return matrix * self.product_drift + (self.predicted.cpu_s - matrix) * self.memory_drift

    @property
    def drifted_error(self) -> float:
        """Signed relative error at that speed."""
        return self.drifted_cpu_s / self.measured.cpu_s - 1.0

    @property
    def wall_error(self) -> float | None:
        """Signed relative error of the elapsed time; None where other programs or a lack of cores made it longer."""
        if self.measured.load > QUIET_LOAD or self.measured.ranks > self.cores:
            return None
        return self.predicted.wall_s / self.measured.wall_s - 1.0

    @property
    def memory_error(self) -> float | None:
        """Signed relative error of the peak memory; None where it was not measured."""
        measured = self.measured.peak_memory_bytes
        return self.predicted.peak_memory_bytes / measured - 1.0 if measured else None

    @property
    def one_rate_error(self) -> float:
        """That of FLOPs over the best product's rate."""
        return self.predicted.one_rate_cpu_s / self.measured.cpu_s - 1.0

    @property
    def kind(self) -> str:
        """One of CLASSES."""
        ranks = self.case.strategy.devices
        if self.case.run.precision != "fp32":
            return "bf16"
        if self.measured.suite == GPU:
            return "single process"
        short = self.measured.cpu_s / ranks < OVERHEAD_S or self.case.tokens / ranks <= OVERHEAD_TOKENS
        if short or (ranks > 1 and parameters(model_of(self.case.model)).total < SMALL_PARAMETERS):
            return "overhead"
        return "several ranks" if ranks > 1 else "single process"


def score(rows: Iterable[Measured], machine: Path) -> list[Scored]:
    """Predict every measured case on a machine file; cases in a precision that it did not calibrate are left out."""
    known = {(row.suite, row.case): row for row in rows}
    cases = {(suite, case.name): case for suite in {suite for suite, _ in known} for case in suite_of(suite)}
    table = read_document(machine).table
    base, sharing = table["machine"]["reference_s"], table["kernels"].get("sharing", {})
    cores = int(table["machine"]["cores"])

    def drift(row: Measured, name: str, now_s: float) -> float:
        """How much slower than calibrated, beyond what so many ranks at once cost each other."""
        return float(now_s / base[name] / slowdown(sharing, row.ranks)[name])

    return [Scored(case=cases[key], measured=row, predicted=predict(cases[key], machine),
                   product_drift=drift(row, "product", row.product_s), memory_drift=drift(row, "memory", row.memory_s),
                   cores=cores)
            for key, row in known.items()
            if key in cases and cases[key].run.precision in table["device"]["peak"]]  # fmt: skip


def summary(scored: Sequence[Scored]) -> dict[str, Any]:
    """Count, mean absolute, worst and mean signed error, and the one-rate model's mean, by class; tau by model."""
    by_class: dict[str, Any] = {}
    for kind in CLASSES:
        held = [entry for entry in scored if entry.kind == kind]
        if held:
            errors = [entry.error for entry in held]
            drifted = [entry.drifted_error for entry in held]
            by_class[kind] = {
                "cases": len(held),
                "mean": statistics.mean(map(abs, errors)),
                "worst": max(map(abs, errors)),
                "bias": statistics.mean(errors),
                "drifted_mean": statistics.mean(map(abs, drifted)),
                "drifted_worst": max(map(abs, drifted)),
                "drifted_bias": statistics.mean(drifted),
                "one_rate_mean": statistics.mean(abs(entry.one_rate_error) for entry in held),
                "spread": statistics.median(entry.measured.spread_fraction for entry in held),
            }
    piped = [entry for entry in scored if entry.case.strategy.pp > 1]
    return {
        "by_class": by_class,
        "tau": ranking(scored),
        "order": order(scored),
        "memory": _figures([entry.memory_error for entry in scored]),
        "pipeline_wall": _figures([entry.wall_error for entry in piped]),
        "wall": _figures([entry.wall_error for entry in scored]),
    }


def _figures(errors: Iterable[float | None]) -> dict[str, float] | None:
    known = [abs(error) for error in errors if error is not None]
    return {"cases": len(known), "mean": statistics.mean(known), "worst": max(known)} if known else None


def agreement(one: Sequence[Scored], other: Sequence[Scored]) -> dict[str, float] | None:
    """How far apart two calibrations predict the same cases: mean and worst relative difference; None without any."""
    held = {entry.case.name: entry.predicted.cpu_s for entry in other}
    return _figures([entry.predicted.cpu_s / held[entry.case.name] - 1 for entry in one if entry.case.name in held])


def order(scored: Sequence[Scored]) -> dict[str, float]:
    """Of strategies of one model on one batch that differ by more than their repeats spread: how many pairs, and
    Kendall's tau over them (pairs in the right order less those in the wrong one, over all).
    """
    pairs = right = 0
    for held in _rivals(scored).values():
        for one, other in combinations(held, 2):
            a, b = one.measured, other.measured
            if abs(a.cpu_s - b.cpu_s) > (a.cpu_high_s - a.cpu_low_s + b.cpu_high_s - b.cpu_low_s) / 2:
                pairs += 1
                right += (a.cpu_s < b.cpu_s) == (one.drifted_cpu_s < other.drifted_cpu_s)
    return {"pairs": pairs, "tau": (2 * right - pairs) / pairs} if pairs else {"pairs": 0}


def _rivals(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    groups: dict[str, list[Scored]] = defaultdict(list)
    for entry in scored:
        run = entry.case.run
        groups[f"{entry.case.model} {run.global_batch} x {run.seq_len}"].append(entry)
    return groups


def ranking(scored: Sequence[Scored]) -> dict[str, float]:
    """Kendall's tau between predicted (at the moment's speed) and measured processor seconds, over the strategies of
    one model on the same batch.
    """
    taus = {name: kendall_tau([e.drifted_cpu_s for e in held], [e.measured.cpu_s for e in held])
            for name, held in _rivals(scored).items() if len(held) >= 3}  # fmt: skip
    return {name: tau for name, tau in taus.items() if tau is not None}
