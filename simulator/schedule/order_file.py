"""An order of one's own, as a text file.

The format is the one torch writes (torch.distributed.pipelining, `_dump_csv`): one line per rank, comma-separated
tasks `<stage><kind><micro-batch>` with kinds F (forward), I (input gradient), W (weight gradient), B (both), empty
cells for idle slots, and `(3F4;0B1)OVERLAP_F_B` for two tasks that run together. Lines that begin with # are comments.

    # two ranks, three micro-batches
    0F0,0F1,0B0,0F2,0B1,0B2
    1F0,1B0,1F1,1B1,1F2,1B2
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from simulator.errors import Complaints, InputError
from simulator.schedule.order import Ints, Order, build_order, check
from simulator.schedule.wiring import wiring

_LETTERS = {"F": 0, "I": 1, "W": 2, "B": 3}
_LETTER = "FIWB"
_TASK = re.compile(r"(\d{1,6})([FIWB])(\d{1,7})")
_PAIR = re.compile(r"\((\d+F\d+);(\d+[IB]\d+)\)OVERLAP_F_B")
MAX_FILE_BYTES = 256 * 2**20

Row = list[tuple[int, int, int, bool]]
"""(stage, micro-batch, kind, paired with the next)"""


def read_order(path: str | Path) -> Order:
    """The order in a file, checked and ready to run.

    Raises InputError with every problem and its line: unreadable cells, ranks without tasks, tasks that are missing
    or stand twice, on two ranks, or in an impossible order, and ranks that wait for each other in a circle.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise InputError([f"{file}: {file.stat().st_size} bytes is more than {MAX_FILE_BYTES}"])
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([f"{file}: cannot be read ({error})"]) from error
    return parse_order(text, where=str(file))


def parse_order(text: str, *, where: str = "order") -> Order:
    """`read_order` for text that is already in memory; `where` names it in messages."""
    broken = Complaints()
    rows = [
        _row(line, f"{where}:{number}", broken)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    broken.require(bool(rows), "holds no tasks", where=where)
    broken.raise_if_any()
    order = _assemble(rows, where)
    check(order, where=where)
    wiring(order)
    return order


def _row(line: str, where: str, broken: Complaints) -> Row:
    row: Row = []
    for cell in (part.strip() for part in line.split(",")):
        if not cell:
            continue
        pair = _PAIR.fullmatch(cell)
        parts = list(pair.groups()) if pair else [cell]
        for index, part in enumerate(parts):
            task = _TASK.fullmatch(part)
            if task is None:
                broken.add(f"{cell!r} is not a task", where=where, hint="Write <stage><F|I|W|B><micro-batch>, as 2F0.")
                break
            row.append((int(task[1]), int(task[3]), _LETTERS[task[2]], pair is not None and index == 0))
    broken.require(bool(line.strip(", \t")), "this rank runs nothing", where=where, hint="Take its line out.")
    return row


def _assemble(rows: list[Row], where: str) -> Order:
    """Slots are the (stage, rank) pairs that occur; a slot is fed by the slot of the stage before it that runs the
    same micro-batches (so a model held twice, as in DualPipe, is two chains).
    """
    numbers: dict[tuple[int, int], set[int]] = defaultdict(set)
    for rank, row in enumerate(rows):
        for stage, micro_batch, _, _ in row:
            numbers[stage, rank].add(micro_batch)
    stages = max(stage for stage, _ in numbers) + 1
    micro_batches = max(max(found) for found in numbers.values()) + 1
    tasks = sum(len(row) for row in rows)
    if micro_batches > tasks or stages > tasks:
        top = f"stage {stages - 1}, micro-batch {micro_batches - 1}"
        raise InputError([f"{where}: {tasks} tasks cannot reach {top}: number stages and micro-batches from 0"])
    missing = sorted(set(range(stages)) - {stage for stage, _ in numbers})
    if missing:
        raise InputError([f"{where}: stage {missing[0]} never runs, though stage {stages - 1} does"])
    slots, previous, broken = _chains(numbers, where)
    broken.raise_if_any()
    place = {slot: index for index, slot in enumerate(slots)}
    columns = [
        np.array([(place[stage, rank], number, kind) for stage, number, kind, _ in row])
        for rank, row in enumerate(rows)
    ]
    paired = [np.array([pair for *_, pair in row]) for row in rows]
    placement = (
        np.array([rank for _, rank in slots], np.int32),
        np.array([stage for stage, _ in slots], np.int32),
        previous,
    )
    vp = -(-stages // len(rows))
    return build_order("file", len(rows), vp, micro_batches, columns, placement=placement, paired=paired)


def _chains(numbers: dict[tuple[int, int], set[int]], where: str) -> tuple[list[tuple[int, int]], Ints, Complaints]:
    broken = Complaints()
    by_stage: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for slot in sorted(numbers):
        by_stage[slot[0]].append(slot)
    chains: list[list[tuple[int, int]]] = []
    for first in by_stage[0]:
        chain = [first]
        for stage in range(1, len(by_stage)):
            fed = [slot for slot in by_stage[stage] if numbers[slot] & numbers[first]]
            if len(fed) != 1:
                state = "no rank" if not fed else f"ranks {', '.join(str(rank) for _, rank in fed)}"
                broken.add(
                    f"the micro-batches of rank {first[1]}'s stage 0 reach stage {stage} on {state}", where=where
                )
                break
            chain.append(fed[0])
        chains.append(chain)
    slots = [slot for chain in chains for slot in chain]
    for slot in sorted(set(numbers) - set(slots)):
        broken.add(f"stage {slot[0]} on rank {slot[1]} is fed by no rank", where=where)
    # A whole chain has a slot of every stage.
    previous = np.arange(len(slots), dtype=np.int32) - 1
    previous[:: len(by_stage)] = -1
    return slots, previous, broken


def format_order(order: Order) -> str:
    """An order as the text that `parse_order` reads (and torch's `_load_csv`)."""
    lines = []
    for rank in range(order.pp):
        begin = int(order.rank_start[rank])
        cells: list[str] = []
        waiting = ""
        for index, (slot, number, kind) in enumerate(order.of_rank(rank)):
            cell = f"{order.model_stage[slot]}{_LETTER[kind]}{number}"
            if order.paired[begin + index]:
                waiting = cell
            elif waiting:
                cells.append(f"({waiting};{cell})OVERLAP_F_B")
                waiting = ""
            else:
                cells.append(cell)
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"
