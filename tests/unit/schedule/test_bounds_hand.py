"""Bounds of small pipelines, added up by hand: each with the way, the work or the sends that binds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.schedule.bounds import FUSED, lower_bound_by_class_s, lower_bound_s
from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.make import make_order


def _engine_s(name: str, work: Any, sizes: dict[str, int], *, send_s: float = 0.0, blocking: bool = False) -> float:
    """A stage's seconds, half of them forward, in orders that split it a quarter each for the two gradients."""
    half, late = np.asarray(work) / 2, np.asarray(work) * (0.0 if name in FUSED else 0.25)
    durations = Durations(forward_s=half, input_grad_s=half - late, weight_grad_s=late)
    transfers = Transfers(forward_s=send_s / 2, backward_s=send_s / 2, blocking=blocking)
    return float(simulate(make_order(name, **sizes), durations, transfers).makespan_s)


def _sizes(pp: int, micro_batches: int, vp: int = 1) -> dict[str, int]:
    return {"pp": pp, "micro_batches": micro_batches, "vp": vp}


CLASSES = [
    # Folded: rank 0 holds the first and the last stage, the others two middle ones each, if there are others.
    ("zbv", _sizes(2, 4, 2), (1, 5, 2), 0, 4 * (5 + 5)),
    ("zbv", _sizes(2, 4, 2), (8, 5, 7), 0, 4 * (8 + 7)),
    # Both ways: a rank does half of the work of a stage and half of its mirror's.
    ("dualpipe", _sizes(4, 8), (1, 5, 2), 0, 8 * 5),
    ("dualpipe", _sizes(4, 8), (9, 5, 4), 0, 8 * (9 + 4) / 2),
    ("dualpipe", _sizes(2, 4), (0.25, 5, 0.5), 0, 4 * 0.75 / 2),
    # Split backwards: the rank of the first or of the last stage, or one of middle stages alone, from three ranks on.
    ("zb-h1", _sizes(2, 4, 2), (1, 10, 4), 0, 4 * (4 + 10)),
    ("zb-h1", _sizes(2, 3), (0.25, 10, 0.5), 0, 3 * 0.5),
    ("zb-h1", _sizes(3, 3), (1, 10, 4), 0, 3 * 10),
    ("zb-h1", _sizes(3, 6, 2), (1, 10, 4), 0, 6 * 2 * 10),
    # Fused: the way to the last rank and all its work; the way to a middle one and all its.
    ("gpipe", _sizes(2, 3), (3, 50, 5), 0, 3 + 3 * 5),
    ("1f1b", _sizes(3, 4), (1, 10, 1), 0, 1 + 4 * 10),
    ("1f1b", _sizes(4, 5), (1, 10, 1), 0, 1 + 10 + 5 * 10),
    # GPipe: the way there and back and the slowest rank m - 1 times.
    ("gpipe", _sizes(3, 4), (1, 10, 1), 0, 1 + 10 + 1 + 3 * 10),
    ("gpipe", _sizes(2, 5), (1, 50, 1), 6, 1 + 6 + 1 + 4 * 1),
    # 1F1B: two micro-batches in flight at rank 0, eager three: as many times the way there and back, 1 + 6 + 1.
    ("1f1b", _sizes(2, 5), (1, 50, 1), 6, 3 * 8),
    ("eager-1f1b", _sizes(2, 5), (1, 50, 1), 6, 2 * 8),
    ("eager-1f1b", _sizes(2, 4), (1, 50, 1), 6, 2 * 8),
    # Two stages a rank: the way to rank 1, four times both of its stages.
    ("interleaved", _sizes(2, 4, 2), (1, 1, 1), 3, 1 + 3 + 4 * 2),
    # 3 of 4 activations and gradients between the ranks' chunks, the port's work.
    ("interleaved", _sizes(2, 4, 2), (1, 1, 1), 10, 3 * 10),
]


@pytest.mark.parametrize(("name", "sizes", "seconds", "send_s", "bound"), CLASSES)
def test_bounds_of_a_first_middle_and_last_stage(
    name: str, sizes: dict[str, int], seconds: tuple[float, float, float], send_s: float, bound: float
) -> None:
    first, middle, last = seconds
    given = {"first_s": first, "middle_s": middle, "last_s": last, **sizes}
    assert lower_bound_by_class_s(name, send_s=send_s, **given) == bound
    if not send_s:
        assert lower_bound_by_class_s(name, **given) == bound
    stages = sizes["pp"] * sizes["vp"]
    work = [first, *[middle] * (stages - 2), last]
    assert bound <= _engine_s(name, work, sizes, send_s=send_s) + 1e-9


