"""From timings to a machine's constants: sums with coefficients that are never negative, curves that never fall."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What the kernels' timings became. `residuals` are absolute relative errors of the fit, by family."""

    sums: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, list[list[float]]]
    residuals: Mapping[str, Mapping[str, float]]
    spread_fraction: float
    """Median over benches of the interquartile range of their rounds over their median."""


def fit_kernels(rows: Sequence[Mapping[str, Any]]) -> Fitted:
    """Medians over rounds, then a sum per family (charged terms) and a curve per kernel (charged bytes)."""
    sums: dict[str, list[tuple[Mapping[str, float], float]]] = defaultdict(list)
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    spreads = []
    for row in rows:
        name, charge = row["charged"]
        middle = statistics.median(row["seconds"])
        spreads.append(spread(row["seconds"]))
        if isinstance(charge, Mapping):
            sums[name].append((charge, middle))
        else:
            points[name].append((float(charge), middle))
    fitted, residuals = {}, {}
    for name, entries in sums.items():
        fitted[name], residuals[name] = fit_sum(entries)
    curves = {name: curve(found) for name, found in points.items()}
    return Fitted(sums=fitted, curves=curves, residuals=residuals, spread_fraction=statistics.median(spreads))


def spread(values: Sequence[float]) -> float:
    """Interquartile range over the median."""
    low, middle, high = (float(x) for x in np.percentile(values, (25, 50, 75)))
    return (high - low) / middle


def fit_sum(entries: Sequence[tuple[Mapping[str, float], float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Coefficients >= 0 that minimise the squared relative errors, and the errors that remain."""
    names = list(entries[0][0])
    times = np.array([seconds for _, seconds in entries])
    terms = np.array([[float(row[name]) for name in names] for row, _ in entries]) / times[:, None]
    scale = terms.max(axis=0)
    solved = nonnegative_least_squares(terms / scale, np.ones(len(times))) / scale
    errors = np.abs(terms @ solved - 1.0)
    residuals = {"count": float(len(times)), "median": float(np.median(errors)), "worst": float(errors.max())}
    return dict(zip(names, solved.tolist(), strict=True)), residuals


def nonnegative_least_squares(a: Array, b: Array) -> Array:
    """min |a x - b| with x >= 0, by the active sets of Lawson and Hanson 1974 (chapter 23).

    >>> nonnegative_least_squares(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2.0, -1.0])).tolist()
    [2.0, 0.0]
    """
    count = a.shape[1]
    x = np.zeros(count)
    free = np.zeros(count, dtype=bool)
    for _ in range(30 * count):
        slope = np.where(free, -np.inf, a.T @ (b - a @ x))
        best = int(slope.argmax())
        if slope[best] <= 1e-10:
            break
        free[best] = True
        while True:
            trial = np.zeros(count)
            trial[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            if (trial[free] > 0).all():
                break
            down = free & (trial <= 0)
            step = (x[down] / (x[down] - trial[down])).min()
            x = x + step * (trial - x)
            free &= x > 1e-15
        x = trial
    return x


def curve(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Points by size with times that never fall: neighbours that do are averaged (pool adjacent violators).

    >>> curve([(1.0, 2.0), (4.0, 1.0), (8.0, 5.0)])
    [[1.0, 1.5], [4.0, 1.5], [8.0, 5.0]]
    """
    by_size: dict[float, list[float]] = defaultdict(list)
    for size, seconds in points:
        by_size[size].append(seconds)
    sizes = sorted(by_size)
    pools: list[list[float]] = []
    for size in sizes:
        pools.append([statistics.mean(by_size[size])])
        while len(pools) > 1 and statistics.mean(pools[-1]) < statistics.mean(pools[-2]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [statistics.mean(pool) for pool in pools for _ in pool]
    return [[size, seconds] for size, seconds in zip(sizes, level, strict=True)]
