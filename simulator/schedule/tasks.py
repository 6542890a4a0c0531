"""A small engine for any task graph on streams: what happens inside one stage, or one rank without a pipeline.

The pipeline engine (`engine`) is this with a fixed order per rank, and much faster. Here a free stream takes, of the
tasks whose inputs are there, the one with the least (time it became ready, priority, sequence).
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from simulator.errors import InputError


@dataclass(frozen=True, slots=True)
class Task:
    """Work of `seconds` on `stream`, once all of `after` (indices of earlier or later tasks) have ended."""

    stream: str
    seconds: float
    after: tuple[int, ...] = ()
    priority: int = 0
    name: str = ""


@dataclass(slots=True)
class TaskGraph:
    """Tasks in the sequence in which they are issued."""

    tasks: list[Task] = field(default_factory=list)

    def add(self, stream: str, seconds: float, *after: int, priority: int = 0, name: str = "") -> int:
        """Appends a task and returns its index; negative indices in `after` mean "nothing"."""
        self.tasks.append(Task(stream, seconds, tuple(index for index in after if index >= 0), priority, name))
        return len(self.tasks) - 1


def run_tasks(tasks: Sequence[Task]) -> list[tuple[float, float]]:
    """(start, end) of each task in seconds.

    Raises InputError naming who waits for whom when tasks wait for each other in a circle.
    """
    missing = [len(set(task.after)) for task in tasks]
    readers: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for need in set(task.after):
            readers[need].append(index)
    queues: dict[str, list[tuple[float, int, int]]] = {task.stream: [] for task in tasks}
    free = set(queues)
    span: dict[int, tuple[float, float]] = {}
    running: list[tuple[float, int]] = []
    for index, task in enumerate(tasks):
        if not missing[index]:
            heapq.heappush(queues[task.stream], (0.0, task.priority, index))
    _begin(0.0, tasks, queues, free, (span, running))
    while running:
        time = running[0][0]
        while running and running[0][0] == time:
            _, index = heapq.heappop(running)
            free.add(tasks[index].stream)
            for reader in readers[index]:
                missing[reader] -= 1
                if not missing[reader]:
                    heapq.heappush(queues[tasks[reader].stream], (time, tasks[reader].priority, reader))
        _begin(time, tasks, queues, free, (span, running))
    stuck = [index for index in range(len(tasks)) if index not in span]
    if stuck:
        raise InputError([_waits(tasks, index, span) for index in stuck])
    return [span[index] for index in range(len(tasks))]


def _begin(
    time: float,
    tasks: Sequence[Task],
    queues: dict[str, list[tuple[float, int, int]]],
    free: set[str],
    state: tuple[dict[int, tuple[float, float]], list[tuple[float, int]]],
) -> None:
    """Every free stream takes its first ready task."""
    span, running = state
    for stream in [stream for stream in free if queues[stream]]:
        _, _, index = heapq.heappop(queues[stream])
        span[index] = (time, time + tasks[index].seconds)
        free.discard(stream)
        heapq.heappush(running, (time + tasks[index].seconds, index))


def _waits(tasks: Sequence[Task], index: int, span: Container[int]) -> str:
    open_needs = [need for need in tasks[index].after if need not in span]
    names = ", ".join(tasks[need].name or f"task {need}" for need in open_needs)
    return f"{tasks[index].name or f'task {index}'} waits for {names}: the tasks wait for each other in a circle"
