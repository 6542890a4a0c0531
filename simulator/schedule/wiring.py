"""An order made ready to run: its dependency graph in a topological sequence, as flat arrays.

Built once per order and kept on it, so that running the same order with other durations is one pass over flat lists.
Each task is one node, with two exceptions. The first forward of a slot has a node before it that waits for the
slot's parameters; two paired tasks become three nodes (wait for the forward's input; wait for the backward's input,
run both, send the activation; send the gradient).
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError, ShardwiseError
from simulator.schedule.order import FORWARD, KINDS, WEIGHT_GRAD, Ints, Order, action_name
from simulator.schedule.steady import Zone, steady_zones

Places = npt.NDArray[np.intp]
_WIRINGS: WeakKeyDictionary[Order, Wiring] = WeakKeyDictionary()


class Deadlock(ShardwiseError, RuntimeError):
    """Ranks of a built-in order wait for each other in a circle: a defect of ours, with who waits for what."""


@dataclass(frozen=True, eq=False)
class Wiring:
    """Nodes of an order in topological sequence: by the longest chain that leads to them, then by rank.

    `rank`, `after` and the index arrays are by node, in running sequence. `after` points into the list of arrivals:
    0 is "now", 1 + slot is that slot's parameters, 1 + slots + n is the output of node n.
    """

    rank: list[int]
    after: list[int]
    duration_index: Places
    """Into [F of each stage, B, W, BW, zero, pairs]."""
    send_index: Places
    """Into [none, forward from each stage, backward from each stage]."""
    task_node: Places
    """Node in which each task runs."""
    send_node: Places
    """Node after which each task's output leaves."""
    pairs: npt.NDArray[np.int32]
    """(forward stage, backward stage, backward kind) of each kind of paired task."""
    second: npt.NDArray[np.bool_]
    """True for the second task of a pair, whose time the first already holds."""
    sends: npt.NDArray[np.bool_]
    """By task: whether its output leaves its rank."""
    zones: tuple[Zone, ...]
    """Nodes that repeat the nodes before them."""

    @property
    def nodes(self) -> int:
        return len(self.rank)


def wiring(order: Order) -> Wiring:
    """The order's graph in running sequence, built on first use.

    Raises InputError for an order of the user's own and `Deadlock` for a built-in one if ranks wait in a circle.
    """
    found = _WIRINGS.get(order)
    if found is None:
        found = _WIRINGS[order] = _build(order)
    return found


def _build(order: Order) -> Wiring:
    tasks = order.tasks
    first = order.paired
    second = np.concatenate([[False], order.paired[:-1]])
    opening = np.zeros(tasks, np.bool_)
    opening[_first_forward(order)] = True
    count = 1 + opening.astype(np.int32) + first
    last = (np.cumsum(count) - 1).astype(np.int32)
    nodes = int(count.sum())
    after = np.full(nodes, -1)
    dependency = order.dependency
    needed = np.where(dependency >= 0, last[dependency], -1)
    single = ~first & ~second
    after[last[single]] = needed[single]
    after[last[first] - 1] = needed[first]
    after[last[first]] = needed[1:][first[:-1]]
    starts = np.concatenate([[0], last + 1])[order.rank_start]
    sequence = _topological(order, starts.tolist(), after.tolist(), last)
    place = np.empty(nodes, np.intp)
    place[sequence] = np.arange(nodes)
    arrival = np.full(nodes, 0)
    arrival[(last - count + 1)[opening]] = 1 + order.slot[opening]
    reads = after != -1
    arrival[reads] = 1 + order.slots + place[after[reads]]
    arrival = arrival[sequence]
    duration_index, pairs = _duration_index(order, nodes, last, first, second)
    send_index = np.full(nodes, 0)
    send_index[last] = _send_index(order)
    rank = np.repeat(order.rank, count)[sequence]
    duration_index, send_index = duration_index[sequence], send_index[sequence]
    return Wiring(
        rank=rank.tolist(),
        after=arrival.tolist(),
        duration_index=duration_index,
        send_index=send_index,
        task_node=place[last - second],
        send_node=place[last],
        pairs=pairs,
        second=second,
        sends=send_index[place[last]] > 0,
        zones=_zones(order, rank, arrival, duration_index, send_index),
    )


