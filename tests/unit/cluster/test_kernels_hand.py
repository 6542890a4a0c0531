"""Kernel times of a device with round constants, added up by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.cluster import attention, grouped, memory
from simulator.cluster.device import (
    attention_time_s,
    grouped_gemm_time_s,
    lookup_time_s,
    pointwise_time_s,
    trained_experts_time_s,
)
from simulator.cluster.elementwise import gcd, log2, maximum, minimum, plain, where
from simulator.cluster.gemm import SPLITS, TILES, operand_bytes, smooth_max
from simulator.cluster.peaks import constants_for, peak_flops_per_s
from simulator.errors import InputError
from simulator.spec.hardware import Device
from simulator.spec.kernels import KernelModel
from tests.support import a100

ATTENTION = {"efficiency": 0.5, "backward_rate": 0.5, "score_unit_s": 4.0, "softmax_overlap": 1.0, "tail": 0.1,
             "memory_efficiency": 0.5, "latency_s": 3.0, "throttle": 0.0}  # fmt: skip
GROUPED = {"efficiency": 0.5, "largest_tile": 128.0, "tile_overhead": 16.0, "tile_waste": 0.5, "wave_waste": 0.5,
           "prologue_k": 64.0, "split_latency_s": 2.0, "split_passes": 1.0, "ragged_tiles": 0.25, "overlap_power": 1.0,
           "ramp_bytes": 1000.0, "ramp_penalty": 2.0, "memory_efficiency": 0.8, "latency_s": 3.0,
           "throttle": 0.0}  # fmt: skip


def _device(**changes: Any) -> Device:
    constants = {"attention.bf16": ATTENTION, "grouped_gemm.bf16": GROUPED, "gemm.bf16": GROUPED,
                 "pointwise": {"latency_s": 3.0, "memory_efficiency": 0.5},
                 "lookup": {"latency_s": 7.0, "memory_efficiency": 0.25}}  # fmt: skip
    own = {"units": 4, "peak_flops_per_s": {"bf16": 1000.0, "fp8": 2000.0, "fp64": 0.0}, "vector_flops_per_s": 10.0,
           "memory_bandwidth_bytes_per_s": 1000.0, "kernels": KernelModel(constants=constants, provenance="assumed")}
    return replace(a100(), **{**own, **changes})


def _core(**changes: Any) -> Any:
    sizes = {"batch": 2, "heads": 3, "kv_heads": 1, "q_len": 5, "kv_len": 7, "head_dim": 100, "value_head_dim": 150,
             "causal": False}  # fmt: skip
    return attention_time_s(_device(), "bf16", **{**sizes, **changes})


def test_an_attention_core_adds_pairs_tail_and_bytes() -> None:
    """A pair takes 2 x 250 FLOPs at 500 per second and 4 / 4 s of softmax: 2 s. 2 x 3 heads of 5 x 7 pairs: 420 s. The
    longest block: a tenth of 5 queries x 7 keys x 2 s x 4 units: 28 s. Bytes: 2 x 2 x 250 x (3 x 5 + 7) at 500: 44."""
    assert _core() == 3 + 420 + 28 + 44
    # Five products for two at half the rate: 5 times the pairs; 2.5 times the bytes.
    assert _core(backward=True) == 3 + 5 * (420 + 28) + 2.5 * 44
    # 4 of 7 keys each.
    assert _core(window=4) == 3 + 240 + 16 + 44
    assert _core(window=9) == _core()
    # The causal mask of the last 5 of 7 positions leaves 3 + 4 + 5 + 6 + 7 pairs.
    assert _core(causal=True) == 3 + 2 * 3 * 25 * 2 + 28 + 44
    # A block holds 128 queries.
    assert _core(q_len=300) == 3 + 2 * 3 * 300 * 7 * 2 + 0.1 * 128 * 7 * 2 * 4 + 2 * 2 * 250 * (3 * 300 + 7) / 500
    assert _core(batch=np.array([2, 4])).tolist() == [495, 3 + 840 + 28 + 88]


def test_kernels_of_a_dtype_have_constants_of_their_own() -> None:
    """At fp8 the device's peak doubles; with a latency of 50 s in place of 3 that shows in every family."""
    slow = {family: {**constants, "latency_s": 50.0} for family, constants in
            (("attention.fp8", ATTENTION), ("grouped_gemm.fp8", GROUPED))}  # fmt: skip
    plain = _device()
    own = replace(plain, kernels=replace(plain.kernels, constants={**plain.kernels.constants, **slow}))
    core = {"batch": 2, "heads": 3, "kv_heads": 1, "q_len": 5, "kv_len": 7, "head_dim": 100, "value_head_dim": 150,
            "causal": False}  # fmt: skip
    sizes = {"experts": 8, "tokens": 64, "n": 32, "k": 48}
    for timed, fields in ((attention_time_s, core), (grouped_gemm_time_s, sizes)):
        assert timed(own, "fp8", **fields) - timed(plain, "fp8", **fields) == pytest.approx(47.0)
        assert timed(own, "bf16", **fields) == timed(plain, "bf16", **fields)


