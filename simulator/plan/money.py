"""Dollars as something to minimise: the order of step times, stretched by what failures and saving cost each strategy.

A run takes steps x step time / goodput (`project/training.py`). On given devices only the goodput differs between
strategies, and it by nothing but the number of devices that write a checkpoint. So the search goes by step time, and
stops once no strategy with a longer step can be cheaper: even with the least stretch that any number of writers has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from simulator.errors import InputError
from simulator.plan.question import Question
from simulator.plan.search import Found, Searched
from simulator.plan.space import Space
from simulator.project.checkpoint import checkpoint_writers, replica_writers
from simulator.project.training import Bill, Conditions, bill
from simulator.spec.strategy import Strategy

FURTHER = 4
"""How many times as many strategies are asked for when those found do not settle it."""


class Ledger:
    """Bills of the strategies of one question."""

    def __init__(self, question: Question, tokens: float | None, conditions: Conditions | None) -> None:
        self.question, self.tokens, self.conditions = question, tokens, conditions or Conditions()
        self._stretches: dict[int, float] = {}

    def bill(self, strategy: Strategy, step_time_s: float) -> Bill:
        """What training takes under a strategy. Raises InputError where failures leave no progress."""
        question = self.question
        return bill(question.model, question.cluster, question.run, strategy, step_time_s=step_time_s,
                    tokens=self.tokens, conditions=self.conditions, framework=question.framework)  # fmt: skip

    def stretch_factor(self, strategy: Strategy) -> float:
        """Days with failures over days without; infinite where failures leave no progress."""
        writers = checkpoint_writers(strategy)
        if writers not in self._stretches:
            try:
                paid = self.bill(strategy, 1.0)
                self._stretches[writers] = paid.days / paid.ideal_days
            except InputError:
                self._stretches[writers] = math.inf
        return self._stretches[writers]

    def least_stretch_factor(self, space: Space) -> float:
        """The least stretch of any strategy of a space."""
        degrees = space.columns(space.rows())
        writers = replica_writers(degrees["tp"], degrees["pp"], degrees["ep"], degrees["etp"])
        _, first = np.unique(writers, return_index=True)
        few = [
            Strategy(tp=int(degrees["tp"][row]), pp=int(degrees["pp"][row]), dp=int(degrees["dp"][row]),
                     cp=int(degrees["cp"][row]), ep=int(degrees["ep"][row]), etp=int(degrees["etp"][row]))
            for row in first.tolist()
        ]  # fmt: skip
        every = Strategy(dp=self.question.cluster.devices, zero=1)
        return min(self.stretch_factor(strategy) for strategy in (every, *few))


def cheapest(
    search_s: Callable[[int, float], Searched], ledger: Ledger, least_factor: float, *, limit: int, time_limit_s: float
) -> Searched:
    """The `limit` strategies that cost least, from searches by step time: `search_s(limit, time limit [s])`."""
    deadline = time.monotonic() + time_limit_s
    asked = limit
    while True:
        searched = search_s(asked, max(deadline - time.monotonic(), 0.0))
        if not searched.found:
            return searched
        ranked = sorted(searched.found, key=lambda found: (_cost(found, ledger), found))
        slowest_s = searched.found[-1].estimate.step_time_s
        least = least_factor * (1.0 - searched.gap) * (slowest_s if searched.gap == 0.0 else searched.found[0].key[0])
        settled = len(searched.found) < asked or _cost(ranked[limit - 1], ledger) <= least
        if (settled and searched.gap == 0.0) or time.monotonic() >= deadline:
            gap = 0.0 if settled and searched.gap == 0.0 else max(0.0, 1.0 - least / _cost(ranked[0], ledger))
            return replace(searched, found=tuple(ranked[:limit]), gap=gap)
        asked *= FURTHER


def _cost(found: Found, ledger: Ledger) -> float:
    """What is proportional to the dollars of a strategy."""
    return found.estimate.step_time_s * ledger.stretch_factor(found.strategy)
