"""Fits the kernel constants of measured devices and writes hardware/calibration/GENERATION.toml.

    python tools/fit_kernels.py TABLES [--out hardware/calibration] [--only ampere]

TABLES holds gemm.csv.gz, attention.csv.gz and moe.csv.gz of ai-dynamo/aiconfigurator (Apache-2.0). Rows are split by
a hash of their shape: half are fitted, half are kept out, and the residuals in the files are those of the half kept
out. Every kernel source in the tables is fitted together, because a training framework's products are cuBLAS's (torch
linear in the bf16 gemm table) and its attention FlashAttention (A100, H100) or the vendor's (B200).
"""

from __future__ import annotations

import argparse
import tomllib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from simulator.spec.hardware import Device
from simulator.spec.kernels import KernelModel, assumed_model
from simulator.validate.kernel_rows import FLOPS, SECONDS

SOURCE = "ai-dynamo/aiconfigurator commit 095f58a, aic-core/src/aiconfigurator_core/systems/data (Apache-2.0)"
SHAPES = {
    "gemm": ("m", "n", "k"),
    "attention": ("batch", "seq_len", "heads", "kv_heads", "head_dim"),
    "moe": ("tokens", "hidden", "ffn_hidden", "topk", "experts", "tp", "ep", "distribution"),
}
FIT_ROWS = 2500
POINTWISE = {"ampere": 0.78, "hopper": 0.80, "blackwell": 0.76}
"""Device-to-device copy over datasheet bandwidth: A100 1590/2039, H100 2500 to 2903/3350, GB200 5800/8000 and the
0.8 that aiconfigurator uses (guide to the sources in simulator/cluster/memory.py)."""


LOOKUP = {"ampere": 0.80, "hopper": 0.80, "blackwell": 0.40}
"""Share of bandwidth that gathers of rows reach: of 0.3, 0.4, 0.5, 0.65 and 0.8 the one with which the moe rows, which
permute and sum rows, are fitted best."""


@dataclass(frozen=True)
class Machine:
    """A measured device: its name in the tables and its datasheet."""

    generation: str
    table_name: str
    name: str
    units: int
    bandwidth: float
    vector: float
    clock: float
    """Boost clock [Hz]."""
    peaks: Mapping[str, float]


