"""Rows of a space that share their segments: seconds and bytes of each segment once, by distinct combination."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.parallel.lower import boundary_bytes, pieces_of
from simulator.parallel.memory import SegmentMemory, memories_of
from simulator.parallel.recompute import policy_of
from simulator.parallel.setting import groups_of
from simulator.parallel.timing import PhaseTime, SegmentTime, segment_times_by_policy
from simulator.plan.balance import LayerCosts, all_segments, costs_at
from simulator.plan.bounds import PAIRED
from simulator.plan.dealing import Dealing, dealing
from simulator.plan.floors import PLACED, counted, place_keys, whole_s
from simulator.plan.question import Question
from simulator.plan.space import Space
from simulator.plan.table import Columns, distinct, strategy_of
from simulator.result import COMMUNICATION

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
PHASES = ("forward", "input_grad", "weight_grad", "recompute")


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
        edge = boundary_bytes(question.model, self.pieces.shards, self.pieces.kernels, (1, self.pieces.layers - 1))[0]
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


def compact(time: SegmentTime) -> SegmentTime:
    """A segment's seconds as compute ("gemm") and communication ("tp") only."""
    return SegmentTime(**{phase: _compact_phase(getattr(time, phase)) for phase in PHASES})


def _compact_phase(phase: PhaseTime) -> PhaseTime:
    compute = sum(seconds for name, seconds in phase.parts.items() if name not in COMMUNICATION)
    talk = sum(seconds for name, seconds in phase.parts.items() if name in COMMUNICATION)
    return PhaseTime(parts={"gemm": compute, "tp": talk}, hidden={}, kernels=0)


def seconds_of(phase: PhaseTime, *, paired: bool) -> Any:
    """Seconds of a phase, of its compute only in a pair that hides communication [s]."""
    if not paired:
        return phase.total_s
    return sum(seconds for name, seconds in phase.parts.items() if name not in COMMUNICATION)
