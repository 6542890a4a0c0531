"""Seconds of matrix products: tiles, waves, split k, memory, and the clock that long kernels fall to.

A library holds many kernels and picks one: the time is the least over candidate tiles and k-splits (cuBLAS does so by
a heuristic). Each candidate's time never falls when m, n, k or batch grows, so neither does their minimum.

A candidate of rows x cols elements per tile, k split s ways, on a device of U units (streaming multiprocessors):

    tiles = batch * count(m / rows) * count(n / cols) * s
    count(x) = max(1, x + tile_waste (ceil(x) - x))
    filled = tiles / U
    waves = max(1, filled + wave_waste (ceil(filled) - filled))
    cost  = rows cols (1 + tile_overhead (1/rows + 1/cols)), relative to the largest tile's cost per element
    math  = waves * 2 cost (k / s + prologue_k) / (efficiency peak / U)
    split = split_latency_s + split_passes * s * 4 m n bytes / bandwidth, when s > 1: partial sums in fp32

`efficiency` is the largest tile's share of the datasheet peak, `tile_overhead` [elements] the cost of loading a tile's
edges relative to multiplying its area, `prologue_k` the pipeline fill and epilogue in steps of k. `tile_waste` and
`wave_waste` are the shares of the last, partly filled tile and wave that are really lost: nearly all in a library of
few tile shapes (A100: 1 and 0.9), less where tile heights come in steps of 8 and kernels are persistent, so that some
other shape or schedule takes up the rest (H100: 0.4 and 0.3, B200: 0.6 and none). Each step of `ceil` is a ramp, of
one row or column and of a twentieth of a wave. Then, with the bytes of A, B and C moved once,

    memory = (bytes + ramp_penalty * min(bytes, ramp_bytes)) / (memory_efficiency bandwidth)
    busy   = (min math^p + memory^p)^(1/p)
    late   = (busy / throttle_time_s)^q,  q = throttle_power
    time   = latency_s + busy (1 + throttle late / (1 + late) + throttle_drift busy / (busy + 20 ms))

Short transfers do not reach full bandwidth (`ramp_penalty`). `throttle` is measured: the same rate does not hold for
kernels of milliseconds, because the power limit lowers the clock. It sets in at once: products that run for 0.5 ms do
not feel it, those of 2 ms do (A100 9 %, H100 14 %, B200 11 %); `throttle_drift` is what those of 10 ms and longer
lose besides (A100 2 %, H100 5 %, B200 2 %).

Wave quantisation as in NVIDIA, "Matrix Multiplication Background User's Guide" (tile and wave quantisation); tile
shapes of CUTLASS's and cuBLAS's default kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.arch.operations import DTYPE_BYTES, Number
from simulator.cluster.peaks import constants_for, peak_flops_per_s
from simulator.spec.hardware import Device
from simulator.spec.kernels import throttled_share

TILES = ((256, 128), (128, 256), (128, 128), (128, 96), (96, 128), (128, 64), (64, 128), (128, 32), (32, 128))
SPLITS = (1, 2, 3, 4, 6, 8)
_RAMP_WAVES = 0.05
"""Width of a step of the waves, so that times are continuous."""
_BLOCK = 1024
"""Shapes evaluated together: candidates times this fits a core's cache."""

Array = NDArray[np.float64]
Places = NDArray[np.intp]


def gemm_time_s(device: Device, gemm_dtype: str, m: Number, n: Number, k: Number, batch: Number = 1) -> Any:
    """Seconds of `batch` products C[m, n] = A[m, k] B[k, n], one kernel [s]. Broadcasts.

    Operands are in `gemm_dtype`, C in at least 16 bits. fp8 and nvfp4 leave the cast of the operands out. Raises
    InputError when the device computes no such products.
    """
    c = constants_for(device, "gemm", gemm_dtype)
    peak = peak_flops_per_s(device, gemm_dtype)
    shape = np.broadcast_shapes(np.shape(m), np.shape(n), np.shape(k), np.shape(batch))
    flat = [np.broadcast_to(np.asarray(x, dtype=np.float64), shape).reshape(-1) for x in (m, n, k, batch)]
    size = flat[0].size
    result = np.empty(size)
    for start in range(0, size, _BLOCK):
        part = [x[start : start + _BLOCK] for x in flat]
        result[start : start + _BLOCK] = _block_time_s(device, c, peak, operand_bytes(gemm_dtype), part)
    return result.reshape(shape) if shape else float(result[0])


def operand_bytes(dtype: str) -> float:
    """Bytes of one operand element; nvfp4 carries one fp8 scale for 16 elements, mxfp8 one byte for 32."""
    scale = {"nvfp4": 1.0 / 16, "mxfp8": 1.0 / 32}.get(dtype, 0.0)
    return DTYPE_BYTES[dtype] + scale


