"""How tight the planner's bounds are: in how many of 60 drawn pipelines the engine takes exactly the bound, never less.

A bound that is too low makes the planner slower, and none of the properties sees it. The counts are of these drawn
pipelines with whole-second stages and sends.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule.bounds import FUSED, lower_bound_by_class_s, lower_bound_s
from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.make import make_order

CASES = 60


def _engine_s(name: str, sizes: dict[str, int], forward: Any, backward: Any, transfers: Transfers) -> float:
    """Half of the backward is weight gradients where the schedule splits it."""
    late = np.asarray(backward) * (0.0 if name in FUSED else 0.5)
    durations = Durations(forward_s=forward, input_grad_s=backward - late, weight_grad_s=late)
    return float(simulate(make_order(name, **sizes), durations, transfers).makespan_s)


def _drawn(name: str, vp: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    for _ in range(CASES):
        sizes = {"pp": int(rng.choice([2, 4])), "vp": vp, "micro_batches": int(rng.choice([8, 12, 16]))}
        stages = sizes["pp"] * vp
        forward, backward = rng.integers(1, 6, stages).astype(float), rng.integers(1, 9, stages).astype(float)
        sends = [rng.integers(0, 3, stages - 1).astype(float) for _ in range(2)]
        yield sizes, forward, backward, sends


TIGHT = [
    ("gpipe", 1, False, 59, 39), ("gpipe", 1, True, 18, 6), ("1f1b", 1, False, 24, 25), ("1f1b", 1, True, 31, 9),
    ("eager-1f1b", 1, False, 43, 42), ("eager-1f1b", 1, True, 38, 12), ("interleaved", 2, False, 11, 2),
    ("interleaved", 2, True, 8, 4), ("interleaved-bfs", 2, False, 28, 9), ("interleaved-bfs", 2, True, 5, 1),
    ("zb-h1", 1, False, 19, 1), ("zb-h2", 1, False, 42, 12), ("zbv", 2, False, 14, 11), ("v-half", 2, False, 0, 0),
    ("v-min", 2, False, 0, 0), ("dualpipe", 1, False, 3, 3), ("dualpipev", 2, False, 5, 5), ("chimera", 1, False, 3, 3),
]  # fmt: skip
"""Schedule, virtual stages, blocking sends, and how many bounds are met: of unequal stages, of classes of them."""


@pytest.mark.parametrize(("name", "vp", "blocking", "tight", "_"), TIGHT)
def test_bounds_of_unequal_stages_are_met(name: str, vp: int, blocking: bool, tight: int, _: int) -> None:
    met = 0
    for sizes, forward, backward, (ahead, back) in _drawn(name, vp, seed=1):
        sends = Transfers(forward_s=ahead, backward_s=back, blocking=blocking)
        engine_s = _engine_s(name, sizes, forward, backward, sends)
        bound = lower_bound_s(name, forward_s=forward, backward_s=backward, send_forward_s=ahead, send_backward_s=back,
                              blocking=blocking, **sizes)  # fmt: skip
        assert float(bound) <= engine_s + 1e-9
        met += float(bound) >= engine_s - 1e-9
    assert met >= tight


@pytest.mark.parametrize(("name", "vp", "blocking", "_", "tight"), TIGHT)
def test_bounds_of_first_middle_and_last_stages_are_met(
    name: str, vp: int, blocking: bool, _: int, tight: int
) -> None:
    met, columns = 0, []
    for sizes, forward, backward, (ahead, back) in _drawn(name, vp, seed=1):
        forward[1:-1], backward[1:-1] = forward[1], backward[1]
        sends = Transfers(forward_s=ahead[0], backward_s=back[0], blocking=blocking)
        engine_s = _engine_s(name, sizes, forward, backward, sends)
        whole = forward + backward
        seconds = {"first_s": whole[0], "middle_s": whole[1] if len(whole) > 2 else 5.0, "last_s": whole[-1],
                   "send_s": ahead[0] + back[0], **sizes}  # fmt: skip
        bound = float(lower_bound_by_class_s(name, blocking=blocking, **seconds))
        full = lower_bound_s(name, forward_s=forward, backward_s=backward, send_forward_s=ahead[0],
                             send_backward_s=back[0], blocking=blocking, **sizes)  # fmt: skip
        assert bound <= min(engine_s, float(full)) + 1e-9
        met += bound >= engine_s - 1e-9
        columns.append((seconds, bound))
    assert met >= tight
    stacked = {field: np.array([seconds[field] for seconds, _ in columns]) for field in columns[0][0]}
    found = lower_bound_by_class_s(name, blocking=blocking, **stacked)
    assert found.tolist() == pytest.approx([bound for _, bound in columns], rel=1e-12)


@pytest.mark.parametrize("name", [case[0] for case in TIGHT if not case[2]])
def test_bounds_broadcast_over_stages_and_micro_batches(name: str) -> None:
    vp = 2 if name in ("interleaved", "interleaved-bfs", "zbv", "v-half", "v-min", "dualpipev") else 1
    rng = np.random.default_rng(3)
    forward, backward = rng.integers(1, 6, (5, 4 * vp)), rng.integers(1, 9, (5, 4 * vp))
    micro_batches, sends = np.array([8, 12, 9, 16, 20]), rng.integers(0, 3, (5, 4 * vp - 1))
    many = lower_bound_s(name, forward_s=forward, backward_s=backward, pp=4, vp=vp, micro_batches=micro_batches,
                         send_forward_s=sends)  # fmt: skip
    each = [float(lower_bound_s(name, forward_s=forward[i], backward_s=backward[i], pp=4, vp=vp,
                                micro_batches=int(micro_batches[i]), send_forward_s=sends[i])) for i in range(5)]
    assert many.tolist() == each


@pytest.mark.parametrize("name", [case[0] for case in TIGHT if not case[2]])
def test_one_stage_is_its_own_bound(name: str) -> None:
    """First + last - middle: what a stage with both ends works, in every micro-batch."""
    if name in ("dualpipe", "chimera", "zbv", "v-half", "v-min", "dualpipev"):
        found = lower_bound_by_class_s(name, first_s=3.0, middle_s=2.0, last_s=7.0, pp=1, vp=1, micro_batches=5)
        assert found == 5 * {True: 5.0, False: 10.0}[name in ("dualpipe", "chimera")]
    else:
        found = lower_bound_by_class_s(name, first_s=3.0, middle_s=2.0, last_s=7.0, pp=1, micro_batches=5)
        assert found == 5 * 8.0
        assert lower_bound_s(name, forward_s=[3.0], backward_s=[5.0], pp=1, micro_batches=5) == 5 * 8.0


@pytest.mark.parametrize("bound", [lower_bound_s, lower_bound_by_class_s])
def test_bounds_of_no_schedule_are_refused(bound: Any) -> None:
    names = ("first_s", "middle_s", "last_s") if bound is lower_bound_by_class_s else ("forward_s", "backward_s")
    with pytest.raises(InputError, match=r"unknown schedule 'gpip'\. Did you mean gpipe"):
        bound("gpip", pp=2, micro_batches=4, **dict.fromkeys(names, 1.0))