def test_a_device_of_unknown_units_is_one() -> None:
    single = attention_time_s(_device(units=0), "bf16", batch=1, heads=1, kv_heads=1, q_len=1, kv_len=1, head_dim=100,
                              value_head_dim=150, causal=False)  # fmt: skip
    assert single == 3 + 5 + 0.1 * 5 + 2 * 250 * 2 / 500


def test_visible_pairs_of_more_queries_than_keys_and_of_arrays() -> None:
    """Queries before the first key see one position each: continuous where lengths meet."""
    assert attention.visible_pairs(9, 7, causal=True) == 28 + 2
    assert attention.visible_pairs(3, 0, causal=True) == 0
    assert attention.visible_pairs(np.array([4, 5]), 4, causal=True, window=2).tolist() == [7, 8]
    assert attention.visible_pairs(5, 11, causal=False, window=3) == 15


@pytest.mark.parametrize(
    ("generation", "kernel", "factor"),
    [("ampere", "library", 1.0), ("ampere", "flash2", 1.0), ("ampere", "flash1", 2.0), ("hopper", "library", 1.0),
     ("hopper", "flash2", 1.75), ("blackwell", "flash2", 1.75), ("hopper", "flash1", 3.5), ("volta", "flash1", 2.0)],
)  # fmt: skip
def test_older_attention_kernels_are_slower_by_their_papers(generation: str, kernel: str, factor: float) -> None:
    assert attention.kernel_slowdown(generation, kernel) == factor


def _rounded(exact: float, ramp: float, waste: float) -> float:
    return max(1.0, exact + waste * (math.floor(exact) + min((exact - math.floor(exact)) / ramp, 1.0) - exact))


