"""Kernel times against hand counts, datasheet limits and published measurements."""

import numpy as np
import pytest

from simulator.catalog import load_device, names
from simulator.cluster.device import (
    attention_time_s,
    gemm_time_s,
    grouped_gemm_time_s,
    lookup_time_s,
    peak_flops_per_s,
    pointwise_time_s,
    visible_pairs,
)
from simulator.cluster.gemm import SPLITS, TILES
from simulator.errors import InputError

MEASURED = ("a100-sxm-80gb", "h100-sxm-80gb", "b200-sxm-180gb")


def brute_force_gemm_s(device, m, n, k, batch):
    """The formulas of cluster/gemm.py, candidate by candidate, in plain Python for whole shapes."""
    c, peak, units = device.kernels.constants["gemm.bf16"], device.peak_flops_per_s["bf16"], device.units
    tiles = [t for t in TILES if max(t) <= c["largest_tile"]]
    cost = {t: 1 + c["tile_overhead"] * (1 / t[0] + 1 / t[1]) for t in tiles}
    bandwidth = device.memory_bandwidth_bytes_per_s * c["memory_efficiency"]
    best = float("inf")
    def covered(exact, ramp, waste):
        """Whole tiles or waves, with the share `waste` of the last one's empty part; each step rises over `ramp`."""
        step = min((exact - int(exact)) / ramp, 1.0)
        return max(1.0, exact + waste * (int(exact) + step - exact))

    for rows, cols in tiles:
        down, across = (covered(x / side, 1 / side, c["tile_waste"]) for x, side in ((m, rows), (n, cols)))
        for split in SPLITS:
            waves = covered(batch * down * across * split / units, 0.05, c["wave_waste"])
            flops = 2 * rows * cols * cost[rows, cols] / min(cost.values()) * (k / split + c["prologue_k"])
            seconds = waves * flops / (c["efficiency"] * peak / units)
            if split > 1:
                seconds += c["split_latency_s"] + c["split_passes"] * split * 4 * batch * m * n / bandwidth
            best = min(best, seconds)
    moved = 2 * batch * (m * k + k * n + m * n)
    memory = (moved + c["ramp_penalty"] * min(moved, c["ramp_bytes"])) / bandwidth
    busy = (best ** c["overlap_power"] + memory ** c["overlap_power"]) ** (1 / c["overlap_power"])
    late = (busy / c["throttle_time_s"]) ** c["throttle_power"]
    drift = c["throttle_drift"] * busy / (busy + 20e-3)
    return c["latency_s"] + busy * (1 + c["throttle"] * late / (1 + late) + drift)


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize(
    "shape", [(4096, 12288, 12288, 1), (128, 128, 65536, 1), (2048, 2048, 128, 96), (257, 513, 1000, 3), (1, 1, 1, 1)]
)
def test_gemm_is_the_least_over_tiles_and_splits(name, shape):
    device = load_device(name)
    assert gemm_time_s(device, "bf16", *shape) == pytest.approx(brute_force_gemm_s(device, *shape), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "size", "tflops"),
    [
        ("a100-sxm-80gb", 4096, 267), ("a100-sxm-80gb", 8192, 263),
        ("h100-sxm-80gb", 4096, 789), ("h100-sxm-80gb", 8192, 783), ("h200-sxm-141gb", 4096, 783),
        ("b200-sxm-180gb", 8192, 1492), ("b200-sxm-180gb", 16384, 1538), ("b300-sxm-288gb", 8192, 1598),
    ],
)  # fmt: skip
def test_gemm_near_the_rates_of_another_library(name, size, tflops):
    """TensorRT-LLM's cuBLAS products, a set that no constant was fitted to (guide to aiconfigurator, sec. 4.2)."""
    rate = 2 * size**3 / gemm_time_s(load_device(name), "bf16", size, size, size) / 1e12
    assert rate == pytest.approx(tflops, rel=0.17)


@pytest.mark.parametrize("name", names("devices"))
def test_no_device_computes_above_its_datasheet(name):
    device = load_device(name)
    for dtype in device.peak_flops_per_s:
        if dtype not in {"bf16", "fp16", "fp8", "nvfp4", "tf32", "fp32"}:
            continue
        rate = 2 * 16384.0**3 / gemm_time_s(device, dtype, 16384, 16384, 16384)
        assert 0.25 * device.peak_flops_per_s[dtype] < rate < device.peak_flops_per_s[dtype]
        moved = 2.0 * 16384 * 16384 * 64
        assert gemm_time_s(device, dtype, 8, 65536, 65536) > moved / 64 / device.memory_bandwidth_bytes_per_s / 4


