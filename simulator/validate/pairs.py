"""How far the predicted ratio of two competing runs lies from the measured one, by family: what ties are read off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from simulator.intervals import kin
from simulator.plan.ties import Differences, shares_over
from simulator.validate.score import ScoredRow

MIN_PAIRS = 10
"""A family with fewer says too little."""
PROVENANCE = (
    "shares of pairs of competing published runs whose ratio of step times was mispredicted by more than exp(each), "
    "written by `make validate`; ties are read off it"
)


def differences_of(rows: Sequence[ScoredRow], known: Sequence[Differences] = ()) -> tuple[Differences, ...]:
    """The differences of every family that has pairs enough, and the known ones of families not among the rows.

    Runs compete that have the same peers; families that list some of the same runs count as one (`intervals.KIN`).
    """
    sets: dict[str, dict[tuple[Any, ...], list[float]]] = {}
    for row in rows:
        if row.measured_s:
            own = sets.setdefault(kin(row.family), {})
            own.setdefault((row.family, *row.peers), []).append(math.log(row.measured_s / row.predicted_s))
    found = []
    for family, groups in sets.items():
        apart = [abs(one - other) for logs in groups.values() for one, other in combinations(logs, 2)]
        competing = sum(len(logs) > 1 for logs in groups.values())
        if len(apart) >= MIN_PAIRS:
            found.append(Differences(family, competing, len(apart), shares_over(apart)))
    mine = {kin(row.family) for row in rows}
    kept = [each for each in known if each.family not in mine]
    return tuple(sorted((*kept, *found), key=lambda each: each.family))
