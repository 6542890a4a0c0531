"""Which stages and ranks a pipeline has: the few distinct ones, with how often and where each occurs.

A pipeline of 64 ranks has three or four kinds of stages (first, middle, middle with one layer more, last) and as few
kinds of ranks. Tables are by (pp, vp) and padded, so that columns of strategies read them by index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.parallel.lower import Pieces, deal, layers_of_stages
from simulator.schedule.bounds import BIDIRECTIONAL, FOLDED

Ints = npt.NDArray[np.int64]
Held = list[list[int]]
"""For each rank the stages it holds."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Dealing:
    """Tables by (pp, vp) pair; first axis the pair.

    `parts[name][pair, kind]`: segments of that name in a kind of stage. `holds[pair, rank kind, kind]`: stages of a
    kind on a kind of rank. `before[pair, rank kind, kind]`: stages of a kind ahead of its farthest rank.
    `ranks[pair, rank kind, 3]`: its first rank, its last and the one nearest the middle. `copies`: how many stages a
    rank holds, twice-held ones counted twice.
    """

    parts: dict[str, Ints]
    ordered: bool
    """Every stage holds its segments in the order of `parts`."""
    holds: Ints
    before: Ints
    ranks: Ints
    reach: Ints
    """[pair, rank kind]: the farthest rank of the kind."""
    sends: Ints
    """[pair, rank kind]: transfers per micro-batch that its first rank makes (one forward, one backward), at least."""


def mapping_of(schedule: str) -> str:
    """How a schedule lays stages over ranks: looped (round and round), folded (there and back), both (two copies)."""
    if schedule in FOLDED:
        return "folded"
    return "both" if schedule in BIDIRECTIONAL else "looped"


def held_stages(mapping: str, pp: int, vp: int) -> Held:
    """The stages of each rank.

    >>> held_stages("looped", 2, 2), held_stages("folded", 2, 2), held_stages("both", 2, 1)
    ([[0, 2], [1, 3]], [[0, 3], [1, 2]], [[0, 1], [1, 0]])
    """
    stages = pp * vp
    if mapping == "looped":
        return [list(range(rank, stages, pp)) for rank in range(pp)]
    return [[rank, stages - 1 - rank] for rank in range(pp)]


def dealing(pieces: Pieces, pairs: Sequence[tuple[int, int]], mapping: str) -> Dealing:
    """The tables of some (pp, vp) pairs."""
    layouts = [_layout(pieces, pp, vp, mapping) for pp, vp in pairs]
    placed = [segment.name for segment in (pieces.opening, *pieces.distinct, *pieces.closing)]
    placed += [name for stage_kinds, *_ in layouts for kind in stage_kinds for name in kind]
    placed = list(dict.fromkeys(placed))
    kinds = max(len(layout[0]) for layout in layouts)
    ranks = max(len(layout[1]) for layout in layouts)
    shape = (len(pairs), ranks, kinds)
    parts = {name: np.zeros((len(pairs), kinds), np.int64) for name in placed}
    holds, before = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    places = np.zeros((len(pairs), ranks, 3), np.int64)
    reach, sends = np.zeros(shape[:2], np.int64), np.zeros(shape[:2], np.int64)
    for pair, (stage_kinds, rank_kinds, kind_of_stage) in enumerate(layouts):
        for kind, counts in enumerate(stage_kinds):
            for name, count in counts.items():
                parts[name][pair, kind] = count
        rows = list(rank_kinds.items())
        for index in range(ranks):
            held, where = rows[index] if index < len(rows) else rows[0]
            holds[pair, index] = np.bincount(np.array(held), minlength=kinds)
            far = where[-1] if mapping == "looped" else 0
            before[pair, index] = np.bincount(np.array(kind_of_stage[:far], np.int64), minlength=kinds)
            pp = pairs[pair][0]
            places[pair, index] = (where[0], where[-1], min(where, key=lambda rank: abs(2 * rank - pp + 1)))
            reach[pair, index] = far
            sends[pair, index] = int(far > 0) + int(far < pp - 1)
    ordered = all(list(kind) == [name for name in placed if name in kind] for kinds_, *_ in layouts for kind in kinds_)
    return Dealing(parts=parts, ordered=ordered, holds=holds, before=before, ranks=places, reach=reach, sends=sends)


_Layout = tuple[list[Counter[str]], dict[tuple[int, ...], list[int]], list[int]]


def _layout(pieces: Pieces, pp: int, vp: int, mapping: str) -> _Layout:
    """Distinct stages, distinct ranks with where they are, and the kind of every stage."""
    stages = deal(pieces, layers_of_stages(pieces.layers, pp * vp))
    known: dict[tuple[tuple[str, int], ...], int] = {}
    kinds: list[Counter[str]] = []
    kind_of_stage = []
    for held in stages:
        counts = Counter(segment.name for segment in held)
        key = tuple(sorted(counts.items()))
        if key not in known:
            known[key] = len(kinds)
            kinds.append(counts)
        kind_of_stage.append(known[key])
    ranks: dict[tuple[int, ...], list[int]] = {}
    for rank, numbers in enumerate(held_stages(mapping, pp, vp)):
        ranks.setdefault(tuple(sorted(kind_of_stage[number] for number in numbers)), []).append(rank)
    return kinds, ranks, kind_of_stage
