"""Columns of degrees: rows being narrowed, and in the shape of a strategy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from simulator.spec.strategy import Strategy

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Columns = Mapping[str, Ints]


def strategy_of(columns: Columns, chosen: Mapping[str, Any]) -> Strategy:
    """Columns of degrees in the shape of a strategy, for formulas that broadcast (DESIGN section 2)."""
    defaults = {name: getattr(_DEFAULT, name) for name in Strategy.__dataclass_fields__}
    return cast("Strategy", _Columns({**defaults, **chosen, **columns}))


_DEFAULT = Strategy()


class _Columns:
    """The fields and derived sizes of `Strategy`, over columns."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    stages = Strategy.stages
    devices = Strategy.devices
    expert_dp = Strategy.expert_dp


def distinct(keys: Sequence[Any]) -> tuple[Ints, Ints]:
    """Rows that differ in some key (columns, or numbers equal for all): the first of each, and each row's place among
    them.
    """
    columns = [np.asarray(key) for key in keys]
    rows = max(len(column) for column in columns if column.ndim)
    code, radix = np.zeros(rows, np.int64), 1
    for column in columns:
        if not column.ndim or not rows or (column == column[0]).all():
            continue
        index, count = _numbered(column)
        if radix * count >= 2**62:
            code, radix = _numbered(code)
        code, radix = code * count + index, radix * count
    place, count = _numbered(code)
    first = np.empty(count, np.int64)
    first[place[::-1]] = np.arange(rows - 1, -1, -1)
    return first, place


def _numbered(values: npt.NDArray[Any]) -> tuple[Ints, int]:
    """Values as their places among the distinct ones, and how many those are."""
    if values.dtype.kind in "iu" and values.size and values.min() >= 0 and values.max() < _TABLE:
        known = np.zeros(int(values.max()) + 1, np.int64)
        known[values] = 1
        places = np.cumsum(known)
        return (places - 1)[values], int(places[-1])
    names, index = np.unique(values, return_inverse=True)
    return index.reshape(-1), len(names)


_TABLE = 1 << 22
"""Largest value up to which a table of all values is quicker than a sort."""


class Table:
    """Rows being narrowed; each row stands for as many strategies as the choices not yet made."""

    def __init__(self, columns: dict[str, Ints]) -> None:
        self.columns = columns
        self.rejected: Counter[str] = Counter()

    def __getitem__(self, name: str) -> Ints:
        return self.columns[name]

    def keep(self, mask: Mask, weight: Ints, reason: str) -> None:
        lost = int(weight[~mask].sum())
        if lost:
            self.rejected[reason] += lost
            self.columns = {name: column[mask] for name, column in self.columns.items()}

    def cross(self, name: str, values: Sequence[int]) -> None:
        rows = len(self["tp"])
        self.columns = {key: np.repeat(column, len(values)) for key, column in self.columns.items()}
        self.columns[name] = np.tile(np.array(values, np.int64), rows)

    def cross_by(self, name: str, by: str, values: Mapping[int, Sequence[int]]) -> None:
        """Cross with values that depend on another column."""
        counts = np.array([len(values[int(key)]) for key in self[by]], np.int64)
        flat = [value for key in self[by].tolist() for value in values[key]]
        self.columns = {key: np.repeat(column, counts) for key, column in self.columns.items()}
        self.columns[name] = np.array(flat, np.int64)
