"""Closed forms: what a schedule costs when that can be said without running it.

Exact for equal stages and free transfers; they broadcast over every argument but the schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError, did_you_mean
from simulator.spec.strategy import SCHEDULES

Number = Any
"""A float, an int or an array of them."""
Floats = npt.NDArray[np.float64]


def step_time_s(
    schedule: str,
    *,
    forward_s: Number,
    input_grad_s: Number,
    weight_grad_s: Number,
    pp: Number,
    micro_batches: Number,
    vp: Number = 1,
) -> Floats:
    """Seconds from the first task to the last with equal stages and free transfers.

    Durations are of one model stage (one of pp * vp) and one micro-batch, on one rank's share of it. A schedule's
    bubble is this less micro_batches * vp * (F + B + W).

    | schedule | bubble | source |
    |---|---|---|
    | gpipe, 1f1b, eager-1f1b, interleaved | (p - 1)(F + B + W) | Narayanan et al. 2021, section 2.2 |
    | interleaved-bfs | the same, and the loop must close when m < p | Lamy-Poirier 2023 |
    | zb-h1 | (p - 1) max(F, B, F + B - W) | Qi et al. 2023, table 2; its F + B - W is the usual case |
    | zb-h2, zbv | (p - 1) F, none of it between a rank's first and last task | Qi et al. 2023, table 2, section 6 |
    | v-half | (3 p - 5) F | half of 1F1B's 6 (p - 1) half stages, Qi et al. 2024 |
    | v-min | (4 p - 5) F | two thirds of the same |
    | dualpipe | (p / 2 - 1)(F&B + BW - 3 W) | deepseek-ai/DualPipe README, BW = B + W, F&B = F + BW |
    | dualpipev | (p - 1)(F&B + BW - 3 W) | the same on half the ranks |
    | chimera | (p - 2)(F + (m / p)(B + W - F)) | Li & Hoefler 2021, section 3.5, direct concatenation |

    The zero-bubble ones after zb-h1 are stated by their authors for F = B = W, and refused otherwise (run the
    engine). With fewer micro-batches than fill the pipe the waiting for the first to return is added.
    Raises InputError for an unknown schedule or a case that has no closed form.
    """
    f, b, w = (np.asarray(value, np.float64) for value in (forward_s, input_grad_s, weight_grad_s))
    p, m, v = np.asarray(pp), np.asarray(micro_batches), np.asarray(vp)
    work = m * v * (f + b + w)
    if schedule in ("gpipe", "1f1b", "eager-1f1b", "interleaved"):
        return np.asarray(work + (p - 1) * (f + b + w))
    if schedule == "interleaved-bfs":
        return np.asarray(work + ((v - 1) * np.maximum(p - m, 0) + p - 1) * (f + b + w))
    if schedule == "chimera":
        _need(schedule, f <= b + w, "F <= B + W")
        return np.asarray(work + np.maximum(p - 2, 0) * (f + m / p * (b + w - f)))
    equal = np.isclose(f, b, rtol=1e-12, atol=0.0) & np.isclose(f, w, rtol=1e-12, atol=0.0)
    if schedule == "zb-h1":
        _need(schedule, equal | (m >= p), "F = B = W when there are fewer micro-batches than ranks")
        usual = (p - 1) * np.maximum(np.maximum(f, b), f + b - w)
        return np.asarray(work + usual + np.maximum(p - m, 0) * f)
    if schedule not in SCHEDULES:
        raise InputError([f"unknown schedule {schedule!r}. {did_you_mean(schedule, SCHEDULES)}"])
    _need(schedule, equal, "F = B = W")
    return np.asarray(work + _bubble_slots(schedule, p, m) * f)


def _bubble_slots(schedule: str, p: Number, m: Number) -> Number:
    """Bubble in units of F = B = W, fill and drain included."""
    match schedule:
        case "zb-h2":
            return p - 1 + np.maximum(p - 1 - m // 2, 0)
        case "zbv":
            return p - 1 + np.maximum(3 * p - 1 - 2 * m, 0)
        case "v-half":
            return 3 * p - 5 + np.maximum(p + 2 - 2 * m, p == 2)
        case "v-min":
            return 4 * p - 5
        case "dualpipe":
            return p - 2
        case _:
            return 2 * (p - 1)


def _need(schedule: str, holds: npt.ArrayLike, rule: str) -> None:
    if not np.all(holds):
        raise InputError([f"the closed form of {schedule} holds for {rule} only: run the engine"])


def peak_in_flight(
    schedule: str, *, pp: Number, micro_batches: Number, rank: Number, vp: Number = 1, group_size: Number = 0
) -> Number:
    """The most forwards without their (weight) backward that a rank holds, counted in stage-micro-batches.

    Divide by vp for micro-batches of a whole rank. Sources: facts_formulas, table e, and each order's own warm-up.
    V-Half and V-Min: the most of any rank, which their authors state; V-Min at p = 1 mod 3 has one less until m reaches
    (2 p + 4) / 3. ZBV: p whole micro-batches; DualPipe: p + 1; Chimera: p / 2 + 1 at the ends to p in the middle.
    """
    p, m, r, v = np.asarray(pp), np.asarray(micro_batches), np.asarray(rank), np.asarray(vp)
    group = np.where(np.asarray(group_size) == 0, p, group_size)
    if schedule not in _HELD:
        raise InputError([f"unknown schedule {schedule!r}. {did_you_mean(schedule, SCHEDULES)}"])
    return np.minimum(m * v + 0 * r, _HELD[schedule](p, m, r, v, group))


_HELD: dict[str, Callable[[Number, Number, Number, Number, Number], Number]] = {
    "gpipe": lambda p, m, _r, _v, _g: m + 0 * p,
    "1f1b": lambda p, _m, r, _v, _g: p - r,
    "eager-1f1b": lambda p, _m, r, _v, _g: 2 * (p - r) - 1,
    "interleaved": lambda p, _m, r, v, g: 2 * (p - r - 1) + (v - 1) * g + 1,
    "interleaved-bfs": lambda p, m, _r, v, _g: m * v + 0 * p,
    "zb-h1": lambda p, _m, _r, v, g: (v - 1) * g + p,
    "zb-h2": lambda p, _m, _r, _v, _g: 2 * p - 1,
    "zbv": lambda p, m, r, _v, _g: np.minimum(2 * p, m + r + 1),
    "v-half": lambda p, _m, _r, _v, _g: p + 2,
    "v-min": lambda p, m, _r, _v, _g: np.maximum(2 * (p + 4) // 3 - ((p % 3 == 1) & (3 * m < 2 * p + 4)), 4),
    "dualpipe": lambda p, _m, _r, _v, _g: p + 1,
    "dualpipev": lambda p, _m, _r, _v, _g: 2 * p + 1,
    "chimera": lambda p, _m, r, _v, _g: p // 2 + 1 + np.minimum(r, p - 1 - r),
}
