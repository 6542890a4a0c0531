"""What one step of one dial would bring: the changes, and in one call of the planner's scorer a bound of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from simulator.cluster.members import is_unequal
from simulator.errors import InputError
from simulator.parallel.legal import check
from simulator.plan.block import Block
from simulator.plan.dealing import mapping_of
from simulator.plan.layout import Layout
from simulator.plan.limits import DEGREES, OPTIONS
from simulator.plan.question import Question
from simulator.plan.space import Space
from simulator.schedule.make import check_sizes
from simulator.spec.strategy import Strategy
from simulator.web.state import Case, dial_values, read_case

_DIALS = ("tp", "pp", "cp", "ep", "vp", "micro_batch", "zero")
_BASE = ("tp", "pp", "cp", "dp", "micro_batch", "vp")
_NAMES = ("recompute", "zero", "schedule")


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A legal strategy one step of a dial away, and the settings that lead there."""

    change: Mapping[str, Any]
    case: Case

    @property
    def label(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.change.items() if value != "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What a strategy takes at least: step time [s] and peak memory per device [B]."""

    step_time_s: float
    peak_bytes: float


def neighbours(case: Case, state: Mapping[str, Any]) -> list[Neighbour]:
    """The strategies one step of a dial away that can run."""
    found = []
    for change in _changes(case):
        try:
            other = read_case({**state, **change})
            check(other.model, other.cluster, other.run, other.strategy)
            _check_schedule(other)
        except InputError:
            continue
        found.append(Neighbour(change=change, case=other))
    return found


def _check_schedule(case: Case) -> None:
    strategy = case.strategy
    micro_batches = case.run.global_batch // (strategy.dp * strategy.micro_batch)
    check_sizes(strategy.schedule, pp=strategy.pp, micro_batches=micro_batches, vp=strategy.vp,
                group_size=strategy.group_size)  # fmt: skip


def _changes(case: Case) -> Iterator[dict[str, Any]]:
    """Changes of one step of one dial, with what follows from it: the schedule of virtual stages, an even split."""
    stops = dial_values(case)
    strategy = case.strategy
    for name in _DIALS:
        at = stops[name].index(getattr(strategy, name))
        for other in stops[name][max(at - 1, 0) : at] + stops[name][at + 1 : at + 2]:
            change: dict[str, Any] = {name: other}
            if name == "vp" and strategy.schedule in ("1f1b", "interleaved"):
                change["schedule"] = "interleaved" if other > 1 else "1f1b"
            if name in ("pp", "vp") and strategy.layers_per_stage:
                change["layers_per_stage"] = ""
            if name in ("pp", "vp") and isinstance(strategy.recompute_layers, tuple):
                change["recompute_layers"] = 0
            yield change
    for word in ("none", "selective", "full"):
        if word != strategy.recompute:
            yield {"recompute": word, **({"recompute_layers": 0} if strategy.recompute_layers else {})}


def bounds(case: Case, near: Sequence[Neighbour]) -> list[Bound]:
    """A bound of each neighbour, by the formulas of the planner over columns: close to its estimate, never above it.

    Empty where that takes more than columns: recomputation of only some layers, a split of one's own, unequal nodes.
    """
    if case.strategy.recompute_layers or case.strategy.layers_per_stage or is_unequal(case.cluster) or not near:
        return []
    strategies = [each.case.strategy for each in near]
    question = Question(model=case.model, cluster=case.cluster, framework=case.framework,
                        run=replace(case.run, seq_len=case.run.seq_len or case.model.seq_len))  # fmt: skip
    space, rows = _space(case, strategies)
    distinct, places = np.unique(rows, return_inverse=True)
    split = {name: getattr(case.strategy, name) for name in ("sequence_parallel", "context_kind", "order")}
    split["split"] = "even"
    layout = Layout(space, question, split, distinct)
    groups: dict[tuple[str, int, str], list[int]] = {}
    for index, strategy in enumerate(strategies):
        groups.setdefault(_options(strategy), []).append(index)
    found: dict[int, Bound] = {}
    for (recompute, zero, schedule), members in groups.items():
        positions = places.reshape(-1)[members]
        block = Block(layout, mapping_of(schedule), positions)
        held = block.memory_bytes(recompute, zero, schedule)
        least_s = block.fine_s({**layout.chosen, "recompute": recompute, "zero": zero, "schedule": schedule})
        for index, seconds, size in zip(members, least_s.tolist(), held.tolist(), strict=True):
            found[index] = Bound(step_time_s=seconds, peak_bytes=size)
    return [found[index] for index in range(len(near))]


def _options(strategy: Strategy) -> tuple[str, int, str]:
    """Recomputation, ZeRO stage and schedule; without a pipeline every schedule is 1F1B."""
    return strategy.recompute, strategy.zero, strategy.schedule if strategy.pp > 1 else "1f1b"


def _space(case: Case, strategies: Sequence[Strategy]) -> tuple[Space, Any]:
    """A space that holds these strategies, and the row of each."""
    current = case.strategy
    folds = tuple(dict.fromkeys((each.ep, each.etp) for each in strategies))
    keys = [tuple(getattr(each, name) for name in _BASE) for each in strategies]
    bases = list(dict.fromkeys(keys))
    allowed = np.ones(len(bases), np.bool_)
    words = zip(*map(_options, strategies), strict=True)
    options = {name: dict.fromkeys(values, allowed) for name, values in zip(_NAMES, words, strict=True)}
    carried = {entry.name: getattr(current, entry.name) for entry in fields(Strategy)
               if entry.name not in (*DEGREES, *OPTIONS)}  # fmt: skip
    base = {name: np.array(column, np.int64) for name, column in zip(_BASE, zip(*bases, strict=True), strict=True)}
    space = Space(base=base, folds=folds, options=options, partial=np.zeros(len(bases), np.int64),
                  fitted=np.zeros(len(bases), np.bool_), layers=case.model.layers, carried=carried,
                  considered=len(strategies), legal=len(strategies), rejected={})  # fmt: skip
    rows = [folds.index((each.ep, each.etp)) * len(bases) + bases.index(key)
            for each, key in zip(strategies, keys, strict=True)]  # fmt: skip
    return space, np.array(rows, np.int64)
