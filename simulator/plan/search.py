"""Best first: the engine runs strategies in the order of their bounds until no bound beats what was found.

Every strategy has a cheap bound (`plan/score.py`). The one with the least is bounded again, finely; once a finely
bounded strategy is the least of all, the engine runs it. When the least remaining bound is no better than the worst
answer kept, nothing unrun can be better: the answers are the optimum under the engine.
"""

from __future__ import annotations

import heapq
import math
import time
from bisect import insort
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from simulator.errors import Infeasible
from simulator.estimate import summarise
from simulator.lowered import Costed, cost_step, run_costed
from simulator.parallel.lower import layers_of_stages
from simulator.plan.balance import Balance
from simulator.plan.bounds import least_step_time_s, runs_alike
from simulator.plan.fitted import fitted, fitted_on_its_split, one_stage_each
from simulator.plan.ladder import FITTED
from simulator.plan.objectives import Objective
from simulator.plan.pool import Name, Pool
from simulator.plan.question import Question
from simulator.plan.score import Sieve, layout_scores
from simulator.plan.space import Space
from simulator.result import Estimate
from simulator.spec.strategy import Strategy

SLACK = 1e-9
"""Relative rounding that a bound over arrays may have against the scalar run."""


@dataclass(frozen=True, order=True, slots=True)
class Found:
    """A strategy that the engine ran and that fits."""

    key: tuple[float, ...]
    order: tuple[float, ...]
    """Ties: less memory, then the order of the space."""
    strategy: Strategy = field(compare=False)
    estimate: Estimate = field(compare=False)
    bound_s: float = field(compare=False)
    also: tuple[tuple[str, ...], ...] = field(default=(), compare=False)
    """Placements with the same time and memory."""
    name: Name = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What a search found, best first, and how far it went."""

    found: tuple[Found, ...]
    scored: int
    unfit: int
    refined: int
    engine_runs: int
    gap: float
    complete: bool
    """The whole space was bounded. Where time ran out first, what was not looked at may be any better: gap 1."""


def search(
    space: Space, question: Question, objective: Objective, *, limit: int, time_limit_s: float,
    exhaustive: int = 2_000_000,
) -> Searched:  # fmt: skip
    """The `limit` best strategies. After `time_limit_s` seconds the best so far, and the gap: the clock is
    looked at between blocks of scored rows, groups of bounds and runs of the engine, once something was found.

    Spaces of more than `exhaustive` strategies are cut before memory is looked at, where a row's work alone, spread
    evenly, takes longer than the best found.
    """
    deadline = time.monotonic() + time_limit_s
    return _Search(space, question, objective, limit, cuts=space.legal > exhaustive, deadline=deadline).run()


@dataclass(frozen=True, order=True, slots=True)
class _Waiting:
    """A strategy with its costs, not yet run."""

    key: tuple[float, ...]
    name: Name
    layers: int
    bound_s: float
    memory_bytes: float
    strategy: Strategy = field(compare=False)
    costed: Costed | None = field(compare=False)
    """Its costs, once it was bounded finely."""


class _Search:
    def __init__(
        self, space: Space, question: Question, objective: Objective, limit: int, *, cuts: bool, deadline: float
    ) -> None:
        self.deadline, self.complete = deadline, True
        self.space, self.question, self.objective, self.limit = space, question, objective, limit
        self.timed = len(objective.key(0.0, 1.0)) == 1
        self.cuts = cuts and self.timed
        self.pool = Pool()
        self.found: list[Found] = []
        self.done: set[Name] = set()
        self.scored = self.unfit = self.refined = self.engine_runs = 0
        self.heap: list[_Waiting] = []
        self.order: list[int] = []
        self.next = 0

    def run(self) -> Searched:
        self._score()
        if self.timed and len(self.pool):
            self._improve()
            self.pool.refine(self.ceiling_s(), self.late)
        pool = self.pool
        pool.close(math.inf)
        keys = (pool.bound_s,) if self.timed else (pool.bound_s, pool.memory_bytes)
        self.order = np.lexsort(keys).tolist()
        return self._best_first()

    def late(self) -> bool:
        """Whether time ran out with an answer at hand."""
        return bool(self.found) and time.monotonic() > self.deadline

    def _stops(self) -> bool:
        """Whether scoring ends here: time ran out, and what was scored holds an answer."""
        if time.monotonic() <= self.deadline or not len(self.pool):
            return False
        if not self.found:
            self._improve()
        self.complete = not self.late()
        return self.late()

    def ceiling_s(self) -> float:
        """The step time that the next answer must be below; infinite until enough were found."""
        return self.found[-1].estimate.step_time_s if self.timed and len(self.found) >= self.limit else math.inf

    def _score(self) -> None:
        limit_bytes = self.question.cluster.device.memory_bytes * (1.0 + SLACK)
        ceiling = self.ceiling_s if self.cuts else _no_ceiling
        sieve = Sieve(self.space, self.question, limit_bytes)
        self.unfit += sieve.refused
        for layout, orders in sieve.layouts(ceiling if self.cuts else None):
            scored = layout_scores(layout, orders, ceiling, limit_bytes=limit_bytes, fewest=self.timed)
            for number, scores in enumerate(scored, start=1):
                self.scored += scores.scored
                self.unfit += scores.refused
                self.pool.add(layout, scores, ceiling())
                if self.cuts and number % _IMPROVE_EVERY == 0:
                    self._improve()
                if self._stops():
                    return
            if self.cuts:
                self._improve()

    def _improve(self) -> None:
        """Run what looks best so far, so that the ceiling falls."""
        self.pool.close(self.ceiling_s() if self.cuts else math.inf)
        for split in self.space.options["split"]:
            lowest = self.pool.lowest(_PROBES, split)
            self.pool.refine_some(lowest)
            ranked = lowest[np.argsort(self.pool.bound_s[lowest], kind="stable")]
            for index in ranked[: self.limit].tolist():
                if self.pool.bound_s[index] < self.ceiling_s() and not self.late():
                    self._open(index)
            for _ in range(2 * self.limit):
                if self.heap and self.heap[0].bound_s < self.ceiling_s() and not self.late():
                    self._go(heapq.heappop(self.heap))

    def _best_first(self) -> Searched:
        while True:
            least = self._least()
            if least is None or (len(self.found) >= self.limit and not _less(least, self.found[-1].key)):
                return self._result(None)
            if self.late():
                return self._result(least)
            if self.heap and self.heap[0].key <= least:
                self._go(heapq.heappop(self.heap))
            else:
                self._open(self.order[self.next])
                self.next += 1

    def _least(self) -> tuple[float, ...] | None:
        """The least key that anything not yet run could have."""
        waiting = self.heap[0].key if self.heap else None
        if self.next >= len(self.order):
            return waiting
        index = self.order[self.next]
        cheap = self.objective.key(float(self.pool.bound_s[index]), float(self.pool.memory_bytes[index]))
        return cheap if waiting is None else min(waiting, cheap)

    def _open(self, index: int) -> None:
        """Cost what an entry of the pool stands for, once; it then waits to be run."""
        pool = self.pool
        name, layers = pool.name(index), int(pool.layers[index])
        if name in self.done:
            return
        self.done.add(name)
        bound_s, memory_bytes = float(pool.bound_s[index]), float(pool.memory_bytes[index])
        if layers == FITTED:
            self._open_fitted(name, bound_s, memory_bytes)
            return
        if pool.split(name) == "even":
            key = self.objective.key(bound_s, memory_bytes)
            self._wait(_Waiting(key, name, layers, bound_s, memory_bytes, pool.strategy(name, layers), None))
            return
        for number in self._numbers(name, layers):
            balanced = self._balanced(name, number)
            if balanced is not None:
                least_s = max(balanced[1], bound_s)
                key = self.objective.key(least_s, memory_bytes)
                self._wait(_Waiting(key, name, number, least_s, memory_bytes, balanced[0], None))

    def _open_fitted(self, name: Name, bound_s: float, memory_bytes: float) -> None:
        """As `_open`, with the fewest layers of each stage that fit. What no list says is among the other entries, but
        for one number where those were left out as no faster.
        """
        strategy, lists = self.pool.strategy(name, FITTED), False
        try:
            if self.pool.split(name) == "even":
                found, floor_s = fitted(self.question, strategy), bound_s
                lists = not self.timed or not one_stage_each(strategy)
            else:
                balance = Balance(self.question, strategy, self.pool.layer_costs(name, "full"))
                found, floor_s = fitted_on_its_split(balance, self.ceiling_s())
        except Infeasible:
            self.unfit += 1
            return
        if found.recompute == "full" and not (lists and isinstance(found.recompute_layers, int)):
            floor_s = max(floor_s, bound_s)
            key = self.objective.key(floor_s, memory_bytes)
            self._wait(_Waiting(key, name, FITTED, floor_s, memory_bytes, found, None))

    def _numbers(self, name: Name, layers: int) -> list[int]:
        """The layers to recompute of an entry with a balanced split: which split that is depends on them, and with it
        whether more are slower.
        """
        partial, whole = self.pool.numbers(name)
        if layers < 0 or (not self.timed and layers in (0, whole)):
            return [layers]
        if not self.timed:
            return list(range(layers, 0, -1))
        return [number for number in (*range(layers, partial + 1), whole) if number >= layers and self._offers(number)]

    def _offers(self, layers: int) -> bool:
        return ("full" if layers else "none") in self.space.options["recompute"]

    def _balanced(self, name: Name, layers: int) -> tuple[Strategy, float] | None:
        """An entry's strategy on its balanced split, with a floor of its seconds; None where none fits or where it is
        the even one.
        """
        strategy = self.pool.strategy(name, layers)
        balance = Balance(self.question, strategy, self.pool.layer_costs(name, strategy.recompute))
        try:
            split = balance.split(named := cast("int", strategy.recompute_layers)).layers_per_stage
        except Infeasible:
            self.unfit += 1
            return None
        if split == layers_of_stages(self.space.layers, strategy.stages):
            return None
        return replace(strategy, layers_per_stage=split), balance.floor_s(split, named)

    def _wait(self, waiting: _Waiting) -> None:
        if waiting.bound_s < self.ceiling_s():
            heapq.heappush(self.heap, waiting)

    def _go(self, waiting: _Waiting) -> None:
        """Bound the most promising finely, or run it where that was done."""
        if waiting.costed is not None:
            self._simulate(waiting, waiting.costed)
            return
        self.refined += 1
        costed = self._cost(waiting.strategy)
        bound_s = max(least_step_time_s(costed), waiting.bound_s)
        key = self.objective.key(bound_s, waiting.memory_bytes)
        self._wait(replace(waiting, key=key, bound_s=bound_s, costed=costed))

    def _simulate(self, waiting: _Waiting, costed: Costed) -> None:
        self.engine_runs += 1
        question, strategy = self.question, waiting.strategy
        answer = summarise(
            question.model, question.cluster, question.run, strategy, question.framework, run_costed(costed)
        )
        if waiting.layers >= 0 and self.pool.split(waiting.name) == "even":
            self._go_on(waiting, answer)
        if not answer.fits:
            return
        key = self.objective.key(answer.step_time_s, answer.peak_memory_bytes)
        place = (answer.peak_memory_bytes, *(float(part) for part in (*waiting.name, waiting.layers)))
        self._insert(Found(key, place, strategy, answer, waiting.bound_s, name=waiting.name))

    def _go_on(self, waiting: _Waiting, answer: Estimate) -> None:
        """The next number of layers to recompute: one more where so many do not fit; towards the fastest of those that
        need no more memory, one less.
        """
        partial, whole = self.pool.numbers(waiting.name)
        if self.timed:
            following = waiting.layers + 1 if waiting.layers < partial else whole
            if answer.fits or waiting.layers >= whole or not self._offers(following):
                return
            memory_bytes = waiting.memory_bytes
        else:
            following, memory_bytes = waiting.layers - 1, answer.peak_memory_bytes
            if not 0 < waiting.layers <= partial or following == 0:
                return
        strategy = self.pool.strategy(waiting.name, following)
        bound_s = waiting.bound_s if self.timed else 0.0
        key = self.objective.key(bound_s, memory_bytes)
        self._wait(_Waiting(key, waiting.name, following, bound_s, memory_bytes, strategy, None))

    def _insert(self, new: Found) -> None:
        """Keep an answer among the best; one that differs in nothing but its placement joins the one there is."""
        if any(known.strategy == new.strategy for known in self.found):
            return
        for place, known in enumerate(self.found):
            if _alike(known, new):
                first, other = sorted((known, new))
                orders = tuple(dict.fromkeys((*first.also, other.strategy.order, *other.also)))
                self.found[place] = replace(first, also=orders)
                return
        insort(self.found, new)
        del self.found[self.limit :]

    def _with_placements(self, found: Found) -> Found:
        """An answer with every legal placement that runs alike."""
        base = self.pool.base(found.name)
        orders = [order for order, allowed in self.space.options["order"].items() if allowed[base]]
        others = [order for order in orders if order not in (found.strategy.order, *found.also)]
        if not others:
            return found
        mine = self._cost(found.strategy)
        alike = [order for order in others if runs_alike(mine, self._cost(replace(found.strategy, order=order)))]
        return replace(found, also=tuple(order for order in orders if order in (*found.also, *alike)))

    def _cost(self, strategy: Strategy) -> Costed:
        question = self.question
        return cost_step(question.model, question.cluster, question.run, strategy, question.framework)

    def _result(self, least: tuple[float, ...] | None) -> Searched:
        gap = 0.0 if self.complete else 1.0
        if self.complete and least is not None and self.found:
            best = self.found[0].key[0]
            gap = max((best - least[0]) / best, 0.0)
        found = tuple(self._with_placements(each) for each in self.found)
        return Searched(found=found, scored=self.scored, unfit=self.unfit, refined=self.refined,
                        engine_runs=self.engine_runs, gap=gap, complete=self.complete)  # fmt: skip


_PROBES = 256
_IMPROVE_EVERY = 48


def _no_ceiling() -> float:
    return math.inf


def _alike(one: Found, other: Found) -> bool:
    """Whether two answers differ in nothing but their placement."""
    return (one.key, one.order[0]) == (other.key, other.order[0]) and (
        replace(one.strategy, order=other.strategy.order) == other.strategy
    )


def _less(bound: tuple[float, ...], key: tuple[float, ...]) -> bool:
    """Whether a bound leaves room for something better than `key`, beyond rounding."""
    return tuple(value * (1.0 + SLACK) for value in bound) < key
