"""Seconds of kernels that move bytes: pointwise, row-wise, gathers."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.arch.operations import Number
from simulator.spec.hardware import Device


def pointwise_time_s(device: Device, bytes: Number, flops: Number = 0, kernels: Number = 1) -> Any:
    """Seconds of elementwise or row-wise work in `kernels` kernels that move `bytes` in total [s]. Broadcasts.

    kernels * latency_s + max(bytes / (memory_efficiency bandwidth), flops / vector peak). 80 % of the datasheet's
    bandwidth plus 3 us is what aiconfigurator uses for all devices (systems/*.yaml); a device-to-device copy measures
    1581-1594 of 2039 GB/s on A100 (78 %), 2494-2533 of 3350 on H100 (75 %; 2903, 87 %, elsewhere), 5715-5820 of 8000
    on GB200 (72 %) (stas00/ml-engineering network/README.md; Voltage Park report).
    """
    c = device.kernels.constants["pointwise"]
    memory = np.asarray(bytes, dtype=np.float64) / (device.memory_bandwidth_bytes_per_s * c["memory_efficiency"])
    math = np.asarray(flops, dtype=np.float64) / device.vector_flops_per_s if device.vector_flops_per_s else 0.0
    return np.asarray(kernels) * c["latency_s"] + np.maximum(memory, math)


def lookup_time_s(device: Device, rows: Number, width_bytes: Number) -> Any:
    """Seconds to gather, or scatter-add, `rows` rows of `width_bytes` each: read and write them [s]. Broadcasts."""
    c = device.kernels.constants["lookup"]
    moved = 2.0 * np.asarray(rows, dtype=np.float64) * width_bytes
    return c["latency_s"] + moved / (device.memory_bandwidth_bytes_per_s * c["memory_efficiency"])
