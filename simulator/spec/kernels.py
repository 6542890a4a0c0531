"""The constants of a device's kernels: what they are, and which a device without its own measurements takes.

Their meaning is with the formulas that use them: `cluster/gemm.py`, `attention.py`, `grouped.py`, `memory.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelModel:
    """Constants by kernel family and dtype, with where they come from.

    `constants` maps "gemm.bf16", "attention.bf16", "grouped_gemm.bf16", "pointwise", "lookup" to named floats.
    """

    constants: Mapping[str, Mapping[str, float]]
    provenance: str
    """"fitted" (own kernel measurements), "inherited" (the generation's efficiencies with own peaks) or "assumed"."""
    source: str = ""
    residuals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


_POINTWISE = {"memory_efficiency": 0.80, "latency_s": 3.0e-6}
_LOOKUP = {"memory_efficiency": 0.50, "latency_s": 3.0e-6}


def _assumed(efficiency: float, evidence: str) -> KernelModel:
    gemm = {
        "efficiency": efficiency, "tile_overhead": 0.0, "prologue_k": 128.0, "latency_s": 4.0e-6,
        "memory_efficiency": 0.80, "wave_ramp": 0.5,
    }  # fmt: skip
    attention = {
        "efficiency": 0.55 * efficiency, "backward_efficiency": 0.45 * efficiency, "score_flops": 64.0,
        "prologue_kv": 128.0, "latency_s": 6.0e-6, "memory_efficiency": 0.70,
    }  # fmt: skip
    return KernelModel(
        constants={
            "gemm.bf16": gemm, "attention.bf16": attention, "grouped_gemm.bf16": {**gemm, "latency_s": 8.0e-6},
            "pointwise": _POINTWISE, "lookup": _LOOKUP,
        },
        provenance="assumed",
        source=evidence,
    )  # fmt: skip


_GENERIC = _assumed(0.70, "no measurement of this generation: 70 % of the matrix peak assumed")
_ASSUMED: Mapping[str, KernelModel] = {}


def kernel_model_for(generation: str, device_name: str, calibrations: Mapping[str, KernelModel]) -> KernelModel:
    """The kernel constants of a device: its own calibration, else its generation's, else stated defaults.

    `calibrations` is keyed by device name or generation (the stems of hardware/calibration/*.toml). Constants are
    efficiencies and tile overheads, not rates, so an inherited set works with the device's own peaks and bandwidth.
    """
    if device_name in calibrations:
        return calibrations[device_name]
    if generation in calibrations:
        return replace(calibrations[generation], provenance="inherited")
    return _ASSUMED.get(generation, _GENERIC)
