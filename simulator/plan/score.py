"""Scores columns of strategies: peak memory, and step times that no run of the engine can beat.

The formulas are the estimate's own (segments, stage costs, step end, memory, sends), called with arrays. What is new
here is only how they are put together: times of segments once per distinct (tp, cp, ep, etp, micro-batch) and placement
(`plan/layout.py`), stages and ranks by the few kinds that a pipeline has (`plan/dealing.py`), and the bound over a
rank's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.parallel.setting import groups_of
from simulator.plan.block import Block
from simulator.plan.dealing import mapping_of
from simulator.plan.floors import PLACED, Floors, fits, place_keys, state_floor_bytes
from simulator.plan.ladder import FITTED
from simulator.plan.layout import Layout
from simulator.plan.question import Question
from simulator.plan.scorer import Entry, Scorer
from simulator.plan.space import Space
from simulator.plan.table import strategy_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_BLOCK = 4096
"""Rows evaluated together: their arrays stay in a core's cache."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Scores:
    """Strategies with equal options: rows of a layout, their least step times [s] and peak memories [B]."""

    chosen: Mapping[str, Any]
    positions: Ints
    """Rows of the layout."""
    layers: Ints
    """How many layers of each stage are recomputed, where that was chosen to fit (FITTED: each stage's own fewest);
    else -1.
    """
    bound_s: Floats
    memory_bytes: Floats
    scored: int
    refused: int
    """Strategies that do not fit, those with fewer recomputed layers among them."""


Orders = Mapping[tuple[str, ...], Mask]
"""Placements with the rows that they count for."""


def layout_scores(
    layout: Layout, orders: Orders, ceiling_s: Callable[[], float], *, limit_bytes: float = np.inf, fewest: bool = True
) -> Iterator[Scores]:
    """Memory and coarse bounds of every strategy of the layout that fits `limit_bytes`, by options.

    `orders` says for which rows each placement counts. Rows that cannot be below `ceiling_s()` are left out. With
    `fewest` only as many layers are recomputed as must be.
    """
    options = layout.space.options
    base = layout.rows % layout.space.bases
    mappings: dict[str, list[str]] = {}
    for schedule in options["schedule"]:
        mappings.setdefault(mapping_of(schedule), []).append(schedule)
    alive = np.argsort(layout.least_s, kind="stable")
    for mapping, schedules in mappings.items():
        masks = {name: options["schedule"][name][base] for name in schedules}
        some = alive[np.any([mask[alive] for mask in masks.values()], axis=0)]
        for start in range(0, len(some), _BLOCK):
            part = some[start : start + _BLOCK]
            part = part[layout.least_s[part] < ceiling_s()]
            if not part.size:
                break
            block = Block(layout, mapping, part)
            scorer = Scorer(block, limit_bytes=limit_bytes, ceiling_s=ceiling_s, fewest=fewest)
            for zero, offered in options["zero"].items():
                for schedule, mask in masks.items():
                    taken = (offered[base] & mask)[part]
                    if taken.any():
                        yield from _by_order(layout, part, scorer.entries(zero, schedule, taken), orders)


def fine_s(layout: Layout, chosen: Mapping[str, Any], positions: Ints, layers: Ints) -> Floats:
    """Finer bounds of some of the layout's rows (by position) under full options, sends and step end included."""
    mapping = mapping_of(chosen["schedule"])
    layers = np.where(layers == FITTED, 0, layers)  # No recomputation takes less than that of the fewest that fit.
    found = []
    for start in range(0, len(positions), _BLOCK):
        part, again = positions[start : start + _BLOCK], layers[start : start + _BLOCK]
        block = Block(layout, mapping, part, order=chosen["order"])
        none = {**chosen, "recompute": "none"}
        if (again < 0).all():
            found.append(block.fine_s(chosen))
        elif not again.any():
            found.append(block.fine_s(none))
        else:
            run = block.fine_s({**chosen, "recompute": "full"}, np.maximum(again, 1))
            found.append(np.where(again == 0, block.fine_s(none), run) if (again == 0).any() else run)
    return np.concatenate(found)


