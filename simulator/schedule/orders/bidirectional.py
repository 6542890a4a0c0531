"""Orders with two copies of the model in opposite directions: Chimera and DualPipe."""

from __future__ import annotations

import numpy as np

from simulator.schedule.order import BACKWARD, FORWARD, Order, bidirectional_placement, build_order
from simulator.schedule.orders.v_shaped import RankOrder, dualpipe_phases


def chimera(pp: int, micro_batches: int) -> Order:
    """Two pipelines whose bubbles fill each other (Li & Hoefler 2021, section 3.1, figure 2), in units of p
    micro-batches that follow each other directly (section 3.5, "direct concatenation").

    Half of each unit goes down, half up. In slots of equal F and B, micro-batch j of a unit is at stage s forward
    in slot 2 j + s and backward in slot 2 j + 2 p - 1 - s; units are 2 p slots apart.
    """
    number = np.arange(micro_batches)
    unit, place = number // pp, number % pp
    half = pp // 2
    up = place >= half
    turn = np.where(up, place - half, place)
    columns = []
    for rank in range(pp):
        stage = np.where(up, pp - 1 - rank, rank)
        slot = np.where(up, pp + stage, stage)
        begin = 2 * pp * unit + 2 * turn
        at = np.concatenate([begin + stage, begin + 2 * pp - 1 - stage])
        kind = np.repeat([FORWARD, BACKWARD], micro_batches)
        table = np.stack([np.tile(slot, 2), np.tile(number, 2), kind], axis=1)
        columns.append(table[np.argsort(at)])
    return build_order("chimera", pp, 1, micro_batches, columns, placement=bidirectional_placement(pp))


def dualpipe(pp: int, micro_batches: int) -> Order:
    """DualPipe: both directions, forward of one overlapped with backward of the other (DeepSeek-V3 report, section
    3.2.1; deepseek-ai/DualPipe, `DualPipe.step`). Micro-batches 0 .. m/2 - 1 go down, the rest up.
    """
    half = micro_batches // 2
    columns, paired = [], []
    for rank in range(pp):
        down, up = rank, pp + (pp - 1 - rank)
        near = rank < pp // 2
        # Each rank's first slot is the one nearer to the entry of its pipeline.
        run = RankOrder(down, up) if near else RankOrder(up, down)
        dualpipe_phases(run, pp // 2, min(rank, pp - 1 - rank), half)
        table = np.array(run.actions)
        table[table[:, 0] >= pp, 1] += half
        columns.append(table)
        paired.append(np.array(run.paired))
    return build_order("dualpipe", pp, 1, micro_batches, columns, placement=bidirectional_placement(pp), paired=paired)