def _grouped_s(
    experts: int, rows: float, n: int, k: int, *, ragged: bool, width: float = 2.0, peak: float = 1e3
) -> float:
    """The text of cluster/grouped.py candidate by candidate, with the constants above put in."""
    filled = experts * (1 - math.exp(-rows / experts)) if ragged else min(experts, rows)
    tiles = [tile for tile in TILES if max(tile) <= 128]
    least = min(1 + 16 * (1 / a + 1 / b) for a, b in tiles)
    best = float("inf")
    for a, b in tiles:
        down = rows / a + 0.25 * filled if ragged else filled * _rounded(rows / filled / a, 1 / a, 0.5)
        for split in SPLITS:
            waves = _rounded(down * _rounded(n / b, 1 / b, 0.5) * split / 4, 0.05, 0.5)
            element = (1 + 16 * (1 / a + 1 / b)) / least
            seconds = waves * 2 * a * b * element * (k / split + 64) / (0.5 * peak / 4)
            best = min(best, seconds + (2 + split * 4 * rows * n / 1000 if split > 1 else 0))
    moved = width * (filled * n * k + rows * k) + max(width, 2) * rows * n
    return 3 + best + (moved + 2 * min(moved, 1000)) / 800


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize(
    ("experts", "tokens", "n", "k"), [(8, 4096, 512, 640), (8, 3, 100, 4096), (64, 700, 96, 33), (2, 1, 1, 1)]
)
def test_a_grouped_product_is_the_least_over_tiles_and_splits(
    experts: int, tokens: int, n: int, k: int, ragged: bool
) -> None:
    found = grouped_gemm_time_s(_device(), "bf16", experts=experts, tokens=tokens, n=n, k=k, ragged=ragged)
    assert isinstance(found, float)
    assert found == pytest.approx(_grouped_s(experts, tokens, n, k, ragged=ragged), rel=1e-12)
    busiest = grouped_gemm_time_s(_device(), "bf16", experts=experts, tokens=tokens, n=n, k=k, imbalance=1.5,
                                  ragged=ragged)  # fmt: skip
    assert busiest == pytest.approx(_grouped_s(experts, 1.5 * tokens, n, k, ragged=ragged), rel=1e-12)
    narrow = grouped_gemm_time_s(_device(), "fp8", experts=experts, tokens=tokens, n=n, k=k, ragged=ragged)
    assert narrow == pytest.approx(_grouped_s(experts, tokens, n, k, ragged=ragged, width=1.0, peak=2e3), rel=1e-12)


def test_experts_in_training_are_no_quicker_than_plain_products() -> None:
    """Even experts in whole tiles: a batch of plain products is the grouped kernel without ragged ends. Grouped
    constants of twice the plain efficiency leave the plain time; of half, the grouped."""
    sizes = {"experts": 4, "tokens": 4096, "n": 512, "k": 640}
    for efficiency, seconds in ((1.0, _grouped_s(4, 4096, 512, 640, ragged=False)), (0.25, None)):
        constants = {"gemm.bf16": GROUPED, "grouped_gemm.bf16": {**GROUPED, "efficiency": efficiency}}
        device = _device(kernels=KernelModel(constants=constants, provenance="assumed"))
        alone = grouped_gemm_time_s(device, "bf16", **sizes)
        found = trained_experts_time_s(device, "bf16", **sizes)
        assert found == pytest.approx(alone if seconds is None else seconds, rel=1e-12)
        assert (found > 1.2 * alone) == (efficiency == 1.0)
        busiest = trained_experts_time_s(device, "bf16", **{**sizes, "imbalance": np.array([1.0, 2.0])})
        twice = trained_experts_time_s(device, "bf16", **{**sizes, "tokens": 8192})
        assert busiest.tolist() == [found, twice]


@pytest.mark.parametrize("field", ["experts", "tokens", "n", "k", "imbalance"])
def test_grouped_products_broadcast_over_every_size(field: str) -> None:
    sizes = {"experts": 8, "tokens": 64, "n": 32, "k": 48, "imbalance": 1.0}
    many = grouped.grouped_gemm_time_s(_device(), "bf16", **{**sizes, field: np.array([[2, 4], [6, 8]])})
    assert many.shape == (2, 2)
    each = [grouped.grouped_gemm_time_s(_device(), "bf16", **{**sizes, field: value}) for value in (2, 4, 6, 8)]
    assert many.reshape(-1).tolist() == each