def test_visible_pairs_count_the_mask():
    for q_len, kv_len in ((7, 7), (3, 9), (8, 8)):
        for window in (0, 1, 4, 100):
            row, col = np.arange(kv_len - q_len, kv_len)[:, None], np.arange(kv_len)[None, :]
            mask = (col <= row) & (col > row - window if window else True)
            assert visible_pairs(q_len, kv_len, causal=True, window=window) == mask.sum()
    assert visible_pairs(5, 11, causal=False) == 55


@pytest.mark.parametrize(
    ("name", "low", "high"), [("a100-sxm-80gb", 180, 230), ("h100-sxm-80gb", 500, 660), ("b200-sxm-180gb", 1000, 1500)]
)
def test_long_attention_runs_at_published_rates(name, low, high):
    """FlashAttention-2 Fig. 5 and FlashAttention-3 Fig. 5: causal, head_dim 128, 16k tokens (TFLOP/s)."""
    sizes = {"batch": 1, "heads": 16, "kv_heads": 16, "q_len": 16384, "kv_len": 16384,
             "head_dim": 128, "value_head_dim": 128}  # fmt: skip
    device = load_device(name)
    forward = attention_time_s(device, "bf16", causal=True, **sizes)
    backward = attention_time_s(device, "bf16", causal=True, backward=True, **sizes)
    assert low < 2 * 16 * 16384.0**2 * 128 / forward / 1e12 < high
    assert 2.5 < backward / forward < 3.5


def test_a_window_makes_long_attention_linear():
    device = load_device("h100-sxm-80gb")
    sizes = {"batch": 4, "heads": 32, "kv_heads": 8, "head_dim": 128, "value_head_dim": 128}
    times = [
        attention_time_s(device, "bf16", q_len=s, kv_len=s, causal=True, window=4096, **sizes) for s in (32768, 65536)
    ]
    assert times[1] / times[0] == pytest.approx(2.0, rel=0.1)


def test_grouping_small_experts_fills_the_device():
    device = load_device("h100-sxm-80gb")
    grouped = grouped_gemm_time_s(device, "bf16", experts=64, tokens=8192, n=1024, k=4096)
    alone = 64 * gemm_time_s(device, "bf16", 128, 1024, 4096)
    ideal = 2 * 8192 * 1024 * 4096 / peak_flops_per_s(device, "bf16")
    weights = 64 * 1024 * 4096 * 2 / device.memory_bandwidth_bytes_per_s
    assert max(ideal, weights) < grouped < alone / 2


def test_padded_experts_fill_whole_tiles():
    device = load_device("h100-sxm-80gb")
    sizes = {"experts": 8, "n": 14336, "k": 4096}
    even = grouped_gemm_time_s(device, "bf16", tokens=8192, ragged=False, **sizes)
    assert even < grouped_gemm_time_s(device, "bf16", tokens=8192, **sizes)
    doubled = grouped_gemm_time_s(device, "bf16", tokens=4096, imbalance=2.0, ragged=False, **sizes)
    assert doubled == pytest.approx(even, rel=1e-12)


def test_pointwise_is_latency_and_bandwidth():
    device = load_device("a100-sxm-80gb")
    c = device.kernels.constants["pointwise"]
    expected = 2 * c["latency_s"] + 1e9 / (device.memory_bandwidth_bytes_per_s * c["memory_efficiency"])
    assert pointwise_time_s(device, 1e9, kernels=2) == pytest.approx(expected, rel=1e-12)
    copied = 1e9 / (pointwise_time_s(device, 1e9) - c["latency_s"])
    assert 1581e9 * 0.98 < copied < 1594e9 * 1.02
    assert pointwise_time_s(device, 8, flops=1e12) > 1e12 / device.vector_flops_per_s


def test_lookup_reads_and_writes_its_rows():
    device = load_device("h100-sxm-80gb")
    assert lookup_time_s(device, 1e6, 4096) > 2 * 1e6 * 4096 / device.memory_bandwidth_bytes_per_s


def test_a_dtype_that_a_device_lacks_is_refused():
    with pytest.raises(InputError, match="computes no nvfp4 products"):
        gemm_time_s(load_device("a100-sxm-80gb"), "nvfp4", 8, 8, 8)
