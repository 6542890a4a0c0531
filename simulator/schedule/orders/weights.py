"""Where to put the weight gradients: the freedom that splitting the backward buys.

Nothing waits for a W but the optimizer, so a W goes where its rank would stand still, or where memory must be let go
(Qi et al. 2023, section 3.1: "insert W to fill the bubble" and "to recycle some memory").
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from simulator.schedule.order import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Action, Ints


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds of F, B and W of each slot and of a transfer, and what a micro-batch holds in units of the limit."""

    forward_s: Sequence[float]
    input_grad_s: Sequence[float]
    weight_grad_s: Sequence[float]
    send_s: float
    weight_share: float
    """Fraction of a micro-batch's activations that only its W lets go; B lets go the rest."""
    patience: float
    """A rank waits for an input that is under way rather than start a W longer than the wait times this; 0 never."""

    @classmethod
    def equal(cls, slots: int) -> Speeds:
        """F = B = W = 1 and free transfers, for which the handcrafted orders are made."""
        ones = [1.0] * slots
        return cls(ones, ones, ones, 0.0, 1.0, 0.0)


def place_weights(
    sequences: Sequence[Ints],
    placement: tuple[Ints, Ints, Ints],
    micro_batches: int,
    speeds: Speeds,
    *,
    limit: Sequence[float],
) -> list[Ints] | None:
    """Runs sequences of F and B and puts each W where its rank would wait or has no room for the next F.

    `sequences` holds (slot, micro-batch, F or B) per rank, `limit` how many micro-batches' activations each rank may
    hold. Returns the columns of every rank, or None when the sequence cannot be run within the limit.
    """
    planner = _Planner(sequences, placement, micro_batches, speeds, limit)
    return planner.run()


class _Planner:
    """Event-driven: a rank decides when it is free and again when something it waits for arrives."""

    def __init__(
        self,
        sequences: Sequence[Ints],
        placement: tuple[Ints, Ints, Ints],
        micro_batches: int,
        speeds: Speeds,
        limit: Sequence[float],
    ) -> None:
        slot_rank, _, previous = placement
        following = [-1] * len(slot_rank)
        for slot, before in enumerate(previous.tolist()):
            if before >= 0:
                following[before] = slot
        self.next_slot = (following, previous.tolist())
        self.home = slot_rank.tolist()
        self.number = micro_batches
        self.plans: list[list[list[int]]] = [sequence.tolist() for sequence in sequences]
        self.speeds, self.limit = speeds, limit
        self.seconds = (speeds.forward_s, speeds.input_grad_s, speeds.weight_grad_s)
        self.arrival = [[inf] * (len(slot_rank) * micro_batches) for _ in (FORWARD, INPUT_GRAD)]
        for slot in range(len(slot_rank)):
            if previous[slot] < 0:
                self.arrival[FORWARD][slot * micro_batches : (slot + 1) * micro_batches] = [0.0] * micro_batches
        self.free = [0.0] * len(sequences)
        self.held = [0.0] * len(sequences)
        self.at = [0] * len(sequences)
        self.owed: list[list[tuple[int, int]]] = [[] for _ in sequences]
        self.paid = [0] * len(sequences)
        self.out: list[list[Action]] = [[] for _ in sequences]
        self.events = [(0.0, rank) for rank in range(len(sequences))]

    def run(self) -> list[Ints] | None:
        while self.events:
            time, rank = heapq.heappop(self.events)
            if time >= self.free[rank]:
                self._decide(time, rank)
        whole = 2 * sum(map(len, self.out)) == 3 * sum(map(len, self.plans))
        return [np.array(out, np.int32) for out in self.out] if whole else None

    def _decide(self, time: float, rank: int) -> None:
        wait = inf
        if self.at[rank] < len(self.plans[rank]):
            slot, micro_batch, kind = self.plans[rank][self.at[rank]]
            wait = self.arrival[kind][slot * self.number + micro_batch] - time
            fits = kind != FORWARD or self.held[rank] + 1.0 <= self.limit[rank] + 1e-9
            if wait <= 0.0 and fits:
                self.at[rank] += 1
                self._start(time, rank, (slot, micro_batch, kind))
                return
            if not fits:
                wait = inf
        if self.paid[rank] < len(self.owed[rank]):
            slot, micro_batch = self.owed[rank][self.paid[rank]]
            if wait >= self.speeds.weight_grad_s[slot] * self.speeds.patience:
                self.paid[rank] += 1
                self._start(time, rank, (slot, micro_batch, WEIGHT_GRAD))

    def _start(self, time: float, rank: int, action: Action) -> None:
        slot, micro_batch, kind = action
        end = time + self.seconds[kind][slot]
        self.out[rank].append(action)
        self.free[rank] = end
        heapq.heappush(self.events, (end, rank))
        share = self.speeds.weight_share
        self.held[rank] += (1.0, share - 1.0, -share)[kind]
        if kind == INPUT_GRAD:
            self.owed[rank].append((slot, micro_batch))
        if kind == WEIGHT_GRAD:
            return
        goal = self.next_slot[kind][slot]
        if goal < 0:
            if kind == INPUT_GRAD:
                return
            goal, kind = slot, INPUT_GRAD
        there = self.home[goal]
        arrival = end if there == rank else end + self.speeds.send_s
        self.arrival[kind][goal * self.number + micro_batch] = arrival
        if there != rank:
            heapq.heappush(self.events, (arrival, there))
