"""Seconds of kernels and collectives of a machine that `shardwise calibrate` measured.

A product C[m, n] = A[m, k] B[k, n] costs

    call_s + batch (mnk_s m n k + mk_s m k + kn_s k n + mn_s m n)

and an attention core over P visible pairs of each of `batch heads` heads, of width w = head_dim + value_head_dim,

    call_s + batch heads (pair_width_s P w + pair_s P + grid_s q_len kv_len w + row_s (q_len + kv_len) w)

with coefficients that are never negative, so time is continuous and never falls when a size grows. What moves bytes is
a curve over bytes, straight in logarithms between measured points, of constant rate beyond the last and constant time
before the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from simulator.arch.operations import Number
from simulator.cluster.attention import visible_pairs
from simulator.cluster.placement import Group
from simulator.errors import InputError, Problem, did_you_mean
from simulator.spec.hardware import Cluster
from simulator.spec.kernels import Curve, MeasuredKernels

PLAIN = "plain"
"""The curve of kernels without one of their own: read, add and write."""


def gemm_time_s(kernels: MeasuredKernels, dtype: str, m: Number, n: Number, k: Number, batch: Number = 1) -> Any:
    """Seconds of `batch` products in one kernel [s]; more than one runs the batched kernel. Broadcasts."""
    m, n, k, batch = (np.asarray(x, dtype=float) for x in (m, n, k, batch))
    one = _product_s(_sum(kernels, "gemm", dtype), m, n, k, batch)
    several = _product_s(_sum(kernels, "batched_gemm", dtype), m, n, k, batch)
    return np.where(batch > 1, several, one)


def grouped_gemm_time_s(
    kernels: MeasuredKernels, dtype: str, *, experts: Number, tokens: Number, n: Number, k: Number,
    imbalance: Number = 1.0,
) -> Any:  # fmt: skip
    """Seconds of a product per expert over equal buffers, as one batched kernel [s]. Broadcasts."""
    rows = np.asarray(tokens, dtype=float) * imbalance / experts
    return gemm_time_s(kernels, dtype, rows, n, k, experts)


def _product_s(c: Mapping[str, float], m: Any, n: Any, k: Any, batch: Any) -> Any:
    return c["call_s"] + batch * (c["mnk_s"] * m * n * k + c["mk_s"] * m * k + c["kn_s"] * k * n + c["mn_s"] * m * n)


def product_terms(m: Number, n: Number, k: Number, batch: Number = 1) -> dict[str, Any]:
    """What each coefficient of a product multiplies."""
    return {"call_s": 1.0, "mnk_s": batch * m * n * k, "mk_s": batch * m * k, "kn_s": batch * k * n,
            "mn_s": batch * m * n}  # fmt: skip


def attention_time_s(
    kernels: MeasuredKernels, dtype: str, *, batch: Number, heads: Number, kv_heads: Number, q_len: Number,
    kv_len: Number, head_dim: Number, value_head_dim: Number, causal: bool, window: int = 0, backward: bool = False,
) -> Any:  # fmt: skip
    """Seconds of a fused core, forward or backward [s]. Broadcasts. Groups of heads share keys at no cost."""
    del kv_heads
    family = "attention" + ("_causal" if causal else "") + ("_grad" if backward else "")
    terms = attention_terms(
        batch=batch, heads=heads, q_len=q_len, kv_len=kv_len, width=np.asarray(head_dim) + value_head_dim,
        causal=causal, window=window,
    )  # fmt: skip
    c = _sum(kernels, family, dtype)
    return sum(c[name] * value for name, value in terms.items())


def attention_terms(
    *, batch: Number, heads: Number, q_len: Number, kv_len: Number, width: Number, causal: bool, window: int = 0
) -> dict[str, Any]:
    """What each coefficient of an attention core multiplies."""
    each = np.asarray(batch, dtype=float) * heads
    pairs = visible_pairs(q_len, kv_len, causal=causal, window=window)
    grid = np.asarray(q_len, dtype=float) * kv_len
    return {"call_s": 1.0, "pair_width_s": each * pairs * width, "pair_s": each * pairs,
            "grid_s": each * grid * width, "row_s": each * (np.asarray(q_len) + kv_len) * width}  # fmt: skip


def pointwise_time_s(kernels: MeasuredKernels, kernel: str, size_bytes: Number) -> Any:
    """Seconds of a kernel by name on the bytes that the program counts for it [s]; unnamed ones are plain."""
    return curve_s(kernels.curves.get(kernel, kernels.curves[PLAIN]), size_bytes)


def _sum(kernels: MeasuredKernels, family: str, dtype: str) -> Mapping[str, float]:
    name = f"{family}.{dtype}"
    if name not in kernels.sums:
        known = [key.rpartition(".")[2] for key in kernels.sums if key.startswith(f"{family}.")]
        message = f"{family} in {dtype} was not measured on this machine."
        raise InputError([Problem(message, "precision", f"Measured: {', '.join(known) or 'none'}.")])
    return kernels.sums[name]


def curve_s(curve: Curve, size_bytes: Number) -> Any:
    """Seconds on a measured curve at any size: continuous, never falling [s].

    >>> curve = ((10.0, 1.0), (1000.0, 100.0))
    >>> [round(float(curve_s(curve, size)), 9) for size in (1.0, 100.0, 2000.0)]
    [1.0, 10.0, 200.0]
    """
    sizes, times = (np.array(column) for column in zip(*curve, strict=True))
    asked = np.asarray(size_bytes, dtype=float)
    inside = np.exp(np.interp(np.log(np.maximum(asked, sizes[0])), np.log(sizes), np.log(times)))
    return inside * np.maximum(asked / sizes[-1], 1.0)


def collective_time_s(cluster: Cluster, kind: str, size_bytes: Number, group: Group) -> Any:
    """Seconds of a collective on a measured number of ranks [s]; between two such numbers, straight in the ranks.

    `size_bytes` is the full buffer. One rank and no bytes cost nothing. Raises InputError for a kind or a number of
    ranks beyond what was measured.
    """
    if kind not in cluster.curves:
        hint = did_you_mean(kind, cluster.curves)
        raise InputError([Problem(f"{kind} was not measured on {cluster.name}.", "", hint)])
    by_ranks = cluster.curves[kind]
    counts = sorted(by_ranks)
    size, load = np.broadcast_arrays(np.asarray(group.size, dtype=float), size_bytes)
    if size.size and size.max() > counts[-1]:
        message = f"{int(size.max())} ranks, but {cluster.name} was calibrated with at most {counts[-1]}."
        raise InputError([Problem(message, "", "Run `shardwise calibrate --ranks` with more.")])
    times = np.stack([np.asarray(curve_s(by_ranks[count], load)) for count in counts])
    result = times[0]
    for index, (low, high) in enumerate(pairwise(counts)):
        share = (size - low) / (high - low)
        result = np.where(size > low, times[index] + share * (times[index + 1] - times[index]), result)
    result = np.where((size <= 1) | (load <= 0), 0.0, result)
    return float(result) if result.ndim == 0 else result


def lookup_time_s(kernels: MeasuredKernels, rows: Number, width_bytes: Number) -> Any:
    """Seconds to gather, or scatter-add, rows: read and write them [s]."""
    return curve_s(kernels.curves["lookup"], 2.0 * np.asarray(rows, dtype=float) * width_bytes)
