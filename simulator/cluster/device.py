"""Seconds of one kernel on one device. Every function broadcasts and leaves host launch time out.

The constants are the device's `kernels` (a KernelModel): fitted to measured kernels by tools/fit_kernels.py, inherited
from its generation, or assumed. A machine that `shardwise calibrate` measured brings its own kernels instead
(`measured.py`), with the host's time in them. All times grow with the work and are continuous in it.
"""

from __future__ import annotations

from typing import Any

from simulator.arch.operations import Number
from simulator.cluster import attention, gemm, grouped, measured, memory
from simulator.cluster.attention import visible_pairs
from simulator.cluster.peaks import peak_flops_per_s
from simulator.spec.hardware import Device

__all__ = [
    "attention_time_s", "gemm_time_s", "grouped_gemm_time_s", "lookup_time_s", "peak_flops_per_s", "pointwise_time_s",
    "trained_experts_time_s", "visible_pairs",
]  # fmt: skip


def gemm_time_s(device: Device, gemm_dtype: str, m: Number, n: Number, k: Number, batch: Number = 1) -> Any:
    """Seconds of `batch` products in one kernel [s]; see `gemm.py` and `measured.py`."""
    if device.kernels.measured:
        return measured.gemm_time_s(device.kernels.measured, gemm_dtype, m, n, k, batch)
    return gemm.gemm_time_s(device, gemm_dtype, m, n, k, batch)


def grouped_gemm_time_s(device: Device, dtype: str, **sizes: Any) -> Any:
    """Seconds of one grouped kernel [s]; see `grouped.py` and `measured.py`."""
    if device.kernels.measured:
        return measured.grouped_gemm_time_s(device.kernels.measured, dtype, **sizes)
    return grouped.grouped_gemm_time_s(device, dtype, **sizes)


def trained_experts_time_s(device: Device, dtype: str, **sizes: Any) -> Any:
    """Seconds of one grouped kernel of a training step [s]; see `grouped.py` and `measured.py`."""
    if device.kernels.measured:
        return measured.grouped_gemm_time_s(device.kernels.measured, dtype, **sizes)
    return grouped.trained_experts_time_s(device, dtype, **sizes)


def attention_time_s(device: Device, dtype: str, **sizes: Any) -> Any:
    """Seconds of a fused attention core [s]; see `attention.py` and `measured.py`."""
    if device.kernels.measured:
        return measured.attention_time_s(device.kernels.measured, dtype, **sizes)
    return attention.attention_time_s(device, dtype, **sizes)


def pointwise_time_s(
    device: Device, bytes: Number, flops: Number = 0, kernels: Number = 1, *, kernel: str = ""
) -> Any:
    """Seconds of work that moves bytes [s]; `kernel` names it where kernels were measured one by one."""
    if device.kernels.measured:
        return measured.pointwise_time_s(device.kernels.measured, kernel, bytes)
    return memory.pointwise_time_s(device, bytes, flops, kernels)


def lookup_time_s(device: Device, rows: Number, width_bytes: Number) -> Any:
    """Seconds to gather, or scatter-add, rows [s]."""
    if device.kernels.measured:
        return measured.lookup_time_s(device.kernels.measured, rows, width_bytes)
    return memory.lookup_time_s(device, rows, width_bytes)
