"""Best first: the engine runs strategies in the order of their bounds until no bound beats what was found.

Every strategy has a cheap bound (`plan/score.py`). The one with the least is bounded again, finely; once a finely
bounded strategy is the least of all, the engine runs it. When the least remaining bound is no better than the worst
answer kept, nothing unrun can be better: the answers are the optimum under the engine.
"""

from __future__ import annotations

import heapq
import time
from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.estimate import Costed, cost_step, run_costed, summarise
from simulator.plan.bounds import least_step_time_s
from simulator.plan.score import Question, Scores
from simulator.plan.space import Space
from simulator.result import Estimate
from simulator.spec.strategy import Strategy

Floats = npt.NDArray[np.float64]
SLACK = 1e-9
"""Relative rounding that a bound over arrays may have against the scalar run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimised: a key with the step time last, so that ties go to the faster. Bounds give keys too."""

    name: str
    key: Callable[[float, float], tuple[float, ...]]
    """(step time [s], peak memory [B]) to what is minimised."""


OBJECTIVES = {
    "step_time": Objective(name="step_time", key=lambda step_s, _memory: (step_s,)),
    "tokens_per_s": Objective(name="tokens_per_s", key=lambda step_s, _memory: (step_s,)),
    "memory": Objective(name="memory", key=lambda step_s, memory: (memory, step_s)),
}
"""On a given number of devices tokens/s, dollars and days follow the step time."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Candidates:
    """Strategies that fit, as flat columns; `group` points into `chosen`."""

    chosen: tuple[Mapping[str, Any], ...]
    group: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]
    bound_s: Floats
    memory_bytes: Floats
    bounded: int
    """Strategies scored in all."""

    def __len__(self) -> int:
        return len(self.rows)


def fitting(scores: Iterable[Scores], limit_bytes: float) -> Candidates:
    """Those that can fit."""
    chosen: list[Mapping[str, Any]] = []
    columns: list[tuple[Any, ...]] = []
    bounded = 0
    for scored in scores:
        bounded += len(scored.rows)
        fits = scored.memory_bytes <= limit_bytes * (1.0 + SLACK)
        if fits.any():
            columns.append((np.full(int(fits.sum()), len(chosen), np.int32), scored.rows[fits], scored.bound_s[fits],
                            scored.memory_bytes[fits]))  # fmt: skip
            chosen.append(scored.chosen)
    none = (np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    group, rows, bound, memory = (np.concatenate(column) for column in zip(none, *columns, strict=True))
    return Candidates(chosen=tuple(chosen), group=group, rows=rows, bound_s=bound, memory_bytes=memory, bounded=bounded)


@dataclass(order=True, slots=True)
class Found:
    """A strategy that the engine ran and that fits."""

    key: tuple[float, ...]
    order: tuple[float, ...]
    """Ties: less memory, then the order of the space."""
    strategy: Strategy = field(compare=False)
    estimate: Estimate = field(compare=False)
    bound_s: float = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What a search found, best first, and how far it went."""

    found: tuple[Found, ...]
    refined: int
    engine_runs: int
    gap: float


def search(
    space: Space, question: Question, candidates: Candidates, objective: Objective, *, limit: int, time_limit_s: float
) -> Searched:
    """The `limit` best strategies. With `time_limit_s` (seconds) the best so far, and the gap."""
    return _Search(space, question, candidates, objective, limit).run(time.monotonic() + time_limit_s)


class _Search:
    def __init__(
        self, space: Space, question: Question, candidates: Candidates, objective: Objective, limit: int
    ) -> None:
        self.space, self.question, self.candidates = space, question, candidates
        self.objective, self.limit = objective, limit
        self.found: list[Found] = []
        self.refined = self.engine_runs = 0
        self.heap: list[tuple[tuple[float, ...], int, float, Costed]] = []
        keys = objective.key(0.0, 1.0)
        bound, memory = candidates.bound_s, candidates.memory_bytes
        self.order = (np.lexsort((bound, memory)) if len(keys) > 1 else np.argsort(bound, kind="stable")).tolist()
        self.next = 0

    def run(self, deadline: float) -> Searched:
        while True:
            least = self._least()
            if least is None or (len(self.found) >= self.limit and not _less(least, self.found[-1].key)):
                return self._result(None)
            if self.found and time.monotonic() > deadline:
                return self._result(least)
            if self.heap and self.heap[0][0] <= least:
                self._simulate(*heapq.heappop(self.heap)[1:])
            else:
                self._refine(self.order[self.next])
                self.next += 1

    def _least(self) -> tuple[float, ...] | None:
        """The least key that anything not yet run could have."""
        waiting = self.heap[0][0] if self.heap else None
        if self.next >= len(self.order):
            return waiting
        index = self.order[self.next]
        cheap = self.objective.key(float(self.candidates.bound_s[index]), float(self.candidates.memory_bytes[index]))
        return cheap if waiting is None else min(waiting, cheap)

    def _refine(self, index: int) -> None:
        self.refined += 1
        candidates, question = self.candidates, self.question
        strategy = self.space.strategy(int(candidates.rows[index]), candidates.chosen[candidates.group[index]])
        costed = cost_step(question.model, question.cluster, question.run, strategy, question.framework)
        bound = max(least_step_time_s(costed), float(candidates.bound_s[index]))
        key = self.objective.key(bound, float(candidates.memory_bytes[index]))
        heapq.heappush(self.heap, (key, index, bound, costed))

    def _simulate(self, index: int, bound_s: float, costed: Costed) -> None:
        self.engine_runs += 1
        question, strategy = self.question, costed.setting.strategy
        answer = summarise(
            question.model, question.cluster, question.run, strategy, question.framework, run_costed(costed)
        )
        if not answer.fits:
            return
        key = self.objective.key(answer.step_time_s, answer.peak_memory_bytes)
        place = (answer.peak_memory_bytes, float(index))
        insort(self.found, Found(key, place, strategy, answer, bound_s))
        del self.found[self.limit :]

    def _result(self, least: tuple[float, ...] | None) -> Searched:
        gap = 0.0
        if least is not None and self.found:
            best = self.found[0].key[0]
            gap = max((best - least[0]) / best, 0.0)
        return Searched(found=tuple(self.found), refined=self.refined, engine_runs=self.engine_runs, gap=gap)


def _less(bound: tuple[float, ...], key: tuple[float, ...]) -> bool:
    """Whether a bound leaves room for something better than `key`, beyond rounding."""
    return tuple(value * (1.0 + SLACK) for value in bound) < key
