"""Seconds of grouped products: one kernel, many experts, ragged rows.

The tiles and waves of `gemm.py`. Rows of an expert do not fill whole tiles: with loads that vary, an expert wastes
`ragged_tiles` of a tile on average (half a tile when its last tile is as likely full as empty). Experts without rows
cost nothing: of E experts that r rows fall on at random, E (1 - (1 - 1/E)^r) ~ E (1 - e^(-r/E)) have some.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.arch.operations import Number
from simulator.cluster.gemm import (
    best_math_s,
    candidate_tiles,
    gemm_time_s,
    kernel_time_s,
    operand_bytes,
    tiles_across,
    tiles_down,
)
from simulator.cluster.peaks import constants_for, peak_flops_per_s
from simulator.spec.hardware import Device


def grouped_gemm_time_s(
    device: Device, dtype: str, *, experts: Number, tokens: Number, n: Number, k: Number, imbalance: Number = 1.0,
    ragged: bool = True,
) -> Any:  # fmt: skip
    """Seconds of one grouped kernel: rows [tokens, k] against [experts, k, n] [s]. Broadcasts.

    `tokens` is the mean number of rows routed to a device, `imbalance` (>= 1) the busiest device's rows over the
    mean: a step waits for the busiest, so its rows are timed. Not `ragged`: every expert has the same rows (padded to
    a capacity), in whole tiles. Raises InputError when the device computes no `dtype`.
    """
    c = constants_for(device, "grouped_gemm", dtype)
    peak = peak_flops_per_s(device, dtype)
    count, inputs, columns = (np.asarray(x, dtype=np.float64) for x in (experts, k, n))
    held = np.asarray(tokens, dtype=np.float64) * imbalance
    shape = np.broadcast_shapes(count.shape, inputs.shape, columns.shape, held.shape)
    count, inputs, columns, held = (np.broadcast_to(x, shape).reshape(-1) for x in (count, inputs, columns, held))
    if ragged:
        active = -count * np.expm1(-held / count)
        row_tiles = held / candidate_tiles(int(c["largest_tile"]))[0] + c["ragged_tiles"] * active
    else:
        active = np.minimum(count, held)
        row_tiles = active * tiles_down(held / active, c)
    tiles = row_tiles * tiles_across(columns, c)
    partial = c["split_passes"] * 4.0 * held * columns / device.memory_bandwidth_bytes_per_s
    math = best_math_s(device, c, peak, tiles=tiles, k=inputs, partial_s=partial)
    width = operand_bytes(dtype)
    moved = width * (active * columns * inputs + held * inputs) + max(width, 2.0) * held * columns
    result = kernel_time_s(device, c, math, moved)
    return result.reshape(shape) if shape else float(result[0])


def trained_experts_time_s(
    device: Device, dtype: str, *, experts: Number, tokens: Number, n: Number, k: Number, imbalance: Number = 1.0
) -> Any:  # fmt: skip
    """Seconds of one grouped kernel on a training step's operands [s]. Broadcasts.

    Not less than the same products as one batch of plain ones: both run the same matrix instructions. The tables of
    grouped kernels (kernels/moe.csv.gz) pass the plain tables' rates, and even the datasheet's: 1048 of 989 TFLOP/s on
    H100 and 2289 of 2250 on B200 in bf16, where plain products of random operands reach 835 and 1700. Operands that
    hardly change let a device run at its highest clock (Horace He 2024, "Strangely, Matrix Multiplications on GPUs Run
    Faster When Given 'Predictable' Data!"); a training step's do not. Raises InputError when the device computes no
    `dtype`.
    """
    count = np.asarray(experts, dtype=np.float64)
    held = np.asarray(tokens, dtype=np.float64) * imbalance
    active = np.maximum(-count * np.expm1(-held / count), np.finfo(np.float64).tiny)
    plain = gemm_time_s(device, dtype, held / active, n, k, active)
    grouped = grouped_gemm_time_s(
        device, dtype, experts=experts, tokens=tokens, n=n, k=k, imbalance=imbalance
    )
    return np.maximum(grouped, plain)[()]
