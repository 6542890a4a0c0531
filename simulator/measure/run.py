"""Measures a suite: every case of each number of ranks in interleaved rounds, the machine's load beside them."""

from __future__ import annotations

import os
from collections.abc import Callable

from simulator.calibrate.devices import device_of
from simulator.calibrate.launch import run_ranks
from simulator.measure.suite import device_for, suite_of
from simulator.measure.table import Measured, measured_case

TIMEOUT_S = 3600.0
TOGETHER = 12
"""Cases that one launch holds in memory and interleaves."""


def measure(suite: str, *, rounds: int = 7, progress: Callable[[str], None] | None = None) -> list[Measured]:
    """Real training steps of every case of a suite, now, on this machine.

    Raises InputError when a rank fails, and for the GPU's suite where torch finds none.
    """
    cases = suite_of(suite)
    device = device_of(device_for(suite))
    rows: list[Measured] = []
    for ranks in sorted({case.strategy.devices for case in cases}):
        names = [case.name for case in cases if case.strategy.devices == ranks]
        peaks = _peaks(suite, names) if device.name == "cpu" else {}
        for start in range(0, len(names), TOGETHER):
            part = names[start : start + TOGETHER]
            if progress:
                progress(f"{len(part)} cases on {ranks} ranks, {rounds} rounds")
            task = {"suite": suite, "names": part, "rounds": rounds}
            answers = run_ranks("simulator.measure.worker", task, ranks, timeout_s=TIMEOUT_S)
            load = max(os.getloadavg()[0] - ranks, 0.0)
            timed = [answer["times"] for answer in answers]
            peaks = peaks | answers[0]["peaks"]
            rows += [measured_case(suite, name, timed, load=load, peak_memory_bytes=peaks.get(name, 0.0))
                     for name in part]  # fmt: skip
    return rows


def _peaks(suite: str, names: list[str]) -> dict[str, float]:
    """Peak memory of the cases that torch's trackers follow, in a process of its own."""
    found: dict[str, float] = run_ranks(
        "simulator.measure.memory", {"suite": suite, "names": names}, 1, timeout_s=TIMEOUT_S
    )[0]
    return found
