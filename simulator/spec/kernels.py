"""The constants of a device's kernels: what they are, and which a device without its own measurements takes.

Their meaning is with the formulas that use them: `cluster/gemm.py`, `grouped.py`, `attention.py`, `memory.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

LONGEST_MEASURED_S = 0.1
"""Products of so long are in the measurements of all three devices, and slow down no further (A100's of 50 to 200 ms:
12.5 % slower than short ones, H100's 18 to 20 %, B200's 14 %)."""
DRIFT_TIME_S = 20e-3
"""Half of the drift is there after so long; the fitted products of 10 to 200 ms agree with it to 1 % (A100)."""


Curve = tuple[tuple[float, float], ...]
"""Measured (bytes, seconds), by bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredKernels:
    """What `shardwise calibrate` measured on one machine; `cluster/measured.py` says how it is read."""

    sums: Mapping[str, Mapping[str, float]]
    """Coefficients [s] of a sum of terms, by family and dtype: "gemm.fp32", "attention_causal_grad.fp32"."""
    curves: Mapping[str, Curve]
    """Seconds over bytes of each kernel that moves bytes: "gelu", "layernorm_grad", "lookup", "plain"."""


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
    measured: MeasuredKernels | None = None
    """A calibrated machine's own kernels, which then replace the constants' formulas."""

    def cold(self) -> KernelModel:
        """The constants of kernels too short for the power limit to act on."""
        constants = {
            family: {**values, "throttle": 0.0, "throttle_drift": 0.0} if "throttle" in values else values
            for family, values in self.constants.items()
        }
        return replace(self, constants=constants)


@dataclass(frozen=True, slots=True)
class PowerLimit:
    """What sets a clock under load: the limit [W], the units that share it, and the datasheet's clock."""

    tdp_watts: float
    units: int
    clock_factor: float = 1.0
    """The datasheet's clock over that of the generation's measured device."""


def scaled_products(model: KernelModel, generation: str, limit: PowerLimit, factor: float) -> KernelModel:
    """A generation's constants for a device whose large products were measured: `factor` times as fast as those of the
    generation's measured device, not as its peaks say (units times clock).

    >>> gb200 = scaled_products(
    ...     KernelModel(constants={"gemm.bf16": {"efficiency": 0.7}}, provenance="inherited"),
    ...     "blackwell", PowerLimit(1200.0, 152, clock_factor=1.082), factor=1.037)
    >>> round(gb200.constants["gemm.bf16"]["efficiency"], 4)
    0.6532
    """
    peaks = limit.clock_factor * limit.units / MEASURED_LIMITS[generation].units
    constants = {
        family: {**values, "efficiency": values["efficiency"] * factor / peaks} if "efficiency" in values else values
        for family, values in model.constants.items()
    }
    return replace(model, constants=constants, source=f"{model.source}; large products {factor:g} times as fast")


def sustained_slowdown(
    constants: Mapping[str, float], own: PowerLimit | None = None, measured: PowerLimit | None = None
) -> float:
    """Factor by which the power limit lengthens matrix kernels that run on and on, against the datasheet's clock.

    On the measured device: what its longest kernels, of 0.1 s, were measured to lose; nothing is extrapolated beyond
    them. A sibling with another limit per unit holds another clock: dynamic power grows with f V^2, about f^3, so the
    clock goes with the cube root of the limit (Chandrakasan 1992, "Low-Power CMOS Digital Design"), whatever clock its
    datasheet's peak is for. Kernels of siblings say that the law is an upper bound: best products of 100 iterations
    (stas00/ml-engineering, MAMF) ask for a power of 0.24 (A100 PCIe beside SXM), 0.17 (GH200 beside H100) and 0.11
    (GB200 beside B200), so a device of which large products were measured takes those (`scaled_products`).

    >>> constants = {"throttle": 0.1, "throttle_time_s": 1e-3, "throttle_power": 4.0, "throttle_drift": 0.06}
    >>> b200, gb200 = PowerLimit(1000.0, 148), PowerLimit(1200.0, 148, clock_factor=1.11)
    >>> round(sustained_slowdown(constants), 4), round(sustained_slowdown(constants, gb200, b200), 4)
    (1.15, 1.2012)
    """
    if not constants.get("throttle"):
        return 1.0
    slower = 1.0 + float(throttled_share(LONGEST_MEASURED_S, constants))
    if own and measured and own.tdp_watts:
        share = (own.units or measured.units) / measured.units
        slower *= own.clock_factor / (own.tdp_watts / share / measured.tdp_watts) ** (1.0 / 3.0)
    return max(slower, 1.0)


def throttled_share(busy_s: Any, constants: Mapping[str, float]) -> Any:
    """What a kernel of some duration loses to the power limit, relative to its time. Broadcasts.

    `throttle` after about `throttle_time_s`, and `throttle_drift` more over tens of milliseconds.

    >>> constants = {"throttle": 0.1, "throttle_time_s": 1e-3, "throttle_power": 4.0, "throttle_drift": 0.02}
    >>> [round(throttled_share(time, constants), 3) for time in (5e-4, 1e-3, 2e-3, 2e-2)]
    [0.006, 0.051, 0.096, 0.11]
    """
    late = (busy_s / constants["throttle_time_s"]) ** constants["throttle_power"]
    drift = constants["throttle_drift"] * busy_s / (busy_s + DRIFT_TIME_S)
    return constants["throttle"] * late / (1.0 + late) + drift


