"""What no timeline of a schedule can beat: the planner prunes by these.

`lower_bound_s` takes unequal stages and transfers. `lower_bound_by_class_s` is the same kind of bound for pipelines of
a first stage, equal middle stages and a last stage, and broadcasts over the degrees too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError, did_you_mean
from simulator.spec.strategy import SCHEDULES

Number = Any
"""A float, an int or an array of them."""
Floats = npt.NDArray[np.float64]

FUSED = ("gpipe", "1f1b", "eager-1f1b", "interleaved", "interleaved-bfs")
"""Schedules whose last task on every rank is a backward that its neighbour waits for."""
FOLDED = ("zbv", "v-half", "v-min", "dualpipev")
BIDIRECTIONAL = ("dualpipe", "chimera")


def lower_bound_s(
    schedule: str,
    *,
    forward_s: npt.ArrayLike,
    backward_s: npt.ArrayLike,
    pp: int,
    micro_batches: Number,
    vp: int = 1,
    group_size: Number = 0,
    send_forward_s: Number = 0.0,
    send_backward_s: Number = 0.0,
    blocking: bool = False,
) -> Floats:
    """Seconds that no timeline of the schedule can beat, for unequal stages and transfers.

    Pairs that hide communication do less than F + B seconds of work: give such schedules their seconds without it.
    `blocking` says that a sender computes nothing while it sends, which only schedules with a fused backward use.
    Asynchronous sends share their rank's port.

    `forward_s` and `backward_s` (both gradients) have the stages as their last axis (pp * vp of them, in model
    order) and broadcast with `micro_batches` before it; sends are numbers or have boundaries as their last axis.

    Each rank must wait for the first micro-batch to reach it, then do all its work, then wait for the way back
    (not where it ends on weight gradients). 1F1B also cannot hold more than its warm-up allows: it goes round once
    for every so many micro-batches. GPipe turns round once.
    """
    if schedule not in SCHEDULES:
        raise InputError([f"unknown schedule {schedule!r}. {did_you_mean(schedule, SCHEDULES)}"])
    if schedule not in FUSED:
        return _split_bound(schedule, forward_s, backward_s, pp, micro_batches, send_forward_s)
    ahead, back = _sends(send_forward_s, pp * vp), _sends(send_backward_s, pp * vp)
    ways = _ways(np.asarray(forward_s, np.float64), np.asarray(backward_s, np.float64), ahead, back, pp, vp)
    m = np.asarray(micro_batches)[..., None]
    bound = _work_bound(schedule, ways, m, pp, group_size)
    # A rank's port is as busy as its sends are long; a rank's last send is on the way back already.
    held = m * _sending(ahead, back, pp) - back.max(axis=-1, keepdims=True)
    work = m * (ways.forward + ways.backward).sum(axis=-2)
    opens, closes = ways.head[..., 0, :], ways.tail[..., 0, :]
    bound = np.maximum(bound, (opens + held + work * blocking + closes).max(axis=-1))
    if schedule in ("gpipe", "interleaved-bfs"):
        bound = np.maximum(bound, _one_way(ways.forward, ahead, m) + _one_way(ways.backward, back, m))
    if schedule in ("1f1b", "eager-1f1b"):
        both = (ways.head + ways.tail)[..., 0, :]
        turn = both[..., -1:] + ways.forward[..., 0, -1:] + ways.backward[..., 0, -1:]
        bound = np.maximum(bound, _laps(schedule, both, turn - both, ways.backward[..., 0, :], pp, m))
    return np.asarray(bound, np.float64)


@dataclass(frozen=True, slots=True)
class _Ways:
    """Seconds of each stage and of the ways before it; axes (..., chunk, rank)."""

    forward: Floats
    backward: Floats
    head: Floats
    """Until the first micro-batch is there."""
    tail: Floats
    """From its gradient to the first stage."""


def _ways(forward: Floats, backward: Floats, ahead: Floats, back: Floats, pp: int, vp: int) -> _Ways:
    head, tail = _before(forward + ahead), _before(backward + back)
    lead = np.broadcast_shapes(head.shape, tail.shape)[:-1]

    def laid(values: Floats) -> Floats:
        return np.broadcast_to(values, (*lead, pp * vp)).reshape(*lead, vp, pp)

    return _Ways(laid(forward), laid(backward), laid(head), laid(tail))


def _work_bound(schedule: str, ways: _Ways, m: npt.NDArray[Any], pp: int, group_size: Number) -> Floats:
    """The way to each rank, all its work, and the way back, where earlier chunks may fill the ways of later ones."""
    first = closing = m
    if schedule == "interleaved":
        first = np.where(np.asarray(group_size) == 0, pp, group_size)[..., None]
        rest = m % first
        closing = np.where(rest == 0, first, rest)
    opens = (ways.head - _before_chunk(ways.forward) * first[..., None]).max(axis=-2)
    closes = (ways.tail - _before_chunk(ways.backward) * closing[..., None]).max(axis=-2)
    work = m * (ways.forward + ways.backward).sum(axis=-2)
    found: Floats = (opens + work + closes).max(axis=-1)
    return found


def _split_bound(
    schedule: str,
    forward_s: npt.ArrayLike,
    backward_s: npt.ArrayLike,
    pp: int,
    micro_batches: Number,
    send_forward_s: Number,
) -> Floats:
    """The way to each rank and its work; a rank may end on weight gradients, so no way back can be counted."""
    forward = np.asarray(forward_s, np.float64)
    work = forward + np.asarray(backward_s, np.float64)
    stages = work.shape[-1]
    head = _before(forward + _sends(send_forward_s, stages))
    m = np.asarray(micro_batches)[..., None]
    if schedule in BIDIRECTIONAL:
        head, work = np.minimum(head, head[..., ::-1]), (work + work[..., ::-1]) / 2
    elif schedule in FOLDED:
        head, work = head[..., :pp], work[..., :pp] + work[..., : pp - 1 : -1]
    else:
        head, work = head[..., :pp], work.reshape(*work.shape[:-1], stages // pp, pp).sum(axis=-2)
    found: Floats = (head + m * work).max(axis=-1)
    return found


def _sending(ahead: Floats, back: Floats, pp: int) -> Floats:
    """Seconds per micro-batch that each rank stands still to send its activations and gradients."""
    before = np.concatenate([np.zeros_like(back[..., :1]), back[..., :-1]], axis=-1)
    both = ahead + before
    held: Floats = both.reshape(*both.shape[:-1], -1, pp).sum(axis=-2)
    return held


def _laps(schedule: str, both: Floats, lap: Floats, backward: Floats, pp: int, m: npt.NDArray[Any]) -> Floats:
    room = pp - np.arange(pp)
    room = room if schedule == "1f1b" else 2 * room - 1
    laps = 1 + (m - 1) // room
    left = (m - 1) % room
    found: Floats = (both + laps * lap + left * backward).max(axis=-1)
    return found


def _one_way(work: Floats, sends: Floats, m: npt.NDArray[Any]) -> Floats:
    """All forwards (or all backwards) alone: no rank begins the way back before the last forward is through."""
    stages = work.shape[-1] * work.shape[-2]
    step = work.reshape(*work.shape[:-2], stages) + sends
    head = _before(step)
    rest = step.sum(axis=-1, keepdims=True) - head - work.reshape(step.shape)
    # Of a rank's chunks the first few are done one after the other, whichever of them opens.
    opens = np.maximum.accumulate(head.reshape(work.shape) - _before_chunk(work) * m[..., None], axis=-2)
    done = np.cumsum(work, axis=-2) * m[..., None]
    found: Floats = (opens + done + rest.reshape(work.shape)).max(axis=(-1, -2))
    return found


def _sends(value: Number, stages: int) -> Floats:
    """Send seconds after each stage, the last stage sending nowhere."""
    array = np.asarray(value, np.float64)
    if array.ndim == 0:
        array = np.full(stages - 1, float(array))
    return np.concatenate([array, np.zeros((*array.shape[:-1], 1))], axis=-1)


def _before(values: Floats) -> Floats:
    """Sum of all entries before each one, along the last axis."""
    return np.cumsum(values, axis=-1) - values


def _before_chunk(values: Floats) -> Floats:
    """Sum over the earlier chunks of the same rank; axes (..., chunk, rank)."""
    return np.cumsum(values, axis=-2) - values


def lower_bound_by_class_s(
    schedule: str,
    *,
    first_s: Number,
    middle_s: Number,
    last_s: Number,
    pp: Number,
    micro_batches: Number,
    vp: Number = 1,
    send_s: Number = 0.0,
    blocking: bool = False,
) -> Floats:
    """`lower_bound_s` for a first stage, equal middle stages and a last stage; broadcasts over everything.

    `first_s`, `middle_s`, `last_s` are forward plus backward seconds of one stage and micro-batch, `send_s` one
    activation plus one gradient transfer. With one stage in all, its time is first + last - middle.
    """
    if schedule not in SCHEDULES:
        raise InputError([f"unknown schedule {schedule!r}. {did_you_mean(schedule, SCHEDULES)}"])
    first, middle, last = (np.asarray(value, np.float64) for value in (first_s, middle_s, last_s))
    p, m, v = np.asarray(pp), np.asarray(micro_batches), np.asarray(vp)
    if schedule in (*FOLDED, *BIDIRECTIONAL):
        ends = (first + last) / (2 if schedule in BIDIRECTIONAL else 1)
        inner = np.where(p >= 2 + (schedule in BIDIRECTIONAL), v * middle, 0.0)
        return np.asarray(m * np.maximum(ends, inner))
    more = (v - 1) * middle
    if schedule not in FUSED:
        bound = m * np.maximum(np.maximum(first, last) + more, np.where(p >= 3, v * middle, 0.0))
        return np.where(p == 1, m * (first + last + (v - 2) * middle), bound)
    way_last = first + (p - 2) * middle + (p - 1) * send_s
    way_inner = first + (p - 3) * middle + (p - 2) * send_s
    # Sends of a middle rank are v activations and v gradients per micro-batch, of the others at least v - 1 of each;
    # one of them is on the way back already.
    held, held_ends = (np.maximum(m * times - 1, 0) * send_s for times in (v, v - 1))
    bound = np.maximum(m * (first + more), way_last + m * (last + more)) + held_ends * blocking
    bound = np.maximum(bound, held_ends)
    inner = way_inner + np.maximum(m * v * middle + held * blocking, held)
    bound = np.where(p >= 3, np.maximum(bound, inner), bound)
    if schedule == "gpipe":
        bound = np.maximum(bound, way_last + last + (m - 1) * np.maximum(np.maximum(first, last), middle * (p >= 3)))
    if schedule in ("1f1b", "eager-1f1b"):
        room = p if schedule == "1f1b" else 2 * p - 1
        bound = np.maximum(bound, (1 + (m - 1) // room) * (way_last + last))
    return np.where(p == 1, m * (first + last + (v - 2) * middle), bound)