MACHINES = (
    Machine("ampere", "a100_sxm", "a100-sxm-80gb", 108, 2.039e12, 19.5e12, 1.41e9, {"bf16": 312e12}),
    Machine("hopper", "h100_sxm", "h100-sxm-80gb", 132, 3.35e12, 66.9e12, 1.83e9, {"bf16": 989e12, "fp8": 1979e12}),
    Machine("blackwell", "b200_sxm", "b200-sxm-180gb", 148, 8.0e12, 80e12, 1.92e9,
            {"bf16": 2250e12, "fp8": 4500e12, "nvfp4": 9000e12}),
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What is fitted from which rows: free constants (name: start, low, high) and constants that are set."""

    family: str
    table: str
    free: Mapping[str, tuple[float, float, float]]
    starts: tuple[Mapping[str, float], ...]
    fixed: tuple[Mapping[str, float], ...] = ({},)
    """Discrete choices: the best of them is kept."""


GEMM_FREE = {
    "efficiency": (0.85, 0.3, 1.0), "tile_overhead": (20.0, 0.1, 200.0), "prologue_k": (120.0, 5.0, 600.0),
    "tile_waste": (0.5, 0.02, 1.0), "wave_waste": (0.3, 0.01, 1.0), "split_latency_s": (3e-6, 2e-7, 2e-5),
    "split_passes": (2.0, 0.3, 20.0), "memory_efficiency": (0.82, 0.4, 0.97), "ramp_penalty": (0.15, 0.01, 1.0),
    "ramp_bytes": (8e7, 1e7, 4e8), "overlap_power": (3.5, 1.5, 8.0), "latency_s": (3e-6, 1e-6, 1.2e-5),
    "throttle": (0.2, 0.01, 0.8), "throttle_time_s": (1e-3, 2e-4, 2e-2), "throttle_power": (3.0, 1.0, 8.0),
}  # fmt: skip
DRIFT = {"throttle_drift": (0.03, 1e-3, 0.3)}
"""Of products only: few rows of the other tables are that long."""
GEMM_STARTS = ({}, {"wave_waste": 0.9, "tile_waste": 0.9, "tile_overhead": 80.0}, {"tile_overhead": 3.0})
TILE_CHOICES = ({"largest_tile": 128.0}, {"largest_tile": 256.0})
NO_DRIFT = {"throttle_drift": 0.0}
JOBS = (
    Job("gemm", "gemm", {**GEMM_FREE, **DRIFT}, GEMM_STARTS, TILE_CHOICES),
    Job(
        "attention", "attention",
        {"efficiency": (0.7, 0.2, 1.0), "score_unit_s": (4e-11, 1e-12, 2e-10), "tail": (0.5, 0.02, 1.0),
         "softmax_overlap": (1.5, 1.0, 8.0), "memory_efficiency": (0.5, 0.1, 0.95), "latency_s": (1e-5, 2e-6, 4e-5),
         "throttle": (0.1, 0.005, 0.8), "throttle_time_s": (1e-3, 2e-4, 2e-2),
         "throttle_power": (3.0, 1.0, 8.0)},
        ({}, {"efficiency": 0.9}), ({"backward_rate": 0.85, **NO_DRIFT},),
    ),
    Job(
        "grouped_gemm", "moe", {**GEMM_FREE, "ragged_tiles": (0.5, 0.05, 1.5), "latency_s": (1e-5, 1e-6, 6e-5),
         "prologue_k": (150.0, 5.0, 1500.0)},
        ({}, {"tile_overhead": 3.0}, {"throttle": 0.02, "prologue_k": 60.0, "efficiency": 0.75}),
        tuple({**tile, **NO_DRIFT} for tile in TILE_CHOICES),
    ),
)  # fmt: skip


def kept_out(rows: Any, table: str) -> Any:
    """True for the half of the shapes that is not fitted."""
    keys = rows[list(SHAPES[table])].astype(str).agg(",".join, axis=1)
    return keys.map(lambda key: zlib.crc32(key.encode()) % 2 == 1).to_numpy()


def table_rows(folder: Path, table: str, machine: Machine, dtype: str) -> Any:
    """Rows of a device and dtype that the constants are fitted to."""
    import pandas as pd

    rows = pd.read_csv(folder / f"{table}.csv.gz")
    rows = rows[rows.device == machine.table_name]
    if table != "attention":
        rows = rows[rows.dtype == ("bfloat16" if dtype == "bf16" else dtype)]
    elif dtype != "bf16":
        return rows[:0]
    if table == "attention":
        return rows[(rows.seq_len >= 256) & (rows.head_dim <= 256)]
    if table == "gemm" and dtype != "bf16":
        rows = rows[rows.m % 16 == 0]
    return rows[FLOPS[table](rows) >= 2e9]


def device_of(machine: Machine, kernels: KernelModel) -> Device:
    return Device(
        name=machine.name, title=machine.name, vendor="NVIDIA", generation=machine.generation,
        peak_flops_per_s=machine.peaks, vector_flops_per_s=machine.vector, memory_bytes=80e9,
        memory_bandwidth_bytes_per_s=machine.bandwidth, units=machine.units, kernels=kernels,
    )  # fmt: skip


def errors(job: Job, machine: Machine, dtype: str, kernels: KernelModel, rows: Any) -> Any:
    """Signed relative errors."""
    seconds = SECONDS[job.table](device_of(machine, kernels), dtype, {name: rows[name].to_numpy() for name in rows})
    return seconds / (rows.latency_ms.to_numpy() * 1e-3) - 1.0


def with_constants(kernels: KernelModel, key: str, values: Mapping[str, float]) -> KernelModel:
    return replace(kernels, constants={**kernels.constants, key: dict(values)})


def fit(job: Job, machine: Machine, dtype: str, kernels: KernelModel, rows: Any) -> dict[str, float]:
    """Constants with the least mean absolute error on the fitted half, over starts and discrete choices."""
    from scipy.optimize import least_squares

    fitted = rows[~kept_out(rows, job.table)]
    fitted = fitted.sample(min(FIT_ROWS, len(fitted)), random_state=0)
    key = f"{job.family}.{dtype}"
    names = list(job.free)
    low = np.log([job.free[name][1] for name in names])
    high = np.log([job.free[name][2] for name in names])
    best: tuple[float, dict[str, float]] | None = None
    for fixed in job.fixed:
        def constants(x: Any, fixed: Mapping[str, float] = fixed) -> dict[str, float]:
            return {**fixed, **dict(zip(names, map(float, np.exp(x)), strict=True))}

        def residual(x: Any, made: Callable[[Any], dict[str, float]] = constants) -> Any:
            return errors(job, machine, dtype, with_constants(kernels, key, made(x)), fitted)

        for start in job.starts:
            first = np.log([start.get(name, job.free[name][0]) for name in names])
            result = least_squares(residual, first, bounds=(low, high), loss="cauchy", f_scale=0.04, diff_step=1e-3,
                                   max_nfev=60)
            score = float(np.abs(residual(result.x)).mean())
            if best is None or score < best[0]:
                best = score, constants(result.x)
    assert best is not None
    found = {name: float(f"{value:.4g}") for name, value in best[1].items()}
    # Next to no quantisation is none, and evaluates in half the time.
    return {**found, "wave_waste": 0.0} if found.get("wave_waste", 1.0) < 0.1 else found


def with_known_softmax(job: Job, machine: Machine) -> Job:
    """One head_dim cannot tell softmax from products: 16 exponentials per clock and unit (CUDA programming guide,
    arithmetic throughput of special functions) are set instead.
    """
    known = {"score_unit_s": float(f"{1.0 / (16.0 * machine.clock):.3g}"), "softmax_overlap": 1.0}
    free = {name: value for name, value in job.free.items() if name not in known}
    return replace(job, free=free, fixed=tuple({**fixed, **known} for fixed in job.fixed))


def residuals(error: Any) -> dict[str, float]:
    size = np.abs(error)
    return {
        "rows": len(error), "mean": round(float(size.mean()), 4), "median": round(float(np.median(size)), 4),
        "p90": round(float(np.quantile(size, 0.9)), 4), "bias": round(float(error.mean()), 4),
    }


def fit_machine(folder: Path, machine: Machine, family: str, held: Path) -> KernelModel:
    kernels = replace(assumed_model(machine.generation), residuals={})
    if family:
        table = tomllib.loads(held.read_text(encoding="ascii"))
        kernels = replace(kernels, constants=table["constants"], residuals=table["residuals"])
    for name, share in (("pointwise", POINTWISE), ("lookup", LOOKUP)):
        memory = {"memory_efficiency": share[machine.generation], "latency_s": 3e-6}
        kernels = with_constants(kernels, name, memory)
    found = dict(kernels.residuals)
    for job in JOBS:
        if family not in ("", job.family):
            continue
        for dtype in machine.peaks:
            rows = table_rows(folder, job.table, machine, dtype)
            if rows.empty:
                continue
            one_width = job.family == "attention" and rows.head_dim.min() == rows.head_dim.max()
            free = with_known_softmax(job, machine) if one_width else job
            key = f"{job.family}.{dtype}"
            kernels = with_constants(kernels, key, fit(free, machine, dtype, kernels, rows))
            scored = rows[kept_out(rows, job.table)]
            scored = scored[scored.seq_len >= 1024] if job.table == "attention" else scored
            found[key] = residuals(errors(job, machine, dtype, kernels, scored))
            print(machine.generation, key, found[key], kernels.constants[key], flush=True)
    return replace(kernels, provenance="fitted", residuals=found)


def toml_text(machine: Machine, kernels: KernelModel) -> str:
    lines = [
        f"# Written by tools/fit_kernels.py from measurements of {machine.table_name}. Residuals are relative errors",
        "# on the half of the shapes kept out of the fit: products of at least 2 GFLOP, attention of 1024 and longer.",
        "# fp8 and nvfp4 products: m a multiple of 16 (other m run slower kernels that training does not use).",
        "# pointwise and attention.backward_rate are published figures, cited in simulator/cluster/.",
        f'device = "{machine.name}"', 'provenance = "fitted"', f'fitted_on = "{date.today().isoformat()}"',
        f'source = "{SOURCE}"',
    ]  # fmt: skip
    for section, tables in (("constants", kernels.constants), ("residuals", kernels.residuals)):
        for key in sorted(tables):
            lines += ["", f'[{section}."{key}"]' if "." in key else f"[{section}.{key}]"]
            lines += [f"{name} = {value:g}" if section == "constants" else f"{name} = {value}"
                      for name, value in tables[key].items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--out", type=Path, default=Path("hardware/calibration"))
    parser.add_argument("--only", default="", help="one generation")
    parser.add_argument("--family", default="", help="one kernel family; the others keep the constants in --out")
    options = parser.parse_args()
    for machine in MACHINES:
        if options.only in ("", machine.generation):
            file = options.out / f"{machine.generation}.toml"
            kernels = fit_machine(options.tables, machine, options.family, file)
            file.write_text(toml_text(machine, kernels), encoding="ascii")


if __name__ == "__main__":
    main()
