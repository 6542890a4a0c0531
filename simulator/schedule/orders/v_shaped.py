"""Orders in the shape of a V: each rank holds an early and a late stage (ZBV, DualPipeV, V-Half, V-Min)."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from simulator.schedule.order import (
    BACKWARD,
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Action,
    Ints,
    Order,
    build_order,
    folded_placement,
)
from simulator.schedule.orders.weights import Speeds, place_weights
from simulator.schedule.wiring import Deadlock


def zbv(pp: int, micro_batches: int) -> Order:
    """ZBV: zero bubble at the memory of 1F1B when F = B = W.

    Qi et al. 2023, section 6 and figure 6; torch's `ScheduleZBVZeroBubble`, whose phases these are.
    """
    columns = [_zbv_rank(rank, pp, micro_batches) for rank in range(pp)]
    return build_order("zbv", pp, 2, micro_batches, columns, placement=folded_placement(pp))


def _zbv_rank(rank: int, pp: int, micro_batches: int) -> Ints:
    run = RankOrder(rank, 2 * pp - 1 - rank)
    number = max(2 * pp - 1, micro_batches)
    for _ in range(2 * (pp - rank) - 1):
        run.forward(0)
    for _ in range(rank):
        run.forward(1)
        run.forward(0)
    for _ in range(pp - rank):
        run.forward(1)
        run.input_then_weight(1)
    while run.count[1, FORWARD] < number:
        run.forward(0)
        run.input_then_weight(0)
        run.forward(1)
        run.input_then_weight(1)
    for _ in range(rank):
        run.add(0, INPUT_GRAD)
        run.add(1, INPUT_GRAD)
    for _ in range(pp - rank):
        run.input_then_weight(0)
    for side in (1, 0):
        while run.count[side, WEIGHT_GRAD] < run.count[side, INPUT_GRAD]:
            run.add(side, WEIGHT_GRAD)
    # The phases count on more micro-batches than there may be: those beyond are left out.
    table = np.array(run.actions, np.int32)
    return table[table[:, 1] < micro_batches]


@dataclass
class RankOrder:
    """The sequence of one rank that takes the micro-batches of its two slots in turn."""

    early: int
    late: int
    actions: list[Action] = field(default_factory=list)
    paired: list[bool] = field(default_factory=list)
    count: Counter[tuple[int, int]] = field(default_factory=Counter)
    owed: deque[int] = field(default_factory=deque)

    def add(self, side: int, kind: int, *, paired: bool = False) -> None:
        counted = INPUT_GRAD if kind == BACKWARD else kind
        self.actions.append(((self.early, self.late)[side], self.count[side, counted], kind))
        self.paired.append(paired)
        self.count[side, counted] += 1
        if kind == BACKWARD:
            self.count[side, WEIGHT_GRAD] += 1

    def forward(self, side: int) -> None:
        self.add(side, FORWARD)

    def input_then_weight(self, side: int) -> None:
        self.add(side, INPUT_GRAD)
        self.add(side, WEIGHT_GRAD)

    def backward(self, side: int, *, split: bool) -> None:
        """A backward whose weight gradient is put off when `split`."""
        self.add(side, INPUT_GRAD if split else BACKWARD)
        if split:
            self.owed.append(side)

    def owed_weight(self) -> None:
        """The weight gradient that was put off first."""
        self.add(self.owed.popleft(), WEIGHT_GRAD)

    def pair(self, forward: int, backward: int) -> None:
        self.add(forward, FORWARD, paired=True)
        self.add(backward, BACKWARD)


def v_half(pp: int, micro_batches: int) -> Order:
    """V-Half: half the activations of 1F1B, p + 2 half-stage micro-batches, at about half its bubble.

    Qi et al. 2024 ("Pipeline parallelism with controllable memory"), section 3.2: forwards and backwards of the
    early stage move on by 1 and 2 slots a rank, those of the late stage by 2 and 1.
    """
    turns = (4, 1, 5) if pp % 2 == 0 else (1, 1, 2)
    return _repeated_block("v-half", pp, micro_batches, ((1, 2, 1, 2), turns), pp + 2)


def v_min(pp: int, micro_batches: int) -> Order:
    """V-Min: a third of the activations of 1F1B, 2 (p + 4) / 3 half-stage micro-batches, at two thirds of its bubble.

    Qi et al. 2024, section 3.2: everything moves on by one slot a rank, the least there is.
    """
    turns = (3, 1, 3) if pp % 3 == 0 else (1, 1, 1)
    return _repeated_block("v-min", pp, micro_batches, ((1, 1, 1, 1), turns), 2 * (pp + 4) // 3)


def _repeated_block(
    schedule: str,
    pp: int,
    micro_batches: int,
    block: tuple[tuple[int, int, int, int], tuple[int, int, int]],
    held: int,
) -> Order:
    """Repeats one micro-batch's four passes every six slots, then puts the weight gradients where there is room.

    `block` holds how many slots each pass moves on from rank to rank (F early, F late, B late, B early) and how many
    it waits at the three turns. The passes of all micro-batches must not meet: their slots differ modulo 6 on each
    rank. Squeezing out the empty slots is what running the order does.
    """
    step, turn = block
    rank = np.arange(pp)
    back = pp - 1 - rank
    forward_early = step[0] * rank
    forward_late = forward_early[-1] + turn[0] + step[1] * back
    grad_late = forward_late[0] + turn[1] + step[2] * rank
    grad_early = grad_late[-1] + turn[2] + step[3] * back
    early, late = rank, 2 * pp - 1 - rank
    number = np.arange(micro_batches)
    sequences = []
    for r in range(pp):
        at = np.concatenate([6 * number + begin[r] for begin in (forward_early, forward_late, grad_late, grad_early)])
        slot = np.repeat([early[r], late[r], late[r], early[r]], micro_batches)
        kind = np.repeat([FORWARD, FORWARD, INPUT_GRAD, INPUT_GRAD], micro_batches)
        sequences.append(np.stack([slot, np.tile(number, 4), kind], axis=1)[np.argsort(at)].astype(np.int32))
    placement = folded_placement(pp)
    speeds = Speeds.equal(2 * pp)
    columns = place_weights(sequences, placement, micro_batches, speeds, limit=[float(held)] * pp)
    if columns is None:
        raise Deadlock([f"{schedule} at pp({pp}) cannot hold its activations in {held} half-stage micro-batches"])
    return build_order(schedule, pp, 2, micro_batches, columns, placement=placement)


def dualpipe_v(pp: int, micro_batches: int) -> Order:
    """DualPipe folded in half: one copy of the model, p ranks of two stages (deepseek-ai/DualPipe dualpipev.py;
    torch's `ScheduleDualPipeV`).
    """
    runs = []
    for rank in range(pp):
        run = RankOrder(rank, 2 * pp - 1 - rank)
        dualpipe_phases(run, pp, rank, micro_batches)
        runs.append(run)
    return build_order(
        "dualpipev",
        pp,
        2,
        micro_batches,
        [np.array(run.actions) for run in runs],
        placement=folded_placement(pp),
        paired=[np.array(run.paired) for run in runs],
    )


def dualpipe_phases(run: RankOrder, ranks: int, rank: int, micro_batches: int) -> None:
    """The eight steps of DualPipe for one rank of `ranks` on its half of the pipeline.

    `micro_batches` is the number through each of its two slots (deepseek-ai/DualPipe, `DualPipe.step` and
    `DualPipeV.step`, whose step numbers these are).
    """
    for _ in range(2 * (ranks - rank - 1)):  # 1
        run.forward(0)
    for _ in range(rank + 1):  # 2
        run.forward(0)
        run.forward(1)
    for _ in range(ranks - rank - 1):  # 3
        run.backward(1, split=True)
        run.owed_weight()
        run.forward(1)
    for step in range(micro_batches - 2 * ranks + rank + 1):  # 4
        if step == 0 and rank == ranks - 1:
            run.forward(0)
            run.backward(1, split=False)
        else:
            run.pair(0, 1)
        run.pair(1, 0)
    for _ in range(ranks - rank - 1):  # 5
        run.backward(1, split=False)
        run.pair(1, 0)
    split = False
    for step in range(rank + 1):  # 6
        middle = step == (rank + 1) // 2
        split = split or (middle and rank % 2 == 1)
        run.backward(1, split=split)
        split = split or (middle and rank % 2 == 0)
        run.backward(0, split=split)
    for _ in range(ranks - rank - 1):  # 7
        run.owed_weight()
        run.backward(0, split=split)
    for _ in range(rank + 1):  # 8
        run.owed_weight()
