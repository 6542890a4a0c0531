"""Scored strategies that may still be the best, as flat columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.plan.score import Layout, Scores
from simulator.spec.strategy import Strategy

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Pool:
    """Groups of equal options (a layout and what was chosen), and for each strategy its group, its row in the layout,
    its bound [s] and its memory [B].
    """

    def __init__(self) -> None:
        self.groups: list[tuple[Layout, dict[str, Any]]] = []
        self.new: list[tuple[Any, ...]] = []
        self.group = np.zeros(0, np.int64)
        self.position = np.zeros(0, np.int64)
        self.bound_s = np.zeros(0)
        self.memory_bytes = np.zeros(0)
        self.fine = np.zeros(0, np.bool_)

    def __len__(self) -> int:
        return len(self.group) + sum(len(part[0]) for part in self.new)

    def add(self, layout: Layout, scores: Scores, kept: npt.NDArray[np.bool_]) -> None:
        """Take the kept ones of some scores."""
        count = int(kept.sum())
        if count:
            self.new.append((np.full(count, len(self.groups), np.int64), scores.positions[kept], scores.bound_s[kept],
                             scores.memory_bytes[kept], np.zeros(count, np.bool_)))  # fmt: skip
            self.groups.append((layout, dict(scores.chosen)))

    def close(self, ceiling_s: float) -> None:
        """Join what was added, and drop what can no longer win."""
        columns = [(self.group, self.position, self.bound_s, self.memory_bytes, self.fine), *self.new]
        joined = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
        kept = joined[2] < ceiling_s
        self.group, self.position, self.bound_s, self.memory_bytes, self.fine = (column[kept] for column in joined)
        self.new = []

    def lowest(self, count: int) -> Ints:
        """The strategies with the least bounds."""
        if len(self.bound_s) <= count:
            return np.arange(len(self.bound_s))
        return np.sort(np.argpartition(self.bound_s, count)[:count])

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
            self.bound_s[some] = np.maximum(self.bound_s[some], layout.fine_s(chosen, self.position[some]))
            self.fine[some] = True

    def name(self, index: int) -> tuple[int, int]:
        """What tells a strategy from all others, in the order of the space."""
        return int(self.group[index]), int(self.position[index])

    def strategy(self, index: int) -> Strategy:
        """One strategy."""
        layout, chosen = self.groups[int(self.group[index])]
        return layout.space.strategy(int(layout.rows[self.position[index]]), chosen)