def _by_order(
    layout: Layout, part: Ints, entries: Iterable[Entry], orders: Orders
) -> Iterator[Scores]:
    for entry in entries:
        for order, mine in orders.items():
            own = mine[part[entry.rows]]
            kept = own & entry.kept
            yield Scores(
                chosen={**layout.split, "order": order, **entry.chosen}, positions=part[entry.rows[kept]],
                layers=entry.layers[kept], bound_s=entry.bound_s[kept], memory_bytes=entry.memory_bytes[kept],
                scored=int(own.sum()), refused=int(entry.refused[own].sum()),
            )  # fmt: skip


class Sieve:
    """Rows whose states a device can hold, and the layouts of those that may still win."""

    def __init__(self, space: Space, question: Question, limit_bytes: float) -> None:
        self.space, self.question, self.limit_bytes = space, question, limit_bytes
        rows = space.rows()
        columns = space.columns(rows)
        base = rows % space.bases
        zeros = {zero: offered[base] for zero, offered in space.options["zero"].items()}
        self.state_bytes = state_floor_bytes(question, columns, zeros)
        kept = fits(self.state_bytes, 0.0, question, limit_bytes)
        self.refused = int(space.choices()[base[~kept]].sum())
        """Strategies of rows that cannot hold their state."""
        self.rows, self.state_bytes = rows[kept], self.state_bytes[kept]

    def layouts(self, ceiling_s: Callable[[], float] | None = None) -> Iterator[tuple[Layout, Orders]]:
        """The layouts of the rows, with the rows of each placement.

        Placements that leave tensor, context and expert groups where they are share a layout. With a ceiling, rows
        come in portions, least work first, and those that cannot be below it are left out.
        """
        base = self.rows % self.space.bases
        splits = list(self.space.combinations(("sequence_parallel", "context_kind")))
        for orders in self._shared_orders(base):
            first = next(iter(orders))
            own = np.flatnonzero(orders[first])
            floors = None
            for split, mask in splits:
                among = np.flatnonzero(mask[base[own]])
                if not among.size:
                    continue
                if ceiling_s is not None and floors is None:
                    columns = self.space.columns(self.rows[own])
                    floors = Floors(self.space, self.question, columns, first)
                chosen = {**split, "order": first}
                parts = [among] if ceiling_s is None or floors is None else self._portions(
                    floors, chosen, own, among, ceiling_s
                )
                for part in parts:
                    some = own[part]
                    counted_rows = {order: mine[some] for order, mine in orders.items()}
                    yield Layout(self.space, self.question, chosen, self.rows[some]), counted_rows

    def _portions(
        self, floors: Floors, chosen: Mapping[str, Any], own: Ints, among: Ints, ceiling_s: Callable[[], float]
    ) -> Iterator[Ints]:
        """Rows in portions of growing size, least work first, until none can be below the ceiling."""
        floor_s, working_bytes = floors.floors(chosen, among)
        held = fits(self.state_bytes[own[among]], working_bytes, self.question, self.limit_bytes)
        held &= floor_s < ceiling_s()
        left = among[held][np.argsort(floor_s[held], kind="stable")]
        sorted_s = np.sort(floor_s[held], kind="stable")
        start, size = 0, _PORTION
        while start < len(left):
            stop = min(start + size, int(np.searchsorted(sorted_s, ceiling_s())))
            if stop <= start:
                return
            yield left[start:stop]
            start, size = stop, 4 * size

    def _shared_orders(self, base: Ints) -> Iterator[Orders]:
        """Placements that share a layout, with their rows."""
        orders = {order: allowed[base] for order, allowed in self.space.options["order"].items()}
        while orders:
            first = next(iter(orders))
            among = orders[first]
            shared = {order: mine for order, mine in orders.items() if not (mine & ~among).any()
                      and _same_places(self.space, self.question, self.rows[mine], first, order)}  # fmt: skip
            orders = {order: mine for order, mine in orders.items() if order not in shared}
            yield shared


_PORTION = 4096


def _same_places(space: Space, question: Question, rows: Ints, one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two placements give some rows the same tensor, context and expert groups."""
    if one == other:
        return True
    columns = space.columns(rows)
    first, second = (
        place_keys(groups_of(question.cluster, strategy_of(columns, {"order": order})), PLACED)
        for order in (one, other)
    )
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
