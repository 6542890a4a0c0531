"""What the page shows for a state: pure functions from JSON to JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from simulator.errors import InputError, Problem
from simulator.estimate import estimate
from simulator.plan.planner import plan
from simulator.plan.result import Planned
from simulator.report.document import document
from simulator.report.plan import strategy_words
from simulator.report.svg import scene_json
from simulator.report.svg_bars import memory_scene, waterfall_scene
from simulator.report.svg_scatter import Point, scatter_scene
from simulator.report.svg_timeline import timeline_scene
from simulator.report.svg_topology import topology_scene
from simulator.result import Estimate
from simulator.spec.strategy import Strategy
from simulator.units import format_bytes, format_percent, format_time
from simulator.web.nearby import Bound, Neighbour, bounds, neighbours
from simulator.web.state import FIELDS, JOINED, START, Case, catalogue, dial_values, read_case

State = Mapping[str, Any]
MAX_PLANNED = 50
MAX_NEAR = 100
PLAN_S = 8.0
"""Seconds that a plan may search; then the best so far, with its gap."""
_SHOWN = ("tp", "pp", "dp", "cp", "ep", "vp", "micro_batch", "zero", "schedule", "recompute")


def _width(asked: Any) -> int:
    """The picture's width in pixels, within reason."""
    return min(max(int(asked), 280), 1200) if isinstance(asked, int) else 640


@lru_cache(maxsize=64)
def _answered(key: str) -> tuple[Case, Estimate]:
    """Case and estimate of a state written as JSON: a dial that goes back and forth costs nothing."""
    case = read_case(json.loads(key))
    return case, estimate(case.model, case.cluster, case.run, case.strategy, framework=case.framework)


@lru_cache(maxsize=16)
def _near(key: str) -> tuple[list[Neighbour], list[Bound]]:
    """The neighbours of a state written as JSON, with their bounds."""
    state = json.loads(key)
    case = read_case(state)
    near = neighbours(case, state)
    return near, bounds(case, near)


def _answer(state: Any) -> tuple[Case, Estimate]:
    if not isinstance(state, dict):
        raise InputError([Problem("state must be an object.", "state")])
    return _answered(json.dumps(state, sort_keys=True))


def catalogue_view() -> dict[str, Any]:
    """What can be chosen, and what the page shows first."""
    return catalogue()


def estimate_view(body: State) -> dict[str, Any]:
    """The document, pictures and dial stops of body["state"]; pictures are body["width"] or ["wide"] pixels wide.

    The scatter shows what one step of a dial takes at least; `scatter_view` simulates it.
    """
    case, answer = _answer(body.get("state"))
    width, wide = _width(body.get("width")), _width(body.get("wide"))
    scenes = [
        waterfall_scene(answer, width), memory_scene(answer, width), timeline_scene(answer, wide),
        topology_scene(case.cluster, case.strategy, answer, width),
    ]  # fmt: skip
    return {
        "document": document(answer, nodes=case.cluster.nodes, said=case.said),
        "pictures": [scene_json(scene) for scene in scenes],
        "scatter": _scatter(body, 0, wide),
        "dials": dial_values(case),
        "now": {"nodes": case.cluster.nodes, "dp": case.strategy.dp, "seq_len": answer.run["seq_len"],
                "devices": case.cluster.devices},
    }  # fmt: skip


def scatter_view(body: State) -> dict[str, Any]:
    """Strategies one step of a dial away and those of body["planned"], by time and memory.

    The most promising body["simulate"] of them are simulated (all, if that is not said): a page that asks for a few at
    a time never waits for an answer it no longer needs. `left` says how many were not. `points` maps the key of a
    point to the settings that a click on it changes.
    """
    asked = body.get("simulate")
    return _scatter(body, max(asked, 0) if type(asked) is int else MAX_NEAR, _width(body.get("width")))


def _scatter(body: State, simulated: int, width: int) -> dict[str, Any]:
    """A strategy among its neighbours, some simulated, and a plan's: picture, settings of each point, rows."""
    _, answer = _answer(body.get("state"))
    near, least = _near(json.dumps(body["state"], sort_keys=True))
    order = sorted(range(len(near)), key=lambda index: least[index].step_time_s if least else index)
    points = []
    for index in order[:simulated]:
        # The folded state, so that a neighbour that is visited later is there already.
        _, other = _answer({**body["state"], **near[index].change})
        points.append(_point(near, index, other.step_time_s, other.peak_memory_bytes))
    points += [_point(near, index, least[index].step_time_s, least[index].peak_bytes, bound=True)
               for index in order[simulated:] if least]  # fmt: skip
    planned = list(_planned(body.get("planned")))
    current = Point(label="this strategy", kind="current", step_time_s=answer.step_time_s,
                    peak_bytes=answer.peak_memory_bytes)  # fmt: skip
    shown = [current, *points, *(point for point, _ in planned)]
    changes = {f"n{index}": dict(each.change) for index, each in enumerate(near)}
    return {
        "picture": scene_json(scatter_scene(shown, answer.device_memory_bytes, width)),
        "points": changes | {point.key: change for point, change in planned},
        "nearby": _nearby(points, answer),
        "left": max(len(near) - simulated, 0),
    }


