"""Our parameter counts beside the published ones."""

from __future__ import annotations

from typing import Any

from simulator.arch.parameters import Parameters, parameters
from simulator.spec.model import ModelSpec


def check_model(model: ModelSpec) -> dict[str, Any]:
    """One row: published and counted totals and active counts, their differences, and whether each is accounted for.

    A difference is accounted for when it is within the printed rounding, or when the model's file explains it.
    """
    counted, published = parameters(model), model.published
    total = counted.total - sum(_excluded(counted, part) for part in published.excludes)
    active = counted.active - sum(_excluded(counted, part) for part in published.active_excludes)
    total_error = _relative(total, published.parameters)
    active_error = _relative(active, published.active_parameters)
    rounds = abs(total_error) <= published.tolerance
    # A count that claims to be exact must round to the printed digits; an explanation does not excuse it.
    total_ok = rounds or (bool(published.explanation) and not published.parameters_exact) or not published.parameters
    active_ok = abs(active_error) <= published.active_tolerance or bool(published.explanation)
    problems = [] if total_ok else [f"counted {total:,}, published {published.parameters:,} ({total_error:+.2%})"]
    if not active_ok:
        problems.append(f"active {active:,}, published {published.active_parameters:,} ({active_error:+.2%})")
    return {
        "model": model.name,
        "counted": total,
        "published": published.parameters,
        "difference": total_error,
        "rounds_to_published": rounds and bool(published.parameters),
        "counted_active": active,
        "published_active": published.active_parameters,
        "active_difference": active_error,
        "explanation": published.explanation,
        "ok": total_ok and active_ok,
        "message": "; ".join(problems),
    }


def _excluded(counted: Parameters, part: str) -> int:
    return counted.by_part.get(part, 0)


def _relative(ours: int, theirs: int) -> float:
    return (ours - theirs) / theirs if theirs else 0.0
