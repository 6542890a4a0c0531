"""Predicted seconds for the rows of measured kernel tables (gemm, attention, moe), as columns.

What a row times is what its framework runs: an fp8 GEMM row includes the cast of A, a MoE row a whole gated
feed-forward (permute, two grouped products, activation, weighted sum), `distribution` how tokens choose experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.device import (
    attention_time_s,
    gemm_time_s,
    grouped_gemm_time_s,
    lookup_time_s,
    pointwise_time_s,
)
from simulator.spec.hardware import Device

Array = NDArray[np.float64]
Columns = Mapping[str, Any]

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "fp8": "fp8", "nvfp4": "nvfp4"}
_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "nvfp4": 0.5625}


def gemm_seconds(device: Device, dtype: str, rows: Columns) -> Array:
    """Seconds of gemm rows [s]; below 16 bits with one kernel that casts A from bf16."""
    m, n, k = (np.asarray(rows[name], dtype=np.float64) for name in ("m", "n", "k"))
    seconds = gemm_time_s(device, dtype, m, n, k)
    if _BYTES[dtype] < 2.0:
        seconds = seconds + pointwise_time_s(device, (2.0 + _BYTES[dtype]) * m * k)
    return np.asarray(seconds)


def gemm_flops(rows: Columns) -> Array:
    return np.asarray(2.0 * np.asarray(rows["m"], dtype=np.float64) * rows["n"] * rows["k"])


def attention_seconds(device: Device, dtype: str, rows: Columns) -> Array:
    """Seconds of causal self-attention cores [s]."""
    return np.asarray(
        attention_time_s(
            device, dtype, batch=rows["batch"], heads=rows["heads"], kv_heads=rows["kv_heads"], q_len=rows["seq_len"],
            kv_len=rows["seq_len"], head_dim=rows["head_dim"], value_head_dim=rows["head_dim"], causal=True,
        )
    )  # fmt: skip


def attention_flops(rows: Columns) -> Array:
    """4 b s^2 a e, halved for the causal mask (facts h1)."""
    length = np.asarray(rows["seq_len"], dtype=np.float64)
    return np.asarray(2.0 * np.asarray(rows["batch"]) * rows["heads"] * length**2 * rows["head_dim"])


def moe_seconds(device: Device, dtype: str, rows: Columns) -> Array:
    """Seconds of MoE feed-forwards on the busiest of `ep` devices [s].

    Permuting rows into expert order is a gather of the device's rows in bf16. Summing them back reads these and writes
    a row for every token, of other devices' experts too (TensorRT-LLM cpp/tensorrt_llm/kernels/cutlass_kernels/
    moe_gemm/moe_kernels.cu, finalizeMoeRoutingKernel).
    """
    tokens, hidden = (np.asarray(rows[name], dtype=np.float64) for name in ("tokens", "hidden"))
    inner = np.asarray(rows["ffn_hidden"], dtype=np.float64) / rows["tp"]
    routed = tokens * rows["topk"] / rows["ep"]
    busiest, active = routing(rows)
    up = moe_gate_columns(rows)

    def product_s(n: Array, k: Array, *, ragged: bool) -> Array:
        return np.asarray(
            grouped_gemm_time_s(
                device, dtype, experts=active, tokens=routed, n=n, k=k, imbalance=busiest, ragged=ragged
            )
        )

    ragged, even = (product_s(up * inner, hidden, ragged=r) + product_s(hidden, inner, ragged=r) for r in (True, False))
    products = np.where(np.asarray(rows["distribution"], dtype=str) == "balanced", even, ragged)
    held = routed * busiest
    activation = pointwise_time_s(device, held * inner * (2.0 * up + _BYTES[dtype]))
    moves = lookup_time_s(device, held, 2.0 * hidden) + lookup_time_s(device, (held + tokens) / 2.0, 2.0 * hidden)
    return np.asarray(products + activation + moves)


def moe_gate_columns(rows: Columns) -> Array:
    """2 where the feed-forward is gated (gate and up product in one), 1 where the kernel's name says it is not."""
    plain = np.char.endswith(np.asarray(rows["kernel_source"], dtype=str), "nongated")
    return np.where(plain, 1.0, 2.0)


def moe_flops(rows: Columns) -> Array:
    """FLOPs of the products when tokens spread evenly."""
    routed = np.asarray(rows["tokens"], dtype=np.float64) * rows["topk"] / rows["ep"]
    inner = np.asarray(rows["ffn_hidden"], dtype=np.float64) / rows["tp"]
    return np.asarray(2.0 * routed * np.asarray(rows["hidden"]) * inner * (moe_gate_columns(rows) + 1.0))


def routing(rows: Columns) -> tuple[Array, Array]:
    """Rows of the busiest device over the mean, and how many of its experts have rows, from `distribution`."""
    keys = zip(rows["distribution"], rows["experts"], rows["ep"], rows["tokens"], rows["topk"], strict=True)
    found = [_routing(str(name), int(e), int(ep), int(t), int(top)) for name, e, ep, t, top in keys]
    return np.array([busiest for busiest, _ in found]), np.array([active for _, active in found])


@cache
def _routing(distribution: str, experts: int, ep: int, tokens: int, topk: int) -> tuple[float, float]:
    if not distribution.startswith("power_law_"):
        return 1.0, experts / ep
    return power_law_routing(float(distribution.removeprefix("power_law_")), experts, ep, tokens, topk)


def power_law_routing(alpha: float, experts: int, ep: int, tokens: int, topk: int) -> tuple[float, float]:
    """Median share of the busiest of `ep` groups of experts over the mean share, and its experts that have rows.

    Loads of experts are drawn from x^-alpha between 1 and 0.8 tokens (0.01 and 2 when there are fewer choices than
    experts), as aiconfigurator's collector (collector/helper.py, sample_power_law) draws them. A token chooses an
    expert once, so no load exceeds the tokens; what is cut off goes to the other experts.
    """
    low, high = (1.0, 0.8 * tokens) if tokens * topk > experts else (0.01, 2.0)
    draws = np.random.default_rng(20260101).random((256, experts))
    power = 1.0 - alpha
    loads = ((high**power - low**power) * draws + low**power) ** (1.0 / power)
    for _ in range(4):
        loads = np.minimum(loads * (tokens * topk / loads.sum(axis=1, keepdims=True)), float(tokens))
    grouped = loads.reshape(256, ep, experts // ep)
    groups = grouped.sum(axis=2)
    first = grouped[np.arange(256), groups.argmax(axis=1)]
    return float(np.median(groups.max(axis=1) / groups.mean(axis=1))), float((first >= 0.5).sum(axis=1).mean())


SECONDS: Mapping[str, Callable[[Device, str, Columns], Array]] = {
    "gemm": gemm_seconds, "attention": attention_seconds, "moe": moe_seconds,
}  # fmt: skip
FLOPS: Mapping[str, Callable[[Columns], Array]] = {"gemm": gemm_flops, "attention": attention_flops, "moe": moe_flops}
