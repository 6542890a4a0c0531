"""What a benchmark is, and how it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One thing to time.

    `prepare` does the set-up and returns the call to time. The call may return the seconds that it wants counted (a
    child process's CPU time); else its own CPU time counts. `target_s` is the most that one call should take [s].
    """

    name: str
    prepare: Callable[[], Callable[[], float | None]]
    target_s: float = 0.0
    work: float = 0.0
    """What one call works through, for a rate; 0 is none."""
    unit: str = ""
    """What `work` counts: strategies, tasks, rows."""
    calls: int = 0
    """Calls per round; 0 is as many as fill a fifth of a second."""


def cpu_s(call: Callable[[], float | None]) -> float:
    """CPU seconds of one call, or what the call says."""
    start = time.process_time()
    said = call()
    spent = time.process_time() - start
    return spent if said is None else said


def best_s(call: Callable[[], float | None], *, calls: int = 0, rounds: int = 5) -> float:
    """Least CPU seconds per call over some rounds: the round that other work on the machine disturbed least."""
    once = cpu_s(call)
    count = calls or max(1, min(10_000, int(0.2 / max(once, 1e-7))))
    return min(sum(cpu_s(call) for _ in range(count)) / count for _ in range(rounds))
