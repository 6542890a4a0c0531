"""How many layers to recompute: of the numbers that a row may have, the fewest that fit.

More recomputation takes more time and never more memory, so every larger number is slower and need not be looked at,
and every smaller one does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FITTED = -2
"""In place of a number of layers: each stage recomputes the fewest with which it fits (`plan/fitted.py`)."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Ladder:
    """The numbers of layers that rows may recompute: none (0), 1 up to `partial`, all (`layers`)."""

    none: bool
    full: bool
    partial: Ints
    layers: Ints
    """Layers of the largest stage: recomputing as many is recomputing all."""

    def members(self) -> Ints:
        """How many numbers each row may have."""
        return self.below(self.layers + 1)

    def below(self, number: Ints) -> Ints:
        """How many of a row's numbers are smaller than `number`."""
        some = int(self.none) * (number > 0) + np.clip(number - 1, 0, self.partial)
        return np.asarray(some + int(self.full) * (number > self.layers))

    def after(self, number: int, row: int) -> int | None:
        """The next larger number that one row may have."""
        partial, layers = int(self.partial[row]), int(self.layers[row])
        following = number + 1 if number + 1 <= partial else layers
        return following if self.full and number < following else None

    def fewest(self, fits: Callable[[Ints], npt.NDArray[np.bool_]]) -> Ints:
        """The fewest layers of each row that `fits`, which holds for all larger ones too; -1 where none does."""
        none = np.full(len(self.layers), -1, np.int64)
        zero = np.zeros_like(self.layers)
        without = fits(zero) if self.none else zero.astype(np.bool_)
        if not self.full or without.all():
            return np.where(without, 0, none)
        whole = fits(self.layers)
        low, high = np.ones_like(self.layers), np.where(self.partial > 0, self.partial + 1, self.layers)
        low = np.where(self.partial > 0, low, high)
        undecided = whole & ~without
        while (low < high)[undecided].any():
            middle = (low + high) // 2
            enough = fits(middle)
            high = np.where(enough, middle, high)
            low = np.where(enough, low, np.minimum(middle + 1, high))
        found = np.where(high > self.partial, self.layers, high)
        return np.where(without, 0, np.where(whole, found, none))