def _point(
    near: Sequence[Neighbour], index: int, step_time_s: float, peak_bytes: float, *, bound: bool = False
) -> Point:
    return Point(label=near[index].label, kind="neighbour", step_time_s=step_time_s, peak_bytes=peak_bytes,
                 key=f"n{index}", bound=bound)  # fmt: skip


def _nearby(near: list[Point], answer: Estimate) -> list[dict[str, Any]]:
    """The neighbours as rows, the quickest that fits first."""
    limit = answer.device_memory_bytes
    return [
        {"key": p.key, "name": p.label, "step": format_time(p.step_time_s), "bound": p.bound,
         "change": f"{p.step_time_s / answer.step_time_s - 1:+.1%}", "memory": format_bytes(p.peak_bytes),
         "fits": p.peak_bytes <= limit}
        for p in sorted(near, key=lambda p: (p.peak_bytes > limit, p.step_time_s))
    ]  # fmt: skip


def _planned(rows: Any) -> Iterator[tuple[Point, dict[str, Any]]]:
    """Points that an earlier plan gave the page, read as carefully as anything else that comes in."""
    for index, row in enumerate(rows[:MAX_PLANNED] if isinstance(rows, list) else []):
        try:
            time_s, held_bytes = float(row["step_time_s"]), float(row["peak_bytes"])
            change, label = dict(row["change"]), str(row["label"])[:100]
        except (KeyError, TypeError, ValueError):
            raise InputError([Problem(f"planned[{index}] is no planned strategy.", "planned")]) from None
        if not (math.isfinite(time_s) and time_s > 0 and math.isfinite(held_bytes) and held_bytes >= 0):
            raise InputError([Problem(f"planned[{index}] has no finite time and memory.", "planned")])
        yield Point(label=label, kind="planned", step_time_s=time_s, peak_bytes=held_bytes, key=f"p{index}"), change


def plan_view(body: State) -> dict[str, Any]:
    """The best strategies for the state's model, cluster and run, why each stands where it does, and the proof."""
    state = body.get("state")
    if not isinstance(state, dict):
        raise InputError([Problem("state must be an object.", "state")])
    # Only model, cluster and run matter here; a strategy that cannot run must not stand in the way.
    case = read_case({name: value for name, value in state.items() if name not in _SHOWN or name == "dp"})
    run = replace(case.run, seq_len=case.run.seq_len or case.model.seq_len)
    found = plan(case.model, case.cluster, run, framework=case.framework, limit=8, time_limit_s=PLAN_S)
    rows = [_row(entry) for entry in found]
    proof = found.proof
    ending = "optimal under the engine" if proof.optimal else f"within {format_percent(proof.gap)} of the optimum"
    words = (
        f"{proof.considered:,} strategies considered, {proof.legal:,} legal, {proof.fits:,} fit; "
        f"{proof.engine_runs:,} simulated in {format_time(found.wall_s, 3)}: {ending}."
    )
    rejected = sorted(found.rejected.items(), key=lambda item: -item[1])
    return {"rows": rows, "proof": words, "rejected": [[reason, f"{n:,}"] for reason, n in rejected[:12]],
            "notes": list(found.notes)}  # fmt: skip


def _row(entry: Planned) -> dict[str, Any]:
    strategy, answer = entry.strategy, entry.estimate
    # Without dp, which a plan leaves to the other degrees: turning a dial afterwards keeps every device at work.
    values = {
        each.name: getattr(strategy, each.name)
        for each in fields(Strategy)
        if each.name in FIELDS and each.name != "dp"
        and (each.name in START or getattr(strategy, each.name) != each.default)
    }  # fmt: skip
    change = {name: JOINED[name].join(map(str, value)) if isinstance(value, tuple) else value
              for name, value in values.items()}  # fmt: skip
    label = strategy_words(strategy)
    return {
        "label": label, "change": change, "step": format_time(answer.step_time_s), "mfu": format_percent(answer.mfu),
        "memory": format_bytes(answer.peak_memory_bytes), "why": entry.why,
        "tie": f"tie, {format_percent(entry.faster_probability, 2)} that it is the faster: " if entry.tied else "",
        "step_time_s": answer.step_time_s, "peak_bytes": answer.peak_memory_bytes,
    }  # fmt: skip
