"""Measures the whole machine: runs the workers, fits, and says what it took."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from simulator.calibrate.fit import Fitted, curve, fit_kernels
from simulator.calibrate.launch import run_ranks
from simulator.calibrate.sharing import slowdowns
from simulator.errors import InputError, Problem

FULL_S, QUICK_S = 140.0, 24.0
"""Time for the kernels; collectives, kernels on several ranks and starting take about as long again."""
SIZES = tuple(4**power for power in range(5, 14))
QUICK_SIZES = SIZES[::2]
LARGE_SIZES = (2**27, 2**28)
NOTHING_S = 1e-12
"""A kernel whose time is charged to another one (a norm's weight gradient runs inside its input gradient)."""
FREE = ("layernorm_weight_grad", "rmsnorm_weight_grad", "unfused_norm_weight_grad")


def calibrate(*, quick: bool = False, ranks: int = 4, dtypes: tuple[str, ...] = ("fp32",)) -> dict[str, Any]:
    """A machine file's contents, measured now on this machine's processor: no training step is run.

    `ranks` is the largest number of ranks that collectives are measured on (2 to 16). Raises InputError for other
    numbers, and when a worker fails.
    """
    if not 2 <= ranks <= 16:
        raise InputError([Problem(f"{ranks} ranks: 2 to 16 can be calibrated.", "--ranks")])
    begun, load = time.monotonic(), os.getloadavg()[0]
    task = {"quick": quick, "dtypes": dtypes, "rounds": 2 if quick else 5, "budget_s": QUICK_S if quick else FULL_S}
    timed = run_ranks("simulator.calibrate.worker", task, 1, timeout_s=900.0)[0]
    task = {"sizes": QUICK_SIZES if quick else SIZES, "large_sizes": () if quick else LARGE_SIZES,
            "rounds": 1 if quick else 3}  # fmt: skip
    network = run_ranks("simulator.calibrate.network", task, ranks, timeout_s=600.0)
    fitted = fit_kernels(timed["rows"])
    machine = fingerprint() | {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "ranks": ranks,
        "wall_s": round(time.monotonic() - begun, 1),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "spread_fraction": fitted.spread_fraction,
        "reference_s": {name: statistics.median(turn[name] for turn in timed["references"])
                        for name in ("product", "memory")},
    }
    return document(fitted, network, machine, dtypes)


def fingerprint() -> dict[str, Any]:
    """Processor, cores, system and versions."""
    from importlib.metadata import version

    return {"processor": _processor(), "cores": os.cpu_count() or 1, "system": platform.platform(terse=True),
            "python": platform.python_version(), "torch": version("torch")}  # fmt: skip


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def document(
    fitted: Fitted, network: list[Mapping[str, Any]], machine: dict[str, Any], dtypes: tuple[str, ...]
) -> dict[str, Any]:
    """The tables of a machine file (simulator/spec/machine_file.py)."""
    curves = dict(fitted.curves)
    curves["add"] = curves["plain"]
    curves["lookup"] = [
        [size, (one + two) / 2]
        for (size, one), (_, two) in zip(curves["lookup"], curves.pop("lookup_grad"), strict=True)
    ]
    curves |= {name: [[1e18, NOTHING_S]] for name in FREE}
    peaks = {dtype: f"{1e-9 * 2.0 / fitted.sums[f'gemm.{dtype}']['mnk_s']:.4g} GFLOP/s" for dtype in dtypes}
    copied = curves["plain"][-1]
    return {
        "title": f"{machine['processor']}, {machine['cores']} cores, one thread per rank",
        "generation": "cpu",
        "vendor": machine["processor"].split()[0],
        "machine": machine,
        "device": {
            "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.4g} GiB",
            "memory_bandwidth": f"{1e-9 * copied[0] / copied[1]:.4g} GB/s",
            "vector": peaks[dtypes[0]],
            "peak": peaks,
        },
        "kernels": {"sums": {**fitted.sums, "sharding": sharding(network)}, "curves": curves,
                    "residuals": fitted.residuals,
                    "sharing": slowdowns([answer["shared"] for answer in network])},
        "collectives": collectives(network),
    }  # fmt: skip


def collectives(network: list[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, list[list[float]]]]]:
    """Curves by clock, kind and ranks: medians over rounds, means over ranks."""
    points: dict[str, Any] = {clock: defaultdict(lambda: defaultdict(list)) for clock in ("wall", "cpu")}
    keys = network[0]["times"]
    for key in keys:
        kind, count, size = key.split()
        held = [answer["times"][key] for answer in network if key in answer["times"]]
        for place, clock in enumerate(("wall", "cpu")):
            each = [statistics.median(pair[place] for pair in rounds) for rounds in held]
            points[clock][kind][count].append((float(size), statistics.mean(each)))
    return {
        clock: {kind: {count: curve(found) for count, found in by.items()} for kind, by in kinds.items()}
        for clock, kinds in points.items()
    }


def sharding(network: list[Mapping[str, Any]]) -> dict[str, float]:
    """Host seconds of sharded training, means over the ranks that timed it."""
    held = [answer["sharding"] for answer in network if answer["sharding"]]
    return {name: statistics.mean(found[name] for found in held) for name in held[0]}
