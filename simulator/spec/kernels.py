"""The fitted constants of a device's kernels. Their meaning is with the formulas in `cluster/device.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
