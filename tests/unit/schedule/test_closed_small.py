"""The closed forms at small sizes, all at once: against the engine, as arrays, and refused where they do not hold."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule.closed import peak_in_flight, step_time_s
from simulator.schedule.engine import Durations, simulate
from simulator.schedule.make import check_sizes, make_order
from simulator.spec.strategy import SCHEDULES

GENERAL = {"gpipe", "1f1b", "eager-1f1b", "interleaved", "interleaved-bfs"}


def _sizes(schedule: str) -> list[tuple[int, int, int]]:
    found = []
    for p in (1, 2, 3, 4, 6):
        for v in (1, 2, 3):
            for m in (1, 2, 3, 4, 5, 6, 8, 12, 13):
                try:
                    check_sizes(schedule, pp=p, micro_batches=m, vp=v)
                except InputError:
                    continue
                found.append((p, m, v))
    return found


def _seconds(schedule: str) -> tuple[float, float, float]:
    if schedule in GENERAL:
        return 3.0, 5.0, 2.5
    return (3.0, 2.0, 1.5) if schedule == "chimera" else (2.0, 2.0, 2.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_small_pipelines_take_the_closed_form_and_hold_its_micro_batches(schedule: str) -> None:
    f, b, w = _seconds(schedule)
    sizes = _sizes(schedule)
    columns = {name: np.array(column) for name, column in zip(("pp", "micro_batches", "vp"), zip(*sizes, strict=True),
                                                              strict=True)}  # fmt: skip
    found = step_time_s(schedule, forward_s=f, input_grad_s=b, weight_grad_s=w, **columns)
    held = peak_in_flight(schedule, rank=columns["pp"] - 1, **columns)
    for (p, m, v), seconds, last in zip(sizes, found.tolist(), held.tolist(), strict=True):
        order = make_order(schedule, pp=p, micro_batches=m, vp=v)
        assert (order.schedule, order.pp, order.vp, order.micro_batches) == (schedule, p, v, m)
        line = simulate(order,
                        Durations(forward_s=f, input_grad_s=b, weight_grad_s=w))  # fmt: skip
        assert line.makespan_s == pytest.approx(seconds, rel=1e-12), (p, m, v)
        each = peak_in_flight(schedule, pp=p, micro_batches=m, rank=np.arange(p), vp=v)
        if schedule in ("v-half", "v-min"):
            assert (line.in_flight.max(), last) == (each.max(), each[-1]), (p, m, v)
        else:
            assert (line.in_flight.tolist(), last) == (each.tolist(), each[-1]), (p, m, v)


def test_groups_of_micro_batches_widen_the_interleaved_warm_up() -> None:
    for group in (2, 4, 8):
        order = make_order("interleaved", pp=2, micro_batches=8, vp=3, group_size=group)
        line = simulate(order, Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0))
        found = peak_in_flight("interleaved", pp=2, micro_batches=8, rank=np.arange(2), vp=3, group_size=group)
        assert found.tolist() == line.in_flight.tolist()
    groups = np.array([0, 4])
    assert peak_in_flight("interleaved", pp=2, micro_batches=8, rank=0, vp=3, group_size=groups).tolist() == [7, 11]


@pytest.mark.parametrize(
    ("seconds", "longest"), [((2.0, 3.0, 2.5), 3.0), ((3.0, 2.0, 1.0), 4.0), ((5.0, 2.0, 4.0), 5.0)]
)
def test_zb_h1_waits_for_the_longest_of_its_three_cases(seconds: tuple[float, float, float], longest: float) -> None:
    """B, F + B - W and F is the longest in turn; p - 1 ranks wait for it once (Qi et al. 2023, table 2)."""
    f, b, w = seconds
    found = step_time_s("zb-h1", forward_s=f, input_grad_s=b, weight_grad_s=w, pp=5, micro_batches=20)
    assert found == 20 * (f + b + w) + 4 * longest


@pytest.mark.parametrize(
    ("schedule", "seconds", "pp", "micro_batches", "rule"),
    [("chimera", (4.0, 2.0, 1.0), 4, 4, "F <= B + W"), ("zb-h1", (1.0, 1.0, 2.0), 4, 3,
     "F = B = W when there are fewer"),
     ("zb-h1", (1.0, 2.0, 1.0), 4, 3, "F = B = W when"),
     *((name, seconds, 4, 16, "F = B = W") for name in ("zb-h2", "zbv", "v-half", "v-min", "dualpipe", "dualpipev")
       for seconds in ((1.0, 2.0, 1.0), (1.0, 1.0, 2.0)))],
)  # fmt: skip
def test_cases_without_a_closed_form_are_refused(
    schedule: str, seconds: Any, pp: int, micro_batches: int, rule: str
) -> None:
    f, b, w = seconds
    with pytest.raises(InputError, match=re.escape(f"the closed form of {schedule} holds for {rule}")):
        step_time_s(schedule, forward_s=f, input_grad_s=b, weight_grad_s=w, pp=pp, micro_batches=micro_batches)


@pytest.mark.parametrize("seconds", [(1.0, 1.0 + 1e-9, 1.0), (1.0, 1.0, 1.0 + 1e-9)])
def test_nearly_equal_is_not_equal_but_rounding_is(seconds: tuple[float, float, float]) -> None:
    f, b, w = seconds
    with pytest.raises(InputError, match="F = B = W"):
        step_time_s("zbv", forward_s=f, input_grad_s=b, weight_grad_s=w, pp=4, micro_batches=16, vp=2)
    tenths = {"forward_s": 0.3, "input_grad_s": 0.1 + 0.2, "weight_grad_s": 0.3}
    assert step_time_s("zbv", pp=4, micro_batches=16, vp=2, **tenths) == pytest.approx(0.3 * (16 * 2 * 3 + 3))


def test_a_rank_has_one_stage_unless_said_otherwise() -> None:
    """No more than all micro-batches: 2 of one stage, 4 of two."""
    assert peak_in_flight("1f1b", pp=8, micro_batches=2, rank=0) == 2
    assert peak_in_flight("interleaved", pp=2, micro_batches=2, rank=0, vp=2) == 4


def test_cases_at_the_edge_have_a_closed_form() -> None:
    edge = {"forward_s": 3.0, "input_grad_s": 2.0, "weight_grad_s": 1.0, "pp": 4}
    assert step_time_s("chimera", micro_batches=4, **edge) == 4 * 6 + 2 * 3
    assert step_time_s("zb-h1", micro_batches=4, **edge) == 4 * 6 + 3 * 4
    with pytest.raises(InputError, match="unknown schedule 'zb-h3'"):
        step_time_s("zb-h3", micro_batches=4, **edge)
    with pytest.raises(InputError, match="unknown schedule 'zb-h3'"):
        peak_in_flight("zb-h3", pp=4, micro_batches=4, rank=0)
