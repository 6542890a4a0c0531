"""Matrix products on a device of one, two or three units with round constants: tiles, waves, splits, bytes, clocks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.cluster import gemm
from simulator.errors import InputError
from simulator.spec.hardware import Device
from simulator.spec.kernels import KernelModel
from tests.support import a100

PLAIN = {"efficiency": 0.5, "largest_tile": 128.0, "tile_overhead": 0.0, "tile_waste": 1.0, "wave_waste": 0.0,
         "prologue_k": 64.0, "split_latency_s": 1e9, "split_passes": 1.0, "overlap_power": 1.0, "ramp_bytes": 0.0,
         "ramp_penalty": 0.0, "memory_efficiency": 0.8, "latency_s": 3.0, "throttle": 0.0}  # fmt: skip


def _device(units: int, **constants: float) -> Device:
    model = KernelModel(constants={"gemm.bf16": {**PLAIN, **constants}}, provenance="assumed")
    return replace(a100(), units=units, peak_flops_per_s={"bf16": 1000.0, "fp32": 250.0},
                   memory_bandwidth_bytes_per_s=1000.0, kernels=model)  # fmt: skip


@pytest.mark.parametrize(("units", "share"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_one_tile_keeps_one_unit_busy(units: int, share: int) -> None:
    """32 x 128 fills one tile: 2 x 4096 x (10 + 64) FLOPs at 500 per second of all units. A device of unknown units is
    one. Bytes: 2 (320 + 1280 + 4096) at 800."""
    expected = 3 + share * 2 * 4096 * 74 / 500 + 2 * (320 + 1280 + 4096) / 800
    assert gemm.gemm_time_s(_device(units), "bf16", 32, 128, 10) == pytest.approx(expected, rel=1e-12)
    assert gemm.gemm_time_s(_device(units), "bf16", 128, 32, 10) == pytest.approx(
        3 + share * 2 * 4096 * 74 / 500 + 2 * (1280 + 320 + 4096) / 800, rel=1e-12)  # fmt: skip


def test_fp32_operands_and_results_are_four_bytes_wide() -> None:
    """bf16's constants at fp32's own peak, 125 of 250 FLOP/s."""
    expected = 3 + 2 * 4096 * 74 / 125 + 4 * (320 + 1280 + 4096) / 800
    assert gemm.gemm_time_s(_device(1), "fp32", 32, 128, 10) == pytest.approx(expected, rel=1e-12)
    own = replace(_device(1).kernels, constants={"gemm.bf16": PLAIN, "gemm.fp32": {**PLAIN, "latency_s": 50.0}})
    late = gemm.gemm_time_s(replace(_device(1), kernels=own), "fp32", 32, 128, 10)
    assert late == pytest.approx(expected + 47, rel=1e-12)


def test_a_batch_is_a_batch_of_tiles() -> None:
    """Five products on three units: 5 / 3 waves of 3 units' time, or two where the last wave's rest is lost."""
    moved = 5 * 2 * (320 + 1280 + 4096) / 800
    one = 2 * 4096 * 74 / (500 / 3)
    assert gemm.gemm_time_s(_device(3), "bf16", 32, 128, 10, 5) == pytest.approx(3 + 5 / 3 * one + moved, rel=1e-12)
    for lost, waves in ((1.0, 2.0), (0.25, 0.75 * 5 / 3 + 0.25 * 2)):
        found = gemm.gemm_time_s(_device(3, wave_waste=lost), "bf16", 32, 128, 10, 5)
        assert found == pytest.approx(3 + waves * one + moved, rel=1e-12)


def test_splitting_k_costs_a_pass_over_partial_sums_a_split() -> None:
    """On eight units, of k = 1000: at s splits s / 8 of the device work on (1000 / s + 64) steps. Passes over 4 x 4096
    bytes of fp32 sums at 800 per second, s of them, and 5 s: least at s = 8 of 1, 2, 3, 4, 6 and 8."""
    moved = 2 * (32 * 1000 + 1000 * 128 + 4096) / 800
    device = _device(8, split_latency_s=5.0, split_passes=2.0)
    seconds = {s: 8 * 2 * 4096 * (1000 / s + 64) / 500 + (5 + s * 2 * 4 * 4096 / 800) * (s > 1)
               for s in (1, 2, 3, 4, 6, 8)}  # fmt: skip
    assert min(seconds, key=seconds.__getitem__) == 8
    assert gemm.gemm_time_s(device, "bf16", 32, 128, 1000) == pytest.approx(3 + seconds[8] + moved, rel=1e-12)
    dear = _device(8, split_latency_s=5.0, split_passes=200.0)
    seconds = {s: 8 * 2 * 4096 * (1000 / s + 64) / 500 + (5 + s * 200 * 4 * 4096 / 800) * (s > 1)
               for s in (1, 2, 3, 4, 6, 8)}  # fmt: skip
    best = min(seconds, key=seconds.__getitem__)
    assert 1 < best < 8
    assert gemm.gemm_time_s(dear, "bf16", 32, 128, 1000) == pytest.approx(3 + seconds[best] + moved, rel=1e-12)


def test_short_transfers_and_the_power_limit() -> None:
    """1000 bytes and 0.5 x 400 more at 800 per second: 1.5 s; with 2 s of math (2^2 + 1.5^2)^(1/2) = 2.5 s. At a
    throttling time of 5 s and power 1 a third of 0.6 is lost, and of the drift of 0.4 what 2.5 s has of it."""
    c = {**PLAIN, "ramp_bytes": 400.0, "ramp_penalty": 0.5, "overlap_power": 2.0, "throttle": 0.6,
         "throttle_time_s": 5.0, "throttle_power": 1.0, "throttle_drift": 0.4}  # fmt: skip
    device = _device(1)
    drift = 0.4 * 2.5 / (2.5 + 20e-3)
    found = gemm.kernel_time_s(device, c, np.array([2.0]), np.array([1000.0]))
    assert found.tolist() == pytest.approx([3 + 2.5 * (1 + 0.2 + drift)], rel=1e-12)
    # 300 bytes are all short: 450 / 800 s. Without throttling, its drift is not felt either.
    cold = {**c, "throttle": 0.0}
    short = gemm.kernel_time_s(device, cold, np.array([0.0]), np.array([300.0]))
    assert short.tolist() == pytest.approx([3 + 450 / 800], rel=1e-12)


@pytest.mark.parametrize(
    ("size", "lost", "tiles"),
    # Of sides 32, 64, 96, 128: 100 fills 3 1/8, 1 9/16, 1 1/24 and 25/32; one row over two tiles of 32 opens a third.
    [(100.0, 1.0, (4, 2, 2, 1)), (100.0, 0.5, (3 + 9 / 16, 1 + 25 / 32, 1 + 25 / 48, 1)), (96.0, 0.5, (3, 1.75, 1, 1)),
     (100.0, 0.0, (3.125, 1.5625, 100 / 96, 1)), (128.0, 1.0, (4, 2, 2, 1)), (65.0, 1.0, (3, 2, 1, 1)),
     (129.0, 1.0, (5, 3, 2, 2))],
)  # fmt: skip
def test_tiles_cover_a_size_with_part_of_the_last_one_lost(size: float, lost: float, tiles: tuple[float, ...]) -> None:
    c = {**PLAIN, "tile_waste": lost}
    by_side = dict(zip((32, 64, 96, 128), tiles, strict=True))
    chosen = [tile for tile in gemm.TILES if max(tile) <= 128]
    down, across = gemm.tiles_down(np.array([size]), c), gemm.tiles_across(np.array([size]), c)
    assert down[:, 0].tolist() == pytest.approx([by_side[rows] for rows, _ in chosen])
    assert across[:, 0].tolist() == pytest.approx([by_side[columns] for _, columns in chosen])


def test_a_step_of_tiles_is_a_ramp_of_one_row() -> None:
    """Half a row over two tiles of 32 is half of the third; whole numbers stay."""
    found = gemm.ceil_ramp(np.array([0.0, 2.0, 2 + 0.5 / 32, 2 + 1 / 32, 2.9]), 1 / 32)
    assert found.tolist() == pytest.approx([0, 2, 2.5, 3, 3])


def test_smaller_tiles_cost_more_an_element_by_their_edges() -> None:
    """1 + 16 (1/32 + 1/128) over the largest tile's 1 + 16 (2/128), with all of the candidates in one wave."""
    dear = _device(1, tile_overhead=16.0)
    expected = 3 + 2 * 4096 * 74 / 500 * (1 + 0.5 + 0.125) / (1 + 0.25) + 2 * (320 + 1280 + 4096) / 800
    assert gemm.gemm_time_s(dear, "bf16", 32, 128, 10) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("field", ["m", "n", "k", "batch"])
def test_products_broadcast_over_every_size(field: str) -> None:
    """2000 shapes are worked in two blocks; a column of one size gives the rows' own times."""
    sizes: dict[str, Any] = {"m": 96, "n": 160, "k": 224, "batch": 3}
    device = a100()
    many = gemm.gemm_time_s(device, "bf16", **{**sizes, field: np.arange(1, 2001).reshape(2, 1000)})
    assert many.shape == (2, 1000)
    for place in (0, 1, 1022, 1023, 1024, 1025, 1999):
        alone = gemm.gemm_time_s(device, "bf16", **{**sizes, field: place + 1})
        assert isinstance(alone, float)
        assert many.reshape(-1)[place] == pytest.approx(alone, rel=1e-12)
    assert np.isfinite(many).all()


def test_products_that_a_device_lacks_are_refused() -> None:
    with pytest.raises(InputError, match="computes no fp8 products"):
        gemm.gemm_time_s(_device(1), "fp8", 8, 8, 8)
    assert math.isclose(gemm.operand_bytes("mxfp8"), 1 + 1 / 32)
