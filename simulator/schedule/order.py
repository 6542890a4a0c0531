"""A pipeline order as data: what each rank runs, and after what.

A schedule is, for each pipeline rank, a sequence of (stage, micro-batch, kind). Nothing else distinguishes GPipe
from DualPipe: the engine reads this value and never the name of the schedule.

A stage here is a *slot* of some rank. Schedules that hold the model once have pp * vp slots, numbered as the model's
stages. Bidirectional schedules (DualPipe, Chimera) hold it twice: slots 0 .. pp-1 are the down pipeline, slots
pp .. 2pp-1 the up pipeline, and `model_stage` says which layers a slot holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from simulator.errors import Complaints

FORWARD, INPUT_GRAD, WEIGHT_GRAD, BACKWARD = 0, 1, 2, 3
"""Kinds of task: F, B (input gradient), W (weight gradient), BW (both in one)."""
KINDS = ("F", "B", "W", "BW")

Ints = npt.NDArray[np.int32]
Action = tuple[int, int, int]
"""(slot, micro-batch, kind)"""


@dataclass(frozen=True, eq=False)
class Order:
    """What every rank of one pipeline runs, in order.

    Tasks are numbered rank by rank: those of rank r are `rank_start[r] : rank_start[r + 1]`.
    """

    schedule: str
    pp: int
    vp: int
    micro_batches: int
    rank_start: Ints
    slot: Ints
    micro_batch: Ints
    kind: npt.NDArray[np.int8]
    paired: npt.NDArray[np.bool_]
    """True where a task runs together with the next one of its rank (DualPipe's overlapped forward and backward)."""
    slot_rank: Ints
    """Rank that holds each slot."""
    model_stage: Ints
    """Stage of the model that each slot holds, in model order."""
    previous: Ints
    """Slot that feeds each slot, -1 for a first stage."""

    @cached_property
    def rank(self) -> Ints:
        """Rank of each task."""
        return np.repeat(np.arange(self.pp, dtype=np.int32), np.diff(self.rank_start))

    @cached_property
    def following(self) -> Ints:
        """Slot that each slot feeds, -1 for a last stage."""
        following = np.full(self.slots, -1, np.int32)
        fed = self.previous >= 0
        following[self.previous[fed]] = np.flatnonzero(fed)
        return following

    @cached_property
    def stage(self) -> Ints:
        """Model stage of each task."""
        return self.model_stage[self.slot]

    @cached_property
    def table_index(self) -> npt.NDArray[np.intp]:
        """Place of each task in a table of [F of each stage, B, W, BW]."""
        return self.kind.astype(np.intp) * self.stages + self.stage

    @cached_property
    def rank_slots(self) -> tuple[tuple[int, ...], ...]:
        """Slots that each rank holds, in their own sequence."""
        return tuple(tuple(np.flatnonzero(self.slot_rank == rank).tolist()) for rank in range(self.pp))

    @cached_property
    def splits_backward(self) -> bool:
        """Whether input and weight gradients are separate tasks anywhere."""
        return bool((self.kind == WEIGHT_GRAD).any())

    @property
    def tasks(self) -> int:
        return len(self.slot)

    @property
    def slots(self) -> int:
        return len(self.slot_rank)

    @cached_property
    def stages(self) -> int:
        """Stages of the model: pp * vp."""
        return int(self.model_stage.max()) + 1

    def of_rank(self, rank: int) -> list[Action]:
        """The sequence of one rank as (slot, micro-batch, kind)."""
        part = slice(self.rank_start[rank], self.rank_start[rank + 1])
        return list(
            zip(self.slot[part].tolist(), self.micro_batch[part].tolist(), self.kind[part].tolist(), strict=True)
        )

    @cached_property
    def position(self) -> npt.NDArray[np.int32]:
        """Task number by [kind F / B or BW / W, slot, micro-batch]; -1 where there is none."""
        position = np.full((3, self.slots, self.micro_batches), -1, np.int32)
        column = np.array([0, 1, 2, 1])[self.kind]
        position[column, self.slot, self.micro_batch] = np.arange(self.tasks)
        return position

    @cached_property
    def dependency(self) -> Ints:
        """For each task the task of another place in the pipeline whose output it reads, -1 if none.

        A forward reads the previous slot's forward, a backward the following slot's backward. The rest (a last
        stage's backward after its own forward, W after B) is the order of the rank itself, which `check` holds.
        """
        neighbour = np.where(self.kind == FORWARD, self.previous[self.slot], self.following[self.slot])
        column = np.where(self.kind == FORWARD, 0, 1)
        found = self.position[column, neighbour, self.micro_batch]
        return np.where((neighbour >= 0) & (self.kind != WEIGHT_GRAD), found, -1).astype(np.int32)


def loop_placement(pp: int, vp: int) -> tuple[Ints, Ints, Ints]:
    """slot_rank, model_stage, previous for stage = chunk * pp + rank (Megatron-LM; Narayanan et al. 2021, 2.2.2)."""
    stage = np.arange(pp * vp, dtype=np.int32)
    return stage % pp, stage, stage - 1


def folded_placement(pp: int) -> tuple[Ints, Ints, Ints]:
    """slot_rank, model_stage, previous for the V: rank r holds stages r and 2 pp - 1 - r (Qi et al. 2024, ZBV)."""
    stage = np.arange(2 * pp, dtype=np.int32)
    return np.minimum(stage, 2 * pp - 1 - stage), stage, stage - 1


def bidirectional_placement(pp: int) -> tuple[Ints, Ints, Ints]:
    """slot_rank, model_stage, previous for two copies of the model in opposite directions (Chimera, DualPipe)."""
    stage = np.arange(pp, dtype=np.int32)
    previous = np.concatenate([stage, stage + pp]) - 1
    previous[pp] = -1
    return np.concatenate([stage, stage[::-1]]), np.concatenate([stage, stage]), previous


def build_order(
    schedule: str,
    pp: int,
    vp: int,
    micro_batches: int,
    columns: Sequence[npt.NDArray[np.integer]],
    *,
    placement: tuple[Ints, Ints, Ints],
    paired: Sequence[npt.NDArray[np.bool_]] | None = None,
) -> Order:
    """An Order from one (tasks, 3) array of (slot, micro-batch, kind) per rank, and which tasks are paired."""
    lengths = [len(column) for column in columns]
    table = np.concatenate([np.asarray(column, np.int32) for column in columns])
    slot_rank, model_stage, previous = placement
    return Order(
        schedule=schedule,
        pp=pp,
        vp=vp,
        micro_batches=micro_batches,
        rank_start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        slot=np.ascontiguousarray(table[:, 0]),
        micro_batch=np.ascontiguousarray(table[:, 1]),
        kind=table[:, 2].astype(np.int8),
        paired=np.zeros(len(table), np.bool_) if paired is None else np.concatenate(paired),
        slot_rank=slot_rank,
        model_stage=model_stage,
        previous=previous,
    )


def action_name(slot: int | np.integer, micro_batch: int | np.integer, kind: int | np.integer) -> str:
    """How a person writes one task: `F s2 m5` is the forward of micro-batch 5 on stage 2."""
    return f"{KINDS[int(kind)]} s{slot} m{micro_batch}"


def check(order: Order, *, where: str = "") -> None:
    """Raises InputError with everything that makes an order incomplete or impossible on its own ranks.

    Each micro-batch passes each slot of its pipeline once forward and once backward; W comes with B and after it,
    B after F on the same slot, and every task stands on the rank that holds its slot. (Whether ranks wait for each
    other in a circle is found by the engine.)
    """
    complaints = Complaints()
    for task in np.flatnonzero(order.slot_rank[order.slot] != order.rank):
        slot = order.slot[task]
        name = action_name(slot, order.micro_batch[task], order.kind[task])
        home = f"slot {slot} is on rank {order.slot_rank[slot]}"
        complaints.add(f"rank {order.rank[task]} runs {name}, but {home}", where=where)
    _check_once(order, complaints, where)
    _check_sequence(order, complaints, where)
    complaints.raise_if_any()


def _check_once(order: Order, complaints: Complaints, where: str) -> None:
    of_kind = np.zeros((len(KINDS), order.slots, order.micro_batches), np.int64)
    np.add.at(of_kind, (order.kind, order.slot, order.micro_batch), 1)
    count = np.stack([of_kind[FORWARD], of_kind[INPUT_GRAD] + of_kind[BACKWARD], of_kind[WEIGHT_GRAD]])
    for kind, slot, micro_batch in np.argwhere(count > 1):
        times = count[kind, slot, micro_batch]
        complaints.add(f"{action_name(slot, micro_batch, kind)} stands {times} times", where=where)
    pipeline = np.cumsum(order.previous < 0)
    for micro_batch in range(order.micro_batches):
        used = np.unique(pipeline[count[:, :, micro_batch].any(axis=0)])
        if len(used) != 1:
            state = "never runs" if len(used) == 0 else "runs in both directions"
            complaints.add(f"micro-batch {micro_batch} {state}", where=where)
            continue
        for slot in np.flatnonzero(pipeline == used[0]):
            for kind in (FORWARD, INPUT_GRAD):
                if not count[kind, slot, micro_batch]:
                    complaints.add(f"{action_name(slot, micro_batch, kind)} is missing", where=where)
    split = of_kind[INPUT_GRAD] > 0
    for slot, micro_batch in np.argwhere(split != (count[WEIGHT_GRAD] > 0)):
        state = "is missing" if split[slot, micro_batch] else "has no B (BW already holds the weight gradient)"
        complaints.add(f"{action_name(slot, micro_batch, WEIGHT_GRAD)} {state}", where=where)


def _check_sequence(order: Order, complaints: Complaints, where: str) -> None:
    first, second = order.position[0], order.position[1]
    late = (second >= 0) & (first > second)
    for slot, micro_batch in np.argwhere(late):
        complaints.add(f"B s{slot} m{micro_batch} comes before its F on the same rank", where=where)
    third = order.position[2]
    early = (third >= 0) & (second > third)
    for slot, micro_batch in np.argwhere(early):
        complaints.add(f"W s{slot} m{micro_batch} comes before its B on the same rank", where=where)
