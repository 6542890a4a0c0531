"""The dynamic programme of layer splits equals HiGHS, a mixed-integer solver, on random cases with memory limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from simulator.errors import Infeasible, InputError
from simulator.plan.partition import split_layers


def _highs(times, sizes, extra_s, extra_bytes, limit) -> float | None:
    """Least slowest stage: x[l, s] = 1 puts layer l on stage s; stages are contiguous and in order."""
    layers, stages = len(times), len(extra_s)
    count = layers * stages + 1
    rows, low, high = [], [], []

    def add(row, least, most) -> None:
        rows.append(row)
        low.append(least)
        high.append(most)

    for layer in range(layers):
        row = np.zeros(count)
        row[layer * stages : (layer + 1) * stages] = 1
        add(row, 1, 1)
        if layer:
            step = np.zeros(count)
            step[layer * stages : (layer + 1) * stages] = np.arange(stages)
            step[(layer - 1) * stages : layer * stages] -= np.arange(stages)
            add(step, 0, 1)
    for stage in range(stages):
        mine = np.arange(stage, layers * stages, stages)
        for values, top, bound in ((times, 1, -extra_s[stage]), (sizes, 0, limit - extra_bytes[stage]), (1, 0, None)):
            row = np.zeros(count)
            row[mine] = values
            row[-1] = -top
            add(row, *((1, np.inf) if bound is None else (-np.inf, bound)))
    whole = np.ones(count)
    whole[-1] = 0
    goal = np.zeros(count)
    goal[-1] = 1
    found = milp(goal, constraints=LinearConstraint(np.array(rows), low, high), integrality=whole,
                 bounds=Bounds(0, np.append(np.ones(count - 1), np.inf)), options={"mip_rel_gap": 0})  # fmt: skip
    return float(found.fun) if found.success else None


@pytest.mark.parametrize("seed", range(24))
def test_the_split_is_the_solver_s(seed) -> None:
    chance = np.random.default_rng(seed)
    layers, stages = int(chance.integers(3, 11)), int(chance.integers(1, 4))
    times, sizes = chance.uniform(1, 5, layers), chance.uniform(1, 3, layers)
    extra_s, extra_bytes = chance.uniform(0, 4, stages), chance.uniform(0, 2, stages)
    limit = float(sizes.sum() / stages * chance.uniform(0.9, 2.0) + 1)
    expected = _highs(times, sizes, extra_s, extra_bytes, limit)
    given = {"extra_s": list(extra_s), "layer_bytes": list(sizes), "extra_bytes": list(extra_bytes)}
    if expected is None:
        with pytest.raises(Infeasible):
            split_layers(list(times), stages=stages, limit_bytes=limit, **given)
        return
    found = split_layers(list(times), stages=stages, limit_bytes=limit, **given)
    assert found.slowest_s == pytest.approx(expected, rel=1e-9)
    ends = np.cumsum((0, *found.layers_per_stage))
    work = [times[a:b].sum() + more for a, b, more in zip(ends, ends[1:], extra_s, strict=False)]
    assert max(work) == pytest.approx(found.slowest_s, rel=1e-12)


def test_a_split_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="need more than"):
        split_layers([1.0, 1.0], stages=3)
    with pytest.raises(Infeasible):
        split_layers([1.0, 1.0], stages=2, layer_bytes=[5.0, 5.0], limit_bytes=4.0)
