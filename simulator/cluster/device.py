"""Seconds of one kernel on one device. Host launch time is not in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.arch.operations import DTYPE_BYTES, Number
from simulator.errors import InputError, Problem, did_you_mean
from simulator.spec.hardware import Device

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
_CONSTANTS_OF = {"fp16": "bf16", "tf32": "bf16", "fp32": "bf16", "fp64": "bf16", "mxfp8": "fp8"}


def peak_flops_per_s(device: Device, dtype: str) -> float:
    """Datasheet peak of the matrix units [FLOP/s]. Raises InputError when the device has no such units."""
    for name in (dtype, {"mxfp8": "fp8", "bf16": "", "fp16": ""}.get(dtype, "")):
        if device.peak_flops_per_s.get(name):
            return float(device.peak_flops_per_s[name])
    known = [name for name, peak in device.peak_flops_per_s.items() if peak]
    raise InputError([Problem(f"{device.name} has no {dtype} matrix peak.", "precision", did_you_mean(dtype, known))])


def constants_for(device: Device, family: str, dtype: str) -> Mapping[str, float]:
    """The constants of a kernel family in a dtype: its own, or those of bf16."""
    table = device.kernels.constants
    own = f"{family}.{_CONSTANTS_OF.get(dtype, dtype)}"
    return table.get(own) or table[f"{family}.bf16"]


def _ceil_ramp(x: Any, ramp: float) -> Any:
    whole = np.floor(x)
    return whole + np.minimum((x - whole) / ramp, 1.0)


def gemm_time_s(device: Device, gemm_dtype: str, m: Number, n: Number, k: Number, batch: Number = 1) -> Any:
    """Seconds of `batch` products C[m, n] = A[m, k] B[k, n] [s]."""
    c = constants_for(device, "gemm", gemm_dtype)
    m, n, k, batch = (np.asarray(x, dtype=float) for x in (m, n, k, batch))
    units = max(device.units, 1)
    rate = peak_flops_per_s(device, gemm_dtype) * c["efficiency"] / units
    depth = k + c["prologue_k"]
    math: Any = np.inf
    for rows, cols in TILES:
        tiles = np.ceil(m / rows) * np.ceil(n / cols) * batch
        waves = _ceil_ramp(tiles / units, c["wave_ramp"])
        cost = rows * cols + c["tile_overhead"] * (rows + cols)
        math = np.minimum(math, waves * (2.0 * cost / rate) * depth)
    width = DTYPE_BYTES[gemm_dtype]
    moved = batch * (width * (m * k + k * n) + max(width, 2.0) * m * n)
    memory = moved / (device.memory_bandwidth_bytes_per_s * c["memory_efficiency"])
    return c["latency_s"] + np.maximum(math, memory)


def attention_time_s(
    device: Device, dtype: str, *, batch: Number, heads: Number, kv_heads: Number, q_len: Number, kv_len: Number,
    head_dim: Number, value_head_dim: Number, causal: bool, window: int = 0, backward: bool = False,
) -> Any:  # fmt: skip
    """Seconds of a fused attention core, forward or backward [s]."""
    c = constants_for(device, "attention", dtype)
    q, kv = np.asarray(q_len, dtype=float), np.asarray(kv_len, dtype=float)
    units = max(device.units, 1)
    pairs = q * kv
    if window:
        pairs = np.minimum(pairs, q * window)
    elif causal:
        pairs = np.where(q <= kv, q * (kv - 0.5 * q), 0.5 * kv * kv) + 64.0 * q
    work = 2.0 * (np.asarray(head_dim, dtype=float) + value_head_dim) + c["score_flops"]
    efficiency = c["efficiency"]
    if backward:
        work, efficiency = 2.5 * work, c["backward_efficiency"]
    rate = peak_flops_per_s(device, dtype) * efficiency
    heads_total = np.asarray(batch, dtype=float) * heads
    even = heads_total * (pairs + c["prologue_kv"] * q) * work / rate
    longest = (kv + c["prologue_kv"]) * 128.0 * work / rate * units
    width = DTYPE_BYTES[dtype]
    moved = width * (heads_total * q + np.asarray(batch, dtype=float) * kv_heads * kv)
    moved = moved * (np.asarray(head_dim, dtype=float) + value_head_dim) * (2.5 if backward else 1.0)
    memory = moved / (device.memory_bandwidth_bytes_per_s * c["memory_efficiency"])
    return c["latency_s"] + np.maximum(np.maximum(even, longest), memory)


def grouped_gemm_time_s(
    device: Device, dtype: str, *, experts: Number, tokens: Number, n: Number, k: Number, imbalance: Number = 1.0
) -> Any:
    """Seconds of `experts` products of tokens/experts rows each [s]; `tokens` are all rows routed to the device."""
    c = constants_for(device, "grouped_gemm", dtype)
    experts, n, k = (np.asarray(x, dtype=float) for x in (experts, n, k))
    rows = np.asarray(tokens, dtype=float) * imbalance
    active = np.minimum(experts, rows)
    padded = rows + 64.0 * active
    rate = peak_flops_per_s(device, dtype) * c["efficiency"]
    math = 2.0 * padded * n * (k + c["prologue_k"]) / rate
    width = DTYPE_BYTES[dtype]
    moved = width * (active * n * k + rows * k) + max(width, 2.0) * rows * n
    memory = moved / (device.memory_bandwidth_bytes_per_s * c["memory_efficiency"])
    return c["latency_s"] + np.maximum(math, memory)


def pointwise_time_s(device: Device, bytes: Number, flops: Number = 0, kernels: int = 1) -> Any:
    """Seconds of elementwise and row-wise kernels [s]."""
    c = device.kernels.constants["pointwise"]
    memory = np.asarray(bytes, dtype=float) / (device.memory_bandwidth_bytes_per_s * c["memory_efficiency"])
    return kernels * c["latency_s"] + np.maximum(memory, np.asarray(flops, dtype=float) / device.vector_flops_per_s)


def lookup_time_s(device: Device, rows: Number, width_bytes: Number) -> Any:
    """Seconds to gather (or scatter-add) `rows` rows of `width_bytes` [s]."""
    c = device.kernels.constants["lookup"]
    moved = 2.0 * np.asarray(rows, dtype=float) * width_bytes
    return c["latency_s"] + moved / (device.memory_bandwidth_bytes_per_s * c["memory_efficiency"])