def kernel_model_for(generation: str, device_name: str, calibrations: Mapping[str, KernelModel]) -> KernelModel:
    """The kernel constants of a device: fitted on it, inherited from its generation, or stated defaults.

    `calibrations` is keyed by generation (the stems of hardware/calibration/GENERATION.toml) or by device name. A
    generation's file is fitted on one device of it, named in MEASURED; every other device of the generation inherits:
    constants are efficiencies and overheads, so they work with the device's own peaks, bandwidth and units.
    """
    if device_name in calibrations:
        return calibrations[device_name]
    if generation in calibrations:
        model = calibrations[generation]
        if device_name == MEASURED.get(generation):
            return model
        source = f"{model.source}; measured on {MEASURED.get(generation, generation)}, taken for {device_name}"
        return replace(model, provenance="inherited", source=source, residuals={})
    return assumed_model(generation)


MEASURED: Mapping[str, str] = {
    "ampere": "a100-sxm-80gb", "hopper": "h100-sxm-80gb", "blackwell": "b200-sxm-180gb",
}  # fmt: skip
"""The device of each generation whose kernels were measured."""
MEASURED_LIMITS: Mapping[str, PowerLimit] = {
    "ampere": PowerLimit(400.0, 108), "hopper": PowerLimit(700.0, 132), "blackwell": PowerLimit(1000.0, 148),
}  # fmt: skip
"""Its power limit and units (datasheets: hardware/devices)."""

_EVIDENCE: Mapping[str, tuple[float, str]] = {
    "pascal": (0.70, "no matrix units; 70 % of the vector peak assumed"),
    "volta": (0.70, ("70 % assumed: above the 83 of 125 TFLOP/s of cuBLAS 9 (Markidis 2018, arXiv 1803.04014, sec. 7), "
                     "below A100's measured 87 % (stas00/ml-engineering, MAMF)")),
    "ada": (0.70, "no table; 70 % assumed, below A100's measured 87 % (stas00/ml-engineering, MAMF)"),
    "cdna2": (0.50, "no table; 50 % assumed, next to MI300X's measured 51.4 % (stas00/ml-engineering, MAMF)"),
    "cdna3": (0.56, "best shape measured: MI300X 51.4 %, MI325X 60.4 % of peak (stas00/ml-engineering, MAMF)"),
    "cdna4": (0.62, "best shape measured: MI355X 1565 of 2516 TFLOP/s (stas00/ml-engineering, MAMF)"),
    "gaudi": (0.80, "best shape measured: Gaudi2 96.9 %, Gaudi3 74.1 % of peak (stas00/ml-engineering, MAMF)"),
    "tpu": (0.80, "no kernel table; 80 % of peak assumed for large products"),
    "trainium": (0.70, "no kernel table; 70 % of peak assumed for large products"),
    "cpu": (0.60, "no kernel table; 60 % of peak assumed, `shardwise calibrate` measures it"),
}
"""Share of the matrix peak that large products reach, for generations without a calibration."""
_SINGLE_PRECISION = 0.89
"""The same for fp32 on vector units: cuBLAS SGEMM reaches 14 of V100's 15.7 TFLOP/s (Markidis 2018, sec. 7)."""


def assumed_model(generation: str) -> KernelModel:
    """Stated defaults for a generation that was not measured: tiles of 128, no throttling, 80 % of bandwidth."""
    efficiency, evidence = _EVIDENCE.get(
        generation, (0.70, "no measurement of this generation; 70 % of the matrix peak assumed")
    )
    unthrottled = {"throttle": 0.0, "throttle_time_s": 1.0e-3, "throttle_power": 1.0, "throttle_drift": 0.0}
    gemm = {
        "largest_tile": 128.0, "efficiency": efficiency, "tile_overhead": 10.0, "prologue_k": 150.0, "tile_waste": 1.0,
        "wave_waste": 0.0, "split_latency_s": 5.0e-6, "split_passes": 2.0, "memory_efficiency": 0.80,
        "ramp_penalty": 0.1, "ramp_bytes": 64.0e6, "overlap_power": 4.0, "latency_s": 4.0e-6, **unthrottled,
    }  # fmt: skip
    attention = {
        "efficiency": 0.6 * efficiency, "score_unit_s": 0.0, "softmax_overlap": 1.0, "tail": 0.5,
        "memory_efficiency": 0.6, "latency_s": 1.0e-5,
        **unthrottled, "backward_rate": 0.85,
    }  # fmt: skip
    return KernelModel(
        constants={
            "gemm.bf16": gemm,
            **({"gemm.fp32": {**gemm, "efficiency": _SINGLE_PRECISION}} if generation in ("pascal", "volta") else {}),
            "grouped_gemm.bf16": {**gemm, "latency_s": 1.0e-5, "ragged_tiles": 0.5},
            "attention.bf16": attention,
            "pointwise": {"memory_efficiency": 0.80, "latency_s": 3.0e-6},
            "lookup": {"memory_efficiency": 0.50, "latency_s": 3.0e-6},
        },
        provenance="assumed",
        source=evidence,
    )
