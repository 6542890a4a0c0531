"""Columns of many shapes, whatever type of number their sizes are."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.arch.operations import Gemm
from simulator.cluster.placement import Group
from simulator.parallel.timing import work_times_s
from tests.support import dgx

GROUPS = {"tp": Group(8)}
ROWS = [64 * (1 + index % 37) for index in range(3001)]
"""More shapes than are evaluated one by one, 37 of them distinct."""


def _each_s(works: list[Gemm]) -> np.ndarray:
    return np.array(work_times_s(works, dgx(1), GROUPS), dtype=float)


@pytest.mark.parametrize("number", [int, float, np.int32, np.float32])
def test_sizes_of_any_type_of_number_take_the_same_seconds(number: type) -> None:
    """One work per shape, and one work over all of them: what each of the 37 takes when it is timed alone."""
    alone = [float(work_times_s([Gemm(m=rows, n=512, k=768)], dgx(1), GROUPS)[0]) for rows in ROWS[:37]]
    expected = [alone[index % 37] for index in range(len(ROWS))]
    assert len(set(alone)) > 5
    works = [Gemm(m=number(rows), n=512, k=768) for rows in ROWS]
    assert _each_s(works) == pytest.approx(expected, rel=1e-12)
    column = Gemm(m=np.array(ROWS, dtype=number), n=512, k=768)
    assert _each_s([column])[0] == pytest.approx(expected, rel=1e-12)
