"""Measures a suite: every case of each number of ranks in interleaved rounds, the machine's load beside them."""

from __future__ import annotations

import os
from collections.abc import Callable

from simulator.calibrate.launch import run_ranks
from simulator.measure.suite import suite_of
from simulator.measure.table import Measured, measured_case

TIMEOUT_S = 3600.0


def measure(suite: str, *, rounds: int = 7, progress: Callable[[str], None] | None = None) -> list[Measured]:
    """Real training steps of every case of a suite, now, on this machine. Raises InputError when a rank fails."""
    cases = suite_of(suite)
    rows: list[Measured] = []
    for ranks in sorted({case.strategy.devices for case in cases}):
        names = [case.name for case in cases if case.strategy.devices == ranks]
        if progress:
            progress(f"{len(names)} cases on {ranks} ranks")
        task = {"suite": suite, "names": names, "rounds": rounds}
        answers = run_ranks("simulator.measure.worker", task, ranks, timeout_s=TIMEOUT_S)
        load = max(os.getloadavg()[0] - ranks, 0.0)
        peaks = answers[0].get("peaks", {})
        rows += [measured_case(suite, name, [answer["times"] for answer in answers], load=load,
                               peak_memory_bytes=peaks.get(name, 0.0)) for name in names]  # fmt: skip
    return rows
