"""What one step looked like: when each task ran, and what each rank's streams did in between."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.pictures import Drawable
from simulator.schedule.order import FORWARD, KINDS, Order

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Timeline(Drawable):
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
    task_s: Floats
    """Seconds each task takes by itself."""
    compute_s: Floats
    """The part of `task_s` that is not communication."""
    second: npt.NDArray[np.bool_]
    """True for the second task of a pair."""
    launch_end_s: Floats
    """When the host had issued each task; empty where the host costs nothing."""
    launch_s: Floats
    """Seconds the host spent on issuing each task."""

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

    def columns(self) -> Columns:
        """The timeline as a table by columns: rank, stream, stage, micro_batch, kind, start_s, end_s.

        Streams: "compute" (every task), "communication" (tensor, context and expert communication inside tasks; where
        in a task it falls is not modelled, it is put at the end of it, or over all of a pair), "send" and "receive"
        (transfers seen from either end) and "host" (launching).
        """
        order = self.order
        everything = np.arange(order.tasks)
        moves = np.flatnonzero(self.sends)
        talks = np.flatnonzero(self.communication_s > 0)
        begin = np.where(self.paired, self.start_s, self.end_s - self.communication_s)
        finish = np.where(self.paired, self.start_s + self.communication_s, self.end_s)
        parts = [
            ("compute", order.rank, everything, self.start_s, self.end_s),
            ("communication", order.rank[talks], talks, begin[talks], finish[talks]),
            ("send", order.rank[moves], moves, self.send_start_s[moves], self.arrival_s[moves]),
            ("receive", self.receiver[moves], moves, self.send_start_s[moves], self.arrival_s[moves]),
        ]
        if len(self.launch_s):
            parts.append(("host", order.rank, everything, self.launch_end_s - self.launch_s, self.launch_end_s))
        rank, task, start, end = (np.concatenate([part[index] for part in parts]) for index in (1, 2, 3, 4))
        return {
            "rank": rank,
            "stream": np.concatenate([np.full(len(part[1]), part[0]) for part in parts]),
            "stage": order.stage[task],
            "micro_batch": order.micro_batch[task],
            "kind": np.array(KINDS)[order.kind[task]],
            "start_s": start,
            "end_s": end,
        }

    @cached_property
    def paired(self) -> npt.NDArray[np.bool_]:
        """True for both tasks of a pair."""
        return self.second | self.order.paired

    @cached_property
    def communication_s(self) -> Floats:
        """Seconds of tensor, context and expert communication inside each task."""
        inside: Floats = np.maximum(self.task_s - self.compute_s, 0.0)
        return inside

    @cached_property
    def receiver(self) -> npt.NDArray[np.int32]:
        """Rank that reads each task's output (meaningful where `sends`)."""
        order = self.order
        goal = np.where(order.kind == FORWARD, order.following[order.slot], order.previous[order.slot])
        return order.slot_rank[goal]

    def stream_busy_s(self) -> dict[str, Floats]:
        """Seconds each rank's streams are occupied, by stream; the rest of the makespan they are idle.

        Transfers that arrive together count once.
        """
        table = self.columns()
        return {
            stream: covered_s(table["rank"][mine], table["start_s"][mine], table["end_s"][mine], ranks=self.order.pp)
            for stream in dict.fromkeys(table["stream"].tolist())
            for mine in [table["stream"] == stream]
        }


Columns = dict[str, npt.NDArray[Any]]


def covered_s(rank: npt.NDArray[np.integer], start_s: Floats, end_s: Floats, *, ranks: int) -> Floats:
    """Seconds of each rank that lie in at least one of its intervals."""
    covered = np.zeros(ranks)
    for one in range(ranks):
        mine = rank == one
        sequence = np.argsort(start_s[mine])
        start, end = start_s[mine][sequence], end_s[mine][sequence]
        before = np.concatenate([[-np.inf], np.maximum.accumulate(end)[:-1]])
        covered[one] = np.maximum(end - np.maximum(start, before), 0.0).sum()
    return covered