def _zones(order: Order, rank: Ints, arrival: Places, duration_index: Places, send_index: Places) -> tuple[Zone, ...]:
    """What repeats; a node that waits for a slot's parameters never does, as each slot has one."""
    base = 1 + order.slots
    # "Now", a slot's parameters, or so many nodes back.
    source = np.where(arrival < base, arrival, 2 * base + np.arange(len(rank)) - arrival)
    parts = (source, duration_index, send_index, rank)
    signature = np.ravel_multi_index(parts, tuple(int(part.max()) + 1 for part in parts))
    return steady_zones(signature, arrival - base)


def _first_forward(order: Order) -> Ints:
    """Task number of each slot's first forward."""
    position = order.position[0]
    first: Ints = np.where(position >= 0, position, order.tasks).min(axis=1).astype(np.int32)
    return first


def _duration_index(
    order: Order, nodes: int, last: Ints, first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]
) -> tuple[Places, npt.NDArray[np.int32]]:
    zero = 4 * order.stages
    index = np.full(nodes, zero)
    index[last] = np.where(second, zero, order.table_index)
    if not first.any():
        return index, np.zeros((0, 3), np.int32)
    later = np.flatnonzero(first) + 1
    combined = np.stack([order.stage[later - 1], order.stage[later], order.kind[later]], axis=1)
    pairs, which = np.unique(combined, axis=0, return_inverse=True)
    index[last[first]] = zero + 1 + which.ravel()
    return index, pairs.astype(np.int32)


def _send_index(order: Order) -> Places:
    """0 where an output stays on its rank, else 1 + stage (activations) or 1 + stages + stage (gradients)."""
    forward = order.kind == FORWARD
    goal = np.where(forward, order.following[order.slot], order.previous[order.slot])
    leaves = (goal >= 0) & (order.slot_rank[goal] != order.rank) & (order.kind != WEIGHT_GRAD)
    return np.where(leaves, 1 + order.stage + np.where(forward, 0, order.stages), 0)


def _topological(order: Order, starts: list[int], after: list[int], last: Ints) -> Places:
    """Nodes by level, the longest chain of nodes that leads to them, then by rank."""
    nodes = len(after)
    level = [0] * (nodes + 1)  # The last entry stands for nodes that read nothing.
    waiter = [-1] * nodes
    pointer, stop = starts[:-1], starts[1:]
    reached = [0] * order.pp
    ready = list(range(order.pp))
    while ready:
        rank = ready.pop()
        node, end, depth = pointer[rank], stop[rank], reached[rank]
        while node < end:
            need = after[node]
            before = level[need]
            if need != -1 and not before:
                waiter[need] = rank
                break
            depth = (before if before > depth else depth) + 1  # noqa: FURB136 (max() takes a third of the time)
            level[node] = depth
            waiting = waiter[node]
            if waiting != -1:
                ready.append(waiting)
            node += 1
        pointer[rank], reached[rank] = node, depth
    if pointer != stop:
        raise _deadlock(order, pointer, stop, last)
    return np.argsort(level[:-1], kind="stable")


def _deadlock(order: Order, pointer: list[int], stop: list[int], last: Ints) -> ShardwiseError:
    lines = []
    for rank in range(order.pp):
        if pointer[rank] == stop[rank]:
            continue
        task = int(np.searchsorted(last, pointer[rank]))
        need = order.dependency[task]
        if order.paired[task] and pointer[rank] == last[task]:
            need = order.dependency[task + 1]
        own = action_name(order.slot[task], order.micro_batch[task], order.kind[task])
        other = action_name(order.slot[need], order.micro_batch[need], order.kind[need])
        lines.append(f"rank {rank} stands before {own} and waits for {other} of rank {order.rank[need]}")
    lines.append(f"kinds are {', '.join(KINDS)}: the ranks wait for each other in a circle")
    return InputError(lines) if order.schedule == "file" else Deadlock(lines)