def test_pointwise_kernels_wait_for_memory_or_for_arithmetic() -> None:
    device = _device()
    assert memory.pointwise_time_s(device, 1000) == 3 + 2
    assert pointwise_time_s(device, 1000) == 3 + 2
    assert pointwise_time_s(device, 1000, kernels=4) == 12 + 2
    assert pointwise_time_s(device, 1000, 30) == 3 + 3
    assert memory.pointwise_time_s(device, 0, 0, 0) == 0
    assert pointwise_time_s(device, 0) == 3
    assert pointwise_time_s(replace(device, vector_flops_per_s=0.0), 1000, 30) == 3 + 2
    assert memory.pointwise_time_s(replace(device, vector_flops_per_s=0.0), 5) == 3 + 0.01
    assert memory.pointwise_time_s(device, 5) == 3 + 0.01
    assert memory.pointwise_time_s(device, np.array([500, 1500]), [10, 100], [1, 2]).tolist() == [4, 16]


def test_lookups_read_and_write_their_rows() -> None:
    assert lookup_time_s(_device(), 10, 100) == 7 + 2 * 10 * 100 / 250
    assert memory.lookup_time_s(_device(), [10, 20], 100).tolist() == [15, 23]


def test_operands_carry_their_scales() -> None:
    found = [operand_bytes(dtype) for dtype in ("fp32", "bf16", "fp8", "mxfp8", "nvfp4")]
    assert found == [4, 2, 1, 1 + 1 / 32, 0.5 + 1 / 16]


def test_a_smooth_maximum_of_nothing_is_nothing() -> None:
    found = smooth_max(np.array([0.0, 3.0, 0.0]), np.array([0.0, 4.0, 2.0]), 2.0)
    assert found.tolist() == [0.0, 5.0, 2.0]


def test_peaks_and_constants_of_a_dtype() -> None:
    own = {"gemm.bf16": {"a": 1.0}, "gemm.fp8": {"a": 2.0}, "gemm.fp32": {"a": 3.0}, "attention.bf16": {"a": 4.0}}
    device = _device(kernels=KernelModel(constants=own, provenance="assumed"))
    dtypes = ("bf16", "fp16", "fp8", "mxfp8", "fp32", "tf32", "nvfp4")
    found = [constants_for(device, "gemm", dtype)["a"] for dtype in dtypes]
    assert found == [1, 1, 2, 2, 3, 1, 1]
    assert [constants_for(device, "attention", dtype)["a"] for dtype in ("fp8", "mxfp8", "fp64")] == [4, 4, 4]
    assert [peak_flops_per_s(device, dtype) for dtype in ("bf16", "fp8", "mxfp8")] == [1000, 2000, 2000]
    for dtype in ("fp64", "fp16"):
        with pytest.raises(InputError) as refused:
            peak_flops_per_s(device, dtype)
        (problem,) = refused.value.problems
        assert (problem.where, f"no {dtype} products" in problem.message) == ("precision", True)
    with pytest.raises(InputError, match="Did you mean") as refused:
        peak_flops_per_s(device, "fp9")
    assert "fp8" in str(refused.value)
    assert "fp64" not in str(refused.value)


def test_elementwise_choices_of_numbers_stay_numbers() -> None:
    assert type(plain(np.float64(2.0))) is float
    assert type(plain(np.array(3))) is int
    assert plain([1]) == [1]
    assert plain(np.array([1, 2])).tolist() == [1, 2]
    assert type(log2(8)) is float
    assert (log2(8), log2(np.array([2, 16])).tolist()) == (3.0, [1, 4])
    assert (minimum(1, 2), maximum(1, 2), minimum(2.0, 1), maximum(2.0, 1)) == (1, 2, 1, 2.0)
    assert type(minimum(1, 2.5)) is int
    assert type(maximum(3, 2.5)) is int
    assert minimum(1, np.array([0, 2])).tolist() == [0, 1]
    assert maximum(np.array([0, 2]), 1).tolist() == [1, 2]
    assert (where(True, 1, 2), where(False, 1, 2), where(np.array([True, False]), 1, 2).tolist()) == (1, 2, [1, 2])
    assert (gcd(12.0, 8), gcd(9, 6), gcd(np.array([12.0, 9.0]), 6).tolist()) == (4, 3, [6, 3])
    assert type(gcd(12.0, 8)) is int
