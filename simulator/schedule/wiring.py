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
from simulator.schedule.steady import LEAST_NODES, Zone, steady_zones

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
    task: Ints
    """Task that a node runs or waits for."""
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
    after = np.full(nodes, -1, np.int32)
    dependency = order.dependency
    needed = np.where(dependency >= 0, last[dependency], -1)
    single = ~first & ~second
    after[last[single]] = needed[single]
    after[last[first] - 1] = needed[first]
    after[last[first]] = needed[1:][first[:-1]]
    opened = np.full(nodes, -1, np.int32)
    opened[(last - count + 1)[opening]] = order.slot[opening]

    starts = np.concatenate([[0], last + 1])[order.rank_start]
    sequence = _topological(order, starts.tolist(), after.tolist(), last)
    place = np.empty(nodes, np.int32)
    place[sequence] = np.arange(nodes, dtype=np.int32)
    base = 1 + order.slots
    arrival = np.where(after >= 0, base + place[after], np.where(opened >= 0, 1 + opened, 0))[sequence]
    duration_index, pairs = _duration_index(order, nodes, last, first, second)
    send_index = np.zeros(nodes, np.int32)
    send_index[last] = _send_index(order)
    task = np.repeat(np.arange(tasks, dtype=np.int32), count)
    running = np.where(second, np.concatenate([[0], last[:-1]]), last)
    rank, duration_index, send_index = order.rank[task][sequence], duration_index[sequence], send_index[sequence]
    return Wiring(
        rank=rank.tolist(),
        after=arrival.tolist(),
        duration_index=duration_index.astype(np.intp),
        send_index=send_index.astype(np.intp),
        task=task[sequence],
        task_node=place[running].astype(np.intp),
        send_node=place[last].astype(np.intp),
        pairs=pairs,
        second=second,
        sends=send_index[place[last]] > 0,
        zones=_zones(order, rank, arrival, duration_index, send_index),
    )


def _zones(order: Order, rank: Ints, arrival: Ints, duration_index: Ints, send_index: Ints) -> tuple[Zone, ...]:
    """What repeats; a node that waits for a slot's parameters never does."""
    nodes, base = len(rank), 1 + order.slots
    if nodes < LEAST_NODES:
        return ()
    node = np.arange(nodes, dtype=np.int64)
    back = np.where(arrival >= base, node + base - arrival, 0)
    signature = (back * (1 + int(duration_index.max())) + duration_index) * (1 + int(send_index.max())) + send_index
    signature = np.where((arrival > 0) & (arrival < base), -1 - node, signature * order.pp + rank)
    return steady_zones(signature, np.where(arrival >= base, arrival - base, -1).astype(np.int64))


def _first_forward(order: Order) -> Ints:
    """Task number of each slot's first forward."""
    position = order.position[0]
    first: Ints = np.where(position >= 0, position, order.tasks).min(axis=1).astype(np.int32)
    return first


def _duration_index(
    order: Order, nodes: int, last: Ints, first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]
) -> tuple[Ints, npt.NDArray[np.int32]]:
    stages = order.stages
    zero = 4 * stages
    index = np.full(nodes, zero, np.int32)
    own = order.kind.astype(np.int32) * stages + order.stage
    index[last] = np.where(second, zero, own)
    if not first.any():
        return index, np.zeros((0, 3), np.int32)
    later = np.flatnonzero(first) + 1
    combined = np.stack([order.stage[later - 1], order.stage[later], order.kind[later]], axis=1)
    pairs, which = np.unique(combined, axis=0, return_inverse=True)
    index[last[first]] = zero + 1 + which.reshape(-1)
    return index, pairs.astype(np.int32)


def _send_index(order: Order) -> Ints:
    """0 where an output stays on its rank, else 1 + stage (activations) or 1 + stages + stage (gradients)."""
    forward = order.kind == FORWARD
    goal = np.where(forward, order.following[order.slot], order.previous[order.slot])
    leaves = (goal >= 0) & (order.slot_rank[goal] != order.rank) & (order.kind != WEIGHT_GRAD)
    return np.where(leaves, 1 + order.stage + np.where(forward, 0, order.stages), 0).astype(np.int32)


def _topological(order: Order, starts: list[int], after: list[int], last: Ints) -> Ints:
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
            if need >= 0 and not before:
                waiter[need] = rank
                break
            depth = (before if before > depth else depth) + 1  # noqa: FURB136 (max() takes a third of the time)
            level[node] = depth
            waiting = waiter[node]
            if waiting >= 0:
                ready.append(waiting)
            node += 1
        pointer[rank], reached[rank] = node, depth
    if pointer != stop:
        raise _deadlock(order, pointer, stop, last)
    return np.argsort(np.array(level[:-1], np.int32), kind="stable").astype(np.int32)


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
