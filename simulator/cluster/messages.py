"""What the algorithms send, message by message: for pictures, for traffic on a graph, and to check the formulas.

A buffer is cut into chunks, one per rank. A step is the messages that go at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from simulator.errors import InputError


@dataclass(frozen=True, slots=True)
class Message:
    """`chunks` of the buffer go from `source` to `target`, which adds them to its own or replaces its own."""

    source: int
    target: int
    chunks: tuple[int, ...]
    reduces: bool


Steps: TypeAlias = tuple[tuple[Message, ...], ...]


def ring_reduce_scatter(ranks: int) -> Steps:
    """Rank r ends with the reduced chunk r.

    >>> [message.chunks for message in ring_reduce_scatter(3)[0]]
    [(2,), (0,), (1,)]
    """
    return tuple(
        tuple(Message(r, (r + 1) % ranks, ((r - 1 - step) % ranks,), reduces=True) for r in range(ranks))
        for step in range(ranks - 1)
    )


def ring_all_gather(ranks: int) -> Steps:
    """Rank r starts with chunk r, all end with all."""
    return tuple(
        tuple(Message(r, (r + 1) % ranks, ((r - step) % ranks,), reduces=False) for r in range(ranks))
        for step in range(ranks - 1)
    )


def ring_all_reduce(ranks: int) -> Steps:
    """Reduce-scatter, then all-gather."""
    return ring_reduce_scatter(ranks) + ring_all_gather(ranks)


def halving_doubling_all_reduce(ranks: int) -> Steps:
    """Recursive halving, then recursive doubling; ranks must be a power of two."""
    if ranks & (ranks - 1):
        raise InputError([f"recursive halving needs a power of two of ranks, got {ranks}."])
    halving = []
    distance = ranks // 2
    while distance:
        halving.append(
            tuple(Message(r, r ^ distance, _block(r ^ distance, distance), reduces=True) for r in range(ranks))
        )
        distance //= 2
    doubling = tuple(
        tuple(Message(m.target, m.source, _block(m.target, 2**level), reduces=False) for m in halving[-1 - level])
        for level in range(len(halving))
    )
    return tuple(halving) + doubling


def _block(rank: int, size: int) -> tuple[int, ...]:
    start = rank // size * size
    return tuple(range(start, start + size))


def bruck_all_gather(ranks: int) -> Steps:
    """In round k rank r receives from r + 2^k what that rank holds, as far as it lacks it."""
    steps = []
    held = 1
    while held < ranks:
        count = min(held, ranks - held)
        steps.append(
            tuple(
                Message((r + held) % ranks, r, tuple((r + held + i) % ranks for i in range(count)), reduces=False)
                for r in range(ranks)
            )
        )
        held += count
    return tuple(steps)


def double_binary_tree(ranks: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The parents of all ranks in two trees (-1 is the root): a leaf of one is an inner rank of the other.

    Sanders, Speck and Traeff 2009, as NCCL builds it (src/graph/trees.cc): the second tree is the first one
    mirrored for an even number of ranks and shifted by one for an odd number.

    >>> double_binary_tree(4)
    ((-1, 2, 0, 2), (1, 3, 1, -1))
    """
    first = tuple(_parent(rank, ranks) for rank in range(ranks))
    if ranks % 2:
        second = tuple(-1 if (p := first[(r - 1) % ranks]) < 0 else (p + 1) % ranks for r in range(ranks))
    else:
        second = tuple(-1 if (p := first[ranks - 1 - r]) < 0 else ranks - 1 - p for r in range(ranks))
    return first, second


def _parent(rank: int, ranks: int) -> int:
    """NCCL's ncclGetBtree: odd ranks are leaves, rank 0 the root."""
    if rank == 0:
        return -1
    low = rank & -rank
    up = (rank ^ low) | (low << 1)
    return up if up < ranks else rank ^ low
