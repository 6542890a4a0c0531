"""How much of the error on measured products any smooth formula must keep.

    python tools/gemm_floor.py TABLES

TABLES holds gemm.csv.gz of ai-dynamo/aiconfigurator, as for fit_kernels.py. Rows of at least 2 GFLOP in bf16 whose m is
64 or more. A formula that is smooth (tile steps aside) gives almost the same correction to the rows m and m + 1 of the
same n and k, which the tables hold at 23 places. So what their errors do not share stays whatever smooth term is added:

    own = median |error(m + 1) - error(m)| / sqrt(2)      errors as logarithms of predicted over measured
    shared = correlation of the two

`falls` is the share of steps to the next measured m at which the measured time falls by over 1 %, which no formula that
is monotone can follow; `neighbours` the median error of reading a row off the line through the two measured rows around
it (in logarithms, same n and k), which no formula without knowledge of the picked kernel can be hoped to beat.
"""

from __future__ import annotations

import argparse
import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import fit_kernels
import numpy as np

SMALLEST_M, LARGEST_M = 64, 4353
"""Between these the tables hold m and m + 1, and m in steps of at most a third."""


def gaps(rows: Any) -> dict[str, float]:
    """Figures of rows with m, n, k, latency_ms and `error`, the logarithm of predicted over measured."""
    after = rows[["m", "n", "k", "error"]].assign(m=rows.m - 1)
    pairs = rows.merge(after, on=["m", "n", "k"], suffixes=("", "_after"))
    difference = (pairs.error_after - pairs.error).abs()
    steps, misses = [], []
    for _, line in rows.sort_values("m").groupby(["n", "k"]):
        size, seconds = np.log(line.m.to_numpy()), np.log(line.latency_ms.to_numpy())
        steps.append(np.diff(seconds))
        share = (size[1:-1] - size[:-2]) / (size[2:] - size[:-2])
        misses.append(seconds[:-2] * (1 - share) + seconds[2:] * share - seconds[1:-1])
    return {
        "pairs": len(pairs), "error": float(rows.error.abs().median()),
        "own": float(difference.median()) / math.sqrt(2.0),
        "shared": float(np.corrcoef(pairs.error, pairs.error_after)[0, 1]),
        "falls": float((np.concatenate(steps) < -0.01).mean()),
        "neighbours": float(np.median(np.abs(np.concatenate(misses)))),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--constants", type=Path, default=Path("hardware/calibration"))
    options = parser.parse_args()
    job = next(job for job in fit_kernels.JOBS if job.family == "gemm")
    for machine in fit_kernels.MACHINES:
        held = tomllib.loads((options.constants / f"{machine.generation}.toml").read_text(encoding="ascii"))
        kernels = replace(fit_kernels.assumed_model(machine.generation), constants=held["constants"])
        rows = fit_kernels.table_rows(options.tables, job.table, machine, "bf16")
        rows = rows[(rows.m >= SMALLEST_M) & (rows.m <= LARGEST_M)]
        found = gaps(rows.assign(error=np.log1p(fit_kernels.errors(job, machine, "bf16", kernels, rows))))
        print(machine.name, " ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
