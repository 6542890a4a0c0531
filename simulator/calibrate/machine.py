"""Measures the whole machine: runs the workers, fits, and says what it took."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from simulator.calibrate.devices import Host, device_of
from simulator.calibrate.fit import Fitted, curve, fit_kernels
from simulator.calibrate.launch import run_ranks
from simulator.calibrate.sharing import slowdowns
from simulator.errors import InputError, Problem

FULL_S, QUICK_S = 140.0, 20.0
"""Time for the kernels; collectives, kernels on several ranks and starting take about as long again."""
SIZES = tuple(4**power for power in range(5, 14))
QUICK_SIZES = SIZES[1::2]
LARGE_SIZES = (2**27, 2**28)
NOTHING_S = 1e-12
"""A kernel whose time is charged to another one (a norm's weight gradient runs inside its input gradient)."""
FREE = ("layernorm_weight_grad", "rmsnorm_weight_grad", "unfused_norm_weight_grad")


def calibrate(
    *, quick: bool = False, ranks: int = 4, dtypes: tuple[str, ...] = ("fp32",), device: str = "cpu"
) -> dict[str, Any]:  # fmt: skip
    """A machine file's contents, measured now: no training step is run.

    `device` "cpu" measures one thread of the processor and collectives of up to `ranks` ranks (2 to 16), "cuda" the
    kernels of one GPU. Raises InputError for other numbers, where torch finds no GPU, and when a worker fails.
    """
    if not 2 <= ranks <= 16:
        raise InputError([Problem(f"{ranks} ranks: 2 to 16 can be calibrated.", "--ranks")])
    measured = device_of(device)
    hardware = measured.hardware()
    begun, load = time.monotonic(), os.getloadavg()[0]
    task = {"quick": quick, "dtypes": dtypes, "device": device, "rounds": 2 if quick else 5,
            "budget_s": QUICK_S if quick else FULL_S}  # fmt: skip
    timed = run_ranks("simulator.calibrate.worker", task, 1, timeout_s=900.0)[0]
    network = _network(quick=quick, ranks=ranks) if device == "cpu" else []
    fitted = fit_kernels(timed["rows"])
    machine = fingerprint(hardware) | {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "ranks": ranks if network else 1,
        "wall_s": round(time.monotonic() - begun, 1),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "spread_fraction": fitted.spread_fraction,
        "reference_s": {name: statistics.median(turn[name] for turn in timed["references"])
                        for name in ("product", "memory")},
    }
    return document(fitted, network, machine, dtypes, hardware)


def _network(*, quick: bool, ranks: int) -> list[Any]:
    """What every rank timed of collectives, of kernels beside other ranks', and of sharding."""
    task = {"sizes": QUICK_SIZES if quick else SIZES, "large_sizes": () if quick else LARGE_SIZES,
            "shared_every": 5 if quick else 1, "rounds": 1 if quick else 2}  # fmt: skip
    return run_ranks("simulator.calibrate.network", task, ranks, timeout_s=600.0)


def fingerprint(hardware: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Processor, cores, system and versions."""
    from importlib.metadata import version

    found = hardware or Host().hardware()
    return {"processor": found["processor"], "cores": found["cores"], "system": platform.platform(terse=True),
            "python": platform.python_version(), "torch": version("torch")}  # fmt: skip


def document(
    fitted: Fitted, network: list[Mapping[str, Any]], machine: dict[str, Any], dtypes: tuple[str, ...],
    hardware: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The tables of a machine file (simulator/spec/machine_file.py); without a network, one rank's."""
    hardware = hardware or Host().hardware()
    sums: dict[str, Any] = dict(fitted.sums)
    shared: dict[str, Any] = {}
    if network:
        sums["sharding"] = sharding(network)
        shared = slowdowns([answer["shared"] for answer in network])
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
        "title": hardware["title"],
        "generation": hardware["generation"],
        "vendor": hardware["vendor"],
        "machine": machine,
        "device": {
            "memory": hardware["memory"],
            "memory_bandwidth": f"{1e-9 * copied[0] / copied[1]:.4g} GB/s",
            "vector": peaks[dtypes[0]],
            "peak": peaks,
        },
        "kernels": {"sums": sums, "curves": curves, "residuals": fitted.residuals, "sharing": shared},
        "collectives": collectives(network) if network else {},
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
