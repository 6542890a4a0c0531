"""Which peak and which constants a kernel of a dtype runs with on a device."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.errors import InputError, Problem, did_you_mean
from simulator.spec.hardware import Device

_PEAK_OF = {"mxfp8": "fp8"}
_CONSTANTS_OF = {"mxfp8": ("mxfp8", "fp8")}
"""MXFP8 takes fp8's. fp16 runs the kernels of bf16; tf32, fp32 and fp64 are not in the measured tables: without
constants of their own these four take bf16's efficiencies of their own peaks, as MXFP8 does where fp8 has none."""


def peak_flops_per_s(device: Device, dtype: str) -> float:
    """Dense datasheet peak of a dtype [FLOP/s]. Raises InputError when the device has none."""
    peak = device.peak_flops_per_s.get(_PEAK_OF.get(dtype, dtype))
    if peak:
        return float(peak)
    known = [name for name, value in device.peak_flops_per_s.items() if value]
    raise InputError([Problem(f"{device.name} computes no {dtype} products.", "precision", did_you_mean(dtype, known))])


def constants_for(device: Device, family: str, dtype: str) -> Mapping[str, float]:
    """Constants of a kernel family ("gemm", "attention", "grouped_gemm") in a dtype, or those of bf16."""
    table = device.kernels.constants
    for name in _CONSTANTS_OF.get(dtype, (dtype,)):
        if f"{family}.{name}" in table:
            return table[f"{family}.{name}"]
    return table[f"{family}.bf16"]
