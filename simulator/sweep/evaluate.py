"""One point of a sweep -> one row. Runs in worker processes: takes and gives plain values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from simulator.errors import ShardwiseError
from simulator.estimate import estimate
from simulator.plan.limits import DEGREES, OPTIONS
from simulator.plan.planner import plan
from simulator.plan.words import limits_of
from simulator.project.training import Conditions, project
from simulator.result import COMMUNICATION, COMPUTE, Estimate
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from simulator.sweep.points import planned
from simulator.sweep.what_if import changes_of, cluster_with, framework_with, model_with
from simulator.units import parse_quantity

ANSWERED, REFUSED, FAILED = "answered", "refused", "failed"
"""An answer (that may not fit), a strategy or input that cannot be (an answer too), and a defect of ours."""
TIME_PARTS = (*COMPUTE, *COMMUNICATION, "host", "bubble")
PROJECT_COLUMNS = ("steps", "ideal_days", "days", "device_hours", "usd", "energy_kwh", "carbon_kg")
COLUMNS = (
    "status", "message", "devices", "dp", "fits", "step_time_s", "step_time_low_s", "step_time_high_s", "tokens_per_s",
    "tokens_per_s_per_device", "model_flops_per_s_per_device", "mfu", "hfu", "peak_memory_bytes",
    "device_memory_bytes", *(f"time_{name}_s" for name in TIME_PARTS), "price_usd_per_device_hour",
    "usd_per_million_tokens", *PROJECT_COLUMNS,
)  # fmt: skip
"""What every row has besides its point; empty where it does not apply."""
_PLANNED = (*DEGREES, *(name for name in OPTIONS if name != "split"), "recompute_layers", "layers_per_stage")
PLAN_COLUMNS = (*(name for name in _PLANNED if name != "dp"), "legal", "engine_runs", "gap")
"""What a row has besides where its point asks the planner: the best strategy, and how it was proven."""

_RUN = {entry.name for entry in fields(Run)}
_STRATEGY = {entry.name for entry in fields(Strategy)}


def evaluate_points(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of several points, in order."""
    return [evaluate_point(point) for point in points]


def evaluate_point(point: Mapping[str, Any]) -> dict[str, Any]:
    """The row of one point. Never raises: what is refused says why."""
    try:
        return _row(point)
    except ShardwiseError as error:
        return {"status": REFUSED, "message": "; ".join(str(problem) for problem in error.problems)}
    except Exception as error:  # noqa: BLE001
        # One defect must not lose the rest of a sweep; it is counted and shown.
        return {"status": FAILED, "message": f"{type(error).__name__}: {error}"}


def _tupled(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in names
    }


@dataclass(frozen=True, slots=True)
class Case:
    """What a point asks about."""

    model: ModelSpec
    cluster: Cluster
    run: Run
    strategy: Strategy
    framework: Framework


def case_of_point(point: Mapping[str, Any]) -> Case:
    """A point as values. dp is what tp, pp and cp leave unless it is given, and a point that asks the planner has the
    best strategy. Raises InputError for unknown names, Infeasible when no strategy is legal and fits.
    """
    return _asked(point)[0]


def _asked(point: Mapping[str, Any]) -> tuple[Case, dict[str, Any]]:
    """The case of a point, and what the planner said of its strategy (nothing where the point gives one)."""
    model = model_with(point["model"], changes_of(point, "model"))
    cluster = cluster_with(
        point["cluster"], point.get("nodes"), changes_of(point, "cluster"), changes_of(point, "device"),
        changes_of(point, "calibration"),
    )  # fmt: skip
    run = Run(**_tupled(point, _RUN))
    framework = framework_with(run.framework, changes_of(point, "framework"))
    chosen = _tupled(point, _STRATEGY)
    if planned(point):
        limits = limits_of((), point.get("plan.allow", ()), point.get("plan.forbid", ()))
        best = plan(
            model, cluster, run, objective=point.get("plan.objective", "tokens_per_s"), limit=1, fix=chosen,
            allow=limits.allow, within=limits.within, forbid=limits.forbid, framework=framework,
        )  # fmt: skip
        strategy, proof = best[0].strategy, best.proof
        said = {name: getattr(strategy, name) for name in _PLANNED}
        for name in ("layers_per_stage", "recompute_layers"):
            if isinstance(said[name], tuple):
                said[name] = ",".join(map(str, said[name]))
        said |= {"order": "-".join(strategy.order), "legal": proof.legal, "engine_runs": proof.engine_runs,
                 "gap": proof.gap}  # fmt: skip
        return Case(model, cluster, run, strategy, framework), said
    if "dp" not in chosen:
        taken = chosen.get("tp", 1) * chosen.get("pp", 1) * chosen.get("cp", 1)
        chosen["dp"] = max(cluster.devices // max(taken, 1), 1)
    return Case(model, cluster, run, Strategy(**chosen), framework), {}


def _row(point: Mapping[str, Any]) -> dict[str, Any]:
    case, said = _asked(point)
    model, cluster, run, strategy, framework = case.model, case.cluster, case.run, case.strategy, case.framework
    price = parse_quantity(point["price"], "price") if "price" in point else cluster.price_usd_per_device_hour or None
    if "tokens" not in point:
        answer = estimate(model, cluster, run, strategy, framework=framework)
        return {**said, **_measured(answer), **_priced(answer, price)}
    whole = project(
        model, cluster, run, strategy, tokens=parse_quantity(point["tokens"], "count"), framework=framework,
        conditions=Conditions(price_usd_per_device_hour=price),
    )  # fmt: skip
    money = {name: getattr(whole, name) for name in PROJECT_COLUMNS}
    return {**said, **_measured(whole.estimate), **_priced(whole.estimate, price), **money}


def _measured(answer: Estimate) -> dict[str, Any]:
    return {
        "status": ANSWERED,
        "devices": answer.devices,
        "dp": answer.strategy["dp"],
        "fits": bool(answer.fits),
        "step_time_s": answer.step_time_s,
        "step_time_low_s": answer.step_time_low_s,
        "step_time_high_s": answer.step_time_high_s,
        "tokens_per_s": answer.tokens_per_s,
        "tokens_per_s_per_device": answer.tokens_per_s_per_device,
        "model_flops_per_s_per_device": answer.model_flops_per_s_per_device,
        "mfu": answer.mfu,
        "hfu": answer.hfu,
        "peak_memory_bytes": answer.peak_memory_bytes,
        "device_memory_bytes": answer.device_memory_bytes,
        **{f"time_{name}_s": answer.time.parts.get(name, 0.0) for name in TIME_PARTS},
    }


def _priced(answer: Estimate, price: float | None) -> dict[str, Any]:
    if price is None:
        return {}
    per_token = price / 3600.0 / answer.tokens_per_s_per_device
    return {"price_usd_per_device_hour": price, "usd_per_million_tokens": per_token * 1e6}