def test_blocking_sends_add_to_a_rank_s_work() -> None:
    """Two ranks of two stages: the way of 4 s, 8 s of work, and 3 of 4 sends of 3 s; asynchronous ones hide."""
    seconds = {"first_s": 1.0, "middle_s": 1.0, "last_s": 1.0, "send_s": 3.0, **_sizes(2, 4, 2)}
    assert lower_bound_by_class_s("interleaved", **seconds) == 4 + 8
    assert lower_bound_by_class_s("interleaved", blocking=True, **seconds) == 4 + 8 + 3 * 3
    assert _engine_s("interleaved", [1.0] * 4, _sizes(2, 4, 2), send_s=3.0, blocking=True) >= 4 + 8 + 3 * 3
    # 1F1B: rank 0 has two in flight: twice round in 1 + 2 + 1 + 1 + 2 + 1 s each, and one backward more; rank 1 waits
    # 3 s, works 8 s, sends 3 times and has the way back of 3 s.
    given: dict[str, Any] = {"forward_s": [1.0, 1.0], "backward_s": [1.0, 1.0], "pp": 2, "micro_batches": 4}
    sends = {"send_forward_s": 2.0, "send_backward_s": 2.0}
    assert lower_bound_s("1f1b", **given, **sends) == 2 * 8 + 1
    assert lower_bound_s("1f1b", **given, **sends, blocking=True) == 3 + 8 + 3 * 2 + 3
    assert lower_bound_s("1f1b", **given) == (4 + 1) * 2


@pytest.mark.parametrize(
    ("name", "micro_batches", "backward", "bound"),
    [
        # Three in flight at rank 0: 7 micro-batches go round three times, an eighth is one backward more.
        ("eager-1f1b", 7, 1.0, 3 * 8.0),
        ("eager-1f1b", 8, 1.0, 3 * 8.0 + 1.0),
        ("eager-1f1b", 8, 0.5, 3 * 7.0 + 0.5),
        # Two in flight.
        ("1f1b", 7, 1.0, 4 * 8.0),
        ("1f1b", 8, 0.5, 4 * 7.0 + 0.5),
    ],
)
def test_what_is_in_flight_goes_round_again_and_again(
    name: str, micro_batches: int, backward: float, bound: float
) -> None:
    """Two ranks of F = 1 s, sends of 2 s each way: a round of 2 F + 2 BW + 4 s."""
    seconds: dict[str, Any] = {"forward_s": [1.0, 1.0], "backward_s": [backward] * 2}
    found = lower_bound_s(name, pp=2, micro_batches=micro_batches, send_forward_s=2.0, send_backward_s=2.0, **seconds)
    assert found == bound
    line = simulate(make_order(name, pp=2, micro_batches=micro_batches),
                    Durations(forward_s=1.0, input_grad_s=backward),
                    Transfers(forward_s=2.0, backward_s=2.0))  # fmt: skip
    assert line.makespan_s >= bound
    if micro_batches == 7:
        assert line.makespan_s == bound


def test_groups_of_micro_batches_fill_the_way_to_later_chunks() -> None:
    """Two ranks, chunks of 1 + 1 s and 5 + 5 s: the first micro-batch is at rank 1's second chunk after 1 + 1 + 5 s.

    Until then rank 1 has a group's first chunks to do, and waits for the rest, but at least for the 1 s of rank 0. The
    way back is the mirror of it.
    """
    seconds: dict[str, Any] = {"forward_s": [1.0, 1.0, 5.0, 5.0], "backward_s": [1.0, 1.0, 5.0, 5.0]}
    for group, waits in ((2, 7 - 2), (4, 7 - 4), (8, 1)):
        order = make_order("interleaved", pp=2, vp=2, micro_batches=8, group_size=group)
        engine_s = simulate(order, Durations(forward_s=seconds["forward_s"],
                                             input_grad_s=seconds["backward_s"])).makespan_s  # fmt: skip
        found = lower_bound_s("interleaved", pp=2, vp=2, micro_batches=8, group_size=group, **seconds)
        assert found == waits + 8 * 12 + waits
        assert found <= engine_s
    groups = lower_bound_s("interleaved", pp=2, vp=2, micro_batches=8, group_size=np.array([0, 2, 4]), **seconds)
    assert groups.tolist() == [106, 106, 102]


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("many", ["forward_s", "backward_s", "send_forward_s", "send_backward_s", "micro_batches", ""])
def test_bounds_of_many_strategies_are_those_of_each(name: str, blocking: bool, many: str) -> None:
    """One of the arguments has a row for each of three strategies, the others one for all; or all have three rows."""
    vp = 2 if name.startswith("interleaved") else 1
    stages, rng = 2 * vp, np.random.default_rng(5)
    whole: dict[str, Any] = {
        "forward_s": rng.integers(1, 6, (3, stages)).astype(float),
        "backward_s": rng.integers(1, 9, (3, stages)).astype(float),
        "send_forward_s": rng.integers(0, 9, (3, stages - 1)).astype(float),
        "send_backward_s": rng.integers(0, 9, (3, stages - 1)).astype(float),
        "micro_batches": np.array([8, 6, 4]),
    }
    given = {field: values if many in (field, "") else values[0] for field, values in whole.items()}
    found = lower_bound_s(name, pp=2, vp=vp, blocking=blocking, **given)
    each = [lower_bound_s(name, pp=2, vp=vp, blocking=blocking,
                          **{field: values[i] if many in (field, "") else values[0] for field, values in whole.items()})
            for i in range(3)]  # fmt: skip
    assert found.tolist() == [float(one) for one in each]
