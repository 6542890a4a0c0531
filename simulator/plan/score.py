"""Scores columns of strategies: peak memory, and step times that no run of the engine can beat.

The formulas are the estimate's own (segments, stage costs, step end, memory, sends), called with arrays. What is new
here is only how they are put together: times of segments once per distinct (tp, cp, ep, etp, micro-batch) and
placement, stages and ranks by the few kinds that a pipeline has (`plan/dealing.py`), and the bound over a rank's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.arch.layer import Segment
from simulator.cluster.placement import Group
from simulator.parallel.lower import Pieces, boundary_bytes, pieces_of, tied_copy
from simulator.parallel.memory import SegmentMemory, memories_of
from simulator.parallel.recompute import policy_of
from simulator.parallel.setting import groups_of
from simulator.parallel.timing import SegmentTime, segment_times_by_policy
from simulator.plan.block import Block, compact
from simulator.plan.bounds import PAIRED
from simulator.plan.dealing import Dealing, dealing, mapping_of
from simulator.plan.space import Space
from simulator.plan.table import Columns, strategy_of
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
    bound_s: Floats
    memory_bytes: Floats


class Layout:
    """Rows that share the way sequences are split and the places of their tensor, context and expert groups."""

    def __init__(
        self, space: Space, question: Question, split: Mapping[str, Any], rows: Ints, *, timed: bool = True
    ) -> None:
        self.space, self.question, self.rows = space, question, rows
        self.split = dict(split)
        self.chosen = {**split, **space.carried}
        self.columns: Columns = space.columns(rows)
        groups = groups_of(question.cluster, strategy_of(self.columns, self.chosen))
        first, self.place = _distinct(self.columns, groups)
        unique = {name: column[first] for name, column in self.columns.items()}
        degrees = strategy_of(unique, self.chosen)
        self.pieces = pieces_of(question.model, question.run, degrees, question.framework)
        self.segments = _all_segments(self.pieces)
        self.recompute = tuple(space.options["recompute"])
        self.dealt: dict[str, tuple[Dealing, Ints]] = {}
        edge = boundary_bytes(question.model, self.pieces.shards, self.pieces.kernels, (1, self.pieces.layers))[0]
        self.boundary_bytes = np.broadcast_to(np.asarray(edge, np.float64), (len(first),))
        if timed:
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

    def holdable(self, limit_bytes: float) -> Mask:
        """Rows whose weights, gradients and optimizer fit under some ZeRO stage, whatever else they choose."""
        result = np.ones(len(self.rows), np.bool_)
        if any(mapping_of(schedule) != "looped" for schedule in self.space.options["schedule"]):
            return result
        for start in range(0, len(self.rows), _BLOCK):
            part = np.arange(start, min(start + _BLOCK, len(self.rows)))
            block = Block(self, "looped", part)
            base = self.rows[part] % self.space.bases
            least = np.min([np.where(offered[base], block.least_bytes(zero), np.inf)
                            for zero, offered in self.space.options["zero"].items()], axis=0)  # fmt: skip
            result[part] = least <= limit_bytes
        return result

    def choices(self, orders: Mapping[tuple[str, ...], Mask]) -> int:
        """How many strategies the layout's rows stand for."""
        base = self.rows % self.space.bases
        count = np.sum(list(orders.values()), axis=0)
        for name in ("recompute", "zero", "schedule"):
            count = count * np.sum([mask[base] for mask in self.space.options[name].values()], axis=0)
        return int(count.sum())

    def _least_s(self, distinct: int) -> Floats:
        """Seconds of each row if its work were spread evenly over all ranks, with the least recomputation."""
        counts = {segment.name: 0 for segment in self.segments.values()}
        for segment in [self.pieces.opening, *(unit for unit, _ in self.pieces.units), *self.pieces.closing]:
            counts[segment.name] += 1
        talk = not any(schedule in PAIRED for schedule in self.space.options["schedule"])
        whole = [
            sum((counts[name] * _whole_s(time, talk=talk) for name, time in times.items()), start=np.zeros(distinct))
            for times in self.times.values()
        ]
        least: Floats = np.min(whole, axis=0)
        micro_batches = self.question.run.global_batch // (self.columns["dp"] * self.columns["micro_batch"])
        return least[self.place] * micro_batches / self.columns["pp"]

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

    def scores(self, orders: Mapping[tuple[str, ...], Mask], ceiling_s: Callable[[], float]) -> Iterator[Scores]:
        """Memory and coarse bounds of every strategy of the layout, by options.

        `orders` says for which rows each placement counts. Rows that cannot be below `ceiling_s()` are left out.
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
                yield from self._block_scores(Block(self, mapping, part), orders, masks)

    def _block_scores(
        self, block: Block, orders: Mapping[tuple[str, ...], Mask], masks: Mapping[str, Mask]
    ) -> Iterator[Scores]:
        options, part = self.space.options, block.part
        base = self.rows[part] % self.space.bases
        for recompute in self.recompute:
            for zero, offered in options["zero"].items():
                own = offered[base] & options["recompute"][recompute][base]
                if not own.any():
                    continue
                for schedule, mask in masks.items():
                    taken = np.flatnonzero(own & mask[part])
                    if not taken.size:
                        continue
                    memory = block.memory_bytes(recompute, zero, schedule)[taken]
                    bound = block.coarse_s(recompute, zero, schedule)[taken]
                    for order, counted in orders.items():
                        kept = counted[part[taken]]
                        chosen = {**self.split, "order": order, "recompute": recompute, "zero": zero,
                                  "schedule": schedule}  # fmt: skip
                        yield Scores(chosen=chosen, positions=part[taken[kept]], bound_s=bound[kept],
                                     memory_bytes=memory[kept])  # fmt: skip

    def fine_s(self, chosen: Mapping[str, Any], positions: Ints) -> Floats:
        """Finer bounds of some of the layout's rows (by position) under full options, sends and step end included."""
        parts = [positions[start : start + _BLOCK] for start in range(0, len(positions), _BLOCK)]
        mapping = mapping_of(chosen["schedule"])
        return np.concatenate([Block(self, mapping, part, order=chosen["order"]).fine_s(chosen) for part in parts])


