"""Seconds of a fused attention core (FlashAttention), forward and backward.

One block of threads holds 128 queries of a head and walks the visible keys. With P visible (query, key) pairs,

    math   = (2 head_dim + 2 value_head_dim) / (efficiency peak)   seconds of the whole device for a pair's products
    pair   = (math^p + (score_unit_s / U)^p)^(1/p)                 p = softmax_overlap: 1 one after the other
    even   = batch heads P pair                                    all blocks spread evenly over U units
    tail   = imbalance 128 visible_keys pair U                     the longest block, when the others are done
    time   = latency_s + throttled(even + tail + bytes / (memory_efficiency bandwidth))

`score_unit_s` is the softmax: one exponential per pair and unit. The fit finds it close to the special-function units'
16 per clock (A100 1.41 GHz: 44 ps, H100 1.8 GHz: 35 ps), which the matrix units cannot hide at small head_dim
(Shah 2024, FlashAttention-3, sec. 3.2).

Backward is five products where forward has two (2.5 times the FLOPs; Dao-AILab/flash-attention
benchmarks/benchmark_flash_attention.py) at `backward_rate` of the forward's rate. It is not in the measured tables:
0.85 is from FlashAttention-2 (Dao 2023, Fig. 4 and 5: A100, head_dim 128, 16k: about 225 forward, 196 backward) and
FlashAttention-3 (Shah 2024, Fig. 5 and 6: H100, head_dim 128, 16k: about 650 forward, 560 backward) TFLOP/s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.arch.operations import DTYPE_BYTES, Number
from simulator.cluster.gemm import smooth_max, throttled_s
from simulator.cluster.peaks import constants_for, peak_flops_per_s
from simulator.spec.hardware import Device

QUERY_TILE = 128.0
BACKWARD_FLOPS = 2.5
BACKWARD_BYTES = 2.5
"""Reads q, k, v, o, do and writes dq, dk, dv: eight tensors against four, and fp32 sums of dq."""

Array = NDArray[np.float64]


def visible_pairs(q_len: Number, kv_len: Number, *, causal: bool, window: int = 0) -> Any:
    """(Query, key) pairs that are computed, per head. The q_len queries are the last of kv_len positions when causal.

    A window (or chunk) bounds the keys of a query. Continuous and never decreasing in both lengths.

    >>> float(visible_pairs(4, 4, causal=False)), float(visible_pairs(4, 4, causal=True))
    (16.0, 10.0)
    """
    q, kv = np.asarray(q_len, dtype=np.float64), np.asarray(kv_len, dtype=np.float64)
    span = np.minimum(kv, float(window)) if window else kv
    if not causal:
        return q * span
    first = np.maximum(kv - q, 0.0)
    pairs = _keys_seen(kv, span) - _keys_seen(first, span)
    return pairs + np.maximum(q - kv, 0.0) * np.minimum(span, 1.0)


def _keys_seen(positions: Array, span: Array) -> Array:
    """Keys seen by the first `positions` queries when each sees those up to itself, at most `span`."""
    ramp = np.minimum(positions, span)
    return ramp * (ramp + 1.0) / 2.0 + (positions - ramp) * span


def attention_time_s(
    device: Device, dtype: str, *, batch: Number, heads: Number, kv_heads: Number, q_len: Number, kv_len: Number,
    head_dim: Number, value_head_dim: Number, causal: bool, window: int = 0, backward: bool = False,
) -> Any:  # fmt: skip
    """Seconds of softmax(Q K^T) V as one kernel [s]. Broadcasts.

    Raises InputError when the device computes no `dtype`.
    """
    c = constants_for(device, "attention", dtype)
    b, h, kv_h, q, kv = (np.asarray(x, dtype=np.float64) for x in (batch, heads, kv_heads, q_len, kv_len))
    width = np.asarray(head_dim, dtype=np.float64) + value_head_dim
    rate = c["efficiency"] * peak_flops_per_s(device, dtype)
    units = max(device.units, 1)
    slower = BACKWARD_FLOPS / c["backward_rate"] if backward else 1.0
    score = np.full_like(width, c["score_unit_s"] / units)
    pair = slower * smooth_max(2.0 * width / rate, score, c["softmax_overlap"])
    even = b * h * visible_pairs(q, kv, causal=causal, window=window) * pair
    span = np.minimum(kv, float(window)) if window else kv
    tail = c["tail"] * np.minimum(q, QUERY_TILE) * span * pair * units
    moved = DTYPE_BYTES[dtype] * b * width * (h * q + kv_h * kv) * (BACKWARD_BYTES if backward else 1.0)
    memory = moved / (device.memory_bandwidth_bytes_per_s * c["memory_efficiency"])
    return c["latency_s"] + throttled_s(even + tail + memory, c)


_FLASH1_OVER_FLASH2 = 2.0
"""FlashAttention-2 "yields around 2x speedup compared to FlashAttention" on A100 (Dao 2023, arXiv 2307.08691,
abstract)."""
_FLASH2_OVER_FLASH3 = 1.75
"""FlashAttention-3 reaches "speedup ... by 1.5-2.0x" over FlashAttention-2 on H100 (Shah 2024, arXiv 2407.08608,
abstract): the middle."""
_NEWER = ("hopper", "blackwell")


def kernel_slowdown(generation: str, kernel: str) -> float:
    """Time of an older fused kernel over that of the measured one: FlashAttention-2 on A100, FlashAttention-3 or
    TensorRT-LLM's on newer devices.

    >>> kernel_slowdown("ampere", "flash2"), kernel_slowdown("hopper", "flash2"), kernel_slowdown("ampere", "flash1")
    (1.0, 1.75, 2.0)
    """
    if kernel == "library":
        return 1.0
    older = _FLASH1_OVER_FLASH2 if kernel == "flash1" else 1.0
    return older * (_FLASH2_OVER_FLASH3 if generation in _NEWER else 1.0)
