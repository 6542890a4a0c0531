"""The operations that a block yields: what a rank computes and sends, in numbers that broadcast.

Every numeric field is a Python number or a numpy array over strategies (DESIGN section 2). An `Operation` is a
step of the forward pass with its backward in two parts: B (input gradient) and W (weight gradient), which
zero-bubble schedules run apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Number: TypeAlias = int | float | NDArray[Any]

DTYPE_BYTES = {
    "fp64": 8.0, "fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "mxfp8": 1.0, "nvfp4": 0.5,
    "e5m6": 1.5, "int64": 8.0, "int32": 4.0, "bool": 1.0,
}  # fmt: skip


def largest(values: Iterable[Number]) -> Number:
    """The largest of several numbers or arrays, elementwise; 0 when there are none.

    >>> largest([1.0, 3.0, 2.0])
    3.0
    """
    result: Number = 0.0
    for value in values:
        broadcast = isinstance(value, np.ndarray) or isinstance(result, np.ndarray)
        result = np.maximum(result, value) if broadcast else max(result, value)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """C[m, n] += A[m, k] B[k, n], `batch` times in one kernel, `repeat` kernels one after the other.

    FLOPs = 2 batch m n k repeat.
    """

    m: Number
    n: Number
    k: Number
    batch: Number = 1
    dtype: str = "bf16"
    repeat: Number = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCore:
    """Fused (flash) softmax(Q K^T) V, forward or backward; no projections.

    A causal core over q_len = kv_len does half the work; a window or chunk bounds the keys per query.
    """

    batch: Number
    heads: Number
    kv_heads: Number
    q_len: Number
    kv_len: Number
    head_dim: Number
    value_head_dim: Number
    causal: bool
    window: int = 0
    backward: bool = False
    kernel: str = "library"
    dtype: str = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGemm:
    """`experts` GEMMs of tokens / experts rows each, [rows, k] x [experts, k, n]; `imbalance` >= 1 is the busiest's."""

    experts: Number
    tokens: Number
    n: Number
    k: Number
    imbalance: Number = 1.0
    dtype: str = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointwise:
    """Elementwise or row-wise kernels: bytes read plus written, FLOPs, and how many kernels do it."""

    bytes: Number
    flops: Number = 0
    kernels: int = 1
    kernel: str = ""
    """What runs ("gelu", "layernorm_grad"), for devices whose kernels were measured one by one; empty: a plain pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Gather (or scatter-add) of `rows` rows of `width_bytes`."""

    rows: Number
    width_bytes: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """Communication on a parallel axis. `bytes` is the full (gathered, unreduced) buffer of one rank's group.

    kind: all_reduce, reduce_scatter, all_gather, all_to_all, broadcast, reduce, send. For all_to_all, `bytes` is what
    one rank holds (it keeps 1/n of it). `hides` names what a non-blocking one runs beside: "" (nothing, it
    blocks), "weight_grad" or "input_grad" (the GEMM of that part of the same operation), "attention" (the
    attention core of the same layer), "experts" (another micro-batch's work, where the framework overlaps so).
    """

    kind: Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "reduce", "send"]
    axis: str
    bytes: Number
    hides: str = ""
    copies: int = 0
    """all_to_all of tokens that visit `copies` ranks each and are sent once per node; 0 is a plain exchange."""


Work: TypeAlias = Gemm | AttentionCore | GroupedGemm | Pointwise | Lookup | Collective


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A parameter tensor (or several equal ones) as this rank holds it.

    `elements` are local. `sharing` says whose gradients are reduced together: "dense" parameters over dp * cp,
    "expert" parameters over the expert replicas.
    """

    name: str
    elements: Number
    sharing: Literal["dense", "expert"] = "dense"
    sequence_replicated: bool = False
    """Replicated over tp (norms, biases after a row-parallel product): gradients need a small tp all-reduce with SP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A tensor kept for backward, local bytes, listed by the operation that produces it.

    `boundary`: it crosses the border of a recomputable module and stays when that module is recomputed.
    `statistic`: per-token or per-row numbers (a norm's mean, attention's log-sum-exp) that closed forms leave out.
    """

    name: str
    bytes: Number
    boundary: bool = False
    statistic: bool = False
    beside_bytes: Number | None = None
    """The most that stands beside it while it or its gradient is made [B]. None: a gradient of its own size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step of a layer. `modules` are the recomputable modules it belongs to (see RECOMPUTE_MODULES)."""

    name: str
    forward: tuple[Work, ...] = ()
    input_grad: tuple[Work, ...] = ()
    weight_grad: tuple[Work, ...] = ()
    weights: tuple[Weight, ...] = ()
    saves: tuple[Saved, ...] = ()
    modules: tuple[str, ...] = ()