def layouts(
    space: Space, question: Question, rows: Ints, limit_bytes: float
) -> Iterator[tuple[Layout | None, dict[tuple[str, ...], Mask], int]]:
    """The layouts of some rows, with the rows of each placement and how many strategies cannot even hold their state.

    Placements that leave tensor, context and expert groups where they are share a layout.
    """
    for split, mask in space.combinations(("sequence_parallel", "context_kind")):
        own = rows[mask[rows % space.bases]]
        orders = {order: allowed[own % space.bases] for order, allowed in space.options["order"].items()}
        while orders:
            first = next(iter(orders))
            among = orders[first]
            shared = {order: counted for order, counted in orders.items() if not (counted & ~among).any()
                      and _same_places(space, question, own[counted], first, order)}  # fmt: skip
            orders = {order: counted for order, counted in orders.items() if order not in shared}
            mine = own[among]
            counted = {order: allowed[among] for order, allowed in shared.items()}
            whole = {**split, "order": first}
            if mine.size:
                bare = Layout(space, question, whole, mine, timed=False)
                kept = bare.holdable(limit_bytes)
                refused = bare.choices({order: allowed & ~kept for order, allowed in counted.items()})
                few = {order: allowed[kept] for order, allowed in counted.items()}
                yield Layout(space, question, whole, mine[kept]) if kept.any() else None, few, refused


def _same_places(space: Space, question: Question, rows: Ints, one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two placements give some rows the same tensor, context and expert groups."""
    if one == other:
        return True
    columns = space.columns(rows)
    first, second = (groups_of(question.cluster, strategy_of(columns, {"order": order})) for order in (one, other))
    return all(
        np.array_equal(getattr(first[axis], part), getattr(second[axis], part))
        for axis in ("tp", "cp", "ep", "etp") for part in ("stride", "blocks", "block_stride")
    )  # fmt: skip


def _distinct(columns: Columns, groups: Mapping[str, Group]) -> tuple[Ints, Ints]:
    """Rows whose segments differ: first of each, and each row's place among them."""
    keys: list[Any] = [columns[name] for name in ("tp", "cp", "ep", "etp", "micro_batch")]
    for axis in ("tp", "cp", "ep", "etp"):
        keys += [groups[axis].stride, groups[axis].blocks, groups[axis].block_stride]
    code = np.zeros(len(columns["tp"]), np.int64)
    for key in keys:
        values = np.asarray(key)
        if values.ndim and (values != values[0]).any():
            names, index = np.unique(values, return_inverse=True)
            _, code = np.unique(code * len(names) + index.reshape(-1), return_inverse=True)
            code = code.reshape(-1)
    _, first, place = np.unique(code, return_index=True, return_inverse=True)
    return first, place.reshape(-1)


def _all_segments(pieces: Pieces) -> dict[str, Segment]:
    held = [pieces.opening, *pieces.distinct, *pieces.closing]
    if pieces.tied:
        held.append(tied_copy(pieces.opening))
    return {segment.name: segment for segment in held}


def _whole_s(time: SegmentTime, *, talk: bool) -> Any:
    """All seconds of a segment, with communication where no schedule can hide it."""
    phases = (time.forward, time.input_grad, time.weight_grad, time.recompute)
    return sum(phase.total_s if talk else phase.parts["gemm"] for phase in phases)
