"""What one step looked like: when each task ran, and what each rank's streams did in between."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.schedule.order import KINDS, Order

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Timeline:
    """Start and end of every task of an order, in seconds from the start of the step.

    Arrays are by task number of `order`. The two tasks of a pair share one interval.
    """

    order: Order
    start_s: Floats
    end_s: Floats
    send_start_s: Floats
    """When a task's output began to leave (its own end where it goes nowhere)."""
    arrival_s: Floats
    """When a task's output was where it is read."""
    sends: npt.NDArray[np.bool_]
    """Whether a task's output leaves its rank."""
    compute_s: Floats
    """Seconds of each task that are not communication."""
    second: npt.NDArray[np.bool_]
    """True for the second task of a pair."""

    @cached_property
    def makespan_s(self) -> float:
        """Seconds from the start to the end of the last task."""
        return float(self.end_s.max())

    @cached_property
    def rank_start_s(self) -> Floats:
        """When each rank's first task starts."""
        return self.start_s[self.order.rank_start[:-1]]

    @cached_property
    def rank_end_s(self) -> Floats:
        """When each rank's last task ends."""
        return self.end_s[self.order.rank_start[1:] - 1]

    @cached_property
    def period_s(self) -> float:
        """Seconds per step when steps follow each other without a common barrier: the longest span of a rank.

        Zero-bubble schedules reach this with the optimizer's post-validation (Qi et al. 2023, section 4): each rank
        begins the next step as soon as it has finished its own part of this one.
        """
        return float((self.rank_end_s - self.rank_start_s).max())

    @cached_property
    def busy_s(self) -> Floats:
        """Seconds each rank's compute stream is occupied."""
        spent = np.where(self.second, 0.0, self.end_s - self.start_s)
        return np.add.reduceat(spent, self.order.rank_start[:-1])

    @cached_property
    def idle_s(self) -> Floats:
        """Seconds each rank's compute stream stands still between 0 and the makespan (the bubble)."""
        return self.makespan_s - self.busy_s

    @cached_property
    def exposed_s(self) -> Floats:
        """Seconds each rank is occupied without computing: communication that nothing hides, slowdown, launches."""
        exposed: Floats = self.busy_s - np.add.reduceat(self.compute_s, self.order.rank_start[:-1])
        return exposed

    @cached_property
    def bubble_fraction(self) -> float:
        """Idle seconds of all ranks over all their seconds."""
        return float(self.idle_s.sum() / (self.makespan_s * self.order.pp))

    @cached_property
    def in_flight(self) -> npt.NDArray[np.int64]:
        """The most forwards without their backward that each rank holds at once, counted in stage-micro-batches.

        Split backwards let go of the micro-batch with the weight gradient, the last to read its activations.
        """
        kind, begin = self.order.kind, self.order.rank_start[:-1]
        count = np.cumsum(np.where(kind == 0, 1, np.where(kind >= 2, -1, 0)))
        held: npt.NDArray[np.int64] = np.maximum.reduceat(count, begin) - np.concatenate([[0], count])[begin]
        return held

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The timeline as a table by columns: rank, stream, stage, micro_batch, kind, start_s, end_s.

        Rows of stream "compute" are tasks; "send" and "receive" are transfers, seen from either end.
        """
        order = self.order
        kind = np.array(KINDS)[order.kind]
        goal = np.where(order.kind == 0, order.following[order.slot], order.previous[order.slot])
        moves = np.flatnonzero(self.sends)
        parts = [
            (order.rank, np.full(order.tasks, "compute"), np.arange(order.tasks), self.start_s, self.end_s),
            (order.rank[moves], np.full(len(moves), "send"), moves, self.send_start_s[moves], self.arrival_s[moves]),
            (
                order.slot_rank[goal[moves]],
                np.full(len(moves), "receive"),
                moves,
                self.send_start_s[moves],
                self.arrival_s[moves],
            ),
        ]
        rank, stream, task, start, end = (np.concatenate(column) for column in zip(*parts, strict=True))
        return {
            "rank": rank,
            "stream": stream,
            "stage": order.stage[task],
            "micro_batch": order.micro_batch[task],
            "kind": kind[task],
            "start_s": start,
            "end_s": end,
        }
