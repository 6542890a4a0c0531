"""The small engine's corners: who is named in a circle, tasks that take no time, and what is issued but once."""

from __future__ import annotations

import pytest

from simulator.errors import InputError
from simulator.schedule.tasks import Task, TaskGraph, run_tasks


def test_only_what_is_still_open_is_waited_for() -> None:
    """Task 0 runs at 0 s and `done` from 0.5 s; what waits for them too stands in the circle all the same."""
    tasks = [Task("a", 0.5), Task("a", 1.0, (0,), name="done"), Task("b", 1.0, (0, 1, 3)), Task("c", 1.0, (2,)),
             Task("c", 1.0, (1, 2, 3), name="last")]  # fmt: skip
    with pytest.raises(InputError) as refused:
        run_tasks(tasks)
    assert [problem.message for problem in refused.value.problems] == [
        "task 2 waits for task 3: the tasks wait for each other in a circle",
        "task 3 waits for task 2: the tasks wait for each other in a circle",
        "last waits for task 2, task 3: the tasks wait for each other in a circle",
    ]


def test_a_later_tasks_output_may_be_read() -> None:
    assert run_tasks([Task("a", 2.0, (1,)), Task("b", 3.0)]) == [(3.0, 5.0), (0.0, 3.0)]


def test_tasks_that_take_no_time_let_the_next_begin_at_once() -> None:
    tasks = [Task("a", 0.0), Task("a", 0.0, (0,)), Task("b", 1.0, (1,)), Task("a", 2.0, (0,))]
    assert run_tasks(tasks) == [(0.0, 0.0), (0.0, 0.0), (0.0, 1.0), (0.0, 2.0)]


def test_tasks_that_end_together_free_their_streams_together() -> None:
    """Both end at 2 s: task 3 reads both, and of the two that then wait for `a`, the one issued first goes first."""
    tasks = [Task("a", 2.0), Task("b", 2.0), Task("a", 1.0, (1,)), Task("a", 1.0, (0, 1)), Task("b", 4.0, (0,))]
    assert run_tasks(tasks) == [(0.0, 2.0), (0.0, 2.0), (2.0, 3.0), (3.0, 4.0), (2.0, 6.0)]


def test_what_needs_nothing_was_ready_from_the_start() -> None:
    """`a` is busy until 2 s; task 2 became ready at 0.5 s, task 3, issued after it, at 0 s."""
    tasks = [Task("a", 2.0), Task("b", 0.5), Task("a", 1.0, (1,)), Task("a", 1.0)]
    assert run_tasks(tasks) == [(0.0, 2.0), (0.0, 0.5), (3.0, 4.0), (2.0, 3.0)]


def test_urgency_decides_among_those_that_became_ready_together() -> None:
    tasks = [Task("a", 1.0), Task("a", 5.0, (0,), 3), Task("a", 7.0, (0,), -2), Task("a", 9.0, (0,))]
    assert run_tasks(tasks) == [(0.0, 1.0), (17.0, 22.0), (1.0, 8.0), (8.0, 17.0)]


def test_a_graph_keeps_what_it_is_given() -> None:
    graph = TaskGraph()
    assert [graph.add("a", 1.5), graph.add("b", 2.5, 0, -1, 0, -7, priority=4, name="second")] == [0, 1]
    assert graph.tasks == [Task("a", 1.5, (), 0, ""), Task("b", 2.5, (0, 0), 4, "second")]
