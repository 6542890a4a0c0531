"""Prediction intervals: how far a measured step time lies from a predicted one, by regime.

Split conformal prediction (Vovk et al. 2005; Lei et al. 2018) on the log of measured over predicted, with the residuals
of other families only: a family never widens or narrows its own interval. Families count equally, whatever their number
of rows, since a new run is more like a new family than like the largest one. The residuals are data
(`validation/residuals.csv`, written by `make validate`). The confidence of a verdict on memory is read off the same
table's measured peaks.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from simulator.errors import InputError, Problem

COVERAGE = 0.9
LADDER: tuple[tuple[str, ...], ...] = (("kind", "bound", "pipeline"), ("kind", "bound"), ("kind",), ())
"""Regime keys from the narrowest group of residuals to all of them; the first with enough is used."""
MIN_ROWS, MIN_FAMILIES = 40, 2
KIN: Mapping[str, str] = {
    "nvidia_megatron_bridge": "nvidia",
    "nvidia_nemo_docs": "nvidia",
    "nvidia_dgxc": "nvidia",
    "moe_modelzoo": "nvidia",
    "mcore_moe_report": "nvidia",
    "nemo_automodel": "nvidia",
}
"""Families that list some of the same runs count as one."""
COLUMNS = ("run_id", "family", "kind", "device", "bound", "pipeline", "precision", "log_ratio", "log_peak_ratio")


@dataclass(frozen=True, slots=True)
class Residual:
    """One scored run: `log_ratio` is ln(measured / predicted) of its step time, `log_peak_ratio` that of its peak
    memory; None where the source does not state it.
    """

    run_id: str
    family: str
    regime: Mapping[str, str]
    log_ratio: float | None
    log_peak_ratio: float | None = None


def kin(family: str) -> str:
    """The group that a family is left out with.

    >>> kin("nvidia_dgxc"), kin("vtrain")
    ('nvidia', 'vtrain')
    """
    return KIN.get(family, family)


@lru_cache(maxsize=1)
def published_residuals() -> tuple[Residual, ...]:
    """The residuals that this version was validated with: shipped in the wheel, in validation/ of a checkout."""
    own = Path(str(files("simulator").joinpath("_catalog", "validation", "residuals.csv")))
    path = own if own.is_file() else Path(__file__).parents[1] / "validation" / "residuals.csv"
    return read_residuals(path) if path.is_file() else ()


@lru_cache(maxsize=256)
def regime_interval(kind: str, bound: str, pipeline: str) -> tuple[float, float]:
    """Factors (low, high) for a regime from all published residuals; (0, inf) where there are none."""
    return interval({"kind": kind, "bound": bound, "pipeline": pipeline}, published_residuals())


def interval(
    regime: Mapping[str, str], residuals: Sequence[Residual], *, without: str = "", share: float = COVERAGE
) -> tuple[float, float]:
    """Factors (low, high) on a predicted step time between which a measured one lies with probability `share`.

    `without` names a family whose residuals (and its kin's) are left out. With no residuals the interval is unbounded:
    (0, inf).
    """
    others = [r for r in residuals if r.log_ratio is not None and (not without or kin(r.family) != kin(without))]
    for keys in LADDER:
        near = [r for r in others if all(r.regime.get(key) == regime.get(key) for key in keys)]
        families = {kin(r.family) for r in near}
        if near and (not keys or (len(near) >= MIN_ROWS and len(families) >= MIN_FAMILIES)):
            return _quantiles([(r.family, r.log_ratio or 0.0) for r in near], share)
    return 0.0, math.inf


def fits_confidence(
    predicted_bytes: float, limit_bytes: float, residuals: Sequence[Residual], *, without: str = ""
) -> float:
    """Probability that the verdict "fits" (or "does not fit") on a predicted peak is right.

    The share of measured peaks, by family, that would lie on the same side of the limit with this prediction; the run
    yet unseen counts against the verdict (split conformal). `without` leaves a family and its kin out. 0.5 where no
    peak is known.
    """
    ratios = [(r.family, r.log_peak_ratio) for r in residuals
              if r.log_peak_ratio is not None and (not without or kin(r.family) != kin(without))]  # fmt: skip
    if not ratios or not predicted_bytes > 0.0:
        return 0.5
    room = math.log(limit_bytes / predicted_bytes)
    inside = sum(weight for value, weight in _weighted(ratios) if value <= room)
    return inside if predicted_bytes <= limit_bytes else len(ratios) / (len(ratios) + 1) - inside


def _weighted(ratios: Sequence[tuple[str, float]]) -> list[tuple[float, float]]:
    """Ratios in order, each with its weight: families weigh the same, and one unseen run more has what is left."""
    counts: dict[str, int] = {}
    for family, _ in ratios:
        counts[kin(family)] = counts.get(kin(family), 0) + 1
    each = len(ratios) / (len(ratios) + 1) / len(counts)
    return sorted((value, each / counts[kin(family)]) for family, value in ratios)


def _quantiles(ratios: Sequence[tuple[str, float]], share: float) -> tuple[float, float]:
    """Two-sided conformal quantiles: one unseen run more stands at both ends."""
    ordered = _weighted(ratios)
    tail = (1 - share) / 2
    return math.exp(_reach(ordered, tail)), math.exp(-_reach([(-v, w) for v, w in reversed(ordered)], tail))


def _reach(ordered: Sequence[tuple[float, float]], tail: float) -> float:
    """The largest value at or below which at most `tail` of the weight lies; the smallest when even that is more."""
    below, bound = 0.0, ordered[0][0]
    for value, weight in ordered:
        below += weight
        if below > tail + 1e-12:
            break
        bound = value
    return bound


def read_residuals(path: Path) -> tuple[Residual, ...]:
    """Read `residuals.csv`. Raises InputError when it is not what `write_residuals` writes."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [line for line in file if not line.startswith("#")]
        rows = list(csv.DictReader(lines, strict=True))
        return tuple(
            Residual(row["run_id"], row["family"], {k: row[k] for k in COLUMNS[2:7]}, *(
                float(row[k]) if row[k] else None for k in COLUMNS[7:]
            ))
            for row in rows
        )
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError([Problem(f"not a table of residuals: {error!r}.", str(path))]) from None


def write_residuals(path: Path, residuals: Iterable[Residual], provenance: str) -> None:
    """Write residuals with a first line that says where they come from."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {provenance}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for residual in residuals:
            regime = [residual.regime.get(key, "") for key in COLUMNS[2:7]]
            ratios = [f"{v:.6f}" if v is not None else "" for v in (residual.log_ratio, residual.log_peak_ratio)]
            writer.writerow([residual.run_id, residual.family, *regime, *ratios])
