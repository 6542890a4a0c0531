"""Scored strategies that may still be the best, as flat columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.plan.balance import LayerCosts
from simulator.plan.ladder import FITTED
from simulator.plan.layout import Layout
from simulator.plan.score import Scores, fine_s
from simulator.spec.strategy import Strategy

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


Name = tuple[int, int]
"""Group and row of an entry."""


class Pool:
    """Groups of equal options (a layout and what was chosen), and for each strategy its group, its row in the layout,
    the layers it recomputes (-1: as chosen, FITTED: the fewest of each stage), its bound [s] and its memory [B].
    """

    def __init__(self) -> None:
        self.groups: list[tuple[Layout, dict[str, Any]]] = []
        self.new: list[tuple[Any, ...]] = []
        self.group = np.zeros(0, np.int64)
        self.position = np.zeros(0, np.int64)
        self.layers = np.zeros(0, np.int64)
        self.bound_s = np.zeros(0)
        self.memory_bytes = np.zeros(0)
        self.fine = np.zeros(0, np.bool_)

    def __len__(self) -> int:
        return len(self.group) + sum(len(part[0]) for part in self.new)

    def add(self, layout: Layout, scores: Scores, ceiling_s: float) -> None:
        """Take those of some scores that are below the ceiling."""
        kept = scores.bound_s < ceiling_s
        count = int(kept.sum())
        if count:
            self.new.append((np.full(count, len(self.groups), np.int64), scores.positions[kept], scores.layers[kept],
                             scores.bound_s[kept], scores.memory_bytes[kept], np.zeros(count, np.bool_)))  # fmt: skip
            self.groups.append((layout, dict(scores.chosen)))

    def close(self, ceiling_s: float) -> None:
        """Join what was added, and drop what can no longer win."""
        columns = [(self.group, self.position, self.layers, self.bound_s, self.memory_bytes, self.fine), *self.new]
        joined = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
        kept = joined[3] < ceiling_s
        self.group, self.position, self.layers, self.bound_s, self.memory_bytes, self.fine = (
            column[kept] for column in joined
        )
        self.new = []

    def lowest(self, count: int, split: str) -> Ints:
        """The strategies on a split with the least bounds."""
        own = np.array([chosen["split"] == split for _, chosen in self.groups], np.bool_)
        some = np.flatnonzero(own[self.group])
        if len(some) <= count:
            return some
        return np.sort(some[np.argpartition(self.bound_s[some], count)[:count]])

    def refine(self, ceiling_s: float, late: Callable[[], bool]) -> None:
        """Bound finely all that are below the ceiling, until it is `late()`."""
        self.close(np.inf)
        self.refine_some(np.flatnonzero(self.bound_s < ceiling_s), late)

    def refine_some(self, indices: Ints, late: Callable[[], bool] | None = None) -> None:
        """Bound some finely, those with equal options together; when it is `late()` the rest stay as they are."""
        indices = indices[~self.fine[indices]]
        if not indices.size:
            return
        indices = indices[np.argsort(self.group[indices], kind="stable")]
        starts = np.flatnonzero(np.diff(self.group[indices], prepend=-1)).tolist()
        for start, stop in zip(starts, [*starts[1:], len(indices)], strict=True):
            if late is not None and late():
                return
            some = indices[start:stop]
            layout, chosen = self.groups[int(self.group[some[0]])]
            if chosen["split"] == "even":
                finer = fine_s(layout, chosen, self.position[some], self.layers[some])
                self.bound_s[some] = np.maximum(self.bound_s[some], finer)
            self.fine[some] = True

    def name(self, index: int) -> Name:
        """What tells an entry from all others, in the order of the space."""
        return int(self.group[index]), int(self.position[index])

    def split(self, name: Name) -> str:
        """How the layers of an entry are split."""
        return str(self.groups[name[0]][1]["split"])

    def base(self, name: Name) -> int:
        """The base of an entry in its space."""
        layout, _ = self.groups[name[0]]
        return int(layout.rows[name[1]] % layout.space.bases)

    def numbers(self, name: Name) -> tuple[int, int]:
        """The most layers that an entry's strategy may recompute without recomputing all, and all."""
        space, base = self.groups[name[0]][0].space, self.base(name)
        return int(space.partial[base]), int(space.largest_stage(np.array(base)))

    def strategy(self, name: Name, layers: int) -> Strategy:
        """One strategy, with so many layers of each stage recomputed (-1: as chosen; FITTED: all, from which the fewest
        are found), on its even split.
        """
        layout, chosen = self.groups[name[0]]
        if layers == FITTED:
            chosen = {**chosen, "recompute": "full", "recompute_layers": 0}
        elif layers >= 0:
            whole = layers >= self.numbers(name)[1]
            named = 0 if whole else layers
            chosen = {**chosen, "recompute": "full" if layers else "none", "recompute_layers": named}
        return layout.space.strategy(int(layout.rows[name[1]]), chosen)

    def layer_costs(self, name: Name, recompute: str) -> LayerCosts:
        """What an entry's segments cost under a recomputation."""
        return self.groups[name[0]][0].layer_costs(name[1], recompute)
