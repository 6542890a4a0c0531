"""Seconds of one kernel on one device. Every function broadcasts and leaves host launch time out.

The constants are the device's `kernels` (a KernelModel): fitted to measured kernels by tools/fit_kernels.py, inherited
from its generation, or assumed. All times grow with the work and are continuous in it.
"""

from __future__ import annotations

from simulator.cluster.attention import attention_time_s, visible_pairs
from simulator.cluster.gemm import gemm_time_s
from simulator.cluster.grouped import grouped_gemm_time_s
from simulator.cluster.memory import lookup_time_s, pointwise_time_s
from simulator.cluster.peaks import peak_flops_per_s

__all__ = [
    "attention_time_s", "gemm_time_s", "grouped_gemm_time_s", "lookup_time_s", "peak_flops_per_s", "pointwise_time_s",
    "visible_pairs",
]  # fmt: skip
