"""Scores columns of strategies: peak memory, and step times that no run of the engine can beat.

The formulas are the estimate's own (segments, stage costs, step end, memory, sends), called with arrays. What is new
here is only how they are put together: times of segments once per distinct (tp, cp, ep, etp, micro-batch) and
placement, stages and ranks by the few kinds that a pipeline has (`plan/dealing.py`), and the bound over a rank's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.parallel.lower import boundary_bytes, pieces_of
from simulator.parallel.memory import SegmentMemory, memories_of
from simulator.parallel.recompute import policy_of
from simulator.parallel.setting import groups_of
from simulator.parallel.timing import segment_times_by_policy
from simulator.plan.balance import LayerCosts, all_segments, costs_at
from simulator.plan.block import Block, compact, seconds_of
from simulator.plan.bounds import PAIRED
from simulator.plan.dealing import Dealing, dealing, mapping_of
from simulator.plan.floors import PLACED, Floors, counted, fits, place_keys, state_floor_bytes, whole_s
from simulator.plan.ladder import FITTED
from simulator.plan.scorer import Entry, Scorer
from simulator.plan.space import Space
from simulator.plan.table import Columns, distinct, strategy_of
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_BLOCK = 4096
"""Rows evaluated together: their arrays stay in a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a plan is for."""

    model: ModelSpec
    cluster: Cluster
    run: Run
    framework: Framework


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


class Layout:
    """Rows that share the way sequences are split and the places of their tensor, context and expert groups."""

    def __init__(self, space: Space, question: Question, split: Mapping[str, Any], rows: Ints) -> None:
        self.space, self.question, self.rows = space, question, rows
        self.split = dict(split)
        self.chosen = {**split, **space.carried}
        self.columns: Columns = space.columns(rows)
        groups = groups_of(question.cluster, strategy_of(self.columns, self.chosen))
        degrees = [self.columns[name] for name in ("tp", "cp", "ep", "etp", "micro_batch")]
        first, self.place = distinct([*degrees, *place_keys(groups, PLACED)])
        unique = {name: column[first] for name, column in self.columns.items()}
        self.pieces = pieces_of(question.model, question.run, strategy_of(unique, self.chosen), question.framework)
        self.segments = all_segments(self.pieces)
        self.recompute = tuple(space.options["recompute"])
        self.dealt: dict[str, tuple[Dealing, Ints]] = {}
        self.costs: dict[tuple[int, str], LayerCosts] = {}
        edge = boundary_bytes(question.model, self.pieces.shards, self.pieces.kernels, (1, self.pieces.layers))[0]
        self.boundary_bytes = np.broadcast_to(np.asarray(edge, np.float64), (len(first),))
        self._time(unique)

    def _time(self, unique: Columns) -> None:
        question, degrees = self.question, strategy_of(unique, self.chosen)
        policies = [policy_of(strategy_of(unique, {**self.chosen, "recompute": kind})) for kind in self.recompute]
        times = segment_times_by_policy(
            self.segments.values(), policies, question.cluster, groups_of(question.cluster, degrees)
        )
        self.times = {kind: {name: compact(time) for name, time in each.items()}
                      for kind, each in zip(self.recompute, times, strict=True)}  # fmt: skip
        self.memories: dict[str, dict[str, SegmentMemory]] = {
            kind: memories_of(self.segments.values(), policy)
            for kind, policy in zip(self.recompute, policies, strict=True)
        }
        self.least_s = self._least_s(len(unique["tp"]))

    def _least_s(self, distinct_rows: int) -> Floats:
        """Seconds of each row if its work were spread evenly over all ranks, with the least recomputation."""
        talk = not any(schedule in PAIRED for schedule in self.space.options["schedule"])
        whole = [
            sum((count * whole_s(times[segment.name], talk=talk) for segment, count in counted(self.pieces)),
                start=np.zeros(distinct_rows))
            for times in self.times.values()
        ]  # fmt: skip
        least: Floats = np.min(whole, axis=0)
        micro_batches = self.question.run.global_batch // (self.columns["dp"] * self.columns["micro_batch"])
        return least[self.place] * micro_batches / self.columns["pp"]

    def layer_costs(self, position: int, recompute: str) -> LayerCosts:
        """What the segments of one of the rows cost."""
        key = (int(self.place[position]), recompute)
        if key not in self.costs:
            times, memories = self.times[recompute], self.memories[recompute]
            self.costs[key] = costs_at(self.pieces, times, memories, self.boundary_bytes, key[0])
        return self.costs[key]

    def pass_s(self, recompute: str, *, talk: bool, again: bool) -> Floats:
        """Seconds of one micro-batch through the model, by distinct combination, `again` with its recomputation [s]."""
        phases = ("forward", "input_grad", "weight_grad", *(("recompute",) if again else ()))
        whole = np.zeros(len(self.boundary_bytes))
        for segment, count in counted(self.pieces):
            time = self.times[recompute][segment.name]
            whole = whole + count * sum(seconds_of(getattr(time, phase), paired=not talk) for phase in phases)
        return whole

    def dealing(self, mapping: str) -> tuple[Dealing, Ints]:
        """The tables of stages and ranks, and each row's index into them."""
        if mapping not in self.dealt:
            code = self.columns["pp"] * (self.columns["vp"].max() + 1) + self.columns["vp"]
            _, first, place = np.unique(code, return_index=True, return_inverse=True)
            pairs = list(zip(self.columns["pp"][first].tolist(), self.columns["vp"][first].tolist(), strict=True))
            wanted = {"folded": 2, "both": 1}.get(mapping)
            pairs = [(pp, vp) if wanted in (None, vp) else (1, 1) for pp, vp in pairs]
            self.dealt[mapping] = dealing(self.pieces, pairs, mapping), place.reshape(-1)
        return self.dealt[mapping]

    def scores(
        self, orders: Orders, ceiling_s: Callable[[], float], *, limit_bytes: float = np.inf, fewest: bool = True
    ) -> Iterator[Scores]:
        """Memory and coarse bounds of every strategy of the layout that fits `limit_bytes`, by options.

        `orders` says for which rows each placement counts. Rows that cannot be below `ceiling_s()` are left out. With
        `fewest` only as many layers are recomputed as must be.
        """
        options = self.space.options
        base = self.rows % self.space.bases
        mappings: dict[str, list[str]] = {}
        for schedule in options["schedule"]:
            mappings.setdefault(mapping_of(schedule), []).append(schedule)
        alive = np.argsort(self.least_s, kind="stable")
        for mapping, schedules in mappings.items():
            masks = {name: options["schedule"][name][base] for name in schedules}
            some = alive[np.any([mask[alive] for mask in masks.values()], axis=0)]
            for start in range(0, len(some), _BLOCK):
                part = some[start : start + _BLOCK]
                part = part[self.least_s[part] < ceiling_s()]
                if not part.size:
                    break
                block = Block(self, mapping, part)
                scorer = Scorer(block, limit_bytes=limit_bytes, ceiling_s=ceiling_s, fewest=fewest)
                for zero, offered in options["zero"].items():
                    for schedule, mask in masks.items():
                        taken = (offered[base] & mask)[part]
                        if taken.any():
                            yield from _by_order(self, part, scorer.entries(zero, schedule, taken), orders)

    def fine_s(self, chosen: Mapping[str, Any], positions: Ints, layers: Ints) -> Floats:
        """Finer bounds of some of the layout's rows (by position) under full options, sends and step end included."""
        mapping = mapping_of(chosen["schedule"])
        layers = np.where(layers == FITTED, 0, layers)  # No recomputation takes less than that of the fewest that fit.
        found = []
        for start in range(0, len(positions), _BLOCK):
            part, again = positions[start : start + _BLOCK], layers[start : start + _BLOCK]
            block = Block(self, mapping, part, order=chosen["order"])
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