def _block_time_s(
    device: Device, c: Mapping[str, float], peak: float, width: float, sizes: Sequence[Array]
) -> Array:
    m, n, k, batch = sizes
    tiles = tiles_down(m, c) * tiles_across(n, c)
    tiles *= batch
    bandwidth = device.memory_bandwidth_bytes_per_s * c["memory_efficiency"]
    partial = c["split_passes"] * 4.0 * batch * m * n / bandwidth
    math = best_math_s(device, c, peak, tiles=tiles, k=k, partial_s=partial)
    moved = batch * (width * (m * k + k * n) + max(width, 2.0) * m * n)
    return kernel_time_s(device, c, math, moved)


@lru_cache(maxsize=16)
def candidate_tiles(largest_side: int) -> tuple[Array, Array, Array, Places, Places]:
    """Rows and columns (columns of an array, for broadcasting) of the candidate tiles with no side over `largest_side`;
    the different sides among them, and which of these are a candidate's rows and columns.
    """
    sides = np.array([tile for tile in TILES if max(tile) <= largest_side], dtype=np.float64)
    different, which = np.unique(sides, return_inverse=True)
    places = which.reshape(sides.shape)
    return sides[:, :1], sides[:, 1:], different[:, None], places[:, 0], places[:, 1]


def tiles_down(size: Array, c: Mapping[str, float]) -> Array:
    """Tiles that cover a size with each candidate tile's rows; the last one's empty part counts by `tile_waste`."""
    _, _, sides, rows, _ = candidate_tiles(int(c["largest_tile"]))
    return np.asarray(_counts(size, sides, c["tile_waste"])[rows])


def tiles_across(size: Array, c: Mapping[str, float]) -> Array:
    """The same with the columns of each candidate tile."""
    _, _, sides, _, columns = candidate_tiles(int(c["largest_tile"]))
    return np.asarray(_counts(size, sides, c["tile_waste"])[columns])


def _counts(size: Array, sides: Array, lost_fraction: float) -> Array:
    exact = size / sides
    count = ceil_ramp(exact, 1.0 / sides)
    if lost_fraction < 1.0:
        count *= lost_fraction
        exact *= 1.0 - lost_fraction
        count += exact
        np.maximum(count, 1.0, out=count)
    return count


def ceil_ramp(x: Array, width: Any) -> Array:
    """Like ceil(x), but the step after each whole number is a ramp of `width`: continuous, never decreasing."""
    whole = np.floor(x)
    return np.asarray(whole + np.minimum((x - whole) / width, 1.0))


def best_math_s(
    device: Device, c: Mapping[str, float], peak: float, *, tiles: Array, k: Array, partial_s: Array
) -> Array:
    """Least seconds over candidate tiles (first axis of `tiles`) and k-splits [s]; the second axis is the shapes'."""
    units = max(device.units, 1)
    rows, cols = candidate_tiles(int(c["largest_tile"]))[:2]
    edges = 1.0 + c["tile_overhead"] * (1.0 / rows + 1.0 / cols)
    per_k = 2.0 * rows * cols * (edges / edges.min()) * units / (c["efficiency"] * peak)
    best: Array | None = None
    for split in SPLITS:
        # All tiles of a shape are equally deep, so the least of their waves is the least of their times.
        steps = _waves(tiles * (split / units), c["wave_waste"])
        steps *= per_k
        seconds = steps.min(axis=0) * (k / split + c["prologue_k"])
        if split > 1:
            seconds += c["split_latency_s"] + split * partial_s
        best = seconds if best is None else np.minimum(best, seconds)
    return np.asarray(best)


def _waves(filled: Array, lost_fraction: float) -> Array:
    """Waves from the tiles over the units, with that fraction of the last one's empty part. Writes over `filled`."""
    if not lost_fraction:
        return np.maximum(filled, 1.0, out=filled)
    whole = np.floor(filled)
    part = filled - whole
    part *= 1.0 / _RAMP_WAVES
    np.minimum(part, 1.0, out=part)
    part += whole
    part *= lost_fraction
    filled *= 1.0 - lost_fraction
    filled += part
    return np.maximum(filled, 1.0, out=filled)


def kernel_time_s(device: Device, c: Mapping[str, float], math_s: Array, moved_bytes: Array) -> Array:
    """Seconds of a kernel from its seconds of math and its bytes: memory, smooth maximum, throttling, latency [s]."""
    slow = np.minimum(moved_bytes, c["ramp_bytes"]) * c["ramp_penalty"]
    memory = (moved_bytes + slow) / (device.memory_bandwidth_bytes_per_s * c["memory_efficiency"])
    busy = smooth_max(math_s, memory, c["overlap_power"])
    return c["latency_s"] + throttled_s(busy, c)


def throttled_s(busy_s: Array, c: Mapping[str, float]) -> Array:
    """Seconds after the power limit lowered the clock of a long kernel; tends to (1 + throttle) times."""
    if not c["throttle"]:
        return busy_s
    return np.asarray(busy_s * (1.0 + throttled_share(busy_s, c)))


def smooth_max(a: Array, b: Array, power: float) -> Array:
    """(a^p + b^p)^(1/p), scaled by the larger so that nothing underflows."""
    high, low = np.maximum(a, b), np.minimum(a, b)
    ratio = np.divide(low, high, out=np.zeros_like(high), where=high > 0)
    return np.asarray(high * (1.0 + ratio**power) ** (1.0 / power))
