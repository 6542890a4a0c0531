"""Zero-bubble orders found for given durations and a memory limit."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

from simulator.errors import Infeasible
from simulator.schedule.closed import peak_in_flight
from simulator.schedule.engine import Durations, Transfers, per_stage, simulate
from simulator.schedule.order import (
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Ints,
    Order,
    build_order,
    folded_placement,
    loop_placement,
)
from simulator.schedule.orders.one_f_one_b import alternate
from simulator.schedule.orders.v_shaped import v_half, v_min, zbv
from simulator.schedule.orders.weights import Speeds, place_weights
from simulator.schedule.orders.zero_bubble import zb_h1, zb_h2

_WARM_UP = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Warm-up forwards tried, in units of 1F1B's p - r - 1; the memory limit cuts them."""
_PATIENCE = (0.0, 0.5, 1.0)


def zero_bubble_order(
    *,
    pp: int,
    micro_batches: int,
    durations: Durations,
    send_s: float = 0.0,
    limit: float | npt.ArrayLike = 0.0,
    weight_share: float = 1.0,
    folded: bool = False,
    free_running: bool = False,
) -> Order:
    """The best order found for unequal F, B, W within a memory limit.

    The search of Qi et al. 2023, section 3.1: warm-up as full as memory allows, then one F, one B, with W wherever a
    rank would wait or memory must be let go; the few switches of that heuristic are tried in all combinations and
    the engine says which is best. It is a heuristic: the result is the best of what it tried, not a proven optimum.

    `limit` is how many stage-micro-batches each rank may hold (a number or one per rank; 0 is 1F1B's p, or 2 p half
    stages when `folded`), of which `weight_share` is let go by W and the rest by B. `folded` gives each rank an early
    and a late stage (ZBV, V-Half, V-Min sequences). `free_running` compares periods, not makespans: the optimizer
    does not wait for all ranks (post-validation).

    Raises Infeasible when nothing tried fits the limit.
    """
    stages = 2 * pp if folded else pp
    bound = per_stage(np.where(np.asarray(limit) == 0, stages, limit), pp, "limit").tolist()
    forward = per_stage(durations.forward_s, stages, "forward_s").tolist()
    grad = per_stage(durations.input_grad_s, stages, "input_grad_s").tolist()
    weight = per_stage(durations.weight_grad_s, stages, "weight_grad_s").tolist()
    if folded:
        placement = folded_placement(pp)
        plans = [_without_weights(make(pp, micro_batches)) for make in (zbv, v_half, v_min)]
        tried = []
    else:
        placement = loop_placement(pp, 1)
        plans = [_alternating(pp, micro_batches, factor, bound) for factor in _WARM_UP]
        known = (zb_h1(pp, micro_batches, 1, pp), zb_h2(pp, micro_batches))
        tried = [order for order in known if (_held(order) <= bound).all()]
    for plan, patience in product(plans, _PATIENCE):
        speeds = Speeds(forward, grad, weight, send_s, weight_share, patience)
        found = place_weights(plan, placement, micro_batches, speeds, limit=bound)
        if found is not None:
            tried.append(build_order("auto", pp, stages // pp, micro_batches, found, placement=placement))
    if not tried:
        raise Infeasible([f"no zero-bubble order tried fits {min(bound):g} stage-micro-batches per rank at pp({pp})"])
    transfers = Transfers(forward_s=send_s, backward_s=send_s)
    lines = [simulate(order, durations, transfers) for order in tried]
    return tried[int(np.argmin([line.period_s if free_running else line.makespan_s for line in lines]))]


def _alternating(pp: int, micro_batches: int, factor: float, limit: list[float]) -> list[Ints]:
    plans = []
    for rank in range(pp):
        wanted = int(np.ceil(factor * (pp - rank - 1)))
        warm_up = max(min(wanted, int(limit[rank]) - 1), 0)
        forward_at, backward_at = alternate(micro_batches, warm_up)
        plan = np.empty((2 * micro_batches, 3), np.int32)
        plan[:, 0] = rank
        plan[forward_at, 1] = plan[backward_at, 1] = np.arange(micro_batches)
        plan[forward_at, 2], plan[backward_at, 2] = FORWARD, INPUT_GRAD
        plans.append(plan)
    return plans


def _held(order: Order) -> npt.NDArray[np.int64]:
    """Stage-micro-batches that each rank holds at its peak, as the handcrafted orders say for themselves."""
    ranks = np.arange(order.pp)
    held: npt.NDArray[np.int64] = peak_in_flight(
        order.schedule, pp=order.pp, micro_batches=order.micro_batches, rank=ranks
    )
    return held


def _without_weights(order: Order) -> list[Ints]:
    table = np.stack([order.slot, order.micro_batch, order.kind.astype(np.int32)], axis=1)
    parts = np.split(table, order.rank_start[1:-1])
    return [part[part[:, 2] != WEIGHT_GRAD] for part in parts]
