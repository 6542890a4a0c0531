"""How wrong a set of predictions is: errors, ranking, verdicts, and the one-constant bar. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np


def error_summary(errors: Sequence[float]) -> dict[str, float]:
    """Of signed relative errors: rows, mean, median, p90 and worst of their absolute values, and the signed mean.

    >>> error_summary([0.1, -0.3])
    {'rows': 2, 'mean': 0.2, 'median': 0.2, 'p90': 0.28, 'worst': 0.3, 'bias': -0.1}
    """
    if not errors:
        return {"rows": 0}
    signed = np.asarray(errors, dtype=float)
    sizes = np.abs(signed)
    figures = {
        "mean": sizes.mean(), "median": np.median(sizes), "p90": np.quantile(sizes, 0.9), "worst": sizes.max(),
        "bias": signed.mean(),
    }  # fmt: skip
    return {"rows": len(errors), **{name: round(float(value), 12) for name, value in figures.items()}}


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rankings; None where either is all ties (Kendall 1945).

    >>> kendall_tau([1, 2, 3], [10, 30, 20])
    0.3333333333333333
    """
    agree = tied_first = tied_second = pairs = 0
    for i, j in combinations(range(len(first)), 2):
        a, b = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
        agree += int(a * b)
        tied_first += int(a == 0)
        tied_second += int(b == 0)
        pairs += 1
    scale = (pairs - tied_first) * (pairs - tied_second)
    return float(agree / np.sqrt(scale)) if scale else None


def top_pick_loss(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """How much slower the run that was predicted fastest is than the fastest one, relative.

    >>> top_pick_loss([1.0, 2.0], [1.1, 1.0])
    0.10000000000000009
    """
    picked = measured[int(np.argmin(np.asarray(predicted)))]
    return picked / min(measured) - 1


def ranking_summary(sets: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, float]:
    """Over sets of (predicted, measured) with two rows or more: mean tau, mean and worst loss of the top pick."""
    usable = [(p, m) for p, m in sets if len(p) > 1]
    taus = [tau for p, m in usable if (tau := kendall_tau(p, m)) is not None]
    if not usable or not taus:
        return {"sets": 0}
    losses = [top_pick_loss(p, m) for p, m in usable]
    return {
        "sets": len(usable), "runs": sum(len(p) for p, _ in usable), "tau": float(np.mean(taus)),
        "top_pick_loss": float(np.mean(losses)), "top_pick_loss_worst": max(losses),
    }  # fmt: skip


SURE = 0.8
"""Verdicts of at least this confidence are counted apart."""


def verdict_summary(
    fits: Sequence[bool], ran: Sequence[bool], confidence: Sequence[float] = ()
) -> dict[str, float | None]:
    """Out-of-memory verdicts: precision and recall of "does not fit", and the share of verdicts that are right.

    With confidences also their mean, and how many verdicts are sure (0.8 or more) and right among those.

    >>> verdict_summary([True, False, False], [True, False, True])["precision"]
    0.5
    >>> verdict_summary([True, False], [True, True], [0.9, 0.6])["sure_accuracy"]
    1.0
    """
    if not fits:
        return {"rows": 0}
    right = sum(f == r for f, r in zip(fits, ran, strict=True))
    told, failed = sum(not f for f in fits), sum(not r for r in ran)
    both = sum(not f and not r for f, r in zip(fits, ran, strict=True))
    sure = [f == r for f, r, c in zip(fits, ran, confidence or [0.0] * len(fits), strict=True) if c >= SURE]
    return {
        "rows": len(fits), "out_of_memory": failed, "said_out_of_memory": told,
        "precision": both / told if told else None, "recall": both / failed if failed else None,
        "accuracy": right / len(fits), "confidence": sum(confidence) / len(fits) if confidence else None,
        "sure": len(sure), "sure_accuracy": sum(sure) / len(sure) if sure else None,
    }  # fmt: skip


def constant_errors(ideal_s: Sequence[float], measured_s: Sequence[float]) -> list[float]:
    """Signed relative errors of `measured = k * ideal` with the k that minimises their absolute mean, in sample.

    `ideal_s` is model FLOPs over peak: k is one over an MFU. The best k is a weighted median of measured / ideal with
    weights ideal / measured (least absolute deviations). This is the bar a model must clear.

    >>> [round(e, 3) for e in constant_errors([1.0, 1.0, 1.0], [2.0, 2.0, 4.0])]
    [0.0, 0.0, -0.5]
    """
    if not ideal_s:
        return []
    ideal, measured = np.asarray(ideal_s, dtype=float), np.asarray(measured_s, dtype=float)
    ratio = measured / ideal
    order = np.argsort(ratio)
    weight = np.cumsum((1 / ratio)[order])
    k = ratio[order][np.searchsorted(weight, weight[-1] / 2)]
    return [float(e) for e in k * ideal / measured - 1]


def coverage(low: Sequence[float], high: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Share of measurements inside their interval, and the mean width relative to the measurement."""
    if not measured:
        return {"rows": 0}
    lo, hi, m = (np.asarray(v, dtype=float) for v in (low, high, measured))
    return {
        "rows": len(measured), "covered": float(np.mean((lo <= m) & (m <= hi))), "width": float(np.mean((hi - lo) / m)),
    }  # fmt: skip
